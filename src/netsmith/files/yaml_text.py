"""YAML without its traps: values with the line of every key, doubled keys seen, tags refused, expansions bounded.

Scalars follow YAML 1.2's core schema, so `no` and `off` are words and `1e-3` is a number.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

Keys = tuple[str | int, ...]

MOST_VALUES = 20_000
"""Values in one document with its aliases expanded; more is an accident or an attack."""

MOST_BYTES = 2_000_000

_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": r"^(?:~|null|Null|NULL|)$",
    "bool": r"^(?:true|True|TRUE|false|False|FALSE)$",
    "int": r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$",
    "float": r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN))$",
    "merge": r"^<<$",
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema's idea of what a plain scalar is."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the base class declares it so
    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node more; a text of too many is given up at once, as all of it would take half a minute."""
        self.nodes += 1
        if self.nodes > 2 * MOST_VALUES:  # keys are nodes too
            raise _TooMuchError(f"it holds more than {MOST_VALUES} values")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either YAML 1.1 or the core schema would take for something else."""


for _name, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), None)
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(_pattern), None)


@dataclass(frozen=True)
class Fault:
    """One mistake: where (`place`: `line 3`, `--set`, or empty), the dotted key, and what is wrong."""

    place: str
    key: str
    text: str
    order: int = 0

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.key, self.text) if part)


@dataclass
class Document:
    """A parsed document: its plain value, the place of every key in it, and the faults met so far."""

    value: Any = None
    places: dict[Keys, int | str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def place(self, path: Keys) -> tuple[str, int]:
        """Where a key is, for a reader and for sorting; of its nearest parent when it is not there itself."""
        for end in range(len(path), -1, -1):
            found = self.places.get(path[:end])
            if isinstance(found, str):
                return found, 1 << 30
            if found is not None:
                return f"line {found}", found
        return "", 0


def dotted(path: Keys) -> str:
    """`("zoo", 0, "source")` as `zoo.0.source`."""
    return ".".join(map(str, path))


def read_yaml(text: str) -> Document:
    """Parse one YAML document; what is wrong with it is in `faults`, never raised."""
    document = Document()
    if len(text) > MOST_BYTES:
        document.faults.append(Fault("", "", f"the text has {len(text)} characters, expected at most {MOST_BYTES}"))
        return document
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            document.places[()] = node.start_mark.line + 1
            document.value = _Converter(document).convert(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        hint = ". Indent with spaces" if error.problem and "'\\t'" in error.problem else ""
        what = " ".join(part for part in (error.context, error.problem) if part)
        document.faults.append(Fault(f"line {line}" if line else "", "", f"this is no YAML: {what}{hint}", line))
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        document.faults.append(Fault("", "", f"this is no YAML: {first}"))
    except RecursionError:
        document.faults.append(Fault("", "", "it is nested too deeply"))
    except _TooMuchError as error:
        document.faults.append(Fault("", "", str(error)))
    return document


class _TooMuchError(Exception):
    pass


class _Converter:
    """Turns the node graph into plain values; every expansion of an alias counts."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0
        self.open: set[int] = set()

    def fault(self, node: Any, path: Keys, text: str) -> None:
        line = node.start_mark.line + 1
        self.document.faults.append(Fault(f"line {line}", dotted(path), text, line))

    def convert(self, node: Any, path: Keys) -> Any:
        self.count += 1
        if self.count > MOST_VALUES:
            raise _TooMuchError(f"its aliases expand to more than {MOST_VALUES} values")
        if id(node) in self.open:
            self.fault(node, path, "an alias contains itself")
            return None
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and self.allowed(node, path, ("map",)):
                return self.mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and self.allowed(node, path, ("seq",)):
                return self.sequence(node, path)
            if isinstance(node, yaml.ScalarNode) and self.allowed(node, path, ("str", "merge", *_SCALARS)):
                return self.scalar(node, path)
            return None
        finally:
            self.open.discard(id(node))

    def allowed(self, node: Any, path: Keys, kinds: tuple[str, ...]) -> bool:
        if node.tag.removeprefix(_TAG) in kinds:
            return True
        shown = node.tag.replace(_TAG, "!!")
        self.fault(node, path, f"the tag {shown} is refused: a config holds plain values only. Remove it")
        return False

    def sequence(self, node: Any, path: Keys) -> list[Any]:
        result = []
        for i, item in enumerate(node.value):
            self.document.places[(*path, i)] = item.start_mark.line + 1
            result.append(self.convert(item, (*path, i)))
        return result

    def mapping(self, node: Any, path: Keys) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.fault(key_node, path, "a key must be a word")
                continue
            if key_node.tag == _TAG + "merge":
                parts = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for part in parts:
                    extra = self.convert(part, path)
                    if not isinstance(extra, dict):
                        self.fault(part, path, "'<<' takes a section or a list of sections")
                        continue
                    merged = {**extra, **merged}
                continue
            key = key_node.value
            here = (*path, key)
            if key in result:
                first = self.document.places[here]
                self.fault(key_node, here, f"this key is there twice, first in line {first}. Keep one")
                continue
            self.document.places[here] = key_node.start_mark.line + 1
            result[key] = self.convert(value_node, here)
        return {**merged, **result}

    def scalar(self, node: Any, path: Keys) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text, 0) if text[:2].lower() in {"0x", "0o"} else int(text)
            if kind == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError):
            shown = text if len(text) <= 40 else f"{text[:30]}... ({len(text)} characters)"
            self.fault(node, path, f"'{shown}' is no {kind}")
            return None
        return text


def plain(value: object) -> Any:
    """Nested models, dataclasses, tuples, enums and paths as mappings, lists and scalars."""
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(v) for v in value)
    if isinstance(value, Path):
        return str(value)
    return value


def write_yaml(value: object) -> str:
    """YAML that `read_yaml` reads back as the same plain value."""
    return yaml.dump(plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    if math.isfinite(value):
        text = repr(value)
    else:
        text = ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
    return dumper.represent_scalar(_TAG + "float", text)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML writes YAML 1.1's further line breaks raw outside double quotes, where reading folds them into spaces
    style = '"' if any(c in value for c in "\r\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar(_TAG + "str", value, style=style)


_Dumper.add_representer(float, _float)
_Dumper.add_representer(str, _text)
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]  # sections that are equal stay apart
