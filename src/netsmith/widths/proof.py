"""Proof of width groups: a group is accepted when the network shows that it may be reordered and resized.

The proof runs on a copy in double precision whose weights are random. Trained or freshly initialised weights hide
mistakes (a residual branch scaled by zero computes nothing, so every order of its channels is right); random ones do
not, and in double precision a right order changes nothing but the last digits.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from netsmith.widths.resizing import forget, holders, named_tensors, set_widths, tensors_of_channels
from netsmith.widths.types import WidthGroup

T = TypeVar("T")
# Relative to the largest output.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
# What a network that was given tensors of another size raises.
MISFIT = (RuntimeError, AssertionError, TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError, KeyError)


def generic_copy(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy in eval mode and double precision with random weights of a scale that keeps activations alive."""
    twin = copy.deepcopy(model).eval().double()
    generator = torch.Generator().manual_seed(seed)

    def drawn(name: str, t: Tensor) -> Tensor:
        if t.ndim >= 2:
            fan_in = max(1, t[0].numel())
            return torch.randn(t.shape, generator=generator, dtype=torch.float64) / fan_in**0.5
        if "bias" in name or "mean" in name:
            return torch.randn(t.shape, generator=generator, dtype=torch.float64) * 0.1
        return torch.rand(t.shape, generator=generator, dtype=torch.float64) + 0.5

    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.copy_(drawn(name.rpartition(".")[2], p))
        for name, b in twin.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                b.copy_(drawn(name.rpartition(".")[2], b))
    return twin


class Proof:
    """Tests of one network: does it stay the same when groups are reordered, does it run when they are resized."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.x = x.double() if x.is_floating_point() else x
        self.model = generic_copy(model)
        try:
            self.output = _run(self.model, self.x)
        except MISFIT:  # some code insists on single precision
            self.model.float()
            self.x = x
            self.output = _run(self.model, self.x)
        self._shapes = self._lightest(model.eval(), x)
        self._held: dict[tuple[WidthGroup, ...], bool] = {}

    def _lightest(self, model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
        """What to run when only shapes matter: on the meta device nothing is computed, but every step costs more."""
        real = copy.deepcopy(model), x
        took = self._seconds(*real)
        if took < 0.2:
            return real
        try:
            bare = copy.deepcopy(model).to("meta"), x.to("meta")
            _run(*bare)
            return bare if self._seconds(*bare) < took else real
        except (*MISFIT, NotImplementedError):
            return real

    def _seconds(self, model: nn.Module, x: Tensor) -> float:
        start = time.perf_counter()
        _run(model, x)
        return time.perf_counter() - start

    def order_free(self, groups: Sequence[WidthGroup], seed: int = 0) -> bool:
        """Whether the output stays the same when all these groups are reordered at random."""
        generator = torch.Generator().manual_seed(seed)
        orders = {g.name: torch.randperm(g.width, generator=generator).tolist() for g in groups}
        return same(_run_channels(self.model, self.x, groups, orders), self.output)

    def misfit(self, groups: Sequence[WidthGroup], size: Callable[[WidthGroup], int], *, shapes: bool = False) -> str:
        """Why the network does not run with these groups resized, or "" when it does with an output of the same shape.

        With `shapes` the quickest way to see the shapes is taken.
        """
        model, x = self._shapes if shapes else (self.model, self.x)
        try:
            out = _run_channels(model, x, groups, {g.name: [j % g.width for j in range(size(g))] for g in groups})
        except MISFIT as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
        return "" if out.shape == self.output.shape else f"its output has shape {tuple(out.shape)}"

    def holds(self, groups: Sequence[WidthGroup]) -> bool:
        """Whether the network runs with these groups smaller and larger, and computes the same with them doubled."""
        key = tuple(groups)
        if key not in self._held:
            sizes = smaller, larger
            runs = not any(self.misfit(groups, size, shapes=True) for size in sizes)
            self._held[key] = runs and not self.changes(groups)
        return self._held[key]

    def changes(self, groups: Sequence[WidthGroup]) -> str:
        """What goes wrong when every channel of these groups is doubled, at their own and at half the width, or ""."""
        return self._doubled(groups, lambda g: g.width) or self._doubled(groups, smaller)

    def _doubled(self, groups: Sequence[WidthGroup], size: Callable[[WidthGroup], int]) -> str:
        once = {g.name: list(range(size(g))) for g in groups}
        whole = all(len(once[g.name]) == g.width for g in groups)
        try:
            expected = self.output if whole else _run_channels(self.model, self.x, groups, once)
            twice = _run_channels(self.model, self.x, groups, {n: 2 * c for n, c in once.items()})
        except MISFIT as error:
            return f"the network does not run when they are doubled ({type(error).__name__})"
        return "" if same(twice, expected) else "the output changes when each of its channels is doubled"

    def sifted(self, groups: Sequence[WidthGroup]) -> tuple[list[WidthGroup], list[WidthGroup]]:
        """The groups that hold all together, and any of them without any other; and those that do not."""

        def holds(some: Sequence[WidthGroup]) -> bool:
            return not self._doubled(some, lambda g: g.width)

        good, bad = sift(groups, self.holds)
        tried = good
        for some in apart(good):
            worse = sift([g for g in some if g in tried], holds)[1]
            tried = [g for g in tried if g not in worse]
            bad += worse
        if len(tried) < len(good):
            tried, worse = sift(tried, self.holds)
            bad += worse
        return tried, bad


def _run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x.clone())


def _run_channels(
    model: nn.Module, x: Tensor, groups: Sequence[WidthGroup], channels: Mapping[str, Sequence[int]]
) -> Tensor:
    """The output of the network with these channels of each group, as `resize` would make it, without a copy of it."""
    tensors, widths = tensors_of_channels(model, groups, channels), {n: len(c) for n, c in channels.items()}
    state, places = named_tensors(model), holders(model)
    put = [(store, key, state[name], new) for name, new in tensors.items() for store, key in places[id(state[name])]]
    try:
        set_widths(model, groups, widths)
        forget(model)
        for store, key, _, new in put:
            store[key] = new
        return _run(model, x)
    finally:
        for store, key, old, _ in put:
            store[key] = old
        set_widths(model, groups, {})
        forget(model)


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
    if not things or holds(things):
        return list(things), []
    if len(things) == 1:
        return [], list(things)
    half = len(things) // 2
    (good, bad), (more, worse) = sift(things[:half], holds), sift(things[half:], holds)
    if good and more and not holds([*good, *more]):  # each half passes, the two together do not
        for thing in more:
            (good if holds([*good, thing]) else worse).append(thing)
        return good, bad + worse
    return good + more, bad + worse


def apart(things: Sequence[T]) -> list[list[T]]:
    """Few selections such that for any two things some hold one of them and not the other."""
    bits = (len(things) - 1).bit_length() if things else 0
    return [[thing for i, thing in enumerate(things) if i >> bit & 1] for bit in range(bits)]


def smaller(group: WidthGroup) -> int:
    """A smaller width to try."""
    return max(1, group.width // 2)


def larger(group: WidthGroup) -> int:
    """A larger width to try."""
    return group.width + max(1, group.width // 4)
