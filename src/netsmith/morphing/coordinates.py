"""Where an entry of a weight tensor lies: the one place that knows which axis is output, which is input, and its scale.

A tensor's dimension 0 holds outputs `o`, dimension 1 inputs `i`; what follows (a kernel) belongs to one entry `(o, i)`.
Positions along a width are relative: channel `j` of `n` has its cell's centre at `(j + 1/2) / n`, whatever `n` is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from netsmith import limits
from netsmith.errors import MorphError
from netsmith.widths.groups import Axis, WidthGroup


@dataclass(frozen=True)
class Slot:
    """One tensor of a network that changes with the widths.

    `shape` is that in the base network; `axes` pairs group names with the axes that lie in this tensor, those of one
    dimension in order of their start.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[tuple[str, Axis], ...]

    def sized(self, base: Mapping[str, int], widths: Mapping[str, int]) -> tuple[int, ...]:
        """The tensor's shape at these widths; `base` are those of the base network."""
        shape = list(self.shape)
        for group, axis in self.axes:
            shape[axis.dim] += axis.span(widths[group]) - axis.span(base[group])
        return tuple(shape)

    def fan_in_factor(self, base: Mapping[str, int], widths: Mapping[str, int]) -> float:
        """How many times more entries are summed over at the base's widths than at these."""
        sized = self.sized(base, widths)
        factor = 1.0
        for dim in sorted({axis.dim for _, axis in self.axes if axis.fan_in}):
            factor *= self.shape[dim] / sized[dim]
        return factor

    def widened(
        self, tensor: Tensor, base: Mapping[str, int], have: Mapping[str, int], want: Mapping[str, int]
    ) -> Tensor:
        """The tensor at the widths `have` with zeros for the channels that it lacks of the widths `want`."""
        return self.walk(tensor, base, have, lambda t, axis, group: padded(t, axis, have[group], want[group]))

    def walk(
        self,
        tensor: Tensor,
        base: Mapping[str, int],
        have: Mapping[str, int],
        change: Callable[[Tensor, Axis, str], Tensor],
    ) -> Tensor:
        """Apply `change(tensor, axis, group)` along every axis; `tensor` is this one at the widths `have`."""
        for at in reversed(range(len(self.axes))):
            group, axis = self.axes[at]
            # from the last start to the first: what lies before an axis still has the widths `have`
            before = [(g, a) for g, a in self.axes[:at] if a.dim == axis.dim]
            moved = sum(a.span(have[g]) - a.span(base[g]) for g, a in before)
            tensor = change(tensor, replace(axis, start=axis.start + moved) if moved else axis, group)
        return tensor


def slots(tensors: Mapping[str, Tensor], groups: Sequence[WidthGroup]) -> tuple[Slot, ...]:
    """All tensors in which one of the groups has an axis, in the order of `tensors`."""
    found: dict[str, list[tuple[str, Axis]]] = {}
    for group in groups:
        for axis in group.axes:
            found.setdefault(axis.tensor, []).append((group.name, axis))
    return tuple(
        Slot(name, tuple(t.shape), tuple(sorted(found[name], key=lambda pair: (pair[1].dim, pair[1].start))))
        for name, t in tensors.items()
        if name in found
    )


def check_affordable(found: Sequence[Slot], base: Mapping[str, int], widths: Mapping[str, int]) -> None:
    """That tensors at these widths fit into this machine, before one is made; `base` are the base network's widths.

    A network is held about four times while it is made: as it is read, as it is put in place, and as it was before.

    Raises:
        MorphError: they do not; or a width is beyond `limits.WIDTH`.
    """
    for name, width in widths.items():
        if width > limits.WIDTH:
            raise MorphError(f"'{name}' would have {width} channels, expected at most {limits.WIDTH}")
    size = 16 * sum(math.prod(slot.sized(base, {**base, **widths})) for slot in found)
    if size > limits.memory():
        raise MorphError(
            f"a network of these widths takes {limits.amount(size)} while it is made, more than the memory of this "
            f"machine ({limits.amount(limits.memory())}). Ask for a smaller one; if that is wrong, set NETSMITH_MEMORY "
            "to its GiB."
        )


def along(tensor: Tensor, axis: Axis, width: int, read: Float[Tensor, "n width"]) -> Tensor:
    """Replace the `width` channels of an axis by `n`, each the weighted sum of old ones in its row of `read`."""
    dim, span = axis.dim, axis.span(width)
    old = tensor.narrow(dim, axis.start, span).unflatten(dim, (axis.tiles, width, axis.repeat))
    new = torch.einsum("nw,w...->n...", read.to(old.dtype), old.movedim(dim + 1, 0)).movedim(0, dim + 1)
    new = new.flatten(dim, dim + 2)
    rest = tensor.shape[dim] - axis.start - span
    if not axis.start and not rest:
        return new
    end = tensor.narrow(dim, axis.start + span, rest)
    return torch.cat([tensor.narrow(dim, 0, axis.start), new, end], dim)


def prefix(tensor: Tensor, axis: Axis, width: int, n: int) -> Tensor:
    """Keep the first `n` of the `width` channels of an axis; a view where the axis is all of its dimension."""
    if n == width:
        return tensor
    dim, span = axis.dim, axis.span(width)
    if axis.tiles == 1 and axis.start + span == tensor.shape[dim]:
        return tensor.narrow(dim, 0, axis.start + n * axis.repeat)
    old = tensor.narrow(dim, axis.start, span).unflatten(dim, (axis.tiles, width, axis.repeat))
    new = old.narrow(dim + 1, 0, n).flatten(dim, dim + 2)
    rest = tensor.shape[dim] - axis.start - span
    return torch.cat([tensor.narrow(dim, 0, axis.start), new, tensor.narrow(dim, axis.start + span, rest)], dim)


def padded(tensor: Tensor, axis: Axis, width: int, n: int) -> Tensor:
    """Put zeros behind the `width` channels of an axis, to `n`."""
    if n == width:
        return tensor
    dim, span = axis.dim, axis.span(width)
    old = tensor.narrow(dim, axis.start, span).unflatten(dim, (axis.tiles, width, axis.repeat))
    shape = list(old.shape)
    shape[dim + 1] = n - width
    new = torch.cat([old, old.new_zeros(shape)], dim + 1).flatten(dim, dim + 2)
    rest = tensor.shape[dim] - axis.start - span
    if not axis.start and not rest:
        return new
    end = tensor.narrow(dim, axis.start + span, rest)
    return torch.cat([tensor.narrow(dim, 0, axis.start), new, end], dim)


def repeats(n: int, width: int, fan_in: bool) -> Float[Tensor, "n width"]:
    """How `n >= width` channels repeat `width` in turn; on the side summed over, divided by how often each comes."""
    source = torch.arange(n) % width
    read = torch.zeros(n, width)
    times = torch.bincount(source, minlength=width).float()
    read[torch.arange(n), source] = 1.0 / times[source] if fan_in else 1.0
    return read


def first(
    slot: Slot, tensor: Tensor, base: Mapping[str, int], have: Mapping[str, int], want: Mapping[str, int]
) -> Tensor:
    """The tensor at the widths `have`, cut to the first channels of each group, or repeated, to the widths `want`.

    Repeated channels leave the network's function as it is (Chen et al., "Net2Net", ICLR 2016).
    """

    def change(t: Tensor, axis: Axis, group: str) -> Tensor:
        width, n = have[group], want[group]
        if n <= width:
            return prefix(t, axis, width, n)
        return along(t, axis, width, repeats(n, width, axis.fan_in).to(t.device))

    return slot.walk(tensor, base, have, change)


def cells(n: int, width: int, window: float | None = None, shift: Tensor | None = None) -> Float[Tensor, "n width"]:
    """How `n` channels read a grid of `width` cells: the mean over a window around each one's centre `(j + 1/2) / n`.

    The window is one of the `n` cells, `width / n`, or `window` cells wide; for fewer cells than channels (`n >
    width`) the grid is interpolated linearly. `shift` (n,) moves the centres, in cells. Rows sum to one; for
    `n == width` without window and shift this is the identity, to the digit.
    """
    centre = (torch.arange(n, dtype=torch.float64) + 0.5) * (width / n)
    if shift is not None:
        centre = centre + shift.double()
    wide = min(float(width), max(1.0, width / n if window is None else window))
    low = (centre - wide / 2).clamp(0.0, width - wide)[:, None]
    cell = torch.arange(width, dtype=torch.float64)[None]
    overlap = (torch.minimum(low + wide, cell + 1.0) - torch.maximum(low, cell)).clamp(min=0.0)
    return (overlap / overlap.sum(dim=1, keepdim=True)).float()


def relative(slot: Slot, base: Mapping[str, int], widths: Mapping[str, int]) -> Float[Tensor, "m 4"]:
    """Coordinates `(o / n_out, i / n_in, n_out, n_in)` of all `m = n_out * n_in` entries `(o, i)` of a tensor.

    `o` and `i` are at their cells' centres, in 0..1; the sizes are relative to the base tensor's (Yang et al., "Neural
    Metamorphosis", ECCV 2024, section 3.2: the index and the size of the layer are the coordinates of a weight).
    """
    sized = slot.sized(base, widths)
    n_out, n_in = sized[0], sized[1] if len(sized) > 1 else 1
    o = (torch.arange(n_out) + 0.5) / n_out
    i = (torch.arange(n_in) + 0.5) / n_in
    size_out = torch.full((n_out * n_in,), n_out / slot.shape[0])
    size_in = torch.full((n_out * n_in,), n_in / (slot.shape[1] if len(slot.shape) > 1 else 1))
    return torch.stack([o.repeat_interleave(n_in), i.repeat(n_out), size_out, size_in], dim=1)
