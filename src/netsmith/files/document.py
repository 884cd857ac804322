"""Files that users write, checked against a model: every fault at once, each with its line and what is allowed."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from netsmith.errors import ConfigError, did_you_mean
from netsmith.files.paths import as_path
from netsmith.files.yaml_text import MOST_BYTES, Document, Fault, Keys, dotted, read_yaml

M = TypeVar("M", bound=BaseModel)

LOOK_UP = "look_up"
"""Key of a validator's context: whether it may ask the libraries for what a file names. They take seconds to load."""


def read_file(path: Path) -> str:
    """The text of a config file.

    Raises:
        ConfigError: missing (with the nearest names beside it), too large, or not UTF-8.
    """
    as_path(path, ConfigError)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, expected a YAML file.")
    if not path.exists():
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"There is no config file {path}. {did_you_mean(path.name, beside)}".rstrip())
    try:
        with path.open("rb") as file:  # a pipe has no size, and may be what a shell made of <(...)
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            size = max(len(data), path.stat().st_size)
            raise ConfigError(f"{path} has {size} bytes, expected at most {MOST_BYTES}: is it a config?")
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error


def validate(document: Document, model: type[M], where: str, *, context: Mapping[str, Any] | None = None) -> M:
    """A document as a model.

    Args:
        document: its faults so far are reported together with the model's.
        model: what it must be.
        where: what to call it in the message (a file's name).
        context: for the model's validators, which are run twice: `LOOK_UP` is False at first, and True once all that
            they can tell without the libraries is right. Where it is False in this context, that is all.

    Raises:
        ConfigError: all faults, in the order of their lines.
    """
    faults = list(document.faults)
    value = {} if document.value is None else document.value
    result = None
    if not isinstance(value, Mapping):
        if not faults:
            faults.append(Fault(*_at(document, ()), f"expected keys and values, got {_shown(value)}"))
    elif not (document.value is None and faults):
        faults += [_bool_fault(document, path) for path in _bools(model, value, ())]
        context = dict(context or {})
        for look_up in (False, True) if context.get(LOOK_UP, True) else (False,):
            if look_up and faults:
                break
            try:
                result = model.model_validate(value, context={**context, LOOK_UP: look_up})
            except ValidationError as error:
                known = {f.key for f in faults}
                faults += [f for f in faults_of(error, document, model) if f.key not in known]
    if faults or result is None:
        faults = sorted(dict.fromkeys(faults), key=lambda f: f.order)
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = [str(f) for f in faults]
        raise ConfigError(f"{where} has {count}:\n" + "\n".join(f"  {line}" for line in lines), lines)
    return result


def faults_of(error: ValidationError, document: Document, model: type[BaseModel]) -> list[Fault]:
    """Return each fault that a model finds in a document, in words for the one who wrote it."""
    return [_explain(document, model, e) for e in error.errors(include_url=False)]


def _at(document: Document, path: Keys) -> tuple[str, str]:
    return document.place(path)[0], dotted(path)


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list | tuple):
        text = repr(list(value))
        return f"the list {text}" if len(text) < 60 else f"a list of {len(value)}"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def _path(value: Any, loc: Sequence[str | int], last_may_lack: bool) -> Keys:
    """The keys of a pydantic location; its names of union branches and validators, which are no keys, are left out."""
    path: list[str | int] = []
    for i, part in enumerate(loc):
        inside = (isinstance(value, Mapping) and part in value) or (
            isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)
        )
        if inside:
            path.append(part)
            value = value[part]  # pyright: ignore[reportArgumentType, reportIndexIssue, reportCallIssue]
        elif last_may_lack and i == len(loc) - 1:
            path.append(part)
    return tuple(path)


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a section (keys and values)",
    "model": "a section (keys and values)",
    "dataclass": "a section (keys and values)",
}
_LIMITS = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "of at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "of at most {le}",
    "multiple_of": "that is a multiple of {multiple_of}",
    "finite_number": "that is finite",
}


def _explain(document: Document, model: type[BaseModel], error: Any) -> Fault:
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    path = _path(document.value or {}, error["loc"], kind == "missing")
    place, order = document.place(path)
    prefix = kind.rpartition("_")[0] if kind.rpartition("_")[2] in {"type", "parsing", "from"} else kind
    if kind == "missing" and isinstance(path[-1], int):
        # a list that is too short: said of the list
        path = path[:-1]
        text = f"expected at least {error['loc'][-1] + 1} entries, got {_shown(value)}"
    elif kind == "missing":
        text = "this key is required and missing"
    elif kind == "extra_forbidden":
        text = f"unknown key. {did_you_mean(str(path[-1]), _keys(model, path[:-1]))}".rstrip()
    elif kind == "literal_error":
        options = [o.strip().strip("'") for o in context["expected"].replace(" or ", ", ").split(",")]
        near = did_you_mean(value, options) if isinstance(value, str) else ""
        near = near if near.startswith("Did you mean") else ""
        text = f"expected {context['expected']}, got {_shown(value)}. {near}".rstrip().removesuffix(".")
    elif kind in _LIMITS:
        noun = "a number" if float in _types(model, path) else "a whole number"
        limits = {k: f"{v:g}" if isinstance(v, float) else v for k, v in context.items()}
        text = f"expected {noun} {_LIMITS[kind].format(**limits)}, got {_shown(value)}"
    elif kind in {"value_error", "assertion_error"}:
        text = str(context.get("error", error["msg"]))
    elif prefix.startswith("int_"):
        text = f"expected a whole number, got {_shown(value)}"
    elif prefix in _KINDS or kind.startswith("model_"):
        text = f"expected {_KINDS.get(prefix, _KINDS['model'])}, got {_shown(value)}"
    elif kind in {"too_short", "too_long"}:
        least = kind == "too_short"
        bound = f"at least {context['min_length']}" if least else f"at most {context['max_length']}"
        text = f"expected {bound} entries, got {context['actual_length']}"
    else:
        text = f"{error['msg'][0].lower()}{error['msg'][1:]}, got {_shown(value)}"
    return Fault(place, dotted(path), text, order)


def _bool_fault(document: Document, path: Keys) -> Fault:
    value: Any = document.value
    for part in path:
        value = value[part]
    place, order = document.place(path)
    return Fault(place, dotted(path), f"expected a number, got {_shown(value)}", order)


def _branches(annotation: Any) -> list[Any]:
    """The types that an annotation allows, unions and `Annotated` taken apart."""
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return _branches(get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [branch for part in get_args(annotation) for branch in _branches(part)]
    return [annotation]


def _child(branches: Sequence[Any], part: str | int) -> list[Any]:
    """What the types allow under a key or at a position."""
    found = []
    for branch in branches:
        origin, arguments = get_origin(branch), get_args(branch)
        if isinstance(branch, type) and issubclass(branch, BaseModel):
            if isinstance(part, str) and part in branch.model_fields:
                found += _branches(branch.model_fields[part].annotation)
        elif isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
            found += _branches(arguments[1])
        elif isinstance(origin, type) and issubclass(origin, Sequence) and isinstance(part, int) and arguments:
            same = len(arguments) == 1 or arguments[1] is Ellipsis
            found += _branches(arguments[0] if same else arguments[min(part, len(arguments) - 1)])
    return found


def _types(model: type[BaseModel], path: Keys) -> list[Any]:
    branches: list[Any] = [model]
    for part in path:
        branches = _child(branches, part)
    return branches


def _keys(model: type[BaseModel], path: Keys) -> list[str]:
    return [
        key for b in _types(model, path) if isinstance(b, type) and issubclass(b, BaseModel) for key in b.model_fields
    ]


def _bools(model: Any, value: Any, path: Keys, branches: Sequence[Any] | None = None) -> list[Keys]:
    """Places where `true` or `false` stands for a number: pydantic would take them for 1 and 0."""
    branches = [model] if branches is None else branches
    if isinstance(value, bool):
        return [path] if {int, float} & set(branches) and bool not in branches else []
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    return [p for k, v in items if (under := _child(branches, k)) for p in _bools(model, v, (*path, k), under)]


def load_document(path: Path, model: type[M], *, look_up: bool = True) -> M:
    """Read a YAML file as a model; its validators get the file's folder as `base` in their context, and `look_up`.

    Raises:
        ConfigError: the file cannot be read, or has faults: all of them at once, each with its line.
    """
    return validate(
        read_yaml(read_file(path)), model, str(path), context={"base": path.resolve().parent, LOOK_UP: look_up}
    )
