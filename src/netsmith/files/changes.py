"""What differs between two plain values, such as two configurations: one text a key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_LONGEST = 60
_ABSENT = object()


def changes(old: Any, new: Any, key: str = "") -> list[str]:
    """`training.lr: 0.03 -> 0.05` for every key in which two values differ, in the order of the keys.

    Args:
        old: values as JSON or YAML has them.
        new: likewise.
        key: dotted key of both.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: list[str] = []
        for name in dict.fromkeys([*old, *new]):
            inner = f"{key}.{name}" if key else str(name)
            found += changes(old.get(name, _ABSENT), new.get(name, _ABSENT), inner)
        return found
    if old == new and isinstance(old, bool) == isinstance(new, bool):
        return []
    return [f"{key}: {_shown(old)} -> {_shown(new)}"]


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
