"""Reorder, remove and repeat the channels of width groups."""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from netsmith import limits
from netsmith.errors import ChannelError, did_you_mean
from netsmith.records.architecture import note_made
from netsmith.trace.checks import kept_modes, original
from netsmith.widths.types import Axis, WidthGroup


class Memory:
    """Resized tensors of one network, kept for the next time: fresh memory costs more than what is written to it."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[list[tuple[Axis, tuple[int, ...]]], Tensor]] = {}
        self._rooms: dict[tuple[str, int], Tensor] = {}

    def room(self, name: str, dim: int, like: Tensor, shape: Sequence[int]) -> Tensor:
        """Where to put a tensor as it is when this dimension of it has been resized to this shape."""
        size, room = math.prod(shape), self._rooms.get((name, dim))
        if room is None or room.numel() < size:
            room = self._rooms[name, dim] = like.new_empty(max(size, 4 * like.numel()))
        return room[:size].view(*shape)


def channel_index(axis: Axis, width: int, channels: Int64[Tensor, " k"]) -> Int64[Tensor, " m"]:
    """The indices along `axis.dim` of some of the `width` channels: `m = tiles * k * repeat` of them.

    Tile by tile, then channel by channel in the order given.
    """
    if axis.tiles == axis.repeat == 1:
        return axis.start + channels
    tile = torch.arange(axis.tiles).view(-1, 1, 1) * (width * axis.repeat)
    entry = torch.arange(axis.repeat).view(1, 1, -1)
    return (axis.start + tile + channels.view(1, -1, 1) * axis.repeat + entry).flatten()


def entries(tensors: Mapping[str, Tensor], group: WidthGroup) -> Float[Tensor, "width d"]:
    """All weights of each channel as one row, over all axes of the group in their order.

    `tensors` is a state dict (or the part of it with the group's tensors).
    """
    rows = []
    every = torch.arange(group.width)
    for axis in group.axes:
        tensor = tensors[axis.tensor]
        picked = tensor.movedim(axis.dim, 0)[channel_index(axis, group.width, every).to(tensor.device)]
        picked = picked.reshape(axis.tiles, group.width, -1)
        rows.append(picked.movedim(1, 0).reshape(group.width, -1))
    return torch.cat(rows, dim=1)


def permute(model: nn.Module, group: WidthGroup, order: Sequence[int]) -> None:
    """Reorder the channels of a group in place: `order[j]` is the old index of new channel `j`.

    The network computes what it did before, up to the rounding of sums taken in another order. Raises ChannelError when
    `order` is no permutation of the group's channels or the network is not of the group's width.

    Examples:
        >>> model, images = zoo[1].model, torch.rand(2, 1, 8, 8)
        >>> group, before = netsmith.width_groups(model, images).accepted[0], model(images)
        >>> netsmith.permute(model, group, list(reversed(range(group.width))))
        >>> torch.allclose(model(images), before, atol=1e-5)
        True
    """
    taken = [int(j) for j in order]
    if sorted(taken) != list(range(group.width)):
        raise ChannelError(
            f"{group.name}: expected an order that holds each of 0 to {group.width - 1} once,"
            f" not {_order_fault(taken, group)}"
        )
    model = original(model)
    tensors = named_tensors(model)
    every = torch.arange(group.width)
    with torch.no_grad():
        for axis in group.axes:
            tensor = _tensor(tensors, axis, group)
            places = channel_index(axis, group.width, every).to(tensor.device)
            sources = channel_index(axis, group.width, torch.tensor(taken)).to(tensor.device)
            tensor.index_copy_(axis.dim, places, tensor.index_select(axis.dim, sources))
    forget(model)


def forget(model: nn.Module) -> None:
    """Make a network drop what it computed from its weights and kept for eval mode (attention biases, for one)."""
    with kept_modes(model):
        for module in model.modules():
            if type(module).train is not nn.Module.train:
                module.train()


def _order_fault(order: Sequence[int], group: WidthGroup) -> str:
    if len(order) != group.width:
        return f"one of {len(order)} entries"
    outside = [j for j in order if not 0 <= j < group.width]
    if outside:
        return f"one that holds {outside[0]}"
    twice = next(j for j, n in Counter(order).items() if n > 1)
    return f"one that holds {twice} more than once"


def resize(
    model: nn.Module,
    groups: Sequence[WidthGroup],
    widths: Mapping[str, int | float] | float | int,
    *,
    keep: Mapping[str, Sequence[int]] | None = None,
) -> nn.Module:
    """A deep copy of the network whose groups have other widths; groups not named in `widths` keep theirs.

    `widths` is one ratio for all groups, or maps groups to widths: an integer is a number of channels, a float a ratio
    of the group's own width, rounded, at least one channel. So 1 is one channel, and 1.0 all of them.

    A smaller width keeps the first channels, or those that `keep` lists (base indices, in their new order). A larger
    one repeats channels from the first on and divides what the next layer weighs them with by the number of copies, so
    that the function is unchanged (Net2Wider: Chen et al., "Net2Net", ICLR 2016, section 3.1). Where a layer norm or
    group norm runs over the repeated channels, the function is unchanged only if all of them are repeated equally
    often.

    Raises ChannelError for a group that is not among `groups`, what is no width, or a `keep` that does not list as many
    different channels as the width says.

    Examples:
        >>> groups = netsmith.width_groups(zoo[1].model, torch.rand(2, 1, 8, 8)).accepted
        >>> half = netsmith.resize(zoo[1].model, groups, 0.5)
        >>> [group.width for group in netsmith.width_groups(half, torch.rand(2, 1, 8, 8)).accepted][:3]
        [8, 8, 16]
    """
    model, checked = original(model), check_widths(groups, widths)
    resized = resized_tensors(model, groups, checked, keep=keep)
    new = copy.deepcopy(model)
    forget(new)
    tensors, places = named_tensors(new), holders(new)
    for name, tensor in resized.items():
        old = tensors[name]
        if isinstance(old, nn.Parameter):
            tensor = nn.Parameter(tensor.clone(), requires_grad=old.requires_grad)
        for store, key in places[id(old)]:
            store[key] = tensor
    set_widths(new, groups, checked)
    note_made(new, model, groups=[asdict(g) for g in groups], widths=checked)
    return new


def resized_tensors(
    model: nn.Module,
    groups: Sequence[WidthGroup],
    widths: Mapping[str, int | float],
    *,
    keep: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Tensor]:
    """The tensors of the network that `resize` changes, by name, as it changes them. The network is left alone."""
    checked = check_widths(groups, widths)
    by_name = {g.name: g for g in groups}
    sources = {n: _source(by_name[n], w, (keep or {}).get(n)) for n, w in checked.items()}
    for name in keep or {}:
        if name not in checked:
            raise ChannelError(f"keep names '{name}', which gets no new width. {did_you_mean(name, checked)}")
    return tensors_of_channels(named_tensors(model), groups, sources)


def tensors_of_channels(
    tensors: Mapping[str, Tensor],
    groups: Sequence[WidthGroup],
    sources: Mapping[str, Sequence[int]],
    memory: Memory | None = None,
) -> dict[str, Tensor]:
    """The tensors that change, by name, when each group named in `sources` consists of these channels of its own.

    With `memory` they are valid until the next call.
    """
    by_name = {g.name: g for g in groups}
    changed = {n: t for n, s in sources.items() if (t := tuple(s)) != tuple(range(by_name[n].width))}
    touched: dict[str, list[tuple[Axis, WidthGroup]]] = defaultdict(list)
    for name in changed:
        for axis in by_name[name].axes:
            _tensor(tensors, axis, by_name[name])
            touched[axis.tensor].append((axis, by_name[name]))
    if memory is None:
        return {name: _resized(name, tensors[name], parts, changed, None) for name, parts in touched.items()}
    for name, parts in touched.items():
        key = [(axis, changed[group.name]) for axis, group in parts]
        if name not in memory.last or memory.last[name][0] != key:
            memory.last[name] = key, _resized(name, tensors[name], parts, changed, memory)
    return {name: memory.last[name][1] for name in touched}


@lru_cache(1024)
def _index(channels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Channels as a tensor, and the share of each in the channel that it is a copy of."""
    index = torch.tensor(channels)
    return index, 1 / torch.bincount(index)[index].double()


def _source(group: WidthGroup, width: int, keep: Sequence[int] | None) -> list[int]:
    """The base channel of each new channel."""
    if keep is None:
        return [j % group.width for j in range(width)]
    kept = [int(j) for j in keep]
    if len(kept) != width or len(set(kept)) != width or not all(0 <= j < group.width for j in kept):
        raise ChannelError(
            f"{group.name}: expected keep to list {width} different channels of 0 to {group.width - 1} for a width of"
            f" {width}, not {kept if len(kept) < 9 else f'{len(kept)} of them ({len(set(kept))} different)'}"
        )
    return kept


def _resized(
    name: str,
    tensor: Tensor,
    parts: Sequence[tuple[Axis, WidthGroup]],
    sources: Mapping[str, tuple[int, ...]],
    memory: Memory | None,
) -> Tensor:
    if tensor.is_meta:
        sizes = list(tensor.shape)
        for axis, group in parts:
            sizes[axis.dim] += axis.span(len(sources[group.name])) - axis.span(group.width)
        return tensor.new_empty(sizes)
    by_dim: dict[int, list[tuple[Axis, WidthGroup]]] = defaultdict(list)
    for axis, group in parts:
        by_dim[axis.dim].append((axis, group))
    new = tensor.detach()
    for dim, there in by_dim.items():
        index, scale = [], []
        at = 0
        for axis, group in sorted(there, key=lambda p: p[0].start):
            assert axis.start >= at, f"groups overlap in dimension {dim} of {axis.tensor}"
            source, share = _index(sources[group.name])
            if axis.start > at:
                index.append(torch.arange(at, axis.start))
                scale.append(torch.ones(axis.start - at))
            index.append(channel_index(axis, group.width, source))
            scale.append(_spread(axis, share if axis.fan_in else torch.ones(len(source))))
            at = axis.start + axis.span(group.width)
        index.append(torch.arange(at, tensor.shape[dim]))
        scale.append(torch.ones(tensor.shape[dim] - at))
        places = torch.cat(index).to(tensor.device)
        out = memory and memory.room(name, dim, tensor, (*new.shape[:dim], len(places), *new.shape[dim + 1 :]))
        new = torch.index_select(new, dim, places, out=out)
        if any(axis.fan_in for axis, _ in there) and bool(((factor := torch.cat(scale)) != 1).any()):
            new *= factor.to(tensor).view(-1, *[1] * (tensor.ndim - dim - 1))
    return new


def _spread(axis: Axis, values: Tensor) -> Tensor:
    """A number for each channel as one for each index that the channels hold."""
    return values if axis.tiles == axis.repeat == 1 else values.repeat_interleave(axis.repeat).repeat(axis.tiles)


def holders(model: nn.Module) -> dict[int, list[tuple[dict[str, Any], str]]]:
    """Where each tensor is kept: a tensor that several modules share is in several places."""
    places: dict[int, list[tuple[dict[str, Any], str]]] = defaultdict(list)
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for key, value in store.items():
                if value is not None:
                    places[id(value)].append((store, key))
    return places


def set_widths(model: nn.Module, groups: Sequence[WidthGroup], widths: Mapping[str, int | float] | float | int) -> None:
    """Write the numbers that follow the widths into the modules, in place, and leave every tensor as it is.

    For `torch.func.functional_call` with tensors of other sizes. A group not named in `widths` counts at its own width,
    so `set_widths(model, groups, {})` puts everything back. Raises ChannelError as `resize` does.
    """
    model, checked = original(model), check_widths(groups, widths)
    values: dict[tuple[str, str], int] = {}
    for group in groups:
        more = checked.get(group.name, group.width) - group.width
        for s in group.settings:
            key = (s.module, s.attribute)
            base = values[key] if key in values else s.fixed + s.per_channel * group.width
            values[key] = base + s.per_channel * more
    for (path, attribute), value in values.items():
        _write(model.get_submodule(path), attribute, value)


def _write(module: Any, attribute: str, value: int) -> None:
    name, _, index = attribute.partition("[")
    now = getattr(module, name)
    if isinstance(now, (tuple, list)):
        at = int(index[:-1]) if index else len(now) - 1
        value = type(now)([*now[:at], value, *now[at + 1 :]])  # type: ignore[assignment]
    if value != now:
        setattr(module, name, value)


def relocate(groups: Sequence[WidthGroup], widths: Mapping[str, int | float] | float | int) -> tuple[WidthGroup, ...]:
    """The groups as they lie in the network resized to `widths`: their new width, starts and settings."""
    checked = check_widths(groups, widths)
    new = {g.name: checked.get(g.name, g.width) for g in groups}
    places: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for g in groups:
        for a in g.axes:
            places[a.tensor, a.dim].append((a.start, a.span(new[g.name]) - a.span(g.width)))
    shared: dict[tuple[str, str], int] = defaultdict(int)
    for g in groups:
        for s in g.settings:
            shared[s.module, s.attribute] += s.per_channel * (new[g.name] - g.width)

    def moved(axis: Axis) -> Axis:
        return replace(axis, start=axis.start + sum(m for s, m in places[axis.tensor, axis.dim] if s < axis.start))

    moved_groups = []
    for g in groups:
        settings = tuple(
            replace(s, fixed=s.fixed + shared[s.module, s.attribute] - s.per_channel * (new[g.name] - g.width))
            for s in g.settings
        )
        axes = tuple(moved(a) for a in g.axes)
        moved_groups.append(replace(g, width=new[g.name], axes=axes, settings=settings))
    return tuple(moved_groups)


def check_widths(groups: Sequence[WidthGroup], widths: Mapping[str, int | float] | float | int) -> dict[str, int]:
    """Return the width in channels of every group that `widths` speaks of (see `resize`); raises ChannelError."""
    full = {g.name: g.width for g in groups}
    if not isinstance(widths, Mapping):
        if not isinstance(widths, float):
            raise ChannelError(
                f"expected one ratio for all groups (a float: 0.5) or widths by group (a mapping), not {widths!r}"
            )
        widths = dict.fromkeys(full, widths)
    checked: dict[str, int] = {}
    for name, width in widths.items():
        if name not in full:
            raise ChannelError(f"no width group is called '{name}'. {did_you_mean(name, full)}")
        if isinstance(width, float) and 0 < width <= limits.RATIO:
            width = max(1, round(width * full[name]))
        if isinstance(width, bool) or not isinstance(width, int):
            raise ChannelError(
                f"{name}: expected a whole number of channels, or a ratio as a float above 0 and up to {limits.RATIO}, "
                f"not {width!r}"
            )
        if width < 1:
            raise ChannelError(f"{name}: expected a width of at least 1, not {width}")
        checked[name] = width
    return checked


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; one that is shared has several names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _tensor(tensors: Mapping[str, Tensor], axis: Axis, group: WidthGroup) -> Tensor:
    tensor = tensors.get(axis.tensor)
    if tensor is None:
        raise ChannelError(
            f"the group '{group.name}' has channels in {axis.tensor}, but this network has no such tensor;"
            " give the network whose groups these are"
        )
    if tensor.shape[axis.dim] < axis.start + axis.span(group.width):
        raise ChannelError(
            f"the group '{group.name}' has {axis.start + axis.span(group.width)} indices in dimension {axis.dim} of"
            f" {axis.tensor}, but there it is {tensor.shape[axis.dim]} long; give the network whose groups these are"
        )
    return tensor
