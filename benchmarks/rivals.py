"""The honest comparison: what else reaches the sizes of a morphed network, with the same data, loss and steps.

Everything is chosen on the validation part; the test part is read once for each point, after it.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pruning import Importance, pruned
from torch import Tensor, nn

from netsmith.data.splits import Splits
from netsmith.distributed import processes
from netsmith.errors import DissectionError, MorphError, did_you_mean
from netsmith.files.cache import Cache, CacheEntry, digest
from netsmith.morphing.fit import fit
from netsmith.morphing.kinds import make_generator
from netsmith.morphing.measuring import Judge
from netsmith.morphing.morphable import Morphable, check_split
from netsmith.morphing.ordering import order_channels
from netsmith.morphing.pipeline import Morphed
from netsmith.morphing.preparing import Run, Subject, with_norms
from netsmith.morphing.recalibrating import has_statistics
from netsmith.morphing.settings import FitSettings
from netsmith.trace.chain import dissect
from netsmith.trace.cost import count_macs, count_params
from netsmith.training.engine import Progress, TrainResult
from netsmith.training.finetuning import Teacher, finetuned, lesson, named, optimizer_steps
from netsmith.training.settings import TrainSettings
from netsmith.widths.folding import fold_batch_norms
from netsmith.widths.groups import WidthGroup, permute, resize, set_widths

RIVALS = {
    "l1": "Torch-Pruning L1",
    "taylor": "Torch-Pruning Taylor",
    "nested": "nested",
    "alone": "trained alone",
}
"""What rivals are called in results, by what is asked for."""

_VERSION = "rivals 2"  # raise it when what is measured changes, so that nothing older is taken from a cache


def rivals(
    result: Morphed,
    which: Sequence[str] = ("l1", "nested"),
    steps: int = 1000,
    each: bool = False,
    *,
    training: TrainSettings,
    fitting: FitSettings | None = None,
    scratch: TrainSettings | None = None,
    images: int = 2048,
    cache: Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measure rivals at the ratios below 1 of a morphed network.

    - `l1`, `taylor`: the base pruned by Torch-Pruning to each size (`pruned`) and fine-tuned, `steps` being shared
      among the sizes; with `each`, once more with `steps` for each of them.
    - `nested`: one set of weights for all widths (slimmable networks), fitted for `steps`, drawing the full, a random
      and the lowest width in turn. It is measured at all ratios of the result, as its full width changes too.
    - `alone`: at each size a network from random weights, trained for `steps`.

    All have the same loss (the task's, and distillation from the base), optimizer and order of training images.
    Params and MACs are counted as the morphed network's, after folding where that is folded.

    Args:
        result: what `netsmith.morphing.pipeline.morph` gave.
        which: any of `RIVALS`, in the order of the results.
        steps: optimizer steps, as fitting took (`optimizer_steps` times epochs).
        each: see above.
        training: of the fitting; epochs follow from the steps.
        fitting: of the fitting: shares of the loss, views; draws are those above.
        scratch: in place of `training` where weights are random at first: what suits fine-tuning is rarely best there.
        images: training images by which "taylor" and "nested" rank channels.
        cache: folder of what is done, by content: after an interruption, the comparison goes on from its last epoch.
            None keeps nothing.
        device: where to compute.
        progress: told how far it is.

    Returns:
        `rivals` of details.json: `name`, `note`, `steps` (of each network that was trained), `seconds` of all training,
        and `points` with `ratio`, `params`, `macs`, the task's primary metric by split, and the `steps`
        that were made.

    Raises:
        MorphError: no such rival, fewer steps than sizes, no ratio below 1, or a network that cannot be pruned (said
            before anything is trained).
        TrainingError: a loss that is not finite.
    """
    ratios = [p.ratio for p in result.points if p.ratio < 1]
    asked = checked(which, ratios, steps)
    bench = Bench(
        result,
        training,
        fitting or FitSettings.model_validate({}),
        scratch or training,
        images,
        cache,
        device,
        progress,
    )
    if {"l1", "taylor"} & set(asked):
        bench.try_pruning(min(ratios))
    found: list[dict[str, Any]] = []
    for kind in asked:
        if kind == "nested":
            found.append(bench.nested("same total of steps", steps))
        elif kind == "alone":
            found.append(bench.sized(kind, "one network a size, from random weights", ratios, steps))
        else:
            found.append(bench.sized(kind, "same total of steps", ratios, steps // len(ratios)))
            if each:
                found.append(bench.sized(kind, "these steps for each size", ratios, steps))
    return found


def checked(which: Sequence[str], ratios: Sequence[float], steps: int) -> list[str]:
    """The rivals, each once, before anything is trained; `ratios` are those below 1. Raises MorphError."""
    asked = list(dict.fromkeys(which))
    unknown = [name for name in asked if name not in RIVALS]
    if unknown:
        raise MorphError(f"there is no rival '{unknown[0]}'. {did_you_mean(unknown[0], RIVALS)}")
    if not ratios:
        raise MorphError("rivals are measured at ratios below 1, and the result has none: morph with some, such as 0.5")
    if steps < len(ratios):
        raise MorphError(f"{steps} steps cannot be shared among {len(ratios)} sizes: each needs one at least")
    return asked


def fresh(model: nn.Module, groups: Sequence[WidthGroup], widths: Mapping[str, int], *, seed: int = 0) -> nn.Module:
    """A network of these widths with new random weights, in evaluation mode.

    Layers draw their own (`reset_parameters`); of other parameters, scales (by name: gamma, scale) become 1 and the
    rest is drawn from a normal distribution of deviation 0.02, as vision transformers do for tokens and positions.
    """
    new = resize(model, groups, widths).requires_grad_(True)
    drawn: set[int] = set()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in new.modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
                drawn |= {id(p) for p in module.parameters()}
        for name, parameter in new.named_parameters():
            if id(parameter) in drawn:
                continue
            last = name.rpartition(".")[2]
            if "gamma" in last or "scale" in last:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02)
    return new.eval()


class Bench:
    """Trains and measures single rivals under equal conditions.

    Args:
        result: the morphed network.
        training: optimisation.
        fitting: losses and views.
        scratch: optimisation of what starts from random weights.
        images: by which channels are ranked.
        cache: where results and the state of trainings are kept.
        device: where to compute.
        progress: told how far it is.
    """

    def __init__(
        self,
        result: Morphed,
        training: TrainSettings,
        fitting: FitSettings,
        scratch: TrainSettings,
        images: int,
        cache: Path | None = None,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        self.result, self.training, self.scratch, self.images = result, training, scratch, images
        self.fitting = fitting.model_copy(update={"draws": ("full", "random", "low", "random")})
        self.cache = None if cache is None else Cache(cache)
        self.device, self.progress = device, progress
        self.teacher = Teacher(result.network.model)
        subject = Subject(result.network, result.data, result.task, result.prepared)
        self.judge = Judge(subject, Run(device))
        network, space = result.network, result.space
        self._common = digest(
            _VERSION, network.identity(), result.task.name,
            result.data.fingerprint, space.groups, dict(space.low), dict(space.high), result.prepared.folded,
            result.seed, images,
        )  # fmt: skip
        self._own: tuple[nn.Module, tuple[WidthGroup, ...]] | None = None
        self._fitted: tuple[Morphable, dict[str, Any]] | None = None

    # --- one network a size -------------------------------------------------------------------------------------------

    def try_pruning(self, ratio: float) -> None:
        """Prune to a ratio, once, so that what cannot be pruned is said before anything is trained."""
        key = self._key("pruning", ratio)
        if self._load(key) is None:
            self._start("l1", self.result.space.at(ratio))
            self._store(key, {}, {})

    def sized(self, kind: str, note: str, ratios: Sequence[float], steps: int) -> dict[str, Any]:
        """A rival with a network for each ratio, each trained for so many steps."""
        points = [{"ratio": ratio, **self._trained(kind, ratio, steps)} for ratio in ratios]
        return _entry(kind, note, steps, points, sum(p.pop("seconds") for p in points))

    def _trained(self, kind: str, ratio: float, steps: int) -> dict[str, Any]:
        widths, data = self.result.space.at(ratio), self.result.data
        training = self.scratch if kind == "alone" else self.training
        settings: dict[str, Any] = self.fitting.model_dump(include={"distillation", "temperature", "views"})
        key = self._key(kind, widths, training, steps, settings)
        done = self._load(key)
        if done is not None:
            return dict(done.meta)
        model = self._start(kind, widths)
        trained = finetuned(
            model, self.result.network, data, self.result.task, training, steps,
            teacher=self.teacher, checkpoint_dir=self._checkpoints(key, model), device=self.device,
            called=f"{RIVALS[kind]} at {ratio:g}", progress=self.progress, **settings,
        )  # fmt: skip
        plain = fold_batch_norms(model, self.result.prepared.example) if self.result.prepared.folded else model
        lessons, _ = lesson(data, training, steps)
        point = self._point(model, plain) | self._cost(trained, lessons, training)
        assert point["params"] == self.result.model.sizes(widths)[0], f"{kind} at {widths} is of another size"
        self._store(key, {}, point)
        return point

    def _start(self, kind: str, widths: Mapping[str, int]) -> nn.Module:
        result = self.result
        if kind == "alone":
            return fresh(*self._plain(), widths, seed=result.seed)
        by: Importance = "taylor" if kind == "taylor" else "l1"
        return pruned(
            result.network, result.space, widths,
            by=by, data=result.data, task=result.task, seed=result.seed, images=self.images,
        )  # fmt: skip

    def _plain(self) -> tuple[nn.Module, tuple[WidthGroup, ...]]:
        """The base with its batch norms, where the groups can then be told, and the space's groups in it."""
        result = self.result
        if self._own is None:
            found = with_norms(result.network, result.prepared, result.space.groups)
            if found is None:
                found = copy.deepcopy(result.prepared.model), tuple(result.space.groups)
                set_widths(*found, {})  # as they are, not as they were last read
            self._own = found
        return self._own

    # --- one set of weights for all sizes -----------------------------------------------------------------------------

    def nested(self, note: str, steps: int) -> dict[str, Any]:
        """The rival with one set of weights, at each ratio of the result."""
        shape = self.result.network.preprocess.input_size
        anew = ("recalibrated as trained",) if has_statistics(self.result.prepared.model, shape) else ()
        key = self._key("nested", self.training, steps, self.fitting, *anew)
        points = [{"ratio": p.ratio, **self._read(key, p.ratio, steps)} for p in self.result.points]
        seconds = [p.pop("seconds") for p in points]
        return _entry("nested", note, steps, points, seconds[0])  # one fit for all

    def _read(self, key: str, ratio: float, steps: int) -> dict[str, Any]:
        widths = self.result.space.at(ratio)
        at = self._key(key, widths)
        done = self._load(at)
        if done is not None:
            return dict(done.meta)
        if self._fitted is None:
            self._fitted = self._fit(key, steps)
        morphable, cost = self._fitted
        model = morphable.module(widths)
        self.judge.recalibrated(model, self.result.seed)
        point = self._point(model, model) | cost
        self._store(at, {}, point)
        return point

    def _fit(self, key: str, steps: int) -> tuple[Morphable, dict[str, Any]]:
        """The nested weights, fitted now or before, and what that took."""
        morphable = self._nested()
        done = self._load(key)
        if done is not None:
            morphable.generator.load_state_dict(dict(done))
            return morphable, dict(done.meta)
        lessons, training = lesson(self.result.data, self.training, steps)
        trained = fit(
            morphable, lessons, self.result.task, self.fitting, training,
            preprocess=self.result.network.preprocess, checkpoint_dir=self._checkpoints(key, morphable),
            device=self.device, progress=named(self.progress, RIVALS["nested"]),
        )  # fmt: skip
        cost = self._cost(trained, lessons, training)
        self._store(key, morphable.generator.state_dict(), cost)
        return morphable, cost

    def _nested(self) -> Morphable:
        """The base with its channels in order of importance, and the generator that takes the first of them."""
        result, space = self.result, self.result.space
        base = copy.deepcopy(result.prepared.model).requires_grad_(True)
        set_widths(base, space.groups, {})
        for group in space.groups:  # back to the base's own order: this rival knows nothing of the result
            order = result.ordered.orders[group.name]
            permute(base, group, sorted(range(len(order)), key=order.__getitem__))
        order_channels(
            base, space, result.network, result.data, order="importance", images=self.images, seed=result.seed
        )
        try:
            chain = dissect(base, result.prepared.example)
        except DissectionError:
            chain = None  # it is run whole
        morphable = Morphable(base, space, make_generator("nested", base.state_dict(), space.groups), chain)
        check_split(morphable, result.prepared.example)
        return morphable

    # --- for both -----------------------------------------------------------------------------------------------------

    def _point(self, model: nn.Module, counted: nn.Module) -> dict[str, Any]:
        """A trained network, measured: validation, and test for the first and only time."""
        result = self.result
        metrics = self.judge.both(lambda part: self.judge.of(model, part))
        return {
            "params": count_params(counted),
            "macs": count_macs(counted, result.network.preprocess.input_size),
            result.task.primary: {part: found[result.task.primary] for part, found in metrics.items()},
        }

    def _cost(self, trained: TrainResult, lessons: Splits, training: TrainSettings) -> dict[str, Any]:
        made = len(trained.history) * optimizer_steps(len(lessons.train), training)
        return {"steps": made, "seconds": trained.seconds}

    def _key(self, kind: str, *parts: object) -> str:
        return f"{kind.partition('-')[0]}-{digest(self._common, kind, *parts)[:32]}"

    def _load(self, key: str) -> CacheEntry | None:
        return None if self.cache is None else self.cache.load(key)

    def _store(self, key: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Keep a result; the checkpoints that led to it are of no more use."""
        if self.cache is None or not processes.first():
            return
        self.cache.store(key, tensors, meta)
        shutil.rmtree(self.cache.root / "checkpoints" / key, ignore_errors=True)

    def _checkpoints(self, key: str, start: nn.Module) -> Path | None:
        """Where a training keeps its state; one that starts from other weights is another."""
        if self.cache is None:
            return None
        return self.cache.root / "checkpoints" / key / digest(start.state_dict())[:16]


def _entry(kind: str, note: str, steps: int, points: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    return {"name": RIVALS[kind], "note": note, "steps": steps, "seconds": seconds, "points": points}
