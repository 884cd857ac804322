"""The main path: one network and data in; a generator of its weights at any width, and what it costs, out.

`nn.Module -> WidthGroups -> ordered nn.Module -> Generator -> nn.Module at any width` (design, section 2), by functions
over values that can be looked at: `order`, `fit_generator`, `read` and `measure`. `morph` is all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from netsmith.data.classes import splits_by_name
from netsmith.data.images import check_labelled
from netsmith.data.splits import Splits
from netsmith.errors import DissectionError
from netsmith.files.stopwatch import Stopwatch
from netsmith.morphing.fit import check_unmixed, drawn_together, fit
from netsmith.morphing.generator import Apart, Courses
from netsmith.morphing.importance import ranking_images
from netsmith.morphing.kinds import GENERATORS, make_generator
from netsmith.morphing.live import MorphableModel
from netsmith.morphing.measuring import Judge, WidthResult
from netsmith.morphing.morphable import Morphable, check_split
from netsmith.morphing.ordering import Ordered, order_channels, reordered
from netsmith.morphing.preparing import Prepared, Run, Subject, prepare
from netsmith.morphing.repairing import probe_images
from netsmith.morphing.settings import MorphSettings
from netsmith.morphing.space import MorphSpace, morph_space
from netsmith.networks.network import Network, check_network
from netsmith.records.section import with_changes
from netsmith.trace.chain import Chain, dissect
from netsmith.training.engine import Progress, TrainResult
from netsmith.training.tasks import Task, make_task


@dataclass(frozen=True)
class Start:
    """What is ready to be fitted: all of it is checked, and nothing trained or written.

    `morphable` is the base in its order of channels with a generator of its weights; `apart` how the training is
    divided, None without any; `watch` has the seconds of each step.
    """

    subject: Subject
    settings: MorphSettings
    ordered: Ordered
    morphable: Morphable
    apart: Apart | None
    watch: Stopwatch


@dataclass(frozen=True)
class Fitted:
    """How a start was fitted, in place: the order of channels that came of it, and the trainings."""

    start: Start
    ordered: Ordered
    keyframes: Courses
    training: TrainResult | None


@dataclass
class Morphed:
    """What came out, and all that led to it.

    `model` serves networks of any width; `base` has the base network's metrics by split, `floor` those of the network
    without what is generated, `points` one entry a ratio; `keyframes` the trainings of a grid's, in their order, and
    `training` what came after them, or all there was; `augmented`, where batch norms stay, whether the base's have seen
    shifted and mirrored images; `pictures`, where images are generated, those of the base.

    Examples:
        >>> [point.ratio for point in morphed.points]
        [1.0, 0.5]
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


def morph(
    network: Network,
    data: Splits,
    settings: MorphSettings | None = None,
    *,
    device: str = "cpu",
    checkpoints: Path | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> Morphed:
    """From one trained network to networks of any width (Yang et al., "Neural Metamorphosis", ECCV 2024).

    Which epoch is kept is decided on the validation part of `data`; its test part is read once, at the end. Batch norms
    that stay get statistics of their own at each measured width where that is better (`recalibrated`).

    Args:
        network: the base, with its trained weights; it is not changed.
        data: what it is for.
        settings: all settings, such as a `MorphConfig` has them; None for the defaults, which fit nothing.
        device: where to compute.
        checkpoints: folder in which fitting keeps its state, to go on after an interruption.
        progress: told how far it is.
        **changes: single settings by name, such as `ratios=(1.0, 0.5)`, `generator="nested"`,
            `training=TrainSettings(epochs=10)` or `space={"widths": (0.5, 1.0)}` (`MorphSettings`).

    Raises:
        SourceError: nothing tells how the network wants its images.
        ChannelError: no width group can be proved.
        DataError: the data has other classes.
        MorphError: what is asked of space, generator or ratios is impossible.
        TrainingError: data, task and network do not fit, or the loss is not finite.

    Examples:
        >>> morphed = netsmith.morph(zoo[1], data, space={"widths": (0.25, 1.0)}, ratios=(1.0, 0.5))
        >>> half = morphed.model.at(0.5)  # a plain torch.nn.Module
    """
    run = Run(device, checkpoints, progress)
    start = order(network, data, with_changes(MorphSettings, settings, changes))
    return measure(fit_generator(start, run), run)


make_morphable = morph
"""The name of `morph` before 0.2.0; it goes with the next release."""


def order(network: Network, data: Splits, settings: MorphSettings) -> Start:
    """Find what can vary, put the channels in order and make a generator; all is checked before anything is fitted.

    Raises:
        NetsmithError: see `morph`.
    """
    check_network(network)
    if network.task != "generation":
        check_labelled(data, "morphing")
    _ = network.preprocess.statistics  # refused before the long work
    data = splits_by_name(network.model, data, network.num_classes, network.name)
    shape = network.preprocess.input_size
    task = make_task(network.task, network.num_classes, shape=shape, classes=data.classes, ignore=data.ignore)
    watch, kind = Stopwatch(), GENERATORS[settings.generator.kind]
    with watch.step("groups"):
        prepared = prepare(network, fold=settings.norms == "fold")
        chain = _chain(prepared)
        asked = settings.space
        space = morph_space(prepared.groups, asked.blocks, asked.widths, streams=asked.streams, chain=chain)
        for ratio in settings.ratios:
            space.at(ratio)
    with watch.step("order"):
        by = kind.order if settings.order.by == "auto" else settings.order.by
        ordered = order_channels(
            prepared.model, space, network, data,
            order=by, solver=settings.order.solver, images=settings.order.images, seed=settings.seed,
        )  # fmt: skip
    with watch.step("generator"):
        completed = kind.defaults(settings.generator.settings, prepared.model, space, chain)
        made = make_generator(kind.kind, prepared.model.state_dict(), space.groups, completed)
    apart = None
    if settings.training is not None:
        made.check_fitted(space)
        apart = made.divide(len(data.train), settings.training, settings.fitting)
        if apart.together is not None:
            check_unmixed(apart.together)
    morphable = Morphable(prepared.model, space, made, chain)
    check_split(morphable, prepared.example)
    return Start(Subject(network, data, task, prepared), settings, ordered, morphable, apart, watch)


def fit_generator(start: Start, run: Run) -> Fitted:
    """Fit the generator of a start, in place: first what is trained apart, then all widths together.

    Raises:
        TrainingError: the loss is not finite, or a checkpoint is of another run.
    """
    subject, settings, watch, morphable = start.subject, start.settings, start.watch, start.morphable
    made, space, prepared, ordered = morphable.generator, morphable.space, subject.prepared, start.ordered
    with watch.step("generator"):
        ends = {name: (space.low[name], space.high[name]) for name in space.names}
        made.begin(prepared.model.state_dict(), ends, run.progress, run.checkpoints)
    fitting, training, courses, result = settings.fitting, settings.training, (), None
    if start.apart is not None and start.apart.steps:
        with watch.step("keyframes"):
            ranking = partial(ranking_images, subject.data, subject.network, settings.order.images, settings.seed)
            courses, moved = made.fit_apart(
                subject, ordered.orders, start.apart, fitting, run,
                ranking=ranking if ordered.order == "importance" else None,
            )  # fmt: skip
            ordered = reordered(ordered, prepared.model, space, moved)
        fitting, training = fitting.model_copy(update={"draws": ("coarse",)}), start.apart.together
    if training is not None:
        with watch.step("fit"):
            result = fit(
                morphable, subject.data, subject.task, fitting, training, preprocess=subject.network.preprocess,
                checkpoint_dir=run.checkpoints, progress=run.progress, device=run.device,
            )  # fmt: skip
        if result.best_epoch:  # else nothing of it was kept
            morphable.space = replace(space, drawn=drawn_together(morphable, fitting))
    made.settle()
    if made.repaired:
        with watch.step("repair"):
            preprocess = subject.network.preprocess
            made.repair(morphable.module, preprocess(probe_images(subject.data, preprocess.input_size, settings.seed)))
    return Fitted(start, ordered, courses, result)


def read(fitted: Fitted) -> MorphableModel:
    """Return the model that serves networks of any width."""
    network, data = fitted.start.subject.network, fitted.start.subject.data
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
    return MorphableModel(fitted.start.morphable, network.preprocess.input_size, about=about)


def measure(fitted: Fitted, run: Run) -> Morphed:
    """Measure the base, the network without what is generated, and the networks at the ratios of the settings."""
    start, model = fitted.start, read(fitted)
    subject, settings = start.subject, start.settings
    judge, seed = Judge(subject, run), settings.seed
    with start.watch.step("evaluation"):
        floor = judge.both(lambda part: judge.floor(start.morphable, part))
        base = judge.both(lambda part: judge.of(subject.network.model, part))
        points = tuple(judge.at(model, ratio, settings.latency, seed) for ratio in settings.ratios)
    return Morphed(
        model, subject.network, subject.task, subject.prepared, fitted.ordered, base, floor, points, fitted.training,
        start.watch.seconds, subject.data, seed, fitted.keyframes,
        judge.augmented(subject.prepared.model, seed), judge.pictures(subject.network.model, seed),
    )  # fmt: skip


def _chain(prepared: Prepared) -> Chain | None:
    """Return the dissected network, or None where it cannot be cut: it is then run whole."""
    try:
        return dissect(prepared.model, prepared.example)
    except DissectionError:
        return None
