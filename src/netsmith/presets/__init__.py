"""Configuration files that ship with the package."""

from __future__ import annotations

import re
from importlib.resources import as_file, files
from pathlib import Path


def names() -> tuple[str, ...]:
    """All presets, sorted by name; a name is a file's name without ``.yaml``."""
    return tuple(sorted(f.name[: -len(".yaml")] for f in files(__name__).iterdir() if f.name.endswith(".yaml")))


def read(name: str) -> str:
    """The text of a preset.

    Raises:
        LookupError: there is no preset of that name.
    """
    if name not in names():
        raise LookupError(f"there is no preset '{name}'")
    return files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def describe(name: str) -> str:
    """What a preset is for: the first comment line of its file."""
    first = read(name).splitlines()[0]
    return first.lstrip("# ").rstrip(".") if first.startswith("#") else ""


def companions(name: str) -> tuple[str, ...]:
    """Other presets that this one names, and those that they name: what must be copied along with it."""
    known, found, queue = set(names()), [], [name]
    while queue:
        for other in re.findall(r"([\w-]+)\.yaml\b", read(queue.pop())):
            if other in known and other != name and other not in found:
                found.append(other)
                queue.append(other)
    return tuple(found)


def path(name: str) -> Path:
    """The file of a preset, beside the files it names.

    Raises:
        LookupError: there is no preset of that name, or the package lies in an archive.
    """
    read(name)
    with as_file(files(__name__)) as folder:
        if not folder.is_dir():
            raise LookupError("netsmith is installed in an archive; its presets have no paths")
        return folder / f"{name}.yaml"
