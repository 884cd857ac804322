"""Any network as a chain: a stem, units that can be run and reused by themselves, and a head."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from netsmith.errors import DissectionError
from netsmith.trace.checks import explained, original, shape_text
from netsmith.trace.cost import count_macs, count_params
from netsmith.trace.cuts import Boundary, choose, cut_points, find, leaking, opened_by, sequence_first
from netsmith.trace.layout import Layout, Layouts
from netsmith.trace.replay import Part, Program, align
from netsmith.trace.tape import Blocked, Recording, Ref, TrainingFlag
from netsmith.trace.trial import check_arguments, run_whole, trial_batches, untouched

__all__ = ["Chain", "Cut", "Layout", "Unit", "dissect"]


@dataclass(frozen=True)
class Cut:
    """A point between two units; `shape` is that of the one tensor that passes it, without batch.

    Examples:
        >>> netsmith.dissect(zoo[1].model, torch.rand(2, 1, 8, 8)).cuts[0].shape
        (16, 8, 8)
    """

    index: int
    name: str
    layout: Layout
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Unit:
    """What lies between two neighbouring cuts. `module` shares its parameters with the network.

    `params` counts the unit's own and shared parameters; `macs` is for one input.

    Examples:
        >>> unit = netsmith.dissect(zoo[1].model, torch.rand(2, 1, 8, 8)).units[0]
        >>> unit.in_shape, unit.out_shape
        ((16, 8, 8), (16, 8, 8))
    """

    index: int
    name: str
    module: nn.Module
    before: Cut
    after: Cut
    params: int
    macs: int

    @property
    def layout(self) -> Layout:
        """Layout of the unit's output."""
        return self.after.layout

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of the input without batch."""
        return self.before.shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output without batch."""
        return self.after.shape


class Chain:
    """A dissected network: `head(units[-1](... units[0](stem(x))))` is the network.

    `cuts[i]` is the input of unit `i`; `cuts[-1]` that of the head. Shapes are without batch, MACs for one input;
    `params` counts the whole network, shared parameters once.

    Examples:
        >>> chain = netsmith.dissect(zoo[1].model, torch.rand(2, 1, 8, 8))
        >>> len(chain), chain.input_shape, chain.output_shape
        (5, (1, 8, 8), (10,))
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        program: Program,
        refs: Sequence[Ref],
        cuts: Sequence[Cut],
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
    ) -> None:
        self.name = name
        self.model = model
        self.cuts = tuple(cuts)
        self.input_shape = input_shape
        self.output_shape = output_shape
        self._program = program
        self._refs = tuple(refs)
        self._clones: set[int] = set()  # units that change their input in place and so must get a copy
        self.stem: nn.Module = nn.Identity()
        self.head: nn.Module = nn.Identity()
        self.units: tuple[Unit, ...] = ()

    def _build(self, example: Tensor) -> Tensor:
        """Make the parts, finding by running them on `example` those that write to their input; the output of it."""
        ends = [Ref(0), *self._refs, self._program.result]
        parts, macs = [], []
        with torch.no_grad():
            for i, (start, stop) in enumerate(pairwise(ends)):
                part = Part(self.model, self._program, start, stop)
                before = example._version
                out = part(example)
                if example._version != before:
                    self._clones.add(i)
                    part = Part(self.model, self._program, start, stop, clone_input=True)
                macs.append(count_macs(part, example))
                example = out.clone()
                parts.append(part)
        self.stem, *middle, self.head = parts
        self.stem_macs, self.head_macs, self.macs = macs[0], macs[-1], sum(macs)
        self.stem_params, self.head_params = count_params(self.stem), count_params(self.head)
        self.params = count_params(self.model)
        self.units = tuple(
            Unit(i, self.cuts[i + 1].name, m, self.cuts[i], self.cuts[i + 1], count_params(m), macs[i + 1])
            for i, m in enumerate(middle)
        )
        return example

    def __len__(self) -> int:
        return len(self._refs) - 1

    def __repr__(self) -> str:
        return f"Chain({self.name!r}, {len(self)} units, {self.params} params, {self.macs} MACs)"

    def run(self, start: int, stop: int, x: Tensor) -> Tensor:
        """Units `start` to `stop - 1` on `x`, a batch of what passes `cuts[start]`."""
        self._check_range(start, stop)
        for unit in self.units[start:stop]:
            x = unit.module(x)
        return x

    def part(self, start: int, stop: int) -> nn.Module:
        """Units `start` to `stop - 1` as one module. It shares its parameters, under their own names, with the network:
        deep-copy it before it is changed."""
        self._check_range(start, stop)
        return Part(
            self.model, self._program, self._refs[start], self._refs[stop], clone_input=start + 1 in self._clones
        )

    def front(self, stop: int) -> nn.Module:
        """The stem and units `0` to `stop - 1` as one module; parameters are shared as in `part`."""
        self._check_range(0, stop)
        return Part(self.model, self._program, Ref(0), self._refs[stop])

    def rest(self, start: int) -> nn.Module:
        """Units `start` to the last and the head as one module; parameters are shared as in `part`."""
        self._check_range(start, len(self))
        return Part(
            self.model, self._program, self._refs[start], self._program.result, clone_input=start + 1 in self._clones
        )

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"{self.name or 'the network'} has units 0 to {len(self) - 1}; there is no {start}:{stop}")

    def __call__(self, x: Tensor) -> Tensor:
        """The network's output for a batch `x`, through the parts."""
        if tuple(x.shape[1:]) != self.input_shape:
            raise DissectionError(
                f"{self.name or 'the network'} was dissected for inputs of {shape_text(self.input_shape)}, but this "
                f"batch is of {shape_text(x.shape[1:])}; resize it, or dissect again with an example of that size"
            )
        with explained(self.model, x, f"{self.name or 'the network'} fails on this batch", "Give one like the example"):
            return self.head(self.run(0, len(self), self.stem(x)))


def dissect(model: nn.Module, example_input: Tensor, *, name: str = "") -> Chain:
    """Cut a network into stem, units and head.

    `example_input` is a batch `(n, ...)` as the network takes it; only its shape beyond the batch, its dtype, device
    and scale matter. What is returned holds for any batch size and for inputs of that shape, in train and eval mode,
    and was seen to reproduce the network's output exactly in eval mode for batches of two and three. The model's mode,
    buffers and the random state are left as found.

    Raises DissectionError for a network that has no cuts, takes or gives anything but one tensor, gives NaN, decides by
    the values of tensors in code that would have to be cut, or whose parts do not reproduce it.

    Examples:
        >>> chain = netsmith.dissect(zoo[1].model, torch.rand(2, 1, 8, 8))
        >>> [unit.name for unit in chain.units][:2]
        ['features.1', 'features.2']
    """
    model = original(model)
    label = name or type(model).__name__
    check_arguments(model, example_input, label)
    with untouched(model):
        model.eval()
        two, three = trial_batches(example_input)
        expected = run_whole(model, two, label)
        recording = Recording(model, two[:1], _looks_inside, strict=False)
        if recording.result is None or not recording.steps[recording.result.step].derived:
            raise DissectionError(
                f"{label}: its output cannot be followed back to its input through torch functions; the network runs in"
                " code that torch does not see (TorchScript, numpy), so load it as plain PyTorch code"
            )
        boundaries = choose(
            recording, cut_points(recording), flat=example_input.ndim == 2 and example_input.is_floating_point()
        )
        layouts = Layouts(recording, tuple(example_input.shape[1:]))
        known = [(b, lay) for b in boundaries if (lay := layouts.at(b.point.ref, b.point.shape)) is not None]
        program, other, kept, refs = _program(model, two, three, recording, known, label)
        cuts = [Cut(i, "stem" if i == 0 else b.name, lay, b.point.shape) for i, (b, lay) in enumerate(kept)]
        chain = Chain(name, model, program, refs, cuts, tuple(two.shape[1:]), tuple(expected.shape[1:]))
        _check_exact(chain, model, two, chain._build(two.clone()), expected, label)
        with torch.no_grad():
            _check_exact(chain, model, three, chain(three), other, label)
    return chain


def _program(
    model: nn.Module,
    two: Tensor,
    three: Tensor,
    recording: Recording,
    known: list[tuple[Boundary, Layout]],
    label: str,
) -> tuple[Program, Tensor, list[tuple[Boundary, Layout]], list[Ref]]:
    """Record again, looking only into modules that are cut; a module whose code cannot be replayed is kept whole."""
    reasons: list[str] = []
    closed: set[str] = set()
    wide = False
    while True:
        if len(known) < 2:
            raise DissectionError(_no_cuts(label, reasons, recording))
        needed = opened_by(recording, [b.point.key for b, _ in known])
        opened = needed | leaking(recording, needed) - closed if wide else needed
        try:
            with _flags(model, opened):
                first = Recording(model, two, _among(opened), strict=True)
                second = Recording(model, three, _among(opened), strict=True)
            program = align(first, second, two.device, opened)
        except Blocked as blocked:
            if blocked.path == "":
                raise DissectionError(
                    f"{label} cannot be cut: in {type(model).__name__}.forward, {blocked.reason}; rewrite this so that"
                    " it depends on shapes and settings only"
                ) from blocked
            if blocked.path not in needed:
                closed.add(blocked.path)
                continue
            reasons.append(f"{blocked.path} ({type(model.get_submodule(blocked.path)).__name__}): {blocked.reason}")
            inside = blocked.path
            known = [(b, lay) for b, lay in known if not _lies_inside(b.point.key, inside)]
            continue
        at = {p.ref: p for p in cut_points(first)}
        kept, refs = [], []
        for b, lay in known:
            ref = find(first, b.point.key)
            if ref in at and at[ref].shape == b.point.shape:
                kept.append((b, lay))
                refs.append(ref)
        if len(kept) == len(known):
            return program, second.output, kept, refs
        if wide:
            known = kept
        wide = True


def _among(opened: Collection[str]) -> Callable[[str, nn.Module], bool]:
    return lambda path, _: path in opened


def _lies_inside(key: tuple[str, int, int], path: str) -> bool:
    return key[0].startswith(path + ".") or (key[0] == path and key[2] >= 0)


def _no_cuts(label: str, reasons: Sequence[str], recording: Recording) -> str:
    shape = sequence_first(recording)
    if shape and not reasons:
        return (
            f"{label} cannot be cut into units: between its blocks the batch is the second axis, after the sequence"
            f" ({shape_text(shape)} for one input). Cuts need the batch first: build its layers with batch_first=True,"
            " and transpose no more than within a block"
        )
    why = "; ".join(reasons) or (
        "no two points were found between blocks that every path from input to output crosses with a single tensor "
        "(N, C, H, W), (N, H, W, C), (N, L, C), (N, C, L) or (N, C, D, H, W)"
    )
    return (
        f"{label} cannot be cut into units: {why}. Expected a network that is a chain of blocks at some level; one that"
        " carries several streams side by side is not"
    )


def _looks_inside(path: str, module: nn.Module) -> bool:
    """Every module is looked into except torch's own and compiled ones; containers always are."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    if not type(module).__module__.startswith("torch.nn."):
        return True
    return any(isinstance(m, (nn.Sequential, nn.ModuleList)) for m in module.modules())


def _check_exact(chain: Chain, model: nn.Module, x: Tensor, output: Tensor, expected: Tensor, label: str) -> None:
    """Refuse unless the parts in order gave exactly the network's own output; name the first that differs."""
    if torch.equal(output, expected):
        return
    if not torch.equal(run_whole(model, x, label), expected):
        raise DissectionError(
            f"{label} gives another output each time it runs in eval mode, so its parts cannot be checked; make it "
            "deterministic (no random numbers in eval mode)"
        )
    raise DissectionError(
        f"{label}: the parts do not reproduce the network; the first that differs is "
        f"{_first_difference(chain, model, x)}. Please report this network"
    )


def _first_difference(chain: Chain, model: nn.Module, x: Tensor) -> str:
    opened = chain._program.opened
    with _flags(model, opened):
        whole = Recording(model, x, _among(opened), strict=True, keep=chain._refs).kept
    out = chain.stem(x)
    for i, ref in enumerate(chain._refs):
        if not torch.equal(out, whole[ref]):
            return "the stem" if i == 0 else f"unit {i - 1} ({chain.units[i - 1].name})"
        if i < len(chain):
            out = chain.units[i].module(out)
    return "the head"


@contextmanager
def _flags(model: nn.Module, opened: Collection[str]) -> Iterator[None]:
    """Make `self.training` visible as an argument in the code of the opened modules."""
    modules = [model.get_submodule(p) for p in opened]
    for m in modules:
        m.training = TrainingFlag(0)  # type: ignore[assignment]
    try:
        yield
    finally:
        for m in modules:
            m.training = False
