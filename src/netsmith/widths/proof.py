"""Proof of width groups: a group is accepted when the network shows that it may be reordered and resized.

The proof runs on a copy whose weights are random. Trained or freshly initialised weights hide mistakes (a residual
branch scaled by zero computes nothing, so every order of its channels is right); random ones do not. Outputs that agree
to single precision are the same; where they differ by little, double precision decides.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from netsmith.widths.resizing import Memory, forget, holders, named_tensors, set_widths, tensors_of_channels
from netsmith.widths.types import WidthGroup

T = TypeVar("T")
# Relative to the largest output.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-5}
# A difference between that of single precision and this one may be rounding or not.
_DOUBT = 1e-2
# Seconds of a run that is not worth a copy on the meta device.
_QUICK = 0.05
# What a network that was given tensors of another size raises.
MISFIT = (RuntimeError, AssertionError, TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError, KeyError)


def generic_copy(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy in eval mode and single precision with random weights of a scale that keeps activations alive."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(name: str, t: Tensor) -> Tensor:
        new = torch.empty(t.shape, dtype=torch.float32 if t.is_floating_point() else t.dtype)
        if t.ndim >= 2:
            new.normal_(std=max(1, t[0].numel()) ** -0.5, generator=generator)
        elif "bias" in name or "mean" in name:
            new.normal_(std=0.1, generator=generator)
        else:
            new.uniform_(0.5, 1.5, generator=generator)
        return new.to(t.device)

    with torch.no_grad():
        state = [(n.rpartition(".")[2], t) for n, t in (*model.named_parameters(), *model.named_buffers())]
        memo: dict[int, Any] = {
            id(t): nn.Parameter(drawn(name, t), requires_grad=False) if isinstance(t, nn.Parameter) else drawn(name, t)
            for name, t in state
            if isinstance(t, nn.Parameter) or name in ("running_mean", "running_var")
        }
        return copy.deepcopy(model, memo).eval().float()


def _bare_copy(model: nn.Module) -> nn.Module:
    """A copy on the meta device, where nothing is computed but shapes."""
    bare = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()
    }
    return copy.deepcopy(model, memo | bare)


class _Twin:
    """A network that is run with other channels, as `resize` would give it, without a copy of it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._tensors, self._places = named_tensors(model), holders(model)
        self._memory = Memory()

    def run(self, x: Tensor, groups: Sequence[WidthGroup] = (), channels: Mapping[str, Sequence[int]] = {}) -> Tensor:
        """The output with these channels of each group."""
        tensors = tensors_of_channels(self._tensors, groups, channels, self._memory)
        put = [
            (store, key, self._tensors[name], new)
            for name, new in tensors.items()
            for store, key in self._places[id(self._tensors[name])]
        ]
        moved = [g for g in groups if g.name in channels and len(channels[g.name]) != g.width]
        try:
            set_widths(self.model, moved, {g.name: len(channels[g.name]) for g in moved})
            forget(self.model)
            for store, key, _, new in put:
                store[key] = new
            with torch.no_grad():
                return self.model(x.clone())
        finally:
            for store, key, old, _ in put:
                store[key] = old
            set_widths(self.model, moved, {})
            forget(self.model)


class Proof:
    """Tests of one network: does it stay the same when groups are reordered, does it run when they are resized."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self._x = x[:1].float() if x.is_floating_point() else x[:1]
        self._twin = _Twin(generic_copy(model))
        start = time.process_time()
        self.output = self._twin.run(self._x)
        self._exact = False
        self._shapes = self._lightest(model, time.process_time() - start)
        self._misfits: dict[tuple[Any, ...], str] = {}
        self._outputs: dict[tuple[Any, ...], Tensor] = {}

    def _lightest(self, model: nn.Module, took: float) -> tuple[_Twin, Tensor]:
        """What to run when only shapes matter: on the meta device nothing is computed, but every step costs more."""
        if took > _QUICK:
            with suppress(*MISFIT, NotImplementedError):
                bare, x = _Twin(_bare_copy(self._twin.model)), self._x.to("meta")
                bare.run(x)
                start = time.process_time()
                bare.run(x)
                if time.process_time() - start < took:
                    return bare, x
        return self._twin, self._x

    def order_free(self, groups: Sequence[WidthGroup], seed: int = 0) -> bool:
        """Whether the output stays the same when all these groups are reordered at random."""
        generator = torch.Generator().manual_seed(seed)
        orders = {g.name: torch.randperm(g.width, generator=generator).tolist() for g in groups}
        return self._agree(groups, {g.name: range(g.width) for g in groups}, orders)

    def misfit(self, groups: Sequence[WidthGroup], size: Callable[[WidthGroup], int]) -> str:
        """Why the network does not run with these groups resized, or "" when it does with an output of the same shape.

        Only shapes are looked at, the quickest way to see them is taken.
        """
        key = (size, *groups)
        if key not in self._misfits:
            self._misfits[key] = self._misfit(groups, {g.name: [j % g.width for j in range(size(g))] for g in groups})
        return self._misfits[key]

    def _misfit(self, groups: Sequence[WidthGroup], channels: Mapping[str, Sequence[int]]) -> str:
        twin, x = self._shapes
        try:
            shape = twin.run(x, groups, channels).shape
        except MISFIT as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return "" if shape == self.output.shape else f"its output has shape {tuple(shape)}"

    def runs(self, groups: Sequence[WidthGroup]) -> bool:
        """Whether the network runs with these groups smaller and larger."""
        return not any(self.misfit(groups, size) for size in (smaller, larger))

    def resizable(self, groups: Sequence[WidthGroup]) -> tuple[list[WidthGroup], list[WidthGroup]]:
        """The groups with which the network runs, and computes the same when they are doubled, and the others.

        They are doubled from half their width, which is a quarter of the work.
        """
        good, bad = sift(groups, self.runs)
        good, worse = sift(good, lambda some: not self._doubled(some, smaller))
        return good, bad + worse

    def changes(self, groups: Sequence[WidthGroup]) -> str:
        """What goes wrong when every channel of these groups is doubled, at their own and at half the width, or ""."""
        return self._doubled(groups, own) or self._doubled(groups, smaller)

    def _doubled(
        self,
        groups: Sequence[WidthGroup],
        size: Callable[[WidthGroup], int],
        some: Sequence[WidthGroup] | None = None,
    ) -> str:
        """What goes wrong when some of these groups, or all, are doubled, each from a width of this size."""
        once = {g.name: list(range(size(g))) for g in groups}
        twice = once | {g.name: 2 * once[g.name] for g in (groups if some is None else some)}
        try:
            agree = self._agree(groups, once, twice)
        except MISFIT as error:
            return f"the network does not run when they are doubled ({type(error).__name__})"
        return "" if agree else "the output changes when each of its channels is doubled"

    def _agree(
        self, groups: Sequence[WidthGroup], some: Mapping[str, Sequence[int]], others: Mapping[str, Sequence[int]]
    ) -> bool:
        """Whether the output is the same for two choices of channels; in double precision where single leaves doubt."""
        output, expected = self._twin.run(self._x, groups, others), self._expected(groups, some)
        if not self._exact and not same(output, expected) and same(output, expected, _DOUBT):
            self._refine()
            return self._agree(groups, some, others)
        return same(output, expected)

    def _expected(self, groups: Sequence[WidthGroup], channels: Mapping[str, Sequence[int]]) -> Tensor:
        if all(len(channels[g.name]) == g.width for g in groups):
            return self.output
        key = (*groups, *(len(c) for c in channels.values()))
        if key not in self._outputs:
            self._outputs[key] = self._twin.run(self._x, groups, channels)
        return self._outputs[key]

    def _refine(self) -> None:
        """Go on in double precision, unless the network insists on single."""
        self._exact = True
        self._outputs.clear()
        fine = _Twin(copy.deepcopy(self._twin.model).double())
        with suppress(*MISFIT):
            one = self._x.double() if self._x.is_floating_point() else self._x
            self.output = fine.run(one)
            self._twin, self._x = fine, one

    def sifted(self, groups: Sequence[WidthGroup]) -> tuple[list[WidthGroup], list[WidthGroup]]:
        """The groups that hold all together, and any of them without any other; and those that do not."""
        good, bad = self.resizable(groups)
        tried = good
        for some in apart(good):
            worse = sift([g for g in some if g in tried], lambda part: not self._doubled(good, smaller, part))[1]
            tried = [g for g in tried if g not in worse]
            bad += worse
        if len(tried) < len(good):
            tried, worse = self.resizable(tried)
            bad += worse
        for part in (tried[::2], tried[1::2]):  # of two groups that meet in a tensor mostly one: half the memory
            worse = sift(part, lambda some: not self._doubled(some, own))[1]
            tried = [g for g in tried if g not in worse]
            bad += worse
        return tried, bad


def same(output: Tensor, expected: Tensor, tolerance: float | None = None) -> bool:
    """Whether two outputs agree to `tolerance` times the largest value."""
    limit = tolerance or _ROUNDING[expected.dtype]
    if output.shape != expected.shape:
        return False
    if not expected.numel():  # a network of no outputs has nothing to compare
        return True
    return bool((output - expected).abs().max() <= limit * expected.abs().max().clamp_min(1e-30))


def sift(things: Sequence[T], holds: Callable[[Sequence[T]], bool]) -> tuple[list[T], list[T]]:
    """Those that pass together and those that fail, testing many together and halving where a test fails."""
    passed, bad = _halved(things, holds)
    good = [thing for part in passed for thing in part]
    if len(passed) < 2 or holds(good):
        return good, bad
    good = list(passed[0])
    for part in passed[1:]:  # each part passes, but not all together
        if holds([*good, *part]):
            good += part
        else:
            for thing in part:
                (good if holds([*good, thing]) else bad).append(thing)
    return good, bad


def _halved(
    things: Sequence[T], holds: Callable[[Sequence[T]], bool], *, doubtful: bool = False
) -> tuple[list[Sequence[T]], list[T]]:
    """Parts that pass, and things that fail alone; what is `doubtful` as a whole is tested in parts at once."""
    if not things or (not (doubtful and len(things) > 1) and holds(things)):
        return [things] if things else [], []
    if len(things) == 1:
        return [], list(things)
    half = len(things) // 2
    passed, bad = _halved(things[:half], holds)
    more, worse = _halved(things[half:], holds, doubtful=not bad)
    return passed + more, bad + worse


def apart(things: Sequence[T]) -> list[list[T]]:
    """Few selections such that for any two things some hold one of them and not the other."""
    bits = (len(things) - 1).bit_length() if things else 0
    return [[thing for i, thing in enumerate(things) if i >> bit & 1] for bit in range(bits)]


def smaller(group: WidthGroup) -> int:
    """A smaller width to try."""
    return max(1, group.width // 2)


def own(group: WidthGroup) -> int:
    """The width that it has."""
    return group.width


def larger(group: WidthGroup) -> int:
    """A larger width to try."""
    return group.width + max(1, group.width // 4)
