"""A grid's keyframes: what they have of their own, and their training one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netsmith.distributed.processes import agree
from netsmith.morphing.coordinates import first, slots
from netsmith.morphing.frames import Frames, way_down
from netsmith.morphing.generator import Apart, Courses
from netsmith.morphing.importance import by_importance, channel_importance
from netsmith.morphing.preparing import Prepared, Run, Subject, with_norms
from netsmith.morphing.recalibrating import recalibrated
from netsmith.morphing.settings import FitSettings
from netsmith.networks.network import Network
from netsmith.trace.chain import Chain
from netsmith.training.engine import TrainResult
from netsmith.training.finetuning import Memory, Teacher, finetuned, optimizer_steps
from netsmith.training.session import placed
from netsmith.training.settings import TrainSettings
from netsmith.training.split import split, untouched_front
from netsmith.widths.folding import fold_batch_norms, foldable
from netsmith.widths.groups import WidthGroup, permute, relocate, resize

_SMALL = 0.01
"""Of the network's parameters, the most that one tensor of the keyframes' own may have."""

_INBETWEEN = 2.0
"""Steps of a keyframe in between, over those of the others, for the square of the distance of its two neighbours (as
ratios): it begins as their mean, and how far that is off grows with that square. Never more than the others have."""

_LEAST = 0.1
"""The fewest steps of a keyframe in between, over those of the others."""

_IMAGES = 8192
"""Training images from which the statistics of a keyframe's norms are estimated; 2048 cost up to 0.4 points."""

_BatchNorm = nn.modules.batchnorm._BatchNorm


def own_tensors(model: nn.Module, groups: Sequence[WidthGroup], chain: Chain | None) -> tuple[str, ...]:
    """Parameters that no group touches and that every keyframe should have of its own: they cost next to nothing.

    Biases, norms, a small classifier: what lies behind the first tensor that a group touches (before it everything is
    the same at all widths, and computed once), or, of a network that is not dissected, in the layers of those tensors;
    each with at most a hundredth of the network's parameters.
    """
    touched = {axis.tensor for group in groups for axis in group.axes}
    parameters = dict(model.named_parameters())
    most = _SMALL * sum(p.numel() for p in parameters.values())
    if chain is None:
        layers = {name.rpartition(".")[0] for name in touched}
        behind = {name for name in parameters if name.rpartition(".")[0] in layers}
    else:
        front = untouched_front(model, chain, touched)
        before = {id(p) for piece in front for p in piece.parameters()}
        behind = {name for name, p in parameters.items() if id(p) not in before}
    return tuple(
        name
        for name, p in parameters.items()
        if name in behind - touched and p.is_floating_point() and p.numel() <= most
    )


def divide(grid: Frames, images: int, training: TrainSettings, share: float) -> Apart:
    """Divide a training's steps among keyframes, alike, and less for those in between.

    Where there is no coarse set to fit, all are the keyframes'. Nothing is taken of a single epoch. Steps are whole
    epochs where that is near: then the batches of a view are the same for all, and what is frozen is computed once.
    """
    each = optimizer_steps(images, training)
    epochs = 0 if share and grid.coarse is None else max(1, training.epochs - round(share * training.epochs))
    around = _around(grid)
    gaps = {r: high - low for r, (high, low) in around.items()}
    needs = [min(1.0, max(_LEAST, _INBETWEEN * gaps[r] ** 2)) if r in gaps else 1.0 for r in grid.keyframes[1:]]
    shares = [(training.epochs - epochs) * need / sum(needs) for need in needs]
    whole = _whole(shares)
    steps = tuple(int(s * each) for s in shares) if whole is None else tuple(n * each for n in whole)
    if min(steps, default=0) < 1:
        return Apart(training, (), training)
    warmup = training.warmup_epochs * epochs / training.epochs
    left = training.model_copy(update={"epochs": epochs, "warmup_epochs": warmup})
    return Apart(training, steps, left if epochs else None)


def _around(grid: Frames) -> dict[float, tuple[float, float]]:
    """Of each keyframe in between, in the order of training, the ratios above and below that are trained before it."""
    there, found = [r for r in grid.keyframes if r not in grid.inbetweens], {}
    for ratio in grid.inbetweens:
        found[ratio] = min(r for r in there if r > ratio), max(r for r in there if r < ratio)
        there.append(ratio)
    return found


def _whole(shares: Sequence[float]) -> list[int] | None:
    """Whole numbers of the same sum, each within a quarter and 0.3 of its share; None where there are none."""
    found = [max(1, int(s + 1e-6)) for s in shares]
    missing = round(sum(shares)) - sum(found)
    # what is left goes to those that lack most of their share, of equals to the last, the narrowest
    for k in sorted(range(len(found)), key=lambda k: (round(found[k] - shares[k], 6), -k))[: max(0, missing)]:
        found[k] += 1
    near = all(abs(n - s) <= 0.25 * s + 0.3 for n, s in zip(found, shares, strict=True))
    return found if missing >= 0 and near else None


@dataclass(frozen=True)
class _Learned:
    """What of a network with batch norms ends up in what a grid generates, and nowhere else.

    Attributes:
        parameters: their names.
        norms: names of the batch norms among them.
    """

    parameters: frozenset[str]
    norms: frozenset[str]


def fit_keyframes(
    grid: Frames,
    subject: Subject,
    orders: Mapping[str, Sequence[int]],
    apart: Apart,
    fitting: FitSettings,
    run: Run,
    *,
    ranking: Callable[[], Iterable[Tensor]] | None = None,
) -> tuple[Courses, dict[str, tuple[int, ...]]]:
    """Train the network of each keyframe by itself, and let the grid learn them.

    First those that are not in between, from the highest to the lowest: each begins as the first channels of the one
    above it, the highest as those of the base. What a channel gives changes as a network is trained: so the channels of
    a trained keyframe are ranked anew before the next takes the first of them, and all networks made so far follow that
    order (it only moves channels that all of them have, so each stays what it is). Then those in between: each begins
    as the mean of its two neighbours. A network keeps its batch norms while it is trained, as one that lost channels
    recovers faster with them; their statistics are those of the final weights, on training images drawn as for
    training, where these are better than what the training left. Folded, it is what the keyframe holds. Only what the
    grid generates is trained; what lies before that is computed once for all of them.

    Args:
        grid: its keyframes are set, in place.
        subject: base, data and task; its prepared copy, in the grid's order of channels, is reordered as the grid is.
        orders: that order by group.
        apart: training of each, and the steps of each keyframe but the first.
        fitting: distillation, temperature, views, and memory for features.
        run: where to compute, the folder from which this goes on after an interruption, and whom to tell.
        ranking: preprocessed training images, the same each time, by which channels are ranked anew; None keeps their
            order.

    Returns:
        Ratio and course of each training, in their order; and by group, where each channel was before: base and grid
        now have the channels in the order that came of it.

    Raises:
        TrainingError: a loss that is not finite, or a checkpoint of another run.
    """
    prepared = subject.prepared
    base, groups = _start(grid, subject.network, prepared, orders)
    learned = _learned(grid, base, prepared)
    teacher, fronts = Teacher(subject.network.model), Memory(fitting.cache_mb * 2**20)
    made = {1.0: base}
    courses: list[tuple[float, TrainResult]] = []
    moved = {g.name: tuple(range(g.width)) for g in groups}
    around, counts = _around(grid), dict(zip(grid.keyframes[1:], apart.steps, strict=True))
    for ratio in (*(r for r in counts if r not in around), *around):
        if ratio in around:
            model = _mean(grid, groups, made, *around[ratio], ratio)
            _recalibrate(model, subject, apart.each, learned, run)
        else:
            above = min(made)
            if ranking is not None and above < 1:
                moved = _ranked_anew(grid, groups, made, above, ranking(), moved, run.device)
            model = resize(made[above], relocate(groups, grid.widths_at(above)), grid.widths_at(ratio))
        parts = split(model.eval(), prepared.example, learned.parameters)
        prefix = "" if parts is None else "whole."
        course = finetuned(
            model if parts is None else parts, subject.network, subject.data, subject.task, apart.each, counts[ratio],
            distillation=fitting.distillation, temperature=fitting.temperature, views=fitting.views,
            first_view=sum(len(course.history) for _, course in courses) % fitting.views, teacher=teacher,
            parameters={prefix + name for name in learned.parameters}, fronts=fronts,
            checkpoint_dir=None if run.checkpoints is None else run.checkpoints / f"keyframe-{ratio:g}",
            called=f"keyframe {ratio:g}", progress=run.progress, device=run.device,
        )  # fmt: skip
        _recalibrate(model, subject, apart.each, learned, run)
        made[ratio] = model.eval()
        courses.append((ratio, course))
    for group in grid.groups:
        permute(prepared.model, group, moved[group.name])
    grid.anchor(prepared.model.state_dict())
    for ratio in grid.keyframes[1:]:
        model = made[ratio]
        plain = fold_batch_norms(model, prepared.example) if prepared.folded else model
        grid.learn(ratio, plain.state_dict())
    return tuple(courses), moved


def _recalibrate(model: nn.Module, subject: Subject, training: TrainSettings, learned: _Learned, run: Run) -> None:
    """Give the norms that the grid generates statistics of their own, the same in every process."""
    recalibrated(
        model, subject.network.model, subject.data, subject.network.preprocess, subject.task,
        augment=training.augment, images=_IMAGES, seed=training.seed, device=run.device, norms=learned.norms,
    )  # fmt: skip
    agree(model.buffers(), run.device)


def _ranked_anew(
    grid: Frames,
    groups: Sequence[WidthGroup],
    made: Mapping[float, nn.Module],
    lowest: float,
    images: Iterable[Tensor],
    moved: Mapping[str, tuple[int, ...]],
    device: str | None,
) -> dict[str, tuple[int, ...]]:
    """Rank the channels that the narrowest network has, and reorder those of all; `moved` followed by that."""
    model = made[lowest]
    where = next(model.parameters()).device if device is None else torch.device(device)
    with placed(model, where, False):
        scores = channel_importance(model, relocate(groups, grid.widths_at(lowest)), images)
    agree(scores.values(), device)
    ranks = {name: by_importance(found) for name, found in scores.items()}
    for ratio, model in made.items():
        for group in relocate(groups, grid.widths_at(ratio)):
            rank = ranks[group.name]
            permute(model, group, (*rank, *range(len(rank), group.width)))
    return {name: tuple(before[k] for k in ranks[name]) + before[len(ranks[name]) :] for name, before in moved.items()}


@torch.no_grad()
def _mean(
    grid: Frames, groups: Sequence[WidthGroup], made: Mapping[float, nn.Module], high: float, low: float, ratio: float
) -> nn.Module:
    """A network between two: the first channels of the wider, moved towards the narrower where that has them."""
    wide, middle, few = (grid.widths_at(r) for r in (high, ratio, low))
    at = relocate(groups, wide)
    found = resize(made[high], at, middle)
    begun, narrow = made[high].state_dict(), made[low].state_dict()
    touched = {slot.name: slot for slot in slots(begun, at)}
    share = way_down(high, low, ratio)
    seen: set[int] = set()  # a tensor of two names is moved once
    for name, value in found.state_dict().items():
        if value.is_floating_point() and value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            slot = touched.get(name)
            if slot is None:
                value += share * (narrow[name] - begun[name])
            else:
                moved = share * (narrow[name] - first(slot, begun[name], wide, wide, few))
                value += slot.widened(moved, wide, few, middle)
    return found


def _start(
    grid: Frames, network: Network, prepared: Prepared, orders: Mapping[str, Sequence[int]]
) -> tuple[nn.Module, Sequence[WidthGroup]]:
    """The base in the grid's order of channels, with its batch norms; without them where its groups are then others."""
    found = with_norms(network, prepared, grid.groups)
    if found is None:
        return copy.deepcopy(prepared.model), grid.groups
    for group in found[1]:
        permute(found[0], group, orders[group.name])
    return found


def _learned(grid: Frames, twin: nn.Module, prepared: Prepared) -> _Learned:
    generated = {slot.name for slot in grid.slots}
    folding = foldable(twin, prepared.example) if prepared.folded else {}
    names = dict(twin.named_parameters())
    learned: set[str] = set()
    norms: set[str] = set()
    for name, module in twin.named_modules():
        own = {f"{name}.{part}" if name else part for part, _ in module.named_parameters(recurse=False)} & set(names)
        if name in folding.values():
            continue
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            wanted, norm = own | {f"{name}.running_mean", f"{name}.running_var"}, name
        elif name in folding:
            wanted, norm = {f"{name}.weight", f"{name}.bias"}, folding[name]
            own |= {f"{norm}.{part}" for part in ("weight", "bias")} & set(names)
        else:
            learned |= own & generated
            continue
        if wanted <= generated:
            learned |= own
            norms.add(norm)
    return _Learned(frozenset(learned), frozenset(norms))
