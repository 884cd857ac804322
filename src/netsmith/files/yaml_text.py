"""YAML 1.2 with the line of every key. Tags and doubled keys are refused, and expansions of aliases are bounded.

Scalars follow the core schema, so `no` and `off` are words and `1e-3` is a number.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_jsonable_python
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

from netsmith.files.paths import is_text

Keys = tuple[str | int, ...]

MOST_BYTES = 200_000
"""Of a config file; more is no config, and would take seconds to parse."""

MOST_VALUES = 20_000
"""Values in one document with its aliases expanded; more is an accident or an attack."""

_NO_TEXT = "expected text, got something that is no Unicode"
_TAG = "tag:yaml.org,2002:"
_PATTERNS = {
    "null": r"^(?:~|null|Null|NULL|)$",
    "bool": r"^(?:true|True|TRUE|false|False|FALSE)$",
    "int": r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$",
    "float": r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN))$",
    "merge": r"^<<$",
}
_KINDS = {MappingNode: {"map"}, SequenceNode: {"seq"}, ScalarNode: {"str", *_PATTERNS}}


class _CoreSchema(VersionedResolver):
    """The core schema alone: ruamel.yaml also takes dates, `1_000` and `=` for more than text."""

    @property
    def versioned_resolver(self) -> Any:
        return {None: [(_TAG + kind, re.compile(pattern)) for kind, pattern in _PATTERNS.items()]}


class _Representer(SafeRepresenter):
    """Writes equal sections apart, without aliases, and line breaks in quotes, where reading keeps them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> ScalarNode:
        style = '"' if any(c in data for c in "\r\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar(_TAG + "str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Representer = _CoreSchema, _Representer
    yaml.default_flow_style, yaml.width = False, 110
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    return yaml


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
    yaml = _yaml()
    try:
        node = yaml.compose(text)
        if node is not None:
            document.places[()] = node.start_mark.line + 1
            document.value = _Converter(document, yaml).convert(node, ())
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        hint = ". Indent with spaces" if error.problem and "'\\t'" in error.problem else ""
        what = " ".join(part for part in (error.context, error.problem) if part)
        document.faults.append(Fault(f"line {line}" if line else "", "", f"this is no YAML: {what}{hint}", line))
    except YAMLError as error:
        document.faults.append(Fault("", "", f"this is no YAML: {str(error).splitlines()[0]}"))
    except RecursionError:
        document.faults.append(Fault("", "", "it is nested too deeply, or an alias contains itself"))
    except OverflowError as error:
        document.faults.append(Fault("", "", str(error)))
    return document


class _Converter:
    """Turns nodes into plain values; every expansion of an alias counts."""

    def __init__(self, document: Document, yaml: YAML) -> None:
        self.document, self.yaml = document, yaml
        self.count = 0

    def fault(self, node: Any, path: Keys, text: str) -> None:
        line = node.start_mark.line + 1
        self.document.faults.append(Fault(f"line {line}", dotted(path), text, line))

    def convert(self, node: Any, path: Keys) -> Any:
        self.count += 1
        if self.count > MOST_VALUES:
            raise OverflowError(f"its aliases expand to more than {MOST_VALUES} values")
        tag = str(node.tag)
        if tag.removeprefix(_TAG) not in _KINDS[type(node)]:
            shown = tag.replace(_TAG, "!!")
            self.fault(node, path, f"the tag {shown} is refused: a config holds plain values only. Remove it")
            return None
        if isinstance(node, MappingNode):
            return self.mapping(node, path)
        if isinstance(node, SequenceNode):
            for i, item in enumerate(node.value):
                self.document.places[(*path, i)] = item.start_mark.line + 1
            return [self.convert(item, (*path, i)) for i, item in enumerate(node.value)]
        try:
            value = self.yaml.constructor.construct_object(node)
        except (ValueError, KeyError):
            shown = node.value if len(node.value) <= 40 else f"{node.value[:30]}... ({len(node.value)} characters)"
            self.fault(node, path, f"'{shown}' is no {tag.removeprefix(_TAG)}")
            return None
        if isinstance(value, str) and not is_text(value):
            self.fault(node, path, _NO_TEXT)
            return None
        return value

    def mapping(self, node: MappingNode, path: Keys) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            here = (*path, key_node.value)
            if not isinstance(key_node, ScalarNode):
                self.fault(key_node, path, "a key must be a word")
            elif not is_text(key_node.value):
                self.fault(key_node, path, _NO_TEXT)
            elif str(key_node.tag) == _TAG + "merge":
                for part in value_node.value if isinstance(value_node, SequenceNode) else [value_node]:
                    extra = self.convert(part, path)
                    if isinstance(extra, dict):
                        merged = {**extra, **merged}
                    else:
                        self.fault(part, path, "'<<' takes a section or a list of sections")
            elif key_node.value in result:
                first = self.document.places[here]
                self.fault(key_node, here, f"this key is there twice, first in line {first}. Keep one")
            else:
                self.document.places[here] = key_node.start_mark.line + 1
                result[key_node.value] = self.convert(value_node, here)
        return {**merged, **result}


def write_yaml(value: object) -> str:
    """Return YAML that `read_yaml` reads back as the same plain value; models and paths are written plainly."""
    text = io.StringIO()
    _yaml().dump(to_jsonable_python(value, by_alias=False, inf_nan_mode="constants"), text)
    return text.getvalue()
