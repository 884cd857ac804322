"""Which parts of a network a trial run saw: a part with weights that it did not see may do anything with what it gets.

A branch taken by a value, by `self.training` or by a size, an expert without tokens: their weights are touched by no
step, so nothing that the run shows can be concluded for what would reach them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

READS_VALUES = frozenset(
    {"bool", "item", "int", "float", "complex", "index", "tolist", "numpy", "array"}
    | {"contains", "equal", "allclose", "is_nonzero"}
)
"""Torch functions, without underscores, that turn values of a tensor into Python values, on which code may depend."""


class Coverage:
    """What runs of `model` saw so far: modules that ran, and parameters and buffers that torch functions were given."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.inside: list[str] = []  # names of the modules whose code is running
        self._names = {id(m): n for n, m in model.named_modules()}
        buffers = [(n, b) for n, b in model.named_buffers() if b.is_floating_point()]
        self._parameters = {id(t): n for n, t in [*model.named_parameters(), *buffers]}
        self.decides: set[str] = set()  # names of modules whose code reads values of what depends on the input
        self._ran: set[str] = set()
        self._touched: set[str] = set()

    def touch(self, tensors: Iterable[Tensor]) -> None:
        """Note the parameters among the tensors that a step used."""
        self._touched.update(self._parameters[id(t)] for t in tensors if id(t) in self._parameters)

    @contextmanager
    def watching(self, passed: Callable[[str, Any], None]) -> Iterator[None]:
        """Follow calls of modules; `passed` is given the name of a module and what its code took in or gave out."""

        def enter(module: nn.Module, _: Any) -> None:
            self.inside.append(self._names.get(id(module), self.inside[-1] if self.inside else ""))
            self._ran.add(self.inside[-1])

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            own = self.inside.pop()
            for name in (own, *self.inside[-1:]):
                passed(name, (args, out))

        hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.inside.clear()

    def unseen(self) -> dict[str, str]:
        """Parts with weights that no run saw, by name, each with the innermost module around it that ran.

        A part of which the code around it never speaks cannot be reached, and is left out.
        """
        reached = {name[:i] for name in self._touched for i, c in enumerate(name) if c == "."} | self._ran
        parts: dict[str, str] = {}
        for name in self._parameters.values():
            if name in self._touched:
                continue
            part, around = name, name.rpartition(".")[0]
            while around and around not in reached:
                part, around = around, around.rpartition(".")[0]
            while around and around not in self._ran:
                around = around.rpartition(".")[0]
            if part not in parts and _speaks_of(self.model.get_submodule(around), part[len(around) :].strip(".")):
                parts[part] = around
        return parts


# Code that goes through its modules without their names.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_BY_ANY_NAME = {"getattr", "children", "named_children", "modules", "named_modules", "_modules", "get_submodule"}


def _speaks_of(module: nn.Module, part: str) -> bool:
    """Whether the code of a module can reach a part of it by its name."""
    owners, wanted = [module], set[str]()
    for name in part.split("."):
        if not isinstance(owners[-1], _CONTAINERS):
            wanted.add(name)
        if isinstance(below := getattr(owners[-1], name), nn.Module):
            owners.append(below)
    spoken = _spoken(owners)
    return wanted <= spoken or bool(spoken & _BY_ANY_NAME)


def _spoken(owners: Sequence[nn.Module]) -> set[str]:
    """The names in the forward of the first module, and in all functions of the modules that it calls by name."""
    names: set[str] = set()
    todo: list[Any] = [owners[0].forward]
    read: set[CodeType] = set()
    while todo:
        value = todo.pop()
        value = value.fget if isinstance(value, property) else inspect.unwrap(value)
        value = getattr(value, "__func__", value)
        code = value if isinstance(value, CodeType) else getattr(value, "__code__", None)
        if code is None or code in read:
            continue
        read.add(code)
        names.update(code.co_names, (c for c in code.co_consts if isinstance(c, str)))
        todo += [c for c in code.co_consts if isinstance(c, CodeType)]
        places = [getattr(value, "__globals__", {}), *(vars(m) for m in owners)]
        places += [vars(c) for m in owners for c in type(m).__mro__ if not c.__module__.startswith("torch.")]
        called = [place[name] for name in code.co_names for place in places if name in place]
        called += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        held = [leaf for value in called for leaf in _held(value)]
        todo += [c for c in held if isinstance(c, (FunctionType, MethodType, property))]
        if any(isinstance(c, nn.Module) and all(c is not v for v in called) for c in held):
            names.add("modules")  # in a list or an object of the user's, where it has another name
    return names


def _held(value: Any) -> list[Any]:
    """Return a value, or what a list, a dict or an object of a user's class holds."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple, set)):
        return list(value)
    plain = isinstance(value, (nn.Module, Tensor, type, FunctionType, MethodType, ModuleType, property))
    if plain or not hasattr(value, "__dict__") or type(value).__module__.partition(".")[0] in ("torch", "builtins"):
        return [value]
    methods = [m for m in vars(type(value)).values() if isinstance(m, FunctionType)]
    return [*methods, *(leaf for item in vars(value).values() for leaf in _held(item))]
