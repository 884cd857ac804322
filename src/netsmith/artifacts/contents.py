"""The files of an artifact's folder: their names, their sizes, and that they are there and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

from netsmith import limits
from netsmith.errors import ArtifactError

MANIFEST = "manifest.json"
CARD = "README.md"
AGAIN = "Copy the artifact again from where it came, or build it anew."


def plain_name(name: object) -> bool:
    """Whether a name is one of a file in a folder: letters, digits, `_`, `.` and `-`, and not too many."""
    plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) is not None
    return plain and len(str(name)) <= limits.NAME


def check_inside(folder: Path, name: str) -> None:
    """That a file of an artifact is a file of its folder, and no link to somewhere else.

    What the Hub's downloads look like is allowed: links from `snapshots/REVISION` to `blobs` beside it.

    Raises:
        ArtifactError: a link that leads out of the folder: what it shows would be read, copied and published.
    """
    home, real = folder.resolve(), (folder / name).resolve()
    kept = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if real.parent not in (home, kept):
        raise ArtifactError(
            f"{folder / name} is a link to {real}, out of the folder of the artifact: refused. Copy the file itself "
            "there if it is yours."
        )


def check_file(folder: Path, name: object, entry: object) -> None:
    """That a file which a manifest lists is there, with the size that is said of it. Raises ArtifactError."""
    if not plain_name(name):
        raise ArtifactError(f"{folder / MANIFEST} lists {str(name)[:80]!r}, which is no plain file name: refused.")
    assert isinstance(name, str)
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str) or type(entry.get("bytes")) is not int:
        raise ArtifactError(f"{folder / MANIFEST} has no hash and size for {name}. {AGAIN}")
    check_inside(folder, name)
    if name == CARD:
        return  # people may edit the card; nothing is read from it
    file = folder / name
    if not file.is_file():
        raise ArtifactError(f"{folder} lacks {name}, which its manifest lists. {AGAIN}")
    size = file.stat().st_size
    if size < entry["bytes"]:
        raise ArtifactError(f"{file} is truncated: {size} bytes, expected {entry['bytes']}. {AGAIN}")
    if size > entry["bytes"]:
        raise ArtifactError(f"{file} was altered: {size} bytes, expected {entry['bytes']}. {AGAIN}")
