"""Through a network once, piece by piece: narrow each width group, refit what reads it towards the original's answer.

The original (the teacher) and the network made so far (the student) go side by side. What passes each cut is kept for
all calibration inputs, so that a piece runs a few times and the network never as a whole. The student keeps its full
size meanwhile: a channel is gone when nothing that reads it has a weight for it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from netsmith.closed_form.refit import ReaderFit, by_importance, surviving
from netsmith.closed_form.ridge import Moments
from netsmith.errors import DissectionError
from netsmith.shrinking.readers import Reader, blocks, input_rows, matrix, output_places, output_rows, readers
from netsmith.trace.chain import dissect
from netsmith.widths.groups import WidthGroup, channel_index, entries

Method = Literal["closed_form", "importance", "l1"]

ROWS = 20_000
"""Rows of one regression at most, spread over all inputs. On CIFAR-10, 10,000 cost two points at half width, and 40,000
gain nothing; time grows with their number."""

RIDGE = 0.03
"""Towards the old weights, as a share of the inputs' mean variance; 0.01 to 0.1 differ by less than a point."""

_ADDS = frozenset({"add", "__add__", "__radd__", "__iadd__", "add_"})

Places = Callable[[str, Tensor], Int64[Tensor, " p"]]


@dataclass
class _Rows:
    """What one run showed of a layer: what it multiplies, what it gives, and what that is then added to."""

    inputs: Float[Tensor, "r q"]
    outputs: Float[Tensor, "r d"]
    beside: Float[Tensor, "r d"] | None = None


class _Watch(TorchFunctionMode):
    """Takes rows at some layers while it is entered."""

    def __init__(self, model: nn.Module, names: Sequence[str], places: Places) -> None:
        super().__init__()
        self.layers = {name: model.get_submodule(name) for name in names}
        self.places = places
        self.rows: dict[str, _Rows] = {}
        self._made: dict[int, tuple[str, Tensor]] = {}  # outputs of the layers, kept so that no other gets their id

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take rows of what runs meanwhile."""
        with ExitStack() as stack:
            for name, layer in self.layers.items():
                stack.callback(layer.register_forward_hook(self._hook(name)).remove)
            stack.enter_context(self)
            yield
        self._made.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            at = self.places(name, output)
            self.rows[name] = _Rows(input_rows(layer, inputs[0], at), output_rows(layer, output, at).clone())
            self._made[id(output)] = name, output

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`; take the other summand where it adds one to the output of a layer."""
        if getattr(func, "__name__", "") in _ADDS and len(args) == 2:
            for one, other in (args, args[::-1]):
                name, made = self._made.get(id(one), ("", None))
                if made is one and isinstance(other, Tensor) and other.shape == one.shape:
                    layer = self.layers[name]
                    self.rows[name].beside = output_rows(layer, other, self.places(name, other)).clone()
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Narrowed:
    """A group in its new width: the channels that stay, and what the worst of its readers misses of its target."""

    name: str
    kept: tuple[int, ...]
    loss: float


@dataclass
class Walk:
    """The teacher, and a student of the same size whose groups are narrowed one after the other.

    Args:
        teacher: the network as it is, its batch norms folded; in eval mode.
        student: a copy of it, which is changed.
        batches: calibration inputs, as the network takes them.
        method: "closed_form" refits what reads a group; "importance" and "l1" only choose channels.
        rows: of one regression, at most.
        ridge: of the refits.
    """

    teacher: nn.Module
    student: nn.Module
    batches: Sequence[Tensor]
    method: Method = "closed_form"
    rows: int = ROWS
    ridge: float = RIDGE
    narrowed: dict[str, Narrowed] = field(default_factory=dict)

    @torch.no_grad()
    def run(
        self,
        groups: Sequence[WidthGroup],
        widths: Mapping[str, int],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Narrow those of `groups` that get another width in `widths`, in the order of data flow."""
        todo = [g for g in groups if widths.get(g.name, g.width) < g.width]
        ours = readers(self.student, todo, self.batches[0][:1])
        pieces = list(zip(_pieces(self.teacher, self.batches[0]), _pieces(self.student, self.batches[0]), strict=True))
        there = here = list(self.batches)
        for number, (teacher, student) in enumerate(pieces):
            inside = {name for name, _ in student.named_modules()}
            changed = False
            for group in todo:
                mine = [r for r in ours[group.name] if r.name in inside]
                if mine:
                    runs = _Pair(teacher, student, there, here, changed or here is not there)
                    self._narrow(group, widths[group.name], mine, runs, number)
                    changed = True
            if progress is not None:
                progress(number + 1, len(pieces))
            if number + 1 == len(pieces):
                return
            after = [student(x) for x in here]
            there = after if here is there and not changed else [teacher(x) for x in there]
            here = after

    def _narrow(self, group: WidthGroup, width: int, mine: Sequence[Reader], runs: _Pair, number: int) -> None:
        fits = self._fits(group, mine, runs, number)
        before = self.narrowed.get(group.name)
        if before is not None:  # some of what reads it lies in an earlier piece
            kept = torch.tensor(before.kept, device=self.batches[0].device)
        elif self.method == "closed_form":
            (kept,) = surviving(list(fits.values()), [width])
        elif self.method == "l1":
            sizes = entries(self.teacher.state_dict(), group).abs().sum(1)
            kept = sizes.argsort(descending=True, stable=True)[:width].sort().values
        else:
            kept = by_importance(list(fits.values()), width)
        self._silence(group, kept)
        loss = max(self._refit(name, fit, kept) for name, fit in fits.items())
        loss = loss if before is None else max(loss, before.loss)
        self.narrowed[group.name] = Narrowed(group.name, tuple(kept.tolist()), loss)

    def _silence(self, group: WidthGroup, kept: Int64[Tensor, " k"]) -> None:
        """Take the weights for the other channels from everything that reads the group, refitted or not."""
        gone = torch.ones(group.width, dtype=torch.bool)
        gone[kept.cpu()] = False
        tensors = self.student.state_dict(keep_vars=True)
        for axis in group.axes:
            if axis.fan_in:
                tensor = tensors[axis.tensor]
                at = channel_index(axis, group.width, gone.nonzero().flatten()).to(tensor.device)
                tensor.index_fill_(axis.dim, at, 0)

    def _refit(self, name: str, fit: ReaderFit, kept: Int64[Tensor, " k"]) -> float:
        """Give a reader of the student the weights that read some channels alone; what it then misses."""
        layer = self.student.get_submodule(name)
        weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
        result = fit.refit(kept) if self.method == "closed_form" else fit.unchanged(kept)
        weight.copy_(result.weight.T.reshape(weight.shape))
        if bias is not None and self.method == "closed_form":
            bias.copy_(result.bias)
        return result.loss

    @torch.no_grad()
    def costs(
        self,
        groups: Sequence[WidthGroup],
        levels: Mapping[str, Sequence[int]],
        judged: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, list[float]]:
        """Measure what each group alone costs at some widths (falling): the divergence of the network's answer.

        The mean of the Kullback-Leibler divergence from the teacher's answer over the first `judged` inputs, in nats.
        The student must be as the teacher is, and is left so.
        """
        ours = readers(self.student, groups, self.batches[0][:1])
        pieces = _pieces(self.teacher, self.batches[0]), _pieces(self.student, self.batches[0])
        there = list(self.batches)
        few = list(torch.cat(there)[:judged].split(len(there[0])))
        answers = [self.teacher(x) for x in few]
        costs: dict[str, list[float]] = {}
        for number, (teacher, student) in enumerate(zip(*pieces, strict=True)):
            inside = {name for name, _ in student.named_modules()}
            for group in groups:
                mine = [r for r in ours[group.name] if r.name in inside]
                if len(mine) != len(ours[group.name]) or not mine:
                    continue
                fits = self._fits(group, mine, _Pair(teacher, student, there, there, False), number)
                state = {n: copy.deepcopy(self.student.get_submodule(n).state_dict()) for n in fits}
                costs[group.name] = []
                for kept in surviving(list(fits.values()), levels[group.name]):
                    for name, fit in fits.items():
                        self._refit(name, fit, kept)
                    total = 0.0
                    for x, answer in zip(few, answers, strict=True):
                        for later in pieces[1][number:]:
                            x = later(x)
                        total += float(divergence(answer, x).sum())
                    costs[group.name].append(total / judged)
                for name, tensors in state.items():
                    self.student.get_submodule(name).load_state_dict(tensors)
            if progress is not None:
                progress(number + 1, len(pieces[0]))
            there, few = [teacher(x) for x in there], [teacher(x) for x in few]
        return costs

    def _fits(self, group: WidthGroup, mine: Sequence[Reader], runs: _Pair, number: int) -> dict[str, ReaderFit]:
        """Sum up what reaches the readers of a group in a piece, and what they should give for it."""
        names = [r.name for r in mine]
        count = sum(len(x) for x in self.batches)

        def places(name: str, output: Tensor) -> Int64[Tensor, " p"]:
            total = output_places(self.teacher.get_submodule(name), output)
            drawn = torch.randperm(total, generator=torch.Generator().manual_seed(number))
            return drawn[: max(1, self.rows // count)].sort().values.to(output.device)

        sums: dict[str, Moments] = {}
        for there, here in zip(runs.there, runs.here, strict=True):
            teacher = _Watch(self.teacher, names, places)
            with teacher.watching():
                runs.teacher(there)
            student = teacher
            if runs.differ:
                student = _Watch(self.student, names, places)
                with student.watching():
                    runs.student(here)
            for name, rows in student.rows.items():
                wanted = teacher.rows[name]
                target = wanted.outputs
                if rows.beside is not None and wanted.beside is not None:
                    target = target + wanted.beside - rows.beside  # what the sum was, less what is there already
                if name not in sums:
                    sums[name] = Moments(1, rows.inputs.shape[1], target.shape[1], target.device)
                sums[name].add(rows.inputs.unsqueeze(1), target.unsqueeze(1))
        layers = {r.name: (self.student.get_submodule(r.name), r.axis) for r in mine if r.name in sums}
        return {
            name: ReaderFit(sums[name], matrix(layer), blocks(layer, axis, group.width), self.ridge)
            for name, (layer, axis) in layers.items()
        }


@dataclass(frozen=True)
class _Pair:
    """One piece of teacher and student, with what reaches each; where nothing differs yet, one run serves for both."""

    teacher: nn.Module
    student: nn.Module
    there: Sequence[Tensor]
    here: Sequence[Tensor]
    differ: bool


def divergence(answer: Tensor, other: Tensor) -> Float[Tensor, " n"]:
    """Return the Kullback-Leibler divergence of another answer from the network's, in nats, by input."""
    first, second = answer.log_softmax(1), other.log_softmax(1)
    return (first.exp() * (first - second)).sum(1).reshape(len(answer), -1).mean(1)


def _pieces(model: nn.Module, example: Tensor) -> list[nn.Module]:
    """Return the pieces of a network that run one after the other; the network itself where it cannot be cut."""
    try:
        chain = dissect(model, example[:2])
    except DissectionError:
        return [model]
    return [chain.stem, *(unit.module for unit in chain.units), chain.head]
