"""What a network computes beyond its tensors: classes, numbers, names and code of its modules, as one digest."""

from __future__ import annotations

import dataclasses
import enum
import functools
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

from netsmith.files.cache import digest
from netsmith.records.architecture import NOTE

_PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, np.bool_, np.integer, np.floating)
_BOOKKEEPING = frozenset({*vars(nn.Module()), NOTE})
"""What every module has: its parts, which are walked through, its hooks, its mode, and how it is built."""


def structure(*values: object) -> str:
    """Digest of modules and plain values that tells apart what weights do not: numbers such as `heads`, and code.

    Of installed libraries the names of classes and functions count; of other code (a `py:` source, what it imports, a
    notebook) what it does: bytecode, constants, defaults, and the functions and constants of its files that it speaks
    of. Comments, file names and folders do not count, nor do hooks, modes and devices. Of tensors that are neither
    parameters nor buffers the type alone does: often they are what was computed last, and differ in the last digit.
    Parameters and the buffers that a state dict has are left out: hash the state dict beside.
    """
    walk = _Walk()
    return digest([walk.value(value) for value in values])


class _Walk:
    """Turns values into nested plain ones that `digest` understands; what was met before is a number."""

    def __init__(self) -> None:
        self._met: dict[object, tuple[int, object]] = {}  # the objects too: an id is one's own only while it lives

    def value(self, value: object) -> object:
        """Any value."""
        if value is None or isinstance(value, _PLAIN):
            return value
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return str(value)
        if isinstance(value, Tensor | np.ndarray | torch.device):
            return type(value).__name__
        if isinstance(value, set | frozenset):
            return ["set", sorted(digest(_Walk().value(item)) for item in value)]
        if isinstance(value, tuple):  # Python may or may not make one of two equal ones
            return [self.value(item) for item in value]
        if id(value) in self._met:
            return ["again", self._met[id(value)][0]]
        self._met[id(value)] = (len(self._met), value)
        if isinstance(value, Mapping):
            return ["map", [[self.value(key), self.value(item)] for key, item in value.items()]]
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, nn.Module):
            return self._module(value)
        return self._code_or_object(value)

    def _module(self, module: nn.Module) -> object:
        own = {name: value for name, value in vars(module).items() if name not in _BOOKKEEPING}
        hidden = {name: module._buffers[name] for name in sorted(module._non_persistent_buffers_set)}
        script = module.code if isinstance(module, torch.jit.ScriptModule) else ""
        parts = [[name, self.value(part)] for name, part in module.named_children()]
        return ["module", self.value(type(module)), self._attributes(own), hidden, script, parts]

    def _attributes(self, found: Mapping[str, object]) -> object:
        return [[name, self.value(found[name])] for name in sorted(found)]

    def _code_or_object(self, value: object) -> object:
        if isinstance(value, type):
            return ["class", [self._class(base) for base in value.__mro__ if base is not object]]
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, BuiltinFunctionType):
            return _name(value)
        if isinstance(value, MethodType | staticmethod | classmethod):
            return ["method", self.value(value.__func__), self.value(getattr(value, "__self__", None))]
        if isinstance(value, property):
            return ["property", self.value(value.fget), self.value(value.fset)]
        if isinstance(value, functools.partial):
            return ["partial", self.value(value.func), self.value(value.args), self.value(value.keywords)]
        if isinstance(value, functools.cached_property):
            return ["property", self.value(value.func)]
        if isinstance(value, ModuleType):
            return "file" if _is_own(value.__name__) else value.__name__
        about: list[object] = ["object", self.value(type(value)), self.value(getattr(value, "__wrapped__", None))]
        if dataclasses.is_dataclass(value):
            about.append([self.value(getattr(value, field.name, None)) for field in dataclasses.fields(value)])
        elif _is_own(type(value).__module__):
            about.append(self._attributes(getattr(value, "__dict__", {})))
        return about

    def _class(self, base: type) -> object:
        if not _is_own(base.__module__):
            return _name(base)
        inner = (FunctionType, staticmethod, classmethod, property)
        wanted = {
            name: value
            for name, value in vars(base).items()
            if isinstance(value, inner) or not (name.startswith("__") or name == "_abc_impl")
        }
        return [base.__qualname__, self._attributes(wanted)]

    def _function(self, function: FunctionType) -> object:
        if not _is_own(function.__module__):
            return _name(function)
        cells = [self._cell(cell) for cell in function.__closure__ or ()]
        defaults = [self.value(function.__defaults__), self.value(function.__kwdefaults__)]
        return ["function", self._code(function.__code__, function.__globals__), defaults, cells]

    def _cell(self, cell: object) -> object:
        try:
            return self.value(cell.cell_contents)  # pyright: ignore[reportAttributeAccessIssue]
        except ValueError:  # still empty
            return None

    def _code(self, code: CodeType, space: Mapping[str, object]) -> object:
        constants = [self._code(c, space) if isinstance(c, CodeType) else self.value(c) for c in code.co_consts]
        spoken = self._named(code.co_names, space) if _is_own(str(space.get("__name__"))) else []
        about = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
        return ["code", code.co_code, about, code.co_names, constants, spoken]

    def _named(self, names: tuple[str, ...], space: Mapping[str, object]) -> object:
        """What names stand for in a file; those behind a dot are looked up in the files of one's own."""
        found: list[object] = []
        for name in names:
            if name not in space or name.startswith("__"):
                continue
            value = space[name]
            found.append([name, self.value(value)])
            if isinstance(value, ModuleType) and _is_own(value.__name__) and (id(value), names) not in self._met:
                self._met[id(value), names] = (len(self._met), value)
                found.append(self._named(names, vars(value)))
        return found


def _name(value: object) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"


@functools.lru_cache(maxsize=4096)
def _is_own(module: str | None) -> bool:
    """Whether a module is somebody's own code: neither installed, nor of Python, PyTorch, timm or this package."""
    found = sys.modules.get(module or "")
    if module == "__main__" or found is None:
        return True
    file = getattr(found, "__file__", None)
    if file is None or {"site-packages", "dist-packages"} & set(Path(file).parts):
        return False
    return not any(Path(file).resolve().is_relative_to(home) for home in _homes())


@functools.lru_cache(maxsize=1)
def _homes() -> tuple[Path, ...]:
    """Further folders of installed code, such as that of a PyTorch that was built here."""
    paths = sysconfig.get_paths()
    packages = [Path(p.__file__ or "").parent for p in (torch, torchvision, timm)] + [Path(__file__).parent.parent]
    return tuple(Path(path).resolve() for path in [paths["stdlib"], paths["platstdlib"], *packages])
