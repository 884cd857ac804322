"""Overrides from the command line: dotted keys with values, put into a parsed document."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from netsmith.files.yaml_text import Document, Fault, Keys, dotted, read_yaml

PLACE = "--set"
"""Where faults of an override are said to be."""


def override(document: Document, overrides: Sequence[str], anchor: Callable[[Sequence[str], Any], Any]) -> None:
    """Apply `key.subkey=value` texts to a document in place; later ones win, what is malformed becomes a fault of it.

    Args:
        document: parsed from a file.
        overrides: values are YAML; numbers in keys are positions in lists.
        anchor: from the keys and the value to the value, with relative paths made absolute.
    """
    if document.value is None and not document.faults:
        document.value = {}
    if not isinstance(document.value, dict):
        return
    for text in overrides:
        key, equals, value_text = text.partition("=")
        keys = key.strip().split(".")
        if not equals or len(keys) > _MOST_KEYS or not all(re.fullmatch(r"[\w-]+", k) for k in keys):
            document.faults.append(
                Fault(PLACE, "", f"expected KEY=VALUE such as partition.k=3, got '{text[:200]}'", _LAST)
            )
            continue
        parsed = read_yaml(value_text)
        if parsed.faults:
            document.faults.append(Fault(PLACE, key, parsed.faults[0].text, _LAST))
            continue
        _put(document, keys, anchor(keys, parsed.value))


_LAST = 1 << 30
_MOST_KEYS = 32


def _put(document: Document, keys: Sequence[str], value: Any) -> None:
    node: Any = document.value
    path: Keys = ()
    for i, key in enumerate(keys):
        step: Any = key
        if isinstance(node, list):
            if not re.fullmatch(r"[0-9]{1,9}", key) or int(key) >= len(node):
                text = f"the list has {len(node)} entries, numbered from 0; got '{key}'"
                document.faults.append(Fault(PLACE, dotted((*path, key)), text, _LAST))
                return
            step = int(key)
        path = (*path, step)
        there = node.get(step) if isinstance(node, dict) else node[step]
        if i == len(keys) - 1:
            if isinstance(value, str) and isinstance(there, dict) and "source" in there:
                there["source"] = value
                path = (*path, "source")
            else:
                node[step] = value
            for place in [p for p in document.places if p[: len(path)] == path]:
                del document.places[place]
            document.places[path] = PLACE
        elif not isinstance(there, dict | list) or (
            isinstance(there, list) and key in _SHORT and not keys[i + 1].isdigit()
        ):
            node[step] = _section_for(there, key, keys[i + 1])
            document.places[path] = PLACE
        node = node[step]


_SHORT = {"generator": "kind"}
"""Sections, other than those with a source, for which a plain text or list stands: the key that it is the value of."""


def _section_for(short: Any, key: str, next_key: str) -> dict[str, Any]:
    """The section that a plain value is short for: a bound's maximum, a source, or the section's main key."""
    if key in _SHORT:
        return {} if short is None else {_SHORT[key]: short}
    if next_key in {"min", "max"}:
        return {} if short is None else {"max": short}
    return {"source": short} if isinstance(short, str) else {}
