"""The steps of a reassembly, one by one: timed, cached by content, and telling how far they are."""

from __future__ import annotations

import itertools
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from netsmith.data.images import probe_count
from netsmith.data.splits import Splits, balanced_indices, check_labelled, probe_set
from netsmith.distributed.processes import own_device
from netsmith.distributed.sharing import Piece, share
from netsmith.errors import BudgetError
from netsmith.files.cache import Cache, CacheEntry, digest
from netsmith.files.stopwatch import Stopwatch
from netsmith.networks.network import Network, check_network
from netsmith.reassembly.candidates import (
    Candidate,
    adapter_resources,
    choices,
    joint_costs,
    joints_of,
    latencies,
    search,
    stages_of,
    stitch_arrays,
    with_latencies,
)
from netsmith.reassembly.finetuning import finetune
from netsmith.reassembly.members import (
    Parent,
    chains_of,
    judge,
    members_within,
    on_device,
    preprocessing_of,
    study,
    with_accuracy,
)
from netsmith.reassembly.partition import Partition, check_feasible, partition
from netsmith.reassembly.recipe import FitSpec, Recipe
from netsmith.reassembly.representation import Representations, represent
from netsmith.reassembly.scores import ScoreContext, get_score
from netsmith.reassembly.settings import ReassemblySettings, Size, StitchSettings
from netsmith.reassembly.similarity import SimilarityTable, similarity
from netsmith.reassembly.stitch import Assembled, Probe, ProbeCache, assemble, plan_recipe, recipe_cost
from netsmith.reassembly.stitch_cost import StitchCosts
from netsmith.search.blocks import Block
from netsmith.search.k_best import SearchResult
from netsmith.trace.chain import Chain, Unit
from netsmith.training.checkpoint import copied_state
from netsmith.training.engine import Progress, TrainResult, evaluate
from netsmith.training.restore import restore_if_worse
from netsmith.training.session import placed
from netsmith.training.tasks import Classification

_LOG = logging.getLogger("netsmith.reassemble")

Split = Literal["validation", "test"]
Stages = Sequence[Sequence[Block]]

VALIDATED = frozenset({"stitch", "knn", "logme"})
"""Scores that look at many images; the others see one batch."""


class Clock(Stopwatch):
    """Times the steps, tells how far they are, and holds what they share."""

    def __init__(self, cache: Cache | None, progress: Progress | None) -> None:
        super().__init__()
        self.cache, self._progress = cache, progress

    def share(self, what: str, pieces: Sequence[Piece]) -> list[CacheEntry]:
        """The results of pieces of work, from the cache or computed, with other processes if there are any."""

        def tell(done: int, total: int, name: str) -> None:
            self.tell(what, done, total, name)

        return share(pieces, self.cache, tell if what else None)

    def tell(self, what: str, done: int | float, total: int | float | None, note: str = "") -> None:
        """Passes on how far a piece of work is."""
        if self._progress is not None:
            self._progress(what, done, total, note)


class Run:
    """One reassembly in progress."""

    def __init__(
        self, networks: Sequence[Network], data: Splits, settings: ReassemblySettings, device: str, steps: Clock
    ) -> None:
        for network in networks:
            check_network(network)
        self.networks, self.data, self.settings, self.device, self.steps = networks, data, settings, device, steps
        self.seed, self.budget = settings.seed, settings.budget
        check_labelled(data, "reassembly")
        self.task = Classification(len(data.classes))
        self.parents: tuple[Parent, ...] = ()
        self._identity = {n.name: n.identity() for n in networks}
        self._shared = ProbeCache()
        self._leading: tuple[tuple[float, int], Assembled] | None = None

    @property
    def chains(self) -> dict[str, Chain]:
        """The parents' chains by name."""
        return chains_of(self.parents)

    def study(self) -> None:
        """Dissect and judge the parents; what cannot be done as asked is refused here, before the long work.

        That is a zoo that cannot be cut so, or more probe images than there are.
        """
        probe_count(self.settings.probe.images, len(self.data.train))
        with self.steps.step("dissection"):
            self.parents = study(self.networks, self.data.train.images([0]))
            check_feasible(self._sizes(), self.settings.partition.k, self.settings.partition.eps)
        with self.steps.step("parents"):
            accuracies = self._accuracies("validation", "judging the zoo on validation")
            self.parents = tuple(with_accuracy(p, a) for p, a in zip(self.parents, accuracies, strict=True))

    def _accuracies(self, split: Split, what: str) -> list[float | None]:
        """Every parent's on a part of the data, each measured by one process."""
        images = getattr(self.data, split)

        def piece(parent: Parent) -> Piece:
            def compute() -> tuple[dict[str, Tensor], dict[str, Any]]:
                return {}, {"value": judge(parent, images, len(self.data.classes), device=self.device)}

            key = digest(split, self.data.fingerprint, self._identity[parent.name])
            return Piece(f"accuracy-{key}", parent.name, compute)

        entries = self.steps.share(what, [piece(p) for p in self.parents])
        return [entry.meta["value"] for entry in entries]

    def compare(self) -> SimilarityTable:
        """Represent all parents on the probe set, and compare all their cuts."""
        with self.steps.step("representation"):
            images, _ = probe_set(self.data, self.settings.probe.images, seed=self.seed)
            entries = self.steps.share("representations", [self._represented(p, images) for p in self.parents])
            named = zip(self.parents, entries, strict=True)  # kept by content: perhaps under another name
            reps = [Representations.from_tensors(entry, {**entry.meta, "network": p.name}) for p, entry in named]
        with self.steps.step("similarity"):
            return similarity(reps, self.settings.similarity.metric, self.settings.similarity.biased)

    def _represented(self, parent: Parent, images: Tensor) -> Piece:
        grid = self.settings.probe.grid

        def compute() -> tuple[dict[str, Tensor], dict[str, Any]]:
            with on_device([parent], self.device):
                return represent(parent.chain, parent.network.preprocess(images), grid=grid).to_tensors()

        key = digest(1, self._identity[parent.name], images, str(grid), parent.chain.cuts)
        return Piece(f"representation-{key}", parent.name, compute)

    def partition(self, table: SimilarityTable) -> Partition:
        """Cut every network into k blocks and group them."""
        cut = self.settings.partition
        with self.steps.step("partition"):
            return partition(self._sizes(), table.values, cut.k, eps=cut.eps, restarts=cut.restarts, seed=self.seed)

    def _sizes(self) -> dict[str, list[float]]:
        size = self.settings.partition.size
        return {p.name: [_measure(u, size) for u in p.chain.units] for p in self.parents}

    def search(self, sets: Partition) -> SearchResult:
        """Find the cheapest assemblies within the budget."""
        stages, style, batch = stages_of(sets), self.settings.stitch.style, self.settings.budget.latency_batch
        allowed = {"distinct_sets": self.settings.search.distinct_sets, "mix": self.settings.search.mix}
        latency_batch = batch if self.budget.latency_ms is not None else None
        with self.steps.step("search"):
            options = choices(stages, sets, self.parents, len(self.data.classes), memory_batch=batch)
            adapters = adapter_resources(stages, self.chains, style, memory_batch=batch)
            if latency_batch is not None:
                timed = self._latencies(stages, sets, style, latency_batch)
                options, adapters = with_latencies(options, adapters, timed)
            # nothing of an infeasible budget depends on the stitch costs, which take longest: refuse it before them
            free = [np.zeros((len(a), len(b))) for a, b in itertools.pairwise(stages)]
            try:
                search(options, free, adapters, self.budget, 1, **allowed)
            except BudgetError as error:
                raise BudgetError(f"{error}{members_within(self.parents, self.budget)}") from error
        with self.steps.step("stitch costs"):
            costs = self._joint_costs(stages, self.probe)
        with self.steps.step("search"):
            stitch = stitch_arrays(stages, costs)
            return search(options, stitch, adapters, self.budget, self.settings.search.candidates, **allowed)

    def _latencies(self, stages: Stages, sets: Partition, style: str, batch: int) -> Mapping[str, Any]:
        """Of blocks and adapters on this machine, measured by one process."""

        def compute() -> tuple[dict[str, Tensor], dict[str, Any]]:
            return {}, latencies(stages, sets, self.parents, len(self.data.classes), style, batch)

        where = (platform.node(), torch.__version__, torch.get_num_threads(), self.device)
        key = digest(1, *where, self._identities(), stages, len(self.data.classes), style, batch)
        return self.steps.share("latency", [Piece(f"latency-{key}", "blocks and adapters", compute)])[0].meta

    def _joint_costs(self, stages: Stages, probe: Probe) -> StitchCosts:
        sources, targets = joints_of(stages)

        def compute() -> tuple[dict[str, Tensor], dict[str, Any]]:
            inputs = {p.name: p.network.preprocess(probe.images) for p in self.parents}
            with on_device(self.parents, self.device):
                costs = joint_costs(
                    stages,
                    self.parents,
                    inputs,
                    seed=self.seed,
                    progress=lambda done, total: self.steps.tell("stitch costs", done, total),
                )
            return {"values": torch.from_numpy(costs.values)}, {}

        key = digest(1, self._identities(), sources, targets, probe.images, self.seed)
        entry = self.steps.share("", [Piece(f"stitch-{key}", "", compute)])[0]
        return StitchCosts(tuple(sources), tuple(targets), entry["values"].numpy())

    def _identities(self) -> list[object]:
        return [(p.name, self._identity[p.name]) for p in self.parents]

    @cached_property
    def probe(self) -> Probe:
        """The labelled images of closed-form fits; a larger set than that of the comparison."""
        images, labels = probe_set(self.data, min(self.settings.stitch.images, len(self.data.train)), seed=self.seed)
        return Probe(images, labels, preprocessing_of(self.parents))

    def score(self, found: SearchResult) -> list[Candidate]:
        """Build every candidate, fit it, score it; best first."""
        score, stitch = self.settings.score, self.settings.stitch
        names = list(dict.fromkeys([score.name, *score.also]))
        refs = {p.name: p.ref for p in self.parents}
        with self.steps.step("scoring"):
            count = min(score.images, len(self.data.validation))
            chosen = balanced_indices(self.data.validation.labels, count, self.seed)
            images, labels = self.data.validation.images(chosen), self.data.validation.labels[chosen]
            recipes = [
                plan_recipe(
                    assembly.blocks,
                    self.chains,
                    refs,
                    style=stitch.style,
                    num_classes=len(self.data.classes),
                    fit=_fit_spec(stitch),
                    seed=self.seed,
                )
                for assembly in found.assemblies
            ]
            scored = self._scored(recipes, names, images, labels)
            ranked = []
            for assembly, (recipe, scores) in zip(found.assemblies, scored, strict=True):
                params, macs = recipe_cost(recipe, self.chains)
                assert params == assembly.resources["params"], (params, assembly.resources)
                assert macs == assembly.resources["macs"], (macs, assembly.resources)
                latency, memory = assembly.resources.get("latency_ms"), assembly.resources["memory_bytes"] / 1e6
                candidate = Candidate(recipe, assembly.cost, params, macs, scores, latency, memory)
                candidate.stitched = scores.get("stitch")
                ranked.append(candidate)
        return sorted(ranked, key=lambda c: (-c.scores[score.name], c.cost))

    def _scored(
        self, recipes: Sequence[Recipe], names: Sequence[str], images: Tensor, labels: Tensor
    ) -> list[tuple[Recipe, dict[str, float]]]:
        """Every recipe with its scores and what its fit has decided; each is built and scored by one process."""

        def piece(place: int, recipe: Recipe) -> Piece:
            def compute() -> tuple[dict[str, Tensor], dict[str, Any]]:
                module = self.build(recipe)
                scores = self._scores(module, names, images, labels)
                rank = (scores[names[0]], -place)
                if self._leading is None or rank > self._leading[0]:
                    self._leading = rank, module
                return {}, {"scores": scores, "recalibrate": module.recipe.fit.recalibrate}

            about = (recipe.digest, self.settings.stitch.init, sorted(names), self._weights_of(recipe))
            return Piece(f"scores-{digest(3, *about, self.probe.images, images, labels)}", "", compute)

        entries = self.steps.share("scoring candidates", [piece(*item) for item in enumerate(recipes)])
        return [
            (
                replace(recipe, fit=replace(recipe.fit, recalibrate=entry.meta["recalibrate"])),
                {name: entry.meta["scores"][name] for name in names},
            )
            for recipe, entry in zip(recipes, entries, strict=True)
        ]

    def _scores(self, module: Assembled, names: Sequence[str], images: Tensor, labels: Tensor) -> dict[str, float]:
        inputs, device = self._preprocess(module.recipe)(images), own_device(self.device)
        found = {}
        with placed(module, device, channels_last=False):
            for name in names:
                count = len(inputs) if name in VALIDATED else 64
                about = ScoreContext(module, inputs[:count].to(device), labels[:count].to(device))
                found[name] = get_score(name)(about)
        return found

    def build(self, recipe: Recipe) -> Assembled:
        """The network of a recipe, stitched on this process's device; it comes back on the CPU."""
        used = {n.name for n in recipe.networks}
        with on_device([p for p in self.parents if p.name in used], self.device):
            init = self.settings.stitch.init
            module = assemble(recipe, self.chains, init=init, probe=self.probe, cache=self._shared)
        return module.cpu()

    def _built(self, recipe: Recipe) -> Assembled:
        """Return the best network of this process's scoring, if it is that of the recipe, or build it."""
        leading, self._leading = self._leading, None
        if leading is not None and leading[1].recipe == recipe:
            return leading[1]
        return self.build(recipe)

    def _preprocess(self, recipe: Recipe):
        return next(p.network.preprocess for p in self.parents if p.name == recipe.stem)

    def _weights_of(self, recipe: Recipe) -> list[object]:
        used = {n.name for n in recipe.networks}
        return [self._identity[p.name] for p in self.parents if p.name in used]

    def finetune(
        self, ranked: list[Candidate], checkpoints: Path | None
    ) -> tuple[Candidate, Assembled, TrainResult | None, dict[str, Tensor]]:
        """Fine-tune the finalists and keep the best on validation; also the stitched weights of that one."""
        settings, trainable = self.settings.finetune, self.settings.trainable
        best: tuple[Candidate, Assembled, TrainResult, dict[str, Tensor]] | None = None
        with self.steps.step("finetuning"):
            for candidate in ranked[: self.settings.score.finalists if settings is not None else 1]:
                module = self._built(candidate.recipe)
                stitched = copied_state(module)
                candidate.stitched = self._accuracy(module, candidate.recipe, "validation")
                if settings is None:
                    return candidate, module, None, stitched
                # what changes the tuning has a folder of its own
                about = (candidate.recipe.digest, self._weights_of(candidate.recipe), self.data.fingerprint)
                about = (*about, settings, trainable, self.settings.stitch.init, self.probe.images)
                result = finetune(
                    module,
                    self.data,
                    settings,
                    trainable=trainable,
                    preprocess=self._preprocess(candidate.recipe),
                    checkpoints=None if checkpoints is None else checkpoints / digest(*about)[:16],
                    device=self.device,
                    progress=self.steps.tell,
                )
                start = {"accuracy": candidate.stitched}
                result = restore_if_worse(module, stitched, start, result, self.task, _made_worse)
                candidate.finetuned = result.metrics["accuracy"] if result.best_epoch else None
                if best is None or result.metrics["accuracy"] > best[2].metrics["accuracy"]:
                    best = (candidate, module, result, stitched)
        assert best is not None
        return best

    def _accuracy(self, module: nn.Module, recipe: Recipe, split: Split) -> float:
        images = self.data.validation if split == "validation" else self.data.test
        return evaluate(module, images, self.task, preprocess=self._preprocess(recipe), device=self.device)["accuracy"]

    def measure(
        self, module: Assembled, stitched: dict[str, Tensor], tuned: bool
    ) -> tuple[dict[str, float | None], dict[str, float | None]]:
        """Read the test part, once: the chosen network before and after tuning, and every parent."""
        with self.steps.step("test"):
            accuracy: dict[str, float | None] = {"finetuned": None}
            if tuned:
                accuracy["finetuned"] = self._accuracy(module, module.recipe, "test")
                final = copied_state(module)
                module.load_state_dict(stitched)
                accuracy["stitched"] = self._accuracy(module, module.recipe, "test")
                module.load_state_dict(final)
            else:
                accuracy["stitched"] = self._accuracy(module, module.recipe, "test")
            values = self._accuracies("test", "reading the test part")
            members = {p.name: value for p, value in zip(self.parents, values, strict=True)}
        return accuracy, members


def _fit_spec(stitch: StitchSettings) -> FitSpec:
    spec = FitSpec(head=stitch.head, recalibrate=stitch.recalibrate)
    return spec if stitch.ridge is None else replace(spec, ridges=stitch.ridge)


def _measure(unit: Unit, size: Size) -> float:
    return 1.0 if size == "units" else float(getattr(unit, size))


def _made_worse(before: float, after: float) -> None:
    _LOG.warning(
        "fine-tuning made the network worse on validation (%.2f%% before, %.2f%% at best after): it "
        "keeps its stitched weights. Lower finetune.lr, or take larger stitch.ridge",
        100 * before,
        100 * after,
    )
