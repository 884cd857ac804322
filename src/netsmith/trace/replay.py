"""From two recordings made with different batch sizes to modules that run any stretch of the network.

A number that is the same in both recordings is a constant of the architecture and the input size; one that grows with
the batch is written as a multiple of the batch size of the stretch's own input.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from netsmith.trace.tape import Attr, Blocked, Loose, Recording, Ref, Step, Training, leaves, transform


@dataclass(frozen=True)
class PerBatch:
    """The integer `ratio * batch size`."""

    ratio: int


@dataclass(frozen=True)
class OnDevice:
    """The device of the stretch's input."""


@dataclass(eq=False)
class Program:
    """Steps that hold for every batch size; `result` is the network's output, `opened` the modules looked into."""

    steps: list[Step]
    result: Ref
    opened: frozenset[str]


def align(first: Recording, second: Recording, device: torch.device, opened: Collection[str]) -> Program:
    """One program from two recordings of a network with different batch sizes.

    Raises Blocked with the module whose code does not do the same thing for both sizes.
    """
    for a, b in zip(first.steps, second.steps, strict=False):
        if a.kind != b.kind or a.target != b.target or a.owner.path != b.owner.path:
            raise Blocked(
                a.owner.path, f"its code takes another way for a batch of {second.batch} than for {first.batch}"
            )
        a.args, a.kwargs = _merge((a.args, a.kwargs), (b.args, b.kwargs), first, second, a.owner.path, device)
    if len(first.steps) != len(second.steps):
        longer = max(first.steps, second.steps, key=len)
        step = longer[min(len(first.steps), len(second.steps))]
        raise Blocked(
            step.owner.path,
            f"its code makes {len(first.steps)} steps for a batch of {first.batch} and {len(second.steps)} for"
            f" {second.batch}",
        )
    assert first.result is not None
    return Program(first.steps, first.result, frozenset(opened))


def _merge(a: Any, b: Any, first: Recording, second: Recording, path: str, device: torch.device) -> Any:
    def blocked(what: str) -> Blocked:
        return Blocked(path, f"{what} for batches of {first.batch} and {second.batch}")

    def walk(x: Any, y: Any) -> Any:
        if isinstance(x, (list, tuple, dict, slice)):
            if type(x) is not type(y):
                raise blocked(f"an argument is {type(x).__name__} and {type(y).__name__}")
            parts_x = [(x.start, x.stop, x.step), (y.start, y.stop, y.step)] if isinstance(x, slice) else [x, y]
            if len(parts_x[0]) != len(parts_x[1]):
                raise blocked("an argument has different lengths")
            if isinstance(x, dict):
                return {k: walk(v, y[k]) for k, v in x.items()}
            merged = [walk(v, w) for v, w in zip(*parts_x, strict=True)]
            if isinstance(x, slice):
                return slice(*merged)
            return type(x)(*merged) if hasattr(x, "_fields") else (merged if isinstance(x, list) else tuple(merged))
        if isinstance(x, Loose) and isinstance(y, Loose):
            if x.value is y.value or (x.value.shape == y.value.shape and torch.equal(x.value, y.value)):
                return x
            raise blocked("a tensor made out of sight (in compiled or numpy code) differs")
        if isinstance(x, torch.device):
            return OnDevice() if x == device else x
        if isinstance(x, int) and not isinstance(x, bool) and isinstance(y, int) and x != y:
            if x % first.batch == 0 and x // first.batch * second.batch == y:
                return PerBatch(x // first.batch)
            raise blocked(f"an argument is {x} and {y}: neither fixed nor a multiple of the batch")
        if isinstance(x, (Ref, Attr, Training, float, str, bool)) and x != y:
            raise blocked(f"an argument is {x} and {y}")
        return x

    return walk(a, b)


def stretch(program: Program, start: Ref, stop: Ref) -> list[Step]:
    """The steps that make `stop` from `start`, in the order in which the network takes them."""
    needed: set[int] = set()
    todo = [] if stop == start else [stop.step]
    while todo:
        i = todo.pop()
        if i in needed:
            continue
        needed.add(i)
        step = program.steps[i]
        before = [r.step for r in step.refs() if r != start]
        todo += [
            j
            for j in [*before, *(w for w in step.after if w > start.step or not program.steps[w].derived)]
            if j not in needed
        ]
    assert not any(program.steps[i].kind == "input" for i in needed - {start.step}), "a stretch must start at a cut"
    return [program.steps[i] for i in sorted(needed)]


class _Code:
    """The compiled forward function of a Part. Immutable, so that copies of the part share it."""

    def __init__(self, graph: fx.Graph) -> None:
        code = graph.python_code("self")
        self.text = code.src
        scope = dict(code.globals)
        exec(compile(code.src, "<netsmith part>", "exec"), scope)
        self.run = scope["forward"]

    def __deepcopy__(self, memo: Any) -> _Code:
        return self


class Part(nn.Module):
    """A stretch of a network as a module of its own: takes the tensor at one cut, gives the tensor at another.

    Its parameters are the network's own (deep-copy the part to separate them) under the names they have there.
    `source_code` is the text of what it runs.
    """

    def __init__(self, model: nn.Module, program: Program, start: Ref, stop: Ref, *, clone_input: bool = False) -> None:
        super().__init__()
        self._source = model
        graph, loose = _graph(self, program, start, stop, clone_input)
        for name, tensor in loose.items():
            self.register_buffer(name, tensor, persistent=False)
        del self._modules["_source"]
        self._code = _Code(graph)
        self.training = model.training

    @property
    def source_code(self) -> str:
        """The straight-line Python that the part runs."""
        return self._code.text

    def forward(self, x: Tensor) -> Tensor:
        """The tensor at the last cut from the tensor `x` at the first."""
        return self._code.run(self, x)


def _graph(
    part: Part, program: Program, start: Ref, stop: Ref, clone_input: bool
) -> tuple[fx.Graph, dict[str, Tensor]]:
    graph = fx.Graph()
    x = graph.placeholder("x")
    steps = stretch(program, start, stop)
    model = part._source
    loose: dict[str, Tensor] = {}
    made: dict[Ref, fx.Node] = {start: graph.call_method("clone", (x,)) if clone_input else x}
    cached: dict[str, fx.Node] = {}
    modules = [s.target for s in steps if s.kind == "module"]
    attrs = [leaf.name for s in steps for leaf in leaves((s.args, s.kwargs)) if isinstance(leaf, Attr)]
    _adopt(part, model, modules, attrs)

    def once(key: str, make: Any) -> fx.Node:
        if key not in cached:
            cached[key] = make()
        return cached[key]

    def value(ref: Ref) -> fx.Node:
        if ref not in made:
            made[ref] = graph.call_function(operator.getitem, (value(Ref(ref.step, ref.path[:-1])), ref.path[-1]))
        return made[ref]

    def leaf(v: Any) -> Any:
        if isinstance(v, Ref):
            return value(v)
        if isinstance(v, Attr):
            return once(v.name, lambda: graph.get_attr(v.name))
        if isinstance(v, Training):
            return once("training", lambda: graph.get_attr("training"))
        if isinstance(v, OnDevice):
            return once("device", lambda: graph.call_function(getattr, (x, "device")))
        if isinstance(v, PerBatch):
            batch = once("batch", lambda: graph.call_method("size", (x, 0)))
            return once(
                f"batch*{v.ratio}",
                lambda: batch if v.ratio == 1 else graph.call_function(operator.mul, (batch, v.ratio)),
            )
        if isinstance(v, Loose):
            name = f"_constant_{len(loose)}"
            loose[name] = v.value.detach()
            return graph.get_attr(name)
        if (
            v is None
            or isinstance(
                v, (bool, int, float, str, complex, torch.dtype, torch.memory_format, torch.layout, torch.device)
            )
            or v is Ellipsis
        ):
            return v
        name = f"_object_{sum(k.startswith('_object_') for k in part.__dict__)}"
        setattr(part, name, v)
        return graph.get_attr(name)

    for step in steps:
        args, kwargs = transform((step.args, step.kwargs), leaf)
        made[Ref(step.index)] = _emit(graph, step, args, kwargs)
    graph.output(value(stop))
    return graph, loose


def _emit(graph: fx.Graph, step: Step, args: Any, kwargs: Any) -> fx.Node:
    if step.kind == "module":
        return graph.call_module(step.target, args, kwargs)
    name = getattr(step.target, "__name__", "")
    if name == "__get__":  # a property of tensors: x.T, x.data
        return graph.call_function(getattr, (args[0], step.target.__self__.__name__))
    if getattr(Tensor, name, None) is step.target and isinstance(args[0], fx.Node):
        return graph.call_method(name, args, kwargs)
    return graph.call_function(step.target, args, kwargs)


def _adopt(part: nn.Module, model: nn.Module, modules: Sequence[str], attrs: Sequence[str]) -> None:
    """Give `part` the modules, parameters and buffers of `model` that it needs, under their own names."""
    taken = dict.fromkeys(modules)  # in the order of their first use
    for path in sorted(taken, key=lambda p: p.count(".")):
        _holder(part, path, taken).add_module(path.rpartition(".")[2], model.get_submodule(path))
    for path in dict.fromkeys(attrs):
        if any(path.startswith(m + ".") for m in taken):
            continue
        owner_path, _, name = path.rpartition(".")
        owner = model.get_submodule(owner_path)
        holder = _holder(part, path, taken)
        if name in owner._parameters:
            holder.register_parameter(name, owner._parameters[name])
        else:
            holder.register_buffer(name, owner._buffers[name], persistent=name not in owner._non_persistent_buffers_set)


def _holder(part: nn.Module, path: str, taken: Collection[str]) -> nn.Module:
    """The module of `part` in which the last name of `path` lives; plain containers are made on the way."""
    at = part
    for name in path.split(".")[:-1]:
        if name not in at._modules:
            at.add_module(name, nn.Module())
        at = at._modules[name]
        assert at is not None
    return at
