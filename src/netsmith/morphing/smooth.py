"""Smoothing: order the channels of each width group so that neighbours are alike; the network computes the same.

A generator of weights has an easier task where neighbouring channels have similar weights (Yang et al., "Neural
Metamorphosis", ECCV 2024, section 3.3). The measure is the total variation of a group: the sum, over neighbouring
channels, of the L1 distance between all their weights.

Groups may be ordered one by one and in any sequence, also where they share a tensor (the output channels of one
convolution and its input channels). Reordering one group moves the same columns in every row of another, which leaves
the L1 distance of any two of those rows as it is: total variations, paths and bounds of a group depend on its own order
alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from netsmith.errors import ChannelError, did_you_mean
from netsmith.morphing.paths import channel_order
from netsmith.trace.checks import original
from netsmith.trace.trial import check_arguments, run_whole, trial_batches, untouched
from netsmith.widths.groups import Axis, WidthGroup, channel_index, entries, permute, width_groups

# Relative to the largest output.
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class GroupPath:
    """How one group was ordered: total variation before and after, and the solver that ran."""

    name: str
    width: int
    before: float
    after: float
    solver: str
    deterministic: bool


@dataclass(frozen=True)
class Smoothed:
    """A network whose channels were reordered, and by how much its total variation fell.

    `orders[name][j]` is the old index of new channel j of that group. `before` and `after` are sums over `groups`,
    in units of the weights. Where it is not `deterministic`, another run gives other orders: keep these.

    Examples:
        >>> smoothed = netsmith.smooth(zoo[1].model, torch.rand(2, 1, 8, 8))
        >>> smoothed.after < smoothed.before
        True
    """

    model: nn.Module
    orders: dict[str, tuple[int, ...]]
    before: float
    after: float
    solver: str
    deterministic: bool
    groups: tuple[GroupPath, ...]


@dataclass(frozen=True)
class WeightPicture:
    """The mean magnitude of a tensor's weights by output channel (down) and input channel (across), for a picture."""

    tensor: str
    values: tuple[tuple[float, ...], ...]


def smooth(
    model: nn.Module,
    example_input: Tensor,
    *,
    groups: Sequence[WidthGroup] | None = None,
    solver: str = "auto",
    seconds: int | float | None = None,
    seed: int = 0,
) -> Smoothed:
    """A copy of a network whose channels are ordered to the least total variation that the solver finds.

    Args:
        model: left as it is. Fold its batch norms first where they should not count.
        example_input: a batch (n, ...) as the network takes it, for the check that the function is unchanged.
        groups: the width groups to order; default all accepted groups of `width_groups` but residual streams.
        solver: of `channel_order`.
        seconds: limit of the search, shared among the groups by their channels; default 1.5 for 1000 channels.
        seed: of the solver "random".

    Returns:
        The reordered copy, orders, and total variations: never more than before, unless the solver is "random".

    Raises:
        ChannelError: nothing to order, weights that are not finite, or outputs that differ by more than 1e-5 of the
            largest; the message names the groups.
        MorphError: an unknown solver.
        DissectionError: the network does not run on the example.

    Examples:
        >>> smoothed = netsmith.smooth(zoo[1].model, torch.rand(2, 1, 8, 8))
        >>> smoothed.after < smoothed.before
        True
    """
    model = original(model)
    label = type(model).__name__
    check_arguments(model, example_input, label)
    chosen = width_groups(model, example_input).inner if groups is None else tuple(groups)
    if not chosen:
        raise ChannelError(
            f"{label}: expected at least one width group to order, got none: only residual streams were proved. Pass "
            "them as groups=width_groups(model, example_input).accepted"
        )
    new = copy.deepcopy(model)
    state = dict(model.state_dict())
    orders: dict[str, tuple[int, ...]] = {}
    paths: list[GroupPath] = []
    channels = sum(group.width for group in chosen)
    for group in chosen:
        try:
            limit = None if seconds is None else seconds * group.width / channels
            path = channel_order(_rows(state, group, label), solver=solver, seconds=limit, seed=seed)
        except ChannelError as cause:
            raise ChannelError(f"the width group '{group.name}' of {label} cannot be ordered: {cause}") from cause
        permute(new, group, path.order)
        orders[group.name] = path.order
        paths.append(GroupPath(group.name, group.width, path.before, path.length, path.solver, path.deterministic))
    _check_function(model, new, chosen, orders, example_input)
    return Smoothed(
        model=new,
        orders=orders,
        before=sum(p.before for p in paths),
        after=sum(p.after for p in paths),
        solver=solver,
        deterministic=all(p.deterministic for p in paths),
        groups=tuple(paths),
    )


def total_variation(model: nn.Module, group: WidthGroup) -> float:
    """Sum over neighbouring channels of the L1 distance between all their weights, in the order they are in."""
    rows = _rows(dict(model.state_dict()), group, type(model).__name__).double()
    return float((rows[1:] - rows[:-1]).abs().sum())


def weight_picture(model: nn.Module, group: WidthGroup, *, limit: int = 64) -> WeightPicture:
    """The weights that make a group's channels as a small matrix: before and after smoothing it shows what changed.

    Each value is the mean of the absolute weights of one output and one input channel; more than `limit` channels are
    averaged over neighbours down to `limit`. The tensor is the one that makes most of the group's channels, or the
    largest that reads them where none of two dimensions makes them.

    Raises ChannelError for a group without a tensor of two dimensions, and a limit below one.
    """
    state = dict(model.state_dict())
    if limit < 1:
        raise ChannelError(f"expected a limit of at least 1 channel for a picture of weights, got {limit}")
    _rows(state, group, type(model).__name__)
    matrices = [a for a in group.axes if state[a.tensor].ndim >= 2 and a.dim < 2]
    if not matrices:
        raise ChannelError(f"the width group '{group.name}' has no tensor of two or more dimensions to draw")
    axis = max(matrices, key=lambda a: (not a.fan_in, state[a.tensor].numel()))
    magnitude = state[axis.tensor].detach().cpu().abs().float()
    matrix = magnitude.flatten(2).mean(dim=2) if magnitude.ndim > 2 else magnitude
    matrix = _by_channel(matrix, axis, group.width)
    size = min(limit, matrix.shape[0]), min(limit, matrix.shape[1])
    small = functional.adaptive_avg_pool2d(matrix[None], size)[0]
    return WeightPicture(axis.tensor, tuple(tuple(row) for row in small.tolist()))


def _by_channel(matrix: Float[Tensor, "o i"], axis: Axis, width: int) -> Float[Tensor, "p q"]:
    """Means over the entries of each channel, along the group's own dimension."""
    index = channel_index(axis, width, torch.arange(width))
    entry = matrix.movedim(axis.dim, 0)[index].reshape(axis.tiles, width, axis.repeat, -1)
    return entry.mean(dim=(0, 2)).movedim(0, axis.dim)


def _rows(state: Mapping[str, Tensor], group: WidthGroup, label: str) -> Float[Tensor, "n d"]:
    missing = next((a.tensor for a in group.axes if a.tensor not in state), None)
    if missing is not None:
        raise ChannelError(
            f"the width group '{group.name}' is not of this network: {label} has no tensor '{missing}'. "
            f"{did_you_mean(missing, state)}"
        )
    return entries(state, group).detach()


def _check_function(
    model: nn.Module,
    new: nn.Module,
    groups: Sequence[WidthGroup],
    orders: Mapping[str, tuple[int, ...]],
    example_input: Tensor,
) -> None:
    """Raise ChannelError, with the groups at fault, where the reordered network computes something else."""
    batch, _ = trial_batches(example_input)
    if _difference(model, new, batch) <= _TOLERANCE:
        return
    guilty = []
    for group in groups:
        one = copy.deepcopy(model)
        permute(one, group, orders[group.name])
        if _difference(model, one, batch) > _TOLERANCE:
            guilty.append(group.name)
    named = ", ".join(f"'{n}'" for n in guilty) or "all of them together (none alone)"
    raise ChannelError(
        f"reordering channels changes what {type(model).__name__} computes, by more than {_TOLERANCE:g} of its largest "
        f"output: {named}. Leave these out, or take the groups that width_groups(model, example_input) proves"
    )


def _difference(model: nn.Module, other: nn.Module, batch: Tensor) -> float:
    """Largest difference of the outputs relative to the largest output, in double precision where single is too coarse.

    A sum in another order differs in its last digits, which a deep network can enlarge beyond the tolerance: in double
    precision they stay far below it.
    """
    label = type(model).__name__
    with untouched(model), untouched(other):
        found = _relative(run_whole(model.eval(), batch, label), run_whole(other.eval(), batch, label))
    if found <= _TOLERANCE or not batch.is_floating_point() or batch.dtype == torch.float64:
        return found
    fine, fine_other = copy.deepcopy(model).double().eval(), copy.deepcopy(other).double().eval()
    try:
        with torch.no_grad():
            outputs = fine(batch.double()), fine_other(batch.double())
    except RuntimeError:  # code that insists on single precision
        return found
    return _relative(*outputs)


def _relative(expected: Tensor, output: Tensor) -> float:
    largest = float(expected.abs().max())
    return float((output - expected).abs().max()) / max(largest, 1e-30)
