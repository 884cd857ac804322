"""Width groups that were read from a file, held against the network that they are said to be of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from netsmith import limits
from netsmith.errors import ChannelError
from netsmith.widths.resizing import named_tensors
from netsmith.widths.types import Axis, Setting, WidthGroup


def check_groups(model: nn.Module, groups: Sequence[WidthGroup]) -> None:
    """That groups may be resized without touching anything but channels of this network.

    Every axis lies within its tensor, no two overlap, and every setting is a number of a module of which the network
    now has the value that the group says it has at its own width.

    Raises:
        ChannelError: names the group and what it claims.
    """
    tensors, spans = named_tensors(model), defaultdict(list)
    if len({g.name for g in groups}) < len(groups):
        raise ChannelError("two width groups have one name")
    for group in groups:
        where = f"the width group '{group.name[:80]}'"
        if not 1 <= group.width <= limits.WIDTH:
            raise ChannelError(f"{where} has the width {group.width}, expected 1 to {limits.WIDTH}")
        for axis in group.axes:
            spans[axis.tensor, axis.dim].append(_span(where, axis, group.width, tensors))
        for setting in group.settings:
            _check_setting(where, setting, group.width, model)
    for (tensor, dim), there in spans.items():
        there.sort()
        if any(end > begin for (_, end), (begin, _) in pairwise(there)):
            raise ChannelError(f"width groups overlap in dimension {dim} of {tensor}")


def _span(where: str, axis: Axis, width: int, tensors: dict[str, Tensor]) -> tuple[int, int]:
    tensor = tensors.get(axis.tensor)
    if tensor is None:
        raise ChannelError(f"{where} has channels in {axis.tensor[:80]}, and this network has no such tensor")
    inside = 0 <= axis.dim < tensor.ndim and axis.start >= 0 and axis.repeat >= 1 and axis.tiles >= 1
    if not inside or axis.start + axis.span(width) > tensor.shape[axis.dim]:
        raise ChannelError(
            f"{where} claims {axis.tiles} x {width} x {axis.repeat} indices from {axis.start} on in dimension "
            f"{axis.dim} of {axis.tensor}, which has the shape {tuple(tensor.shape)}"
        )
    return axis.start, axis.start + axis.span(width)


def _check_setting(where: str, setting: Setting, width: int, model: nn.Module) -> None:
    named = f"{setting.module[:80]}.{setting.attribute[:80]}"
    try:
        now = _number(model.get_submodule(setting.module), setting.attribute)
    except (AttributeError, LookupError, ValueError, TypeError) as error:
        raise ChannelError(f"{where} sets {named}, and this network has no such number") from error
    said = setting.fixed + setting.per_channel * width
    if now != said:
        raise ChannelError(
            f"{where} sets {named}, which it says is {said} at {width} channels, and in this network it is {now}"
        )


def _number(module: nn.Module, attribute: str) -> int:
    """The number, or the entry of a tuple or list, that a setting would change; no property, nothing of a class."""
    name, _, index = attribute.partition("[")
    value: Any = vars(module)[name]
    if isinstance(value, tuple | list):
        value = value[int(index.removesuffix("]")) if index else -1]
    if type(value) is not int:
        raise TypeError(f"{attribute} is no whole number")
    return value
