"""What the paper's generator sees: positions in a tensor and sizes of it, as Fourier features, ready for one product.

Yang et al., "Neural Metamorphosis" (ECCV 2024), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from netsmith.errors import MorphError
from netsmith.morphing.coordinates import Slot, relative
from netsmith.morphing.generator import Noise

ROWS = 2**17
"""Coordinates evaluated at once; beyond it activations are computed again in the backward pass, not kept."""

WASTE, SMALL = 1.25, 512
"""Tensors share a product while padding adds at most a quarter, or all of them have at most so many rows."""

SIZE_TOP = 8
"""Highest frequency, over pi, of a size: neighbouring widths should get much the same weights."""


@dataclass(frozen=True)
class View:
    """A slot as the coordinates see it: every dimension with a width comes first, what follows is the kernel."""

    slot: Slot
    order: tuple[int, ...]

    @property
    def kernel(self) -> int:
        """Numbers that belong to one pair of coordinates."""
        return math.prod(self.slot.shape[2:])

    @property
    def rows(self) -> int:
        """Pairs of coordinates in the base tensor."""
        return math.prod(self.slot.shape[:2])

    def tensor(self, rows: Float[Tensor, "m k"], shape: tuple[int, ...]) -> Tensor:
        """Values in order of the coordinates, as the network's tensor; `shape` is that of the view's slot."""
        found = rows.reshape(shape)
        if self.order != tuple(range(len(shape))):
            found = found.permute([self.order.index(d) for d in range(len(shape))]).contiguous()
        return found

    def rows_of(self, tensor: Tensor) -> Float[Tensor, "m k"]:
        """The network's tensor as values in order of the coordinates."""
        return tensor.permute(self.order).reshape(-1, self.kernel)


def view(slot: Slot) -> View:
    """Bring the dimensions that widths change to the front. Raises MorphError where they are more than two."""
    dims = sorted({axis.dim for _, axis in slot.axes})
    order = list(range(len(slot.shape)))
    if dims[-1] > 1:
        order = [*dims, *(d for d in order if d not in dims)]
    if len(dims) > 2:
        raise MorphError(
            f"'{slot.name}' {slot.shape} has {len(dims)} dimensions that change with the widths; the generator 'inr' "
            f"knows two, outputs and inputs. Leave one of its groups out, or take another generator"
        )
    axes = tuple((name, replace(axis, dim=order.index(axis.dim))) for name, axis in slot.axes)
    return View(replace(slot, shape=tuple(slot.shape[d] for d in order), axes=axes), tuple(order))


def frequencies(count: int, top: int) -> Float[Tensor, " count"]:
    """`count` angular frequencies, geometric from `pi` to `pi * min(2 ** (count - 1), top)`, in float64.

    The published ones double up to `2 ** 15 * pi`. Those above `n * pi` cannot be told from lower ones on a grid of
    `n` channels and are noise between its cells, that is at every other width; at `2 ** 15 * pi` half a float32 digit
    of the position is seen in the feature. So the top is that of the base tensor's grid, `n`.
    """
    high = math.log(max(1, min(2 ** (count - 1), top)))
    return math.pi * torch.linspace(0.0, high, count, dtype=torch.float64).exp()


def fourier(x: Float[Tensor, "t n"], omega: Float[Tensor, "t f"]) -> Float[Tensor, "t n c"]:
    """Features `(x, sin(omega x), cos(omega x))` of each position, `c = 2 f + 1`; computed in float64."""
    angle = x.double()[:, :, None] * omega[:, None, :]
    return torch.cat([x.double()[:, :, None], angle.sin(), angle.cos()], dim=2).float()


@dataclass(frozen=True)
class Part:
    """Neighbouring tensors of one bank, evaluated together at one width vector, padded to the largest of them.

    Attributes:
        shapes: of the tensors, as the coordinates see them.
        sizes: `(n_out, n_in)` of each.
        relative: sizes over those of the base tensors, (t, 2).
        positions: of outputs (t, n_out) and of inputs (t, n_in).
        cells: lengths of a cell along outputs and inputs, (t, 1) each.
        omegas: frequencies for outputs and inputs, (t, f) each.
        features: of outputs (t, n_out, c), of inputs (t, n_in, c) and of both sizes (t, 1, 2 c).
        scale: fan-in of the base tensor over this one's, (t, 1, 1).
    """

    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, int], ...]
    relative: Tensor
    positions: tuple[Tensor, Tensor]
    cells: tuple[Tensor, Tensor]
    omegas: tuple[Tensor, Tensor]
    features: tuple[Tensor, Tensor, Tensor]
    scale: Tensor

    @property
    def rows(self) -> int:
        """Coordinates evaluated, with padding."""
        return len(self.sizes) * max(o * i for o, i in self.sizes)

    def moved(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """Positions of outputs and inputs, each moved by a share of its cell; a channel of a tensor moves as one."""
        pairs = zip(self.positions, self.cells, strict=True)
        o, i = (x + noise.draw(*x.shape).to(x.device) * cell for x, cell in pairs)
        return o, i

    def to(self, device: torch.device) -> Part:
        """The same on a device."""
        moved = {
            name: tuple(t.to(device) for t in getattr(self, name))
            for name in ("positions", "cells", "omegas", "features")
        }
        return replace(self, relative=self.relative.to(device), scale=self.scale.to(device), **moved)


def part(views: Sequence[View], base: Mapping[str, int], widths: Mapping[str, int], count: int) -> Part:
    """Positions and features of some tensors at a width vector, with `count` frequencies."""
    sized = tuple(v.slot.sized(base, widths) for v in views)
    sizes = tuple((s[0], s[1] if len(s) > 1 else 1) for s in sized)
    tables = [relative(v.slot, base, widths) for v in views]
    o = pad_sequence([t[::n_in, 0] for t, (_, n_in) in zip(tables, sizes, strict=True)], batch_first=True)
    i = pad_sequence([t[:n_in, 1] for t, (_, n_in) in zip(tables, sizes, strict=True)], batch_first=True)
    tops = [(*v.slot.shape[:2], 1)[:2] for v in views]
    omegas = [torch.stack([frequencies(count, pair[side]) for pair in tops]) for side in (0, 1)]
    ratios = torch.stack([t[0, 2:] for t in tables])
    of_sizes = fourier(ratios, frequencies(count, SIZE_TOP).expand(len(views), -1)).flatten(1)[:, None]
    lengths = 1.0 / torch.tensor(sizes, dtype=torch.float32)
    return Part(
        shapes=sized,
        sizes=sizes,
        relative=ratios,
        positions=(o, i),
        cells=(lengths[:, :1], lengths[:, 1:]),
        omegas=(omegas[0], omegas[1]),
        features=(fourier(o, omegas[0]), fourier(i, omegas[1]), of_sizes),
        scale=torch.tensor([v.slot.fan_in_factor(base, widths) for v in views])[:, None, None],
    )


def runs(rows: Sequence[int]) -> list[int]:
    """How many neighbours share each product: as many as padding pays for, and no more than `ROWS` coordinates."""
    counts: list[int] = []
    for k in range(len(rows)):
        together = rows[k - counts[-1] : k + 1] if counts else []
        padded = len(together) * max(together, default=0)
        pays = padded <= WASTE * sum(together) or max(together) <= SMALL
        if together and pays and padded <= ROWS:
            counts[-1] += 1
        else:
            counts.append(1)
    return counts
