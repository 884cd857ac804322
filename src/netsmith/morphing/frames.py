"""The weights of a grid: sets of them at a few ratios, and what lies between and below them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, Int8, Shaped
from torch import Tensor, nn

from netsmith.errors import MorphError, did_you_mean
from netsmith.morphing.coordinates import Slot, along, cells, first
from netsmith.morphing.generator import Generator, Noise, key
from netsmith.morphing.paths import reproducible_order
from netsmith.training.measure import Progress
from netsmith.widths.groups import Axis, WidthGroup, entries, relocate

_SCALE = ".scale"
_REPAIRS = 3
"""Widths between two keyframes at which there are repairs."""

MOST = 64
"""Keyframes, each a network of its own size."""

_BLUR = 2.0
"""Width of the window, in cells, through which the coarse set is read."""


class Frames(Generator):
    """Keyframes: sets of weights at a few ratios, each of its own size, and interpolated in the ratio between them.

    The keyframe at ratio 1 is the base network itself and is not changed: at full width, at any time, this *is* the
    base network, to the last digit. Each of the others adds to the one above it, on its own first channels (channels in
    order of importance; a width `n` reads the first `n`): nothing at the ratio above, all of it at its own and below,
    and linearly in the logarithm of the ratio in between. So at step 0 this is `nested`. What a width learns goes to
    the two keyframes that it lies between, by their shares; what it only inherits from those further up is not moved by
    it (`shares`), so that no keyframe pays for the widths below.

    Weights between two keyframes are a mean of both, and what they compute has less variance than either's (Jordan et
    al., "REPAIR", ICLR 2023). So at three widths between each two (`between`), the outputs of `repaired` layers have a
    factor and a shift for each channel, set from data (`netsmith.morphing.keyframes.repair`); the keyframes have none,
    and what lies between is interpolated.

    With `coarse` there is one more set of weights: a smooth function of the relative position, given on a grid of
    `coarse` times the base's channels, which any width reads by interpolation at its own cell centres `(j + 1/2) / n`,
    with the fan-in corrected. It is fitted at widths within the range, by itself (`forward(..., coarse=True)`), and
    read below the range: as it knows no detail finer than its cells, what holds at the widths it was fitted at holds
    at smaller ones too.

    Args:
        tensors: see `Generator`; channels in order of importance.
        groups: see `Generator`.
        keyframes: ratios, from high to low; the first is 1, the last the low end of the fitted range.
            A keyframe's weights are of its own size. With 1 alone, only the coarse set is fitted, if there is one.
        coarse: cells of the coarse set over the base's width, at most the last keyframe; None for no coarse set.
        own: names of tensors that no group touches and that each keyframe has of its own all the same: biases of what
            reads the groups, norms, the classifier.
        repaired: names of layers whose weight and bias are generated, outputs first, and that have such factors.
        lowest: the narrowest width of some groups, by name, that a keyframe has, at most the base's; 1 of others. With
            a range in channel counts a keyframe is narrower by as much as each group may be.
        inbetweens: those keyframes, never the first or the last, that are trained after the others, in this order, and
            briefly: each begins as the mean of the two around it that are there (`netsmith.morphing.keyframes`).

    Raises:
        MorphError: keyframes that do not fall, that are too many or alike in every width, a coarse set of no size, or a
            tensor or group that is not there.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        groups: Sequence[WidthGroup],
        keyframes: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
        coarse: float | None = 0.125,
        own: Sequence[str] = (),
        repaired: Sequence[str] = (),
        inbetweens: Sequence[float] = (),
        lowest: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(tensors, groups)
        self._follows: dict[str, tuple[str, ...]] = {
            s.name: tuple(dict.fromkeys(group for group, _ in s.axes)) for s in self.slots
        }
        self.own: tuple[str, ...] = tuple(own)
        self.slots = (*self.slots, *(self._owned(name, tensors) for name in self.own))
        ratios = tuple(float(r) for r in keyframes)
        if ratios[:1] != (1.0,) or any(a <= b for a, b in pairwise(ratios)) or ratios[-1] <= 0:
            raise MorphError(f"keyframes must fall from 1 to above 0, such as 1, 0.5, 0.25; not {ratios}")
        if coarse is not None and not 0 < coarse <= 1:
            raise MorphError(f"coarse must be above 0 and at most 1 (cells over channels), not {coarse}")
        if len(ratios) > MOST:
            raise MorphError(f"a grid has at most {MOST} keyframes, not {len(ratios)}")
        self.lowest: dict[str, int] = _lowest(lowest or {}, self.base)
        self.keyframes: tuple[float, ...] = ratios
        alike = [low for high, low in pairwise(ratios) if self.widths_at(low) == self.widths_at(high)]
        if alike:
            raise MorphError(f"the keyframe {alike[0]:g} has the widths of the one above it: leave one out of {ratios}")
        self.inbetweens: tuple[float, ...] = _inner(tuple(float(r) for r in inbetweens), ratios)
        self.coarse: float | None = coarse
        self.parts = _components([s for s in self.slots if s.axes])
        self._paces: dict[str, tuple[str, ...]] = {
            name: names if self._falls(names) else tuple(self.base) for name, names in self._follows.items()
        }
        self._knots = {s.name: tuple(self.ratio(s, self.widths_at(r)) for r in ratios) for s in self.slots}
        for s in self.slots:
            self.register_buffer("anchor/" + key(s.name), tensors[s.name].detach().clone())
        self.deltas = nn.ModuleList(
            nn.ParameterDict({key(s.name): nn.Parameter(torch.zeros(self._size(s, r))) for s in self.slots})
            for r in ratios[1:]
        )
        self.smooth = nn.ParameterDict()
        if coarse is not None:
            small = self._cells()
            for s in self.slots:
                start = first(s, tensors[s.name].detach(), self.base, self.base, small)
                self.smooth[key(s.name)] = nn.Parameter(start.clone())
        self.repaired: tuple[str, ...] = tuple(repaired)
        self.between: tuple[float, ...] = tuple(
            high + (low - high) * k / (_REPAIRS + 1) for high, low in pairwise(ratios) for k in range(1, _REPAIRS + 1)
        )
        self._repairs: dict[str, tuple[tuple[float, int | None], ...]] = {}
        self._layers: dict[str, tuple[Slot, Slot]] = {}  # weight and bias of each repaired layer
        by_name = {s.name: s for s in self.slots}
        if len(set(self.repaired)) < len(self.repaired):
            raise MorphError("repaired names a layer twice")
        for layer in self.repaired:
            weight, bias = by_name.get(f"{layer}.weight"), by_name.get(f"{layer}.bias")
            if weight is None or bias is None or len(bias.shape) != 1 or weight.shape[0] != bias.shape[0]:
                raise MorphError(f"repaired names '{layer[:80]}', which has no generated weight and bias")
            self._layers[layer] = weight, bias
            places: dict[float, int | None] = dict.fromkeys(self._knots[weight.name])
            for i, ratio in enumerate(self.between):
                places.setdefault(self.ratio(weight, self.widths_at(ratio)), i)
            self._repairs[layer] = tuple(sorted(places.items(), reverse=True))
        self._spans: dict[tuple[int, str], tuple[int, int]] = {}
        for i, ratio in enumerate(self.between if self.repaired else ()):
            end = 0
            for layer in self.repaired:
                size = self._size(self._layers[layer][1], ratio)[0]
                self._spans[i, layer] = end, size
                end += 2 * size
            self.register_buffer(f"repair/{i}", torch.zeros(end))  # one for all layers: files name every tensor

    def _owned(self, name: str, tensors: Mapping[str, Tensor]) -> Slot:
        """The slot of a tensor of the keyframes' own; it follows the groups of its layer, or else all."""
        if name not in tensors:
            raise MorphError(f"own names '{name[:80]}', which the network lacks. {did_you_mean(name, tensors)}")
        if name in self._follows or not tensors[name].is_floating_point():
            raise MorphError(f"own names '{name[:80]}', which is generated already or holds no weights")
        layer = name.rpartition(".")[0]
        near = [g for n, groups in self._follows.items() if n.rpartition(".")[0] == layer for g in groups]
        self._follows[name] = tuple(dict.fromkeys(near)) or tuple(self.base)
        return Slot(name, tuple(tensors[name].shape), ())

    @torch.no_grad()
    def begin(
        self,
        tensors: Mapping[str, Tensor],
        ends: Mapping[str, tuple[int, int]],
        progress: Progress | None = None,
        checkpoints: Path | None = None,
    ) -> None:
        """Put the cells of the coarse set in a smooth order: what lies between two that are alike is like both."""
        if self.coarse is None:
            return
        small = self._cells()
        found = {s.name: self.smooth.get_parameter(key(s.name)) for s in self.slots}
        for group in relocate(self.groups, small):
            order = torch.tensor(reproducible_order(entries(found, group)).order)
            read = torch.eye(group.width)[order]

            def change(t: Tensor, axis: Axis, name: str, moved: str = group.name, read: Tensor = read) -> Tensor:
                return along(t, axis, small[name], read.to(t.device)) if name == moved else t

            for s in self.slots:
                found[s.name].copy_(s.walk(found[s.name], self.base, small, change))

    def settings(self) -> dict[str, Any]:
        """Keyframes, `inbetweens`, `lowest`, `coarse`, `own` and `repaired`."""
        names = ("keyframes", "inbetweens", "own", "repaired")
        lists = {name: list(getattr(self, name)) for name in names}
        return {**lists, "coarse": self.coarse, "lowest": dict(self.lowest)}

    def anchors(self) -> tuple[str, ...]:
        """The base network's tensors."""
        return tuple("anchor/" + key(s.name) for s in self.slots)

    def saved(self) -> dict[str, Tensor]:
        """Everything but the base: matrices and kernels in 8 bits with a scale for each row, vectors in 16.

        Statistics of batch norms, and vectors with numbers that 16 bits do not hold, are kept in 32.
        """
        found: dict[str, Tensor] = {}
        for name, value in super().saved().items():
            if kept_in_bytes(name, value):
                found[name], found[name + _SCALE] = in_bytes(value)
            else:
                found[name] = in_16_bits(name, value)
        return found

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """See `Generator.restore`; deltas come with their scales, or as numbers."""
        whole: dict[str, Tensor] = {}
        for name, value in saved.items():
            scale = saved.get(name + _SCALE)
            if scale is not None and scale.shape != value.shape[:1]:
                raise MorphError(f"{name} has {tuple(value.shape[:1])} rows, and scales for {tuple(scale.shape)}")
            if not name.endswith(_SCALE) or name.removesuffix(_SCALE) not in saved:
                whole[name] = value if scale is None else from_bytes(value, scale)
        super().restore(whole)

    @torch.no_grad()
    def settle(self) -> None:
        """See `Generator.settle`."""
        for name, parameter in self.named_parameters():
            parameter.copy_(rounded(name, parameter))

    def widths_at(self, ratio: float) -> dict[str, int]:
        """The widths of all groups at a ratio, as its keyframe has them."""
        return keyframe_widths(self.base, ratio, self.lowest)

    def _cells(self) -> dict[str, int]:
        """The cells of the coarse set, by group."""
        return keyframe_widths(self.base, self.coarse or 1.0, {})

    def _falls(self, names: Sequence[str]) -> bool:
        """Whether every keyframe is narrower than the one above it in at least one of these groups."""
        widths = [self.widths_at(r) for r in self.keyframes]
        return all(any(a[g] > b[g] for g in names) for a, b in pairwise(widths))

    def _size(self, slot: Slot, ratio: float) -> tuple[int, ...]:
        return slot.sized(self.base, self.widths_at(ratio))

    def forward(self, widths: Mapping[str, int], noise: Noise | None = None, coarse: bool = False) -> dict[str, Tensor]:
        """See `Generator.forward`; noise moves the reads of the coarse set, which `coarse` asks for by itself."""
        low = self.widths_at(self.keyframes[-1])
        below = [self.coarse is not None and (coarse or any(widths[g] < low[g] for g in part)) for part in self.parts]
        low_groups = {group for part, flag in zip(self.parts, below, strict=True) if flag for group in part}
        coarsely = {s.name for s in self.slots if low_groups.intersection(self._follows[s.name])}
        found = {
            s.name: self._smooth(s, widths, noise) if s.name in coarsely else self._tensor(s, widths)
            for s in self.slots
        }
        for layer in self.repaired:
            if coarsely.isdisjoint(slot.name for slot in self._layers[layer]):
                self._repair(found, layer, widths)
        return found

    def ratio(self, slot: Slot, widths: Mapping[str, int]) -> float:
        """Geometric mean of the ratios of the groups that a tensor follows: where it lies between keyframes.

        A tensor whose groups are as wide at two keyframes as they have few channels, or as they go no lower, follows
        all groups instead: at each keyframe it must be that keyframe's own.
        """
        product, names = 1.0, self._paces[slot.name]
        for name in names:
            product *= widths[name] / self.base[name]
        return product ** (1 / len(names))

    def _tensor(self, slot: Slot, widths: Mapping[str, int]) -> Tensor:
        anchor: Tensor = self.get_buffer("anchor/" + key(slot.name))
        read = first(slot, anchor, self.base, self.base, widths)
        parts = shares(self.ratio(slot, widths), self._knots[slot.name])
        for (share, learned), ratio, values in zip(parts, self.keyframes[1:], self.deltas, strict=True):
            if share:
                delta = values.get_parameter(key(slot.name))
                moved = delta * share if learned == share else delta * learned + delta.detach() * (share - learned)
                read = self._added(slot, read, moved, ratio, widths)
        return read

    def _repair(self, found: dict[str, Tensor], layer: str, widths: Mapping[str, int]) -> None:
        """Apply the factors and shifts of a layer, where its ratio is between two keyframes."""
        weight, bias = self._layers[layer]
        ratio = self.ratio(weight, widths)
        for (high, above), (low, below) in pairwise(self._repairs[layer]):
            if not low <= ratio <= high:
                continue
            way = way_down(high, low, ratio)
            factor, shift = (torch.zeros_like(found[bias.name]) for _ in range(2))
            for place, share in ((above, 1 - way), (below, way)):
                if place is not None and share:
                    own = self.between[place]
                    more, moved = self._set_of(place, layer)
                    factor = self._added(bias, factor, share * more, own, widths)
                    shift = self._added(bias, shift, share * moved, own, widths)
            value = found[weight.name]
            found[weight.name] = value * (1 + factor).view(-1, *[1] * (value.ndim - 1))
            found[bias.name] = found[bias.name] + shift
            return

    def repaired_at(self, place: int) -> tuple[str, ...]:
        """The layers that have repairs of their own at `between[place]`; others are there as wide as elsewhere."""
        return tuple(layer for layer in self.repaired if any(p == place for _, p in self._repairs[layer]))

    @torch.no_grad()
    def set_repair(self, place: int, layer: str, factor: Tensor, shift: Tensor) -> None:
        """Set the factors of a layer's outputs (1 leaves them) and what is added to its bias, at `between[place]`."""
        for kept, value in zip(self._set_of(place, layer), (factor - 1, shift), strict=True):
            kept.copy_(in_16_bits("repair", value))

    def _set_of(self, place: int, layer: str) -> tuple[Tensor, Tensor]:
        """What a layer's factors are above 1, and its shifts, at `between[place]`; views of what is kept."""
        start, size = self._spans[place, layer]
        kept: Tensor = self.get_buffer(f"repair/{place}")
        return kept[start : start + size], kept[start + size : start + 2 * size]

    def _added(self, slot: Slot, read: Tensor, delta: Tensor, ratio: float, widths: Mapping[str, int]) -> Tensor:
        """`read` plus a keyframe's delta on the channels that both have."""
        own = self.widths_at(ratio)
        shared = {name: min(own[name], widths[name]) for name in own}
        piece = first(slot, delta, self.base, own, shared)
        return read + slot.widened(piece, self.base, shared, widths)

    @torch.no_grad()
    def anchor(self, tensors: Mapping[str, Tensor]) -> None:
        """Make these the base network's tensors: its channels in another order. Before a keyframe has learned any."""
        for s in self.slots:
            self.get_buffer("anchor/" + key(s.name)).copy_(tensors[s.name])

    @torch.no_grad()
    def learn(self, ratio: float, tensors: Mapping[str, Tensor]) -> None:
        """Make these the tensors of a keyframe: its delta becomes what they add to the keyframes above it.

        It is rounded as it will be saved, and what the next one below adds makes up for that: from high to low.
        """
        widths = self.widths_at(ratio)
        delta = self.deltas[self.keyframes.index(ratio) - 1]
        for s in self.slots:
            now: Tensor = delta.get_parameter(key(s.name))
            now.copy_(now + tensors[s.name].to(now) - self._tensor(s, widths))
            now.copy_(rounded(f"deltas.{s.name}", now))

    def _smooth(self, slot: Slot, widths: Mapping[str, int], noise: Noise | None) -> Tensor:
        small = self._cells()

        def change(t: Tensor, axis: Axis, group: str) -> Tensor:
            shift = None if noise is None else noise.draw(widths[group])
            cell, n = small[group], widths[group]
            read = cells(n, cell, window=max(_BLUR, cell / n), shift=shift)
            return along(t, axis, cell, read.to(t.device))

        tensor = slot.walk(self.smooth.get_parameter(key(slot.name)), self.base, small, change)
        return tensor * (slot.fan_in_factor(self.base, widths) / slot.fan_in_factor(self.base, small))


def keyframe_widths(base: Mapping[str, int], ratio: float, lowest: Mapping[str, int]) -> dict[str, int]:
    """The widths of groups at a ratio, rounded; none is below its lowest, or 1."""
    return {name: max(lowest.get(name, 1), round(ratio * width)) for name, width in base.items()}


def _lowest(lowest: Mapping[str, int], base: Mapping[str, int]) -> dict[str, int]:
    """Narrowest widths, checked and at most the base's. Raises MorphError."""
    for name, width in lowest.items():
        if name not in base:
            raise MorphError(f"lowest names the group '{name[:80]}', which is not there. {did_you_mean(name, base)}")
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise MorphError(f"lowest is a width of at least 1, not {str(width)[:40]}, of '{name[:80]}'")
    return {name: min(width, base[name]) for name, width in lowest.items()}


def _inner(inbetweens: tuple[float, ...], keyframes: tuple[float, ...]) -> tuple[float, ...]:
    """Those in between, checked. Raises MorphError where one has no two around it to begin from."""
    if not set(inbetweens) <= set(keyframes[1:-1]) or len(set(inbetweens)) < len(inbetweens):
        raise MorphError(
            f"inbetweens are keyframes other than the first and the last, each once; not {inbetweens[:20]} of "
            f"{keyframes[:20]}"
        )
    return inbetweens


def _components(found: Sequence[Slot]) -> tuple[frozenset[str], ...]:
    """Groups that share a tensor, directly or through others: they are read in one way."""
    parts: list[frozenset[str]] = []
    for slot in found:
        mine = frozenset(group for group, _ in slot.axes)
        touching = [p for p in parts if p & mine]
        parts = [p for p in parts if not p & mine] + [mine.union(*touching)]
    return tuple(parts)


def way_down(high: float, low: float, ratio: float) -> float:
    """How far a ratio is on its way down from `high` to `low`, in the logarithm, 0 to 1; where both are one, a step."""
    if ratio >= high:
        return 0.0
    return 1.0 if ratio <= low else math.log(high / ratio) / math.log(high / low)


def shares(ratio: float, keyframes: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """How much each keyframe but the first adds at a ratio, and by how much of that it learns there.

    What it adds rises from 0 at the keyframe before it to 1 at its own ratio, linearly in the logarithm of the ratio,
    and stays. It learns by as much, less what the next keyframe adds: so all learning is shared by the two keyframes
    that a ratio lies between, and below its next neighbour a keyframe is read and not moved.
    """
    rises = [way_down(high, low, ratio) for high, low in pairwise(keyframes)]
    return tuple((rise, rise - next_one) for rise, next_one in zip(rises, [*rises, 0.0][1:], strict=True))


# How numbers are kept in a file: matrices in 8 bits, vectors in 16, statistics in 32.


def kept_in_bytes(name: str, value: Tensor) -> bool:
    """Whether a tensor is kept in 8 bits; vectors are small."""
    return name.startswith(("deltas.", "smooth.")) and value.ndim > 1


def rounded(name: str, value: Tensor) -> Tensor:
    """A parameter as it comes back when it was saved."""
    return from_bytes(*in_bytes(value)) if kept_in_bytes(name, value) else in_16_bits(name, value)


def in_16_bits(name: str, value: Tensor) -> Tensor:
    """A vector in 16 bits, where that loses nothing but digits; statistics, which may be large or tiny, in 32."""
    half = value.half()
    return value.float() if name.endswith(("running_mean", "running_var")) or not half.isfinite().all() else half


def in_bytes(value: Float[Tensor, "*shape"]) -> tuple[Int8[Tensor, "*shape"], Float32[Tensor, " rows"]]:
    """A tensor in whole steps from -127 to 127, and the size of a step for each row of its first dimension.

    Sizes have 16 significant bits, so that a tensor that was rounded is rounded to itself.
    """
    largest = value.detach().float().flatten(1).abs().amax(1) / 127
    scale = (largest.view(torch.int32) & ~0xFF).view(torch.float32)
    tiny = torch.finfo(torch.float32).tiny
    steps = value.detach() / scale.clamp_min(tiny).view(-1, *[1] * (value.ndim - 1))
    return steps.round().clamp(-127, 127).to(torch.int8), scale


def from_bytes(steps: Shaped[Tensor, "*shape"], scale: Float[Tensor, " rows"]) -> Float[Tensor, "*shape"]:
    """What `in_bytes` rounded a tensor to."""
    return steps.float() * scale.float().view(-1, *[1] * (steps.ndim - 1))
