"""The order of a network's channels before it is morphed: by importance, smooth, or as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from netsmith.data.splits import Splits
from netsmith.morphing.importance import by_importance, channel_importance, ranking_images
from netsmith.morphing.paths import reproducible_order
from netsmith.morphing.settings import Order
from netsmith.morphing.smooth import WeightPicture, weight_picture
from netsmith.morphing.space import MorphSpace
from netsmith.networks.network import Network
from netsmith.widths.groups import WidthGroup, entries, permute


@dataclass(frozen=True)
class GroupOrder:
    """Total variation of one group: the sum of L1 distances between neighbouring channels, before and after.

    `deterministic` is false where a solver may give another order the next time.
    """

    name: str
    width: int
    before: float
    after: float
    deterministic: bool


@dataclass(frozen=True)
class Ordered:
    """What was done: the old index of each new channel by group, and each group's total variation.

    `picture` is a weight matrix before and after.
    """

    order: Order
    solver: str
    orders: dict[str, tuple[int, ...]]
    groups: tuple[GroupOrder, ...]
    picture: tuple[WeightPicture, WeightPicture]


def order_channels(
    model: nn.Module,
    space: MorphSpace,
    network: Network,
    data: Splits,
    *,
    order: Order = "importance",
    solver: str = "auto",
    images: int = 2048,
    seed: int = 0,
) -> Ordered:
    """Reorder the channels of the space's groups in place; the network's function stays.

    By importance, channels that every fitted width has come first, in a smooth order among themselves (their order is
    free there), then the others from the most important to the least. The keyframes of a grid, once trained, are ranked
    anew (`reordered`).

    Args:
        model: the network whose channels are reordered.
        space: the groups, and the widths that are fitted.
        network: its preprocessing.
        data: training images by which importance is measured.
        order: what to do.
        solver: of smooth orders; "auto" is a deterministic one (`reproducible_order`).
        images: how many training images.
        seed: of what is drawn.

    Raises:
        MorphError: the solver is unknown, or cannot order so many channels.
    """
    scores: Mapping[str, Tensor] = {}
    if order == "importance":
        scores = channel_importance(model, space.groups, ranking_images(data, network, images, seed))
    tensors = dict(model.state_dict())
    orders, found = {}, []
    for group in space.groups:
        rows = entries(tensors, group)
        orders[group.name], same = _one(rows, group, space, order, solver, scores, seed)
        placed = rows[list(orders[group.name])]
        found.append(GroupOrder(group.name, group.width, _variation(rows), _variation(placed), same))
    shown = space.groups[-1]
    before = weight_picture(model, shown)
    for group in space.groups:
        permute(model, group, orders[group.name])
    return Ordered(order, solver, orders, tuple(found), (before, weight_picture(model, shown)))


def reordered(ordered: Ordered, model: nn.Module, space: MorphSpace, moved: Mapping[str, Sequence[int]]) -> Ordered:
    """What `ordered` says, after the network it ordered was reordered once more: channel `j` was at `moved[group][j]`.

    Total variations are those of the new order, which no solver made.
    """
    tensors = dict(model.state_dict())
    orders = {name: tuple(order[k] for k in moved[name]) for name, order in ordered.orders.items()}
    found = zip(ordered.groups, space.groups, strict=True)
    groups = tuple(replace(told, after=_variation(entries(tensors, group))) for told, group in found)
    return replace(
        ordered, orders=orders, groups=groups, picture=(ordered.picture[0], weight_picture(model, space.groups[-1]))
    )


def _one(
    rows: Tensor,
    group: WidthGroup,
    space: MorphSpace,
    order: Order,
    solver: str,
    scores: Mapping[str, Tensor],
    seed: int,
) -> tuple[tuple[int, ...], bool]:
    """Return the order of one group, and whether it comes out the same again."""
    if order == "smooth":
        path = reproducible_order(rows, solver, seed)
        return path.order, path.deterministic
    if order != "importance":
        return tuple(range(group.width)), True
    ranked = by_importance(scores[group.name])
    always = ranked[: min(space.low[group.name], group.width)]
    path = reproducible_order(rows[list(always)], solver, seed)
    return tuple(always[k] for k in path.order) + ranked[len(always) :], path.deterministic


def _variation(rows: Tensor) -> float:
    return float((rows[1:] - rows[:-1]).double().abs().sum())
