"""The main path: a zoo, data and a budget in; one fine-tuned network with everything that led to it out.

`Zoo -> Representations -> SimilarityTable -> Partition -> Recipes -> nn.Module -> fine-tuned nn.Module`
(design, section 2). Steps that take long are cached by content: what did not change is not computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from netsmith.data.splits import Splits
from netsmith.files.cache import Cache
from netsmith.networks.network import Network
from netsmith.reassembly.candidates import Candidate
from netsmith.reassembly.facts import facts_of
from netsmith.reassembly.finetuning import Trainable
from netsmith.reassembly.members import Parent
from netsmith.reassembly.partition import Partition
from netsmith.reassembly.recipe import FitSpec, Recipe
from netsmith.reassembly.search import SearchResult
from netsmith.reassembly.similarity import SimilarityTable
from netsmith.reassembly.steps import Clock, Init, Run, Size
from netsmith.reassembly.stitch import Assembled
from netsmith.search.budget import Budget
from netsmith.training.engine import Progress, TrainResult, TrainSettings


@dataclass
class Reassembled:
    """What came out, and all that led to it.

    `module` is the chosen network with its final weights in eval mode, on the CPU; `parents`, `table`, `partition`,
    `found` and `candidates` (best first) are the steps on the way. `accuracy` maps `stitched` and `finetuned` to the
    test accuracy (0..1), `finetuned` to None where there was no tuning or it was `undone`; `members` maps each parent's
    name to its test accuracy, or None.
    """

    module: Assembled
    recipe: Recipe
    parents: tuple[Parent, ...]
    table: SimilarityTable
    partition: Partition
    found: SearchResult
    candidates: list[Candidate]
    budget: Budget
    accuracy: dict[str, float | None]
    members: dict[str, float | None]
    training: TrainResult | None
    seconds: dict[str, float]
    classes: tuple[str, ...]
    data_name: str
    data_sha256: str
    seed: int
    test_images: int

    @property
    def undone(self) -> bool:
        """Whether the chosen network was fine-tuned and is as it was stitched, as that made it worse."""
        return self.training is not None and self.training.best_epoch == 0


def reassemble(
    networks: Sequence[Network],
    data: Splits,
    budget: Budget | None = None,
    *,
    k: int = 4,
    eps: float = 0.2,
    size: Size = "units",
    restarts: int = 200,
    metric: str = "cka",
    biased: bool = False,
    grid: int | None = None,
    probe_images: int | None = None,
    fit_images: int = 2000,
    candidates: int = 20,
    distinct_sets: bool = True,
    mix: bool = True,
    style: str = "auto",
    init: Init = "lstsq",
    fit: FitSpec | None = None,
    score: str = "stitch",
    also: Sequence[str] = ("params",),
    score_images: int = 2000,
    finalists: int = 1,
    finetune: TrainSettings | None = None,
    trainable: Trainable = "all",
    latency_batch: int = 1,
    seed: int = 0,
    device: str = "cpu",
    cache: Cache | None = None,
    checkpoints: Path | None = None,
    progress: Progress | None = None,
) -> Reassembled:
    """Build from a zoo the network that fits a budget (Yang et al., "Deep Model Reassembly", NeurIPS 2022).

    Everything is selected on the validation part of `data`; its test part is read once, at the end.

    Args:
        networks: the zoo, two at least, of different names.
        data: what the network is for; probe images come from its training part.
        budget: bounds on params, MACs (one image), latency (ms, at `latency_batch` images) and memory (MB).
        k: blocks, and equivalence sets.
        eps: a block has at most `(1 + eps) / k` of its network, measured by `size`.
        size: what blocks are measured by.
        restarts: of the partition.
        metric: similarity of representations: `cka`, `rbf_cka` or `lr`; `biased` as the papers' numbers.
        biased: see `metric`.
        grid: compare `grid x grid` means instead of one mean a channel.
        probe_images: images on which networks are compared; by default 512, or all where there are fewer.
        fit_images: images on which adapters and head are fitted.
        candidates: how many of the cheapest assemblies are built and scored.
        distinct_sets: at most one block of each equivalence set.
        mix: blocks of two networks at least.
        style: of the adapters: `auto` (3x3 where that is cheap, 1x1 elsewhere), `linear`, `conv3` or `dery`.
        init: adapters fitted in closed form, or drawn at random.
        fit: settings of the closed-form fit.
        score: what ranks the candidates.
        also: further scores to note.
        score_images: most validation images that a score sees.
        finalists: how many of the best-scored candidates are fine-tuned; the best on validation is chosen.
        finetune: settings of the fine-tuning; None leaves it out.
        trainable: fine-tune everything, or adapters and head only.
        latency_batch: images at once when latency is measured, and for memory.
        seed: of all that is drawn.
        device: where to compute.
        cache: keeps steps between runs.
        checkpoints: folder in which fine-tuning keeps its state, to go on after an interruption.
        progress: told how far it is.

    Raises:
        ZooError, DissectionError, DataError, PartitionError, BudgetError, TrainingError: see the functions above.
    """
    run = Run(networks, data, budget or Budget(), seed, device, Clock(cache, progress))
    run.study(k, eps, size, probe_images)
    table = run.compare(metric, biased, grid, probe_images)
    sets = run.divide(table, k, eps, size, restarts)
    found = run.look_up(sets, candidates, fit_images, distinct_sets, mix, style, latency_batch)
    spec = fit or FitSpec()
    scored = run.rank(found, style, init, spec, fit_images, score, also, score_images, latency_batch)
    chosen, module, training, stitched = run.finish(scored, init, finalists, finetune, trainable, checkpoints)
    accuracy, members = run.measure(module, stitched, training is not None and training.best_epoch > 0)
    module.facts = facts_of(
        chosen.recipe,
        run.parents,
        module,
        counts=(chosen.params, chosen.macs),
        budget=run.budget,
        accuracy=accuracy,
        undone=training is not None and training.best_epoch == 0,
        classes=data.classes,
        data=data.name,
        images=len(data.test),
        seed=seed,
    )
    return Reassembled(
        module=module,
        recipe=chosen.recipe,
        parents=run.parents,
        table=table,
        partition=sets,
        found=found,
        candidates=scored,
        budget=run.budget,
        accuracy=accuracy,
        members=members,
        training=training,
        seconds=run.steps.seconds,
        classes=data.classes,
        data_name=data.name,
        data_sha256=data.fingerprint,
        seed=seed,
        test_images=len(data.test),
    )
