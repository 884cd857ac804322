"""The main path: a zoo, data and a budget in; one fine-tuned network with everything that led to it out.

`Zoo -> Representations -> SimilarityTable -> Partition -> Recipes -> nn.Module -> fine-tuned nn.Module`
(design, section 2). Steps that take long are cached by content: what did not change is not computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netsmith.data.splits import Splits
from netsmith.files.cache import Cache
from netsmith.networks.network import Network
from netsmith.reassembly.candidates import Candidate
from netsmith.reassembly.facts import facts_of
from netsmith.reassembly.members import Parent
from netsmith.reassembly.partition import Partition
from netsmith.reassembly.recipe import Recipe
from netsmith.reassembly.settings import ReassemblySettings
from netsmith.reassembly.similarity import SimilarityTable
from netsmith.reassembly.steps import Clock, Run
from netsmith.reassembly.stitch import Assembled
from netsmith.records.section import with_changes
from netsmith.search.budget import Budget
from netsmith.search.k_best import SearchResult
from netsmith.training.engine import Progress, TrainResult


@dataclass
class Reassembled:
    """What came out, and all that led to it.

    `module` is the chosen network with its final weights in eval mode, on the CPU; `parents`, `table`, `partition`,
    `found` and `candidates` (best first) are the steps on the way. `accuracy` maps `stitched` and `finetuned` to the
    test accuracy (0..1), `finetuned` to None where there was no tuning or it was `undone`; `members` maps each parent's
    name to its test accuracy, or None.

    Examples:
        >>> len(result.recipe.blocks), sorted(result.accuracy)
        (2, ['finetuned', 'stitched'])
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
    settings: ReassemblySettings | None = None,
    *,
    device: str = "cpu",
    cache: Cache | None = None,
    checkpoints: Path | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Reassembled:
    """Build from a zoo the network that fits a budget (Yang et al., "Deep Model Reassembly", NeurIPS 2022).

    Everything is selected on the validation part of `data`; its test part is read once, at the end.

    Args:
        networks: the zoo, two at least, of different names.
        data: what the network is for; probe images come from its training part.
        budget: bounds on params, MACs (one image), latency (ms) and memory (MB); in place of those in `settings`.
        settings: all settings, such as a `ReassembleConfig` has them; None for the defaults, which do not fine-tune.
        device: where to compute.
        cache: keeps steps between runs.
        checkpoints: folder in which fine-tuning keeps its state, to go on after an interruption.
        progress: told how far it is.
        **changes: single settings by name, such as `partition={"k": 2, "eps": 0.5}`, `search={"candidates": 4}` or
            `finetune=TrainSettings(epochs=10)` (`ReassemblySettings`).

    Raises:
        ConfigError: a setting that does not exist or is out of its bounds.
        ZooError, DissectionError, DataError, PartitionError, BudgetError, TrainingError: see the functions above.

    Examples:
        >>> result = netsmith.reassemble(zoo, data, netsmith.Budget(params="150k"), partition={"k": 2, "eps": 0.5})
        >>> netsmith.count_params(result.module) <= 150_000
        True
    """
    settings = with_changes(ReassemblySettings, settings, changes)
    if budget is not None:
        settings = settings.model_copy(update={"budget": settings.budget.model_copy(update=dict(budget))})
    run = Run(networks, data, settings, device, Clock(cache, progress))
    run.study()
    table = run.compare()
    sets = run.partition(table)
    found = run.search(sets)
    scored = run.score(found)
    chosen, module, training, stitched = run.finetune(scored, checkpoints)
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
        seed=settings.seed,
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
        seed=settings.seed,
        test_images=len(data.test),
    )
