"""Record what a network computes: which operation feeds which, seen from the calls it really makes.

The network runs as it is, on real tensors; every torch function it calls and every call of a closed module becomes a
step. Python code needs no rewriting and may branch on shapes as it likes. What a step took from the batch size shows
when two recordings made with different batch sizes are laid side by side (`netsmith.trace.replay`).
"""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode

from netsmith.trace.coverage import READS_VALUES

_LABEL = "_netsmith_label"
# Frames of a traceback that are not the network's own code.
_MACHINERY = re.compile(r"[\\/](torch|jaxtyping|beartype)[\\/]|^<|" + re.escape(__file__))


@dataclass(frozen=True)
class Ref:
    """The tensor at `path` in the output of step `step`."""

    step: int
    path: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Attr:
    """A parameter or buffer of the network, by name."""

    name: str


@dataclass(frozen=True, eq=False)
class Loose:
    """A tensor that no recorded step made and that the network does not register."""

    value: Tensor


@dataclass(frozen=True)
class Training:
    """`self.training` of the module whose code is being recorded."""


class TrainingFlag(int):
    """Stands for `self.training == False` during a recording, so that its use as an argument is seen."""


@dataclass(eq=False)
class Call:
    """One call of a module: steps `start` to `stop - 1` were made inside it."""

    path: str
    count: int
    parent: Call | None
    start: int
    module: nn.Module
    stop: int = -1
    end: Ref | None = None
    own_steps: int = 0
    children: list[Call] = field(default_factory=list)
    outputs: tuple[Ref, ...] = ()  # all tensors that it returned and that depend on the network's input


@dataclass(eq=False)
class Step:
    """One recorded operation: a torch function (`target` is the function) or a closed module (`target` is its path)."""

    index: int
    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    owner: Call
    ordinal: int
    after: tuple[int, ...]
    derived: bool
    shapes: dict[tuple[Any, ...], tuple[int, ...]] = field(default_factory=dict)
    floating: bool = True

    def refs(self) -> list[Ref]:
        """The outputs of earlier steps that this one reads."""
        return [leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Ref)]


class Blocked(Exception):
    """The code of the module `path` cannot be replayed; `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path or 'the network itself'}: {reason}")
        self.path = path
        self.reason = reason


def transform(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """`value` with `leaf` applied to everything in it that is no list, tuple, dict or slice."""
    if isinstance(value, torch.Size):
        return tuple(transform(v, leaf) for v in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(transform(v, leaf) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)([transform(v, leaf) for v in value]) if type(value) in (list, tuple) else leaf(value)
    if isinstance(value, dict):
        return {k: transform(v, leaf) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(transform(v, leaf) for v in (value.start, value.stop, value.step)))
    return leaf(value)


def leaves(value: Any) -> list[Any]:
    """Everything in `value` that is no list, tuple, dict or slice."""
    found: list[Any] = []
    transform(value, found.append)
    return found


def tensors(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """The tensors of an output with the indices that lead to them."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            yield from tensors(v, (*path, i))
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from tensors(v, (*path, k))


class Recording(TorchFunctionMode):
    """The steps of one forward pass of `model` on `x`, with the modules for which `is_open` holds looked into.

    `strict` refuses (Blocked) what could not be replayed: Python code that decides by the values of tensors. Without
    it the recording is for looking only. Runs without gradients; the caller sets the model's mode.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        is_open: Callable[[str, nn.Module], bool],
        *,
        strict: bool,
        keep: Collection[Ref] = (),
    ) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.calls: list[Call] = []
        self.batch = x.shape[0]
        self.model = model
        self.kept: dict[Ref, Tensor] = {}  # copies of the outputs named in `keep`
        self._keep = frozenset(keep)
        self._is_open = is_open
        self._strict = strict
        self._paths = {id(m): name for name, m in model.named_modules()}
        self._names: dict[int, str] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self._names.setdefault(id(tensor), name)
        self._counts: Counter[str] = Counter()
        self._stack: list[Call] = []
        self._closed = 0  # how deep inside a closed module the run is
        self._before: list[tuple[Tensor, int]] = []
        self._given: Any = ()
        self._writes: dict[int, int] = {}  # storage -> last step that wrote to it in place
        self._held: list[Tensor] = []
        self.output = self._run(x)
        self.result = self._ref(self.output) if isinstance(self.output, Tensor) else None
        self._end_calls()

    def _run(self, x: Tensor) -> Any:
        x = x.detach().clone()
        root = Call("", 0, None, 0, self.model)
        self._stack.append(root)
        self.calls.append(root)
        self._add("input", "input", (), {}, (x,), (), derived=True)
        self._label(x, Ref(0))
        # torch calls the hooks of all modules before those of one, and a user's hook may change the output: what it
        # does belongs to its module, so there the end is seen by a hook of the module, after the others
        hooked = [m for m in self.model.modules() if m._forward_hooks and not isinstance(m, torch.jit.ScriptModule)]
        self._hooked = set(map(id, hooked))
        hooks = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave_unless_hooked, with_kwargs=True),
            *(m.register_forward_hook(self._leave, with_kwargs=True) for m in hooked),
        ]
        try:
            with torch.no_grad(), self:
                return self.model(x)
        finally:
            for hook in hooks:
                hook.remove()
                _global_forward_hooks_with_kwargs.pop(hook.id, None)  # torch forgets it there

    # -- modules -----------------------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: Any) -> None:
        with torch._C.DisableTorchFunction():
            self._entered(module, args)

    def _leave_unless_hooked(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        return None if id(module) in self._hooked else self._leave(module, args, kwargs, output)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return self._left(module, args, kwargs, output)

    def _entered(self, module: nn.Module, args: Any) -> None:
        path = self._paths.get(id(module))
        if self._closed:
            self._closed += 1
        elif path is None or path == "":
            return
        elif self._is_open(path, module):
            self._counts[path] += 1
            parent = self._stack[-1]
            call = Call(path, self._counts[path], parent, len(self.steps), module)
            parent.children.append(call)
            self.calls.append(call)
            self._stack.append(call)
        else:
            self._counts[path] += 1
            # now, as the module may change a list that it is given
            self._before = [(t, t._version) for _, t in tensors(list(args))]
            self._given = self._template(args)
            self._closed = 1

    def _left(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        path = self._paths.get(id(module))
        if self._closed > 1:
            self._closed -= 1
        elif self._closed == 1:
            self._closed = 0
            parent = self._stack[-1]
            call = Call(path or "", self._counts[path or ""], parent, len(self.steps), module)
            output = self._record("module", path, self._given, kwargs, output, self._before)
            call.stop, call.outputs = len(self.steps), self._outputs(output)
            parent.children.append(call)
            self.calls.append(call)
            return output
        elif path is not None:
            call = self._stack[-1] if path == "" else self._stack.pop()
            call.stop, call.outputs = len(self.steps), self._outputs(output)
        return None

    def _outputs(self, output: Any) -> tuple[Ref, ...]:
        """The input-dependent tensors of a module's output."""
        return tuple(ref for _, t in tensors(output) if (ref := self._ref(t)) and self.steps[ref.step].derived)

    def _end_calls(self) -> None:
        """Give each call the one tensor that it hands on, if there is exactly one; of a layer, one that anybody reads.

        Blocks that hand on several tensors are not cut at their ends: what lies between two of them is more than units.
        """
        last_reader = {ref: step.index for step in self.steps for ref in step.refs()}
        for call in self.calls:
            read = [r for r in call.outputs if r == self.result or last_reader.get(r, -1) >= call.stop]
            is_layer = not any(True for _ in call.module.children())
            ends = read if is_layer else call.outputs
            call.end = ends[0] if len(ends) == 1 else None

    # -- functions ---------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`; keep it as a step when it makes or changes tensors outside closed modules."""
        kwargs = kwargs or {}
        if self._closed:
            return func(*args, **kwargs)
        if self._strict and getattr(func, "__name__", "").strip("_") in READS_VALUES:
            self._refuse_data(func, args)
        plain_args, plain_kwargs = transform((args, kwargs), lambda v: False if isinstance(v, TrainingFlag) else v)
        before = [(t, t._version) for _, t in tensors([list(args), kwargs])]
        return self._record("function", func, args, kwargs, func(*plain_args, **plain_kwargs), before)

    def _refuse_data(self, func: Any, args: Any) -> None:
        for _, t in tensors(list(args)):
            ref = self._ref(t)
            if ref and self.steps[ref.step].derived:
                where = [f for f in traceback.extract_stack() if not _MACHINERY.search(f.filename)]
                line = f" at {where[-1].filename}:{where[-1].lineno}" if where else ""
                raise Blocked(
                    self._stack[-1].path,
                    "its Python code reads the values of a tensor that depends on the input"
                    f" (Tensor.{func.__name__}{line}): dynamic control flow",
                )

    # -- both --------------------------------------------------------------------------------------------------------

    def _record(
        self, kind: str, target: Any, args: Any, kwargs: Any, output: Any, before: list[tuple[Tensor, int]]
    ) -> Any:
        written = [t for t, version in before if t._version != version]
        found = list(tensors(output))
        if not found and not written:
            return output
        given = {id(t) for t, _ in before}
        changed = {id(t) for t in written}
        if isinstance(output, Tensor) and id(output) in given and id(output) not in changed:
            # An operation without effect (dropout in eval mode) hands its input back; give it a tensor of its own, or
            # the two could not be told apart.
            output = output.view_as(output)
            found = [((), output)]
        new_args, new_kwargs = self._template((args, kwargs))
        refs = [leaf for leaf in leaves((new_args, new_kwargs)) if isinstance(leaf, Ref)]
        after = tuple(sorted({w for t, _ in before if (w := self._written(t)) is not None}))
        derived = any(self.steps[i].derived for i in [*(r.step for r in refs), *after])
        outputs = tuple(t for _, t in found)
        step = self._add(kind, target, new_args, new_kwargs, outputs, after, derived=derived)
        step.shapes = {path: tuple(t.shape) for path, t in found}
        step.floating = all(t.is_floating_point() for _, t in found)
        for path, t in found:
            self._label(t, Ref(step.index, path))
            if Ref(step.index, path) in self._keep:
                self.kept[Ref(step.index, path)] = t.clone()
        for t in written:
            self._writes[t.untyped_storage().data_ptr()] = step.index
            self._held.append(t)
        return output

    def _add(
        self, kind: str, target: Any, args: Any, kwargs: Any, outputs: tuple[Tensor, ...], after: Any, *, derived: bool
    ) -> Step:
        owner = self._stack[-1]
        ordinal = owner.own_steps if kind == "function" else -1
        owner.own_steps += kind == "function"
        step = Step(len(self.steps), kind, target, args, kwargs, owner, ordinal, after, derived)
        step.shapes = {(): tuple(outputs[0].shape)} if outputs else {}
        self.steps.append(step)
        return step

    def _template(self, value: Any) -> Any:
        def leaf(v: Any) -> Any:
            if isinstance(v, Tensor):
                name = self._names.get(id(v))
                return self._ref(v) or (Attr(name) if name is not None else Loose(v))
            return Training() if isinstance(v, TrainingFlag) else v

        return transform(value, leaf)

    def _label(self, t: Tensor, ref: Ref) -> None:
        if id(t) not in self._names:
            setattr(t, _LABEL, (self, ref))

    def _ref(self, t: Tensor) -> Ref | None:
        recording, ref = getattr(t, _LABEL, (None, None))
        return ref if recording is self else None

    def _written(self, t: Tensor) -> int | None:
        """The step that last changed the memory of `t` in place, if that came after `t` was made."""
        if not self._writes:
            return None
        step = self._writes.get(t.untyped_storage().data_ptr())
        ref = self._ref(t)
        return step if step is not None and (ref is None or step > ref.step) else None
