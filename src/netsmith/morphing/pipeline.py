"""The main path: one network and data in; a generator of its weights at any width, and what it costs, out.

`nn.Module -> WidthGroups -> ordered nn.Module -> Generator -> nn.Module at any width` (design, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from netsmith.data.classes import splits_by_name
from netsmith.data.images import ImageSet, check_labelled
from netsmith.data.splits import Splits
from netsmith.errors import DissectionError, MorphError
from netsmith.files.stopwatch import Stopwatch
from netsmith.morphing.coordinates import along
from netsmith.morphing.fit import FitSettings, check_unmixed, drawn_together, fit
from netsmith.morphing.generator import Generator, make_generator
from netsmith.morphing.grid import Grid, keyframe_widths
from netsmith.morphing.importance import ranking_images
from netsmith.morphing.inr import INR
from netsmith.morphing.keyframes import Apart, divide, fit_keyframes, own_tensors
from netsmith.morphing.live import MorphableModel
from netsmith.morphing.morphable import Morphable, check_split
from netsmith.morphing.ordering import Order, Ordered, order_channels, reordered
from netsmith.morphing.pictures import pictures
from netsmith.morphing.preparing import Prepared, prepare
from netsmith.morphing.recalibrating import augmented, has_statistics, is_base, recalibrated
from netsmith.morphing.repairing import probe_images, repair, repairable
from netsmith.morphing.space import MorphSpace, Range, morph_space
from netsmith.networks.network import Network, check_network
from netsmith.trace.chain import Chain, dissect
from netsmith.trace.cost import measure_latency
from netsmith.training.engine import Entry, Progress, TrainResult, TrainSettings, evaluate
from netsmith.training.tasks import Generation, Task, make_task
from netsmith.widths.groups import Axis

Norms = Literal["fold", "keep"]

WARM_START = 1000
"""Steps in which an `inr` learns the base's weights before it is fitted, unless its settings say otherwise."""


@dataclass(frozen=True)
class WidthResult:
    """The network at one width: params and MACs of the whole, and the task's metrics by split.

    `recalibrated`: it was measured with statistics of batch norms that were estimated anew on training images.
    `pictures`: of a network that generates images, some of the test part and what it makes of them.
    """

    ratio: float
    widths: dict[str, int]
    params: int
    macs: int
    fitted: bool
    metrics: dict[str, dict[str, float]]
    latency_ms: float | None = None
    recalibrated: bool = False
    pictures: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Morphed:
    """What came out, and all that led to it.

    `model` serves networks of any width; `base` has the base network's metrics by split, `floor` those of the network
    without what is generated, `points` one entry a ratio; `keyframes` the trainings of a grid's, in their order, and
    `training` what came after them, or all there was; `augmented`, where batch norms stay, whether the base's have seen
    shifted and mirrored images; `pictures`, where images are generated, those of the base.
    """

    model: MorphableModel
    network: Network
    task: Task
    prepared: Prepared
    ordered: Ordered
    base: dict[str, dict[str, float]]
    floor: dict[str, dict[str, float]]
    points: tuple[WidthResult, ...]
    training: TrainResult | None
    seconds: dict[str, float]
    data: Splits
    seed: int
    keyframes: tuple[tuple[float, TrainResult], ...] = ()
    augmented: bool | None = None
    pictures: Mapping[str, str] = field(default_factory=dict)

    @property
    def space(self) -> MorphSpace:
        """What varies."""
        return self.model.morphable.space


def default_keyframes(space: MorphSpace) -> dict[str, Any]:
    """For a grid: keyframes at every eighth down to a quarter, at halves below, and at the low end; the coarse set has
    3/4 of that. What is in between are those that the way down leaves out: each of its steps goes to the narrowest that
    has at least half the channels of the one above. From full width these are halves, and three quarters and odd
    eighths are in between, but where groups of few channels have no half.

    The low end is that of the group that goes lowest: a group of three heads ends at a third where others end at a
    quarter, and a quarter is within the range all the same. No group is narrower in a keyframe than in the range. What
    has the widths of another keyframe is none. A range from the base's width up has one keyframe, the base itself.
    """
    low = space.hull[0]
    lowest = {g.name: min(space.low[g.name], g.width) for g in space.groups}
    if low >= 1 or lowest == space.full:
        return {"keyframes": [1.0], "coarse": None, "lowest": lowest}

    def widths(ratio: float) -> dict[str, int]:
        return keyframe_widths(space.full, ratio, lowest)

    ratios = [*(k / 8 for k in range(7, 1, -1)), *(2.0**-k for k in range(3, 20))]
    found = [1.0]
    for ratio in ratios:
        if ratio > low * 1.2 and widths(ratio) not in (widths(found[-1]), widths(low)):
            found.append(ratio)
    found.append(low)
    steps = [1.0]  # down to the low end
    while steps[-1] > low:
        below = [r for r in found if r < steps[-1]]
        steps.append(min((r for r in below if r >= steps[-1] / 2), default=below[0]))
    between = [r for r in (3 / 4, 7 / 8, 5 / 8, 3 / 8) if r in found and r not in steps]
    return {"keyframes": found, "inbetweens": between, "coarse": 0.75 * low, "lowest": lowest}


def morph(
    network: Network,
    data: Splits,
    *,
    blocks: str | Sequence[str] = "all",
    widths: Range = (0.25, 1.0),
    streams: bool = False,
    norms: Norms = "fold",
    order: Order = "auto",
    solver: str = "auto",
    generator: str = "grid",
    settings: Mapping[str, Any] | None = None,
    fitting: FitSettings | None = None,
    training: TrainSettings | None = None,
    ratios: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
    importance_images: int = 2048,
    latency: bool = False,
    seed: int = 0,
    device: str = "cpu",
    checkpoints: Path | None = None,
    progress: Progress | None = None,
    on_epoch: Callable[[Entry], None] | None = None,
    ready: Callable[[MorphSpace], None] | None = None,
) -> Morphed:
    """From one trained network to networks of any width (Yang et al., "Neural Metamorphosis", ECCV 2024).

    Which epoch is kept is decided on the validation part of `data`; its test part is read once, at the end. Batch norms
    that stay get statistics of their own at each measured width where that is better (`recalibrated`).

    Args:
        network: the base, with its trained weights; it is not changed.
        data: what it is for.
        blocks: "all" inner widths, "last_block", or names of blocks.
        widths: lowest and highest fitted width, as ratios or as channel counts.
        streams: let residual streams vary too, where that is proven.
        norms: fold batch norms into what is before them, or keep them.
        order: of the channels: by importance (what `nested` and `grid` need), smooth (`inr`), or as they are.
        solver: of the shortest path, where channels are smoothed.
        generator: `grid`, `nested` or `inr`.
        settings: of the generator; by default what suits the range.
        fitting: draws and losses; None for the defaults.
        training: the optimisation; None fits nothing.
        ratios: at which the result is measured; outside the fitted range too.
        importance_images: training images by which channels are ranked, in the base and in a grid's keyframes.
        latency: measure milliseconds an image at each ratio, too.
        seed: of all that is drawn.
        device: where to compute.
        checkpoints: folder in which fitting keeps its state, to go on after an interruption.
        progress: told how far it is.
        on_epoch: told what each epoch gave.
        ready: told the space once everything is checked, before anything is fitted or written; may raise.

    Raises:
        SourceError: nothing tells how the network wants its images.
        ChannelError: no width group can be proved.
        DataError: the data has other classes.
        MorphError: what is asked of space, generator or ratios is impossible.
        TrainingError: data, task and network do not fit, or the loss is not finite.
    """
    check_network(network)
    if network.task != "generation":
        check_labelled(data, "morphing")
    _ = network.preprocess.statistics  # refused before the long work
    data = splits_by_name(network.model, data, network.num_classes, network.name)
    watch = Stopwatch()
    task = make_task(
        network.task, network.num_classes, shape=network.preprocess.input_size, classes=data.classes, ignore=data.ignore
    )
    with watch.step("groups"):
        prepared = prepare(network, fold=norms == "fold")
        chain = _chain(prepared)
        space = morph_space(prepared.groups, blocks, widths, streams=streams, chain=chain)
        for ratio in ratios:
            space.at(ratio)
    with watch.step("order"):
        ordered = order_channels(
            prepared.model, space, network, data,
            order=_order(order, generator), solver=solver, images=importance_images, seed=seed,
        )  # fmt: skip
    with watch.step("generator"):
        made = make_generator(
            generator, prepared.model.state_dict(), space.groups, _settings(generator, settings, prepared, space, chain)
        )
        if training is not None:
            _check_fitted(made, space)
    morphable = Morphable(prepared.model, space, made, chain)
    check_split(morphable, prepared.example)
    judge = Judge(task, network, data, device, progress)
    floor = judge.both(lambda part: judge.floor(morphable, part))
    fitting = fitting or FitSettings.model_validate({})
    apart = None if training is None else _apart(made, len(data.train), training, fitting)
    if training is not None and (apart is None or apart.together is not None):
        check_unmixed(training)
    if ready is not None:
        ready(space)
    with watch.step("generator"):
        ends = {g.name: (space.low[g.name], space.high[g.name]) for g in space.groups}
        made.begin(prepared.model.state_dict(), ends, progress, checkpoints)
    result, courses = None, ()
    if apart is not None and isinstance(made, Grid):
        with watch.step("keyframes"):
            ranking = partial(ranking_images, data, network, importance_images, seed)
            courses, moved = fit_keyframes(
                made, network, prepared, ordered.orders, data, task, apart.each, fitting, apart.steps,
                ranking=ranking if ordered.order == "importance" else None,
                checkpoints=checkpoints, progress=progress, device=device,
            )  # fmt: skip
            ordered = reordered(ordered, prepared.model, space, moved)
        fitting, training = fitting.model_copy(update={"draws": ("coarse",)}), apart.together
    if training is not None:
        with watch.step("fit"):
            result = fit(
                morphable, data, task, fitting, training,
                preprocess=network.preprocess, checkpoint_dir=checkpoints, progress=progress, on_epoch=on_epoch,
                device=device,
            )  # fmt: skip
        if result.best_epoch:  # else nothing of it was kept
            morphable.space = replace(space, drawn=drawn_together(morphable, fitting))
    made.settle()
    if isinstance(made, Grid) and made.repaired:
        with watch.step("repair"):
            repair(morphable, made, network.preprocess(probe_images(data, network.preprocess.input_size, seed)))
    about = {
        "name": f"{network.name}_morph",
        "num_classes": network.num_classes,
        "task": network.task,
        "classes": list(data.classes),
        "preprocess": network.preprocess.to_json(),
        "provenance": [asdict(network.provenance)],
        "licence": network.provenance.licence,
        "commercial": network.provenance.commercial,
    }
    model = MorphableModel(morphable, network.preprocess.input_size, about=about)
    with watch.step("evaluation"):
        base = judge.both(lambda part: judge.of(network.model, part))
        points = tuple(judge.at(model, ratio, latency, seed) for ratio in ratios)
    return Morphed(
        model, network, task, prepared, ordered, base, floor, points, result, watch.seconds, data, seed, courses,
        judge.augmented(prepared.model, seed), judge.pictures(network.model, seed),
    )  # fmt: skip


def _chain(prepared: Prepared) -> Chain | None:
    """The dissected network, or None where it cannot be cut: it is then run whole."""
    try:
        return dissect(prepared.model, prepared.example)
    except DissectionError:
        return None


def _order(order: Order, generator: str) -> Order:
    if order != "auto":
        return order
    return "smooth" if generator == INR.kind else "importance"


def _apart(generator: Generator, images: int, training: TrainSettings, fitting: FitSettings) -> Apart | None:
    """How the training of a grid is divided; None where its keyframes are not trained apart, and of other kinds."""
    found = divide(generator, images, training, fitting.apart) if isinstance(generator, Grid) else None
    if found is None or not found.steps:
        return None
    if fitting.draws is not None and not fitting.coarse_alone:
        raise MorphError(
            f"fitting.draws ({', '.join(fitting.draws[:8])}) would not be drawn: the keyframes of a grid are trained "
            f"one by one, and what is left fits its coarse set. Leave draws out, or set fitting.apart: 0 to draw widths"
        )
    return found


def _settings(
    generator: str, settings: Mapping[str, Any] | None, prepared: Prepared, space: MorphSpace, chain: Chain | None
) -> dict[str, Any]:
    given = dict(settings or {})
    if generator == INR.kind:
        return {"warm_start": WARM_START, **given}
    if generator != Grid.kind:
        return given
    own = own_tensors(prepared.model, space.groups, chain)
    layers = repairable(prepared.model, space.groups, given.get("own", own))
    default = default_keyframes(space)
    if "keyframes" in given:
        default["inbetweens"] = []
        if _go_below(given["keyframes"], space.hull[0]):
            default["lowest"] = {}
    return {**default, "own": own, "repaired": layers, **given}


def _go_below(keyframes: object, low: float) -> bool:
    """Whether somebody asks for keyframes below the range; what is no list of numbers is refused elsewhere."""
    found = keyframes if isinstance(keyframes, (list, tuple)) else ()
    return any(isinstance(r, (int, float)) and r < low for r in found)


def _check_fitted(generator: Generator, space: MorphSpace) -> None:
    """Raise MorphError where there is nothing to fit."""
    if isinstance(generator, Grid) and not any(True for _ in generator.parameters()):
        raise MorphError(
            f"a grid has nothing to fit on {space.range_text}: from the base's widths up it repeats the base's "
            "channels and keeps its function. Begin the range below 1, choose generator.kind: nested, or set "
            "training: null"
        )


class Judge:
    """Measures networks on both splits with one task, preprocessing and device."""

    def __init__(
        self, task: Task, network: Network, data: Splits, device: str, progress: Progress | None = None
    ) -> None:
        self.task, self.network, self.data, self.device, self.progress = task, network, data, device, progress
        self._augment: bool | None = None  # not known yet

    def of(self, model: torch.nn.Module, images: ImageSet) -> dict[str, float]:
        """Metrics of a network on a set."""
        return evaluate(
            model, images, self.task, preprocess=self.network.preprocess, device=self.device, progress=self.progress
        )

    def both(self, measure: Callable[[ImageSet], dict[str, float]]) -> dict[str, dict[str, float]]:
        """The same on validation and test."""
        return {"validation": measure(self.data.validation), "test": measure(self.data.test)}

    def at(self, model: MorphableModel, ratio: float, latency: bool = False, seed: int = 0) -> WidthResult:
        """A plain network at a ratio, measured; `seed` picks the images for batch norms and those that are shown."""
        widths = model.widths_for(ratio)
        plain = model.morphable.module(widths)
        anew = not is_base(model.morphable, widths) and self.recalibrated(plain, seed)
        params, macs = model.sizes(widths)
        took = measure_latency(plain, torch.zeros(1, *model.input_shape)) if latency else None
        metrics = self.both(lambda part: self.of(plain, part))
        fitted, shown = model.morphable.space.fitted(widths), self.pictures(plain, seed)
        return WidthResult(ratio, widths, params, macs, fitted, metrics, took, anew, shown)

    def pictures(self, model: torch.nn.Module, seed: int) -> dict[str, str]:
        """Some images of the test part and what a network makes of them, where it generates images."""
        if not isinstance(self.task, Generation):
            return {}
        return pictures(model, self.task, self.network.preprocess, self.data.test, seed)

    def recalibrated(self, plain: torch.nn.Module, seed: int) -> bool:
        """Give a network of some width statistics of its own, where it has batch norms that are better with them."""
        augment = self.augmented(plain, seed)
        if augment is None:
            return False
        return recalibrated(
            plain, self.network.model, self.data, self.network.preprocess, self.task,
            augment=augment, seed=seed, device=self.device,
        )  # fmt: skip

    def augmented(self, plain: torch.nn.Module, seed: int) -> bool | None:
        """Whether the batch norms of a network get statistics of shifted and mirrored images; None without any."""
        if not has_statistics(plain, self.network.preprocess.input_size):
            return None
        if self._augment is None:
            self._augment = augmented(
                self.network.model, self.data, self.network.preprocess, seed=seed, device=self.device
            )
        return self._augment

    def floor(self, morphable: Morphable, images: ImageSet) -> dict[str, float]:
        """Metrics without what is generated: at full width, with nothing read from the channels that vary."""
        space = morphable.space
        state = morphable.base.state_dict()
        tensors = {slot.name: state[slot.name] for slot in morphable.generator.slots}

        def cut(value: Tensor, axis: Axis, group: str) -> Tensor:
            n = space.full[group]
            return along(value, axis, n, torch.zeros(n, n)) if axis.fan_in else value

        for slot in morphable.generator.slots:
            tensors[slot.name] = slot.walk(tensors[slot.name], space.full, space.full, cut)
        return self.of(morphable.module(space.full, tensors), images)


make_morphable = morph
"""The name of `morph` before 0.2.0; it goes with the next release."""
