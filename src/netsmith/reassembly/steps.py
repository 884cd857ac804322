"""The steps of a reassembly, one by one: timed, cached by content, and telling how far they are."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor, nn

from netsmith.core.cache import Cache, digest
from netsmith.core.data import Splits, balanced_indices, probe_set
from netsmith.core.engine import Progress, TrainResult, TrainSettings, evaluate, train
from netsmith.core.graph import Chain, Unit
from netsmith.core.network import Network, Preprocess
from netsmith.core.profile import Budget
from netsmith.core.tasks import Classification
from netsmith.reassembly.candidates import (
    adapter_resources,
    choices,
    joint_costs,
    search,
    stages_of,
    stitch_arrays,
)
from netsmith.reassembly.parents import Parent, chains_of, judge, preprocessing_of, study, with_accuracy
from netsmith.reassembly.partition import Partition, check_feasible, partition
from netsmith.reassembly.recipe import FitSpec, Recipe
from netsmith.reassembly.representation import Representations, represent
from netsmith.reassembly.scores import ScoreContext, get_score
from netsmith.reassembly.search import SearchResult, Solver
from netsmith.reassembly.similarity import SimilarityTable, similarity
from netsmith.reassembly.stitch import Assembled, Probe, ProbeCache, assemble, plan_recipe, recipe_cost

_LOG = logging.getLogger("netsmith.reassemble")

Init = Literal["lstsq", "random"]
Trainable = Literal["all", "adapters"]
Size = Literal["units", "params", "macs"]

VALIDATED = frozenset({"stitch", "knn", "logme"})
"""Scores that look at many images; the others see one batch."""


@dataclass
class Candidate:
    """A recipe with what is known of it. `scores` are higher-is-better; accuracies are in 0..1 on validation."""

    recipe: Recipe
    cost: float
    params: int
    macs: int
    scores: dict[str, float]
    latency_ms: float | None = None
    memory_mb: float | None = None
    stitched: float | None = None
    finetuned: float | None = None


def finetune(
    module: Assembled,
    data: Splits,
    settings: TrainSettings,
    *,
    trainable: Trainable = "all",
    preprocess: Preprocess | None = None,
    checkpoints: Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TrainResult:
    """Train an assembled network in place: all of it, or adapters and head only; the best epoch on validation stays.

    Raises:
        TrainingError: the loss is not finite.
    """
    task = Classification(module.recipe.num_classes)
    module.freeze(trainable == "adapters")
    try:
        return train(
            module,
            data,
            task,
            settings,
            preprocess=preprocess,
            checkpoint_dir=checkpoints,
            progress=progress,
            device=device,
        )
    finally:
        module.freeze(False)
        module.eval()


class Clock:
    """Times the steps, tells how far they are, and holds what they share."""

    def __init__(self, cache: Cache | None, progress: Progress | None) -> None:
        self.cache, self._progress = cache, progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Times what runs inside, under `seconds[name]`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 3)
            _LOG.debug("%s took %.1f s", name, self.seconds[name])

    def tell(self, what: str, done: int | float, total: int | float | None, note: str = "") -> None:
        """Passes on how far a piece of work is."""
        if self._progress is not None:
            self._progress(what, done, total, note)


class Run:
    """One reassembly in progress."""

    def __init__(
        self, networks: Sequence[Network], data: Splits, budget: Budget, seed: int, device: str, steps: Clock
    ) -> None:
        self.networks, self.data, self.budget, self.seed, self.device = networks, data, budget, seed, device
        self.steps = steps
        self.task = Classification(len(data.classes))
        self.parents: tuple[Parent, ...] = ()
        self._probe: Probe | None = None
        self._shared = ProbeCache()

    @property
    def chains(self) -> dict[str, Chain]:
        """The parents' chains by name."""
        return chains_of(self.parents)

    def study(self, k: int, eps: float, size: Size) -> None:
        """Dissect and judge the parents; a zoo that cannot be cut as asked is refused here, before the long work."""
        with self.steps.step("dissection"):
            self.parents = study(self.networks, self.data.train.images([0]))
            check_feasible(self._sizes(size), k, eps)
        with self.steps.step("parents"):
            judged = []
            for i, parent in enumerate(self.parents):
                self.steps.tell("judging the zoo on validation", i, len(self.parents), parent.name)
                accuracy = self._cached_number(
                    ("accuracy", "validation", self.data.fingerprint, _identity(parent)),
                    lambda parent=parent: judge(
                        parent, self.data.validation, len(self.data.classes), device=self.device
                    ),
                )
                judged.append(with_accuracy(parent, accuracy))
            self.parents = tuple(judged)
            self.steps.tell("judging the zoo on validation", len(judged), len(judged))

    def compare(self, metric: str, biased: bool, grid: int | None, count: int) -> SimilarityTable:
        """Representations of all parents on the probe set, and the similarity of all their cuts."""
        with self.steps.step("representation"):
            images, _ = probe_set(self.data, count, seed=self.seed)
            reps = []
            for i, parent in enumerate(self.parents):
                self.steps.tell("representations", i, len(self.parents), parent.name)
                reps.append(self._represent(parent, images, grid))
            self.steps.tell("representations", len(reps), len(reps))
        with self.steps.step("similarity"):
            return similarity(reps, metric, biased)

    def _represent(self, parent: Parent, images: Tensor, grid: int | None) -> Representations:
        key = digest("representation", 1, _identity(parent), images, str(grid), parent.chain.cuts)
        if self.steps.cache is not None and (entry := self.steps.cache.load(key)) is not None:
            return Representations.from_tensors(entry, entry.meta)
        rep = represent(parent.chain, parent.network.preprocess(images), grid=grid)
        if self.steps.cache is not None:
            self.steps.cache.store(key, *rep.to_tensors())
        return rep

    def divide(self, table: SimilarityTable, k: int, eps: float, size: Size, restarts: int) -> Partition:
        """Cut every network into k blocks and group them."""
        with self.steps.step("partition"):
            return partition(self._sizes(size), table.values, k, eps=eps, restarts=restarts, seed=self.seed)

    def _sizes(self, size: Size) -> dict[str, list[float]]:
        return {p.name: [_measure(u, size) for u in p.chain.units] for p in self.parents}

    def look_up(
        self,
        sets: Partition,
        count: int,
        fit_images: int,
        distinct_sets: bool,
        mix: bool,
        solver: Solver,
        style: str,
        batch: int,
    ) -> SearchResult:
        """The cheapest assemblies within the budget."""
        stages = stages_of(sets)
        latency_batch = batch if self.budget.latency_ms is not None else None
        with self.steps.step("search"):
            options = choices(
                stages, sets, self.parents, len(self.data.classes), latency_batch=latency_batch, memory_batch=batch
            )
            adapters = adapter_resources(stages, self.chains, style, latency_batch=latency_batch, memory_batch=batch)
            # nothing of an infeasible budget depends on the stitch costs, which take longest: refuse it before them
            free = [np.zeros((len(a), len(b))) for a, b in itertools.pairwise(stages)]
            search(options, free, adapters, self.budget, 1, distinct_sets=distinct_sets, mix=mix, solver=solver)
        with self.steps.step("stitch costs"):
            probe = self.probe(fit_images)
            inputs = {p.name: p.network.preprocess(probe.images) for p in self.parents}
            costs = joint_costs(
                stages,
                self.parents,
                inputs,
                seed=self.seed,
                progress=lambda done, total: self.steps.tell("stitch costs", done, total),
            )
        with self.steps.step("search"):
            stitch = stitch_arrays(stages, costs)
            found = search(
                options, stitch, adapters, self.budget, count, distinct_sets=distinct_sets, mix=mix, solver=solver
            )
        return found

    def probe(self, count: int) -> Probe:
        """The labelled images of closed-form fits; a larger set than that of the comparison."""
        if self._probe is None or len(self._probe.images) != count:
            images, labels = probe_set(self.data, min(count, len(self.data.train)), seed=self.seed)
            self._probe = Probe(images, labels, preprocessing_of(self.parents))
        return self._probe

    def rank(
        self,
        found: SearchResult,
        style: str,
        init: Init,
        spec: FitSpec,
        fit_images: int,
        score: str,
        also: Sequence[str],
        score_images: int,
        batch: int,
    ) -> list[Candidate]:
        """Build every candidate, fit it, score it; best first."""
        names = list(dict.fromkeys([score, *also]))
        refs = {p.name: p.ref for p in self.parents}
        with self.steps.step("scoring"):
            probe = self.probe(fit_images)
            chosen = balanced_indices(
                self.data.validation.labels, min(score_images, len(self.data.validation)), self.seed
            )
            images, labels = self.data.validation.images(chosen), self.data.validation.labels[chosen]
            ranked = []
            for i, assembly in enumerate(found.assemblies):
                self.steps.tell("scoring candidates", i, len(found.assemblies))
                recipe = plan_recipe(
                    assembly.blocks,
                    self.chains,
                    refs,
                    style=style,
                    num_classes=len(self.data.classes),
                    fit=spec,
                    seed=self.seed,
                )
                params, macs = recipe_cost(recipe, self.chains)
                assert params == assembly.resources["params"], (params, assembly.resources)
                assert macs == assembly.resources["macs"], (macs, assembly.resources)
                candidate = Candidate(
                    recipe,
                    assembly.cost,
                    params,
                    macs,
                    {},
                    latency_ms=assembly.resources.get("latency_ms"),
                    memory_mb=assembly.resources["memory_bytes"] / 1e6,
                )
                candidate.scores = self._scores(recipe, init, names, probe, images, labels)
                candidate.stitched = candidate.scores.get("stitch")
                ranked.append(candidate)
            self.steps.tell("scoring candidates", len(ranked), len(ranked))
        return sorted(ranked, key=lambda c: (-c.scores[score], c.cost))

    def _scores(
        self,
        recipe: Recipe,
        init: Init,
        names: Sequence[str],
        probe: Probe,
        images: Tensor,
        labels: Tensor,
    ) -> dict[str, float]:
        wanted = list(names)
        key = digest("scores", 1, recipe.digest, init, self._weights_of(recipe), probe.images, images, labels)
        known: dict[str, float] = {}
        if self.steps.cache is not None and (entry := self.steps.cache.load(key)) is not None:
            known = dict(entry.meta)
        missing = [n for n in wanted if n not in known]
        if missing:
            module = self.build(recipe, init, probe)
            inputs = self._preprocess(recipe)(images)
            for name in missing:
                many = name in VALIDATED
                context = ScoreContext(module, inputs if many else inputs[:64], labels if many else labels[:64])
                known[name] = get_score(name)(context)
            if self.steps.cache is not None:
                self.steps.cache.store(key, {}, known)
        return {n: known[n] for n in wanted}

    def build(self, recipe: Recipe, init: Init, probe: Probe) -> Assembled:
        """The network of a recipe, stitched."""
        return assemble(recipe, self.chains, init=init, probe=probe, cache=self._shared)

    def _preprocess(self, recipe: Recipe):
        return next(p.network.preprocess for p in self.parents if p.name == recipe.stem)

    def _weights_of(self, recipe: Recipe) -> list[object]:
        used = {n.name for n in recipe.networks}
        return [_identity(p) for p in self.parents if p.name in used]

    def finish(
        self,
        ranked: list[Candidate],
        init: Init,
        finalists: int,
        settings: TrainSettings | None,
        trainable: Trainable,
        checkpoints: Path | None,
    ) -> tuple[Candidate, Assembled, TrainResult | None, dict[str, Tensor]]:
        """Fine-tune the finalists and keep the best on validation; also the stitched weights of that one."""
        assert self._probe is not None
        best: tuple[Candidate, Assembled, TrainResult | None, dict[str, Tensor]] | None = None
        with self.steps.step("finetuning"):
            for candidate in ranked[: finalists if settings is not None else 1]:
                module = self.build(candidate.recipe, init, self._probe)
                stitched = {name: t.detach().clone() for name, t in module.state_dict().items()}
                candidate.stitched = self._accuracy(module, candidate.recipe, "validation")
                if settings is None:
                    return candidate, module, None, stitched
                result = finetune(
                    module,
                    self.data,
                    settings,
                    trainable=trainable,
                    preprocess=self._preprocess(candidate.recipe),
                    checkpoints=None if checkpoints is None else checkpoints / candidate.recipe.digest[:16],
                    device=self.device,
                    progress=self.steps.tell,
                )
                candidate.finetuned = result.metrics["accuracy"]
                if best is None or candidate.finetuned > (best[0].finetuned or 0.0):
                    best = (candidate, module, result, stitched)
        assert best is not None
        return best

    def _accuracy(self, module: nn.Module, recipe: Recipe, split: Literal["validation", "test"]) -> float:
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
                final = {name: t.detach().clone() for name, t in module.state_dict().items()}
                module.load_state_dict(stitched)
                accuracy["stitched"] = self._accuracy(module, module.recipe, "test")
                module.load_state_dict(final)
            else:
                accuracy["stitched"] = self._accuracy(module, module.recipe, "test")
            members = {}
            for i, parent in enumerate(self.parents):
                self.steps.tell("reading the test part", i, len(self.parents), parent.name)
                members[parent.name] = self._cached_number(
                    ("accuracy", "test", self.data.fingerprint, _identity(parent)),
                    lambda parent=parent: judge(parent, self.data.test, len(self.data.classes), device=self.device),
                )
            self.steps.tell("reading the test part", len(members), len(members))
        return accuracy, members

    def _cached_number(self, parts: tuple[object, ...], compute) -> float | None:
        if self.steps.cache is None:
            return compute()
        key = digest(*parts)
        entry = self.steps.cache.load(key)
        if entry is None:
            value = compute()
            self.steps.cache.store(key, {}, {"value": value})
            return value
        return entry.meta["value"]


def _measure(unit: Unit, size: Size) -> float:
    return 1.0 if size == "units" else float(getattr(unit, size))


def _identity(parent: Parent) -> tuple[object, ...]:
    network = parent.network
    return (network.provenance.sha256, network.source, network.preprocess.to_json(), network.num_classes)
