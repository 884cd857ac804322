"""Texts that name files: taken as paths only when a file system could have such a name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netsmith.errors import NetsmithError, SourceError

_TEXT = 4000
_PART = 255  # bytes, on every usual file system
_ABSOLUTE = re.compile(r"""(?:(?<=[\s:#"'`(\[|])|^)/(?=[^\s/])[^#:\n"'`|\]]*""")


def as_path(text: str | Path, kind: type[NetsmithError] = SourceError) -> Path:
    """A path, with `~` replaced by the home folder.

    Raises:
        NetsmithError: of `kind`: too long, with control characters, no Unicode, or the home of a user who is not there.
    """
    name = str(text)
    shown = name if len(name) <= 80 else f"{name[:60]}... ({len(name)} characters)"
    odd = next((c for c in name if ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000), None)
    if odd is not None:
        raise kind(f"{shown!r} is no path: it holds the character {odd!r}.")
    if len(name) > _TEXT or any(len(part.encode()) > _PART for part in name.split("/")):
        raise kind(f"'{shown}' is no path: it, or a name in it, is too long.")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # the home of an unknown user
        raise kind(f"'{shown}' is no path that can be found: {error}.") from error


def is_text(name: str) -> bool:
    """Whether a name can be written into a text: one that is not UTF-8 has halves of surrogate pairs in Python."""
    return not any(0xD800 <= ord(c) < 0xE000 for c in name)


def portable(value: Any, folder: Path) -> Any:
    """JSON or a text in which absolute paths of files that are there are relative to `folder`, where it is written.

    So what is handed on says nothing of its maker's machine, and what it names is found where both move together.
    """
    if isinstance(value, str):
        return _ABSOLUTE.sub(lambda match: _relative(match[0], folder), value)
    if isinstance(value, Mapping):
        return {portable(key, folder): portable(item, folder) for key, item in value.items()}
    return [portable(item, folder) for item in value] if isinstance(value, list) else value


def _relative(text: str, folder: Path) -> str:
    path = text
    while path and not os.path.exists(path):  # what follows it in a text is no part of it
        path = path[: max(0, *(path.rfind(end) for end in " )@,;"))]
    return f"{Path(os.path.relpath(path, folder.resolve())).as_posix()}{text[len(path) :]}" if path else text
