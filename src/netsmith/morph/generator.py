"""Generators: widths in, weights out. What all kinds share, the kinds that read stored weights, and how one is made.

`nested` and `grid` are here, `inr` (the paper's) is in `netsmith.morph.inr`. All give a dictionary of tensors under the
names of the network's state dict, of the shapes that the network has at the widths asked for.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, TypeVar, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from netsmith.core.channels import Axis, WidthGroup, entries, relocate
from netsmith.errors import MorphError, did_you_mean
from netsmith.morph.coordinates import Slot, along, cells, first, padded, slots
from netsmith.morph.paths import channel_order

_BLUR = 2.0
"""Width of the window, in cells, through which the coarse set is read."""

GENERATORS: dict[str, type[Generator]] = {}
"""Kinds of generators by name."""


@dataclass
class Noise:
    """Coordinate noise of one read: every coordinate moves by up to half of `amount` cells, drawn from `source`.

    Only positions along the outputs and inputs move; never the tensor's index, never the sizes.
    """

    amount: float
    source: torch.Generator

    def draw(self, *shape: int) -> Tensor:
        """Uniform shifts in `-amount / 2 .. amount / 2` cells."""
        return (torch.rand(*shape, generator=self.source) - 0.5) * self.amount


G = TypeVar("G", bound="Generator")


def generator(kind: str) -> Callable[[type[G]], type[G]]:
    """Register a kind of generator under a name."""

    def register(cls: type[G]) -> type[G]:
        cls.kind = kind
        GENERATORS[kind] = cls
        return cls

    return register


class Generator(nn.Module):
    """Weights of a network as a function of its widths.

    Args:
        tensors: the base network's tensors by state-dict name, smoothed or ordered; only those that a group touches
            are generated.
        groups: the width groups that vary.
    """

    kind: ClassVar[str] = ""

    def __init__(self, tensors: Mapping[str, Tensor], groups: Sequence[WidthGroup]) -> None:
        super().__init__()
        self.slots: tuple[Slot, ...] = slots(tensors, groups)
        if not self.slots:
            raise MorphError("there is nothing to generate: the morph space has no group with weights")
        self.groups = tuple(groups)
        self.base: dict[str, int] = {g.name: g.width for g in groups}

    def forward(self, widths: Mapping[str, int], noise: Noise | None = None) -> dict[str, Tensor]:
        """The tensors at these widths (of every group), by state-dict name."""
        raise NotImplementedError

    def begin(self) -> None:
        """What is done once, before fitting."""

    def settings(self) -> dict[str, Any]:
        """What rebuilds this generator, beside its tensors: keyword arguments of the class."""
        return {}

    def anchors(self) -> tuple[str, ...]:
        """Names of stored tensors that are the base network's own and that fitting does not change."""
        return ()

    def saved(self) -> dict[str, Tensor]:
        """What an artifact keeps beside the base network: all but the anchors."""
        anchors = set(self.anchors())
        return {name: value for name, value in self.state_dict().items() if name not in anchors}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take what `saved` gave. Raises MorphError when it is not this generator's."""
        state = self.state_dict()
        wanted = set(state) - set(self.anchors())
        wrong = sorted(wanted ^ set(saved)) or [n for n in sorted(wanted) if state[n].shape != saved[n].shape]
        if wrong:
            raise MorphError(f"these tensors are not those of this '{self.kind}' generator: {', '.join(wrong[:5])}")
        self.load_state_dict({**state, **saved})

    @torch.no_grad()
    def settle(self) -> None:
        """Round what is fitted to the precision in which it is saved: from now on this is what an artifact gives."""

    def ratio(self, slot: Slot, widths: Mapping[str, int]) -> float:
        """Geometric mean of the ratios of the groups in this tensor: where it lies between keyframes."""
        product, names = 1.0, {group for group, _ in slot.axes}
        for name in names:
            product *= widths[name] / self.base[name]
        return product ** (1 / len(names))


def make_generator(
    kind: str, tensors: Mapping[str, Tensor], groups: Sequence[WidthGroup], settings: Mapping[str, Any] | None = None
) -> Generator:
    """A generator of a kind; raises MorphError for an unknown kind or settings it does not have."""
    if kind not in GENERATORS:  # the kinds of other modules register themselves when they are imported
        raise MorphError(f"unknown generator '{kind}'. {did_you_mean(kind, GENERATORS)}")
    given, hints = dict(settings or {}), get_type_hints(GENERATORS[kind].__init__)
    known = [name for name in inspect.signature(GENERATORS[kind]).parameters if name not in ("tensors", "groups")]
    for name, value in tuple(given.items()):
        if name not in known:
            hint = did_you_mean(name, known) or "It has none."
            raise MorphError(f"the generator '{kind}' has no setting '{name}'. {hint}")
        try:
            given[name] = TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = inspect.formatannotation(hints[name]).removeprefix("collections.abc.")
            raise MorphError(f"{name} of the generator '{kind}' must be {wanted}, not {value!r}") from error
    return GENERATORS[kind](tensors, groups, **given)


def key(name: str) -> str:
    """A state-dict name as the name of a parameter, where dots are not allowed."""
    return name.replace(".", "/")


@generator("nested")
class Nested(Generator):
    """Width `n` takes the first `n` channels (Yu et al., "Slimmable Neural Networks", ICLR 2019).

    The channels should come in order of importance. Beyond the base's width, channels are repeated and what is summed
    over is divided, so that the function is kept (Chen et al., "Net2Net", ICLR 2016).
    """

    def __init__(self, tensors: Mapping[str, Tensor], groups: Sequence[WidthGroup]) -> None:
        super().__init__(tensors, groups)
        self.stored = nn.ParameterDict({key(s.name): nn.Parameter(tensors[s.name].clone()) for s in self.slots})

    def forward(self, widths: Mapping[str, int], noise: Noise | None = None) -> dict[str, Tensor]:
        """See `Generator.forward`; there is nothing for noise to move."""
        return {s.name: first(s, self.stored[key(s.name)], self.base, self.base, widths) for s in self.slots}


@generator("grid")
class Grid(Generator):
    """Keyframes: sets of weights at a few ratios, each of its own size, and interpolated in the ratio between them.

    The keyframe at ratio 1 is the base network itself and is not changed: at full width, at any time, this *is* the
    base network, to the last digit. What the second keyframe adds fades in from 1 to its ratio and is shared by all
    widths below; each of the others adds to that on its first channels (channels in order of importance; a width `n`
    reads the first `n`), most at its own ratio and, linearly in the logarithm of the ratio, nothing at its neighbours'.
    So at step 0 this is `nested`, and after it neither the full width nor a keyframe's need pay for the others.

    With `coarse` there is one more set of weights: a smooth function of the relative position, given on a grid of
    `coarse` times the base's channels, which any width reads by interpolation at its own cell centres `(j + 1/2) / n`,
    with the fan-in corrected. It is fitted at widths within the range, by itself (`forward(..., coarse=True)`), and
    read below the range: as it knows no detail finer than its cells, what holds at the widths it was fitted at holds
    at smaller ones too.

    Args:
        tensors: see `Generator`; channels in order of importance.
        groups: see `Generator`.
        keyframes: ratios, from high to low; the first is 1, the last the low end of the fitted range.
            A keyframe's weights are of its own size.
        coarse: cells of the coarse set over the base's width, at most the last keyframe; None for no coarse set.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        groups: Sequence[WidthGroup],
        keyframes: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
        coarse: float | None = 0.125,
    ) -> None:
        super().__init__(tensors, groups)
        ratios = tuple(float(r) for r in keyframes)
        if len(ratios) < 2 or ratios[0] != 1.0 or any(a <= b for a, b in pairwise(ratios)) or ratios[-1] <= 0:
            raise MorphError(f"keyframes must fall from 1 to above 0, two at least, such as 1, 0.5, 0.25; not {ratios}")
        if coarse is not None and not 0 < coarse <= 1:
            raise MorphError(f"coarse must be above 0 and at most 1 (cells over channels), not {coarse}")
        self.keyframes: tuple[float, ...] = ratios
        self.coarse: float | None = coarse
        self.parts = _components(self.slots)
        for s in self.slots:
            self.register_buffer("anchor/" + key(s.name), tensors[s.name].detach().clone())
        self.deltas = nn.ModuleList(
            nn.ParameterDict({key(s.name): nn.Parameter(torch.zeros(self._size(s, r))) for s in self.slots})
            for r in ratios[1:]
        )
        self.smooth = nn.ParameterDict()
        if coarse is not None:
            small = self._widths(coarse)
            for s in self.slots:
                start = first(s, tensors[s.name].detach(), self.base, self.base, small)
                self.smooth[key(s.name)] = nn.Parameter(start.clone())

    @torch.no_grad()
    def begin(self) -> None:
        """Put the cells of the coarse set in a smooth order: what lies between two that are alike is like both."""
        if self.coarse is None:
            return
        small = self._widths(self.coarse)
        tensors = {s.name: self.smooth.get_parameter(key(s.name)) for s in self.slots}
        for group in relocate(self.groups, small):
            order = torch.tensor(channel_order(entries(tensors, group)).order)
            read = torch.eye(group.width)[order]

            def change(t: Tensor, axis: Axis, name: str, moved: str = group.name, read: Tensor = read) -> Tensor:
                return along(t, axis, small[name], read.to(t.device)) if name == moved else t

            for s in self.slots:
                tensors[s.name].copy_(s.walk(tensors[s.name], self.base, small, change))

    def settings(self) -> dict[str, Any]:
        """Keyframes and `coarse`."""
        return {"keyframes": list(self.keyframes), "coarse": self.coarse}

    def anchors(self) -> tuple[str, ...]:
        """The base network's tensors."""
        return tuple("anchor/" + key(s.name) for s in self.slots)

    def saved(self) -> dict[str, Tensor]:
        """Everything but the base, in half precision."""
        return {name: value.half() for name, value in super().saved().items()}

    @torch.no_grad()
    def settle(self) -> None:
        """See `Generator.settle`: half precision."""
        for parameter in self.parameters():
            parameter.copy_(parameter.half())

    def _widths(self, ratio: float) -> dict[str, int]:
        return {name: max(1, round(ratio * width)) for name, width in self.base.items()}

    def _size(self, slot: Slot, ratio: float) -> tuple[int, ...]:
        return slot.sized(self.base, self._widths(ratio))

    def forward(self, widths: Mapping[str, int], noise: Noise | None = None, coarse: bool = False) -> dict[str, Tensor]:
        """See `Generator.forward`; noise moves the reads of the coarse set, which `coarse` asks for by itself."""
        low = self.keyframes[-1]
        below = [
            self.coarse is not None and (coarse or min(widths[g] / self.base[g] for g in part) < low - 1e-9)
            for part in self.parts
        ]
        by_group = {group: flag for part, flag in zip(self.parts, below, strict=True) for group in part}
        return {
            s.name: self._smooth(s, widths, noise) if by_group[s.axes[0][0]] else self._tensor(s, widths)
            for s in self.slots
        }

    def _tensor(self, slot: Slot, widths: Mapping[str, int]) -> Tensor:
        anchor: Tensor = self.get_buffer("anchor/" + key(slot.name))
        read = first(slot, anchor, self.base, self.base, widths)
        weights = shares(self.ratio(slot, widths), self.keyframes)
        for weight, ratio, values in zip(weights, self.keyframes[1:], self.deltas, strict=True):
            if weight:
                delta = values.get_parameter(key(slot.name))
                read = self._added(slot, read, delta, ratio, widths, weight)
        return read

    def _added(
        self, slot: Slot, read: Tensor, delta: Tensor, ratio: float, widths: Mapping[str, int], weight: float
    ) -> Tensor:
        """`read` plus a keyframe's delta on the channels that both have."""
        own = self._widths(ratio)
        shared = {name: min(own[name], widths[name]) for name in own}
        piece = first(slot, delta, self.base, own, shared) * weight
        return read + slot.walk(
            piece, self.base, shared, lambda t, axis, group: padded(t, axis, shared[group], widths[group])
        )

    def _smooth(self, slot: Slot, widths: Mapping[str, int], noise: Noise | None) -> Tensor:
        small = self._widths(self.coarse or 1.0)

        def change(t: Tensor, axis: Axis, group: str) -> Tensor:
            shift = None if noise is None else noise.draw(widths[group])
            cell, n = small[group], widths[group]
            read = cells(n, cell, window=max(_BLUR, cell / n), shift=shift)
            return along(t, axis, cell, read.to(t.device))

        tensor = slot.walk(self.smooth.get_parameter(key(slot.name)), self.base, small, change)
        return tensor * (slot.fan_in_factor(self.base, widths) / slot.fan_in_factor(self.base, small))


def _components(found: Sequence[Slot]) -> tuple[frozenset[str], ...]:
    """Groups that share a tensor, directly or through others: they are read in one way."""
    parts: list[frozenset[str]] = []
    for slot in found:
        mine = frozenset(group for group, _ in slot.axes)
        touching = [p for p in parts if p & mine]
        parts = [p for p in parts if not p & mine] + [mine.union(*touching)]
    return tuple(parts)


def shares(ratio: float, keyframes: Sequence[float]) -> tuple[float, ...]:
    """How much each keyframe but the first adds at a ratio; linear in the logarithm of the ratio between keyframes.

    The second keyframe's share rises from 0 at the first to 1 at its own ratio, and stays; each later one's rises from
    0 at the one before it to 1 at its own and falls to 0 at the next; the last one's stays.
    """

    def way(high: float, low: float) -> float:
        return min(1.0, max(0.0, math.log(high / ratio) / math.log(high / low)))

    rises = [way(high, low) for high, low in pairwise(keyframes)]
    falls = [0.0, *rises[2:], 0.0][: len(rises)]
    return tuple(rise - fall for rise, fall in zip(rises, falls, strict=True))
