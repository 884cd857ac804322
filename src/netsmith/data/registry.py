"""What every data source needs: the registry, its options, and what a source gives back."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jaxtyping import Int
from torch import Tensor

from netsmith.data.images import ImageSet
from netsmith.data.names import KINDS
from netsmith.errors import DataError, did_you_mean
from netsmith.files.paths import as_path


@dataclass(frozen=True)
class DataOptions:
    """How a source is opened.

    Attributes:
        size: side of the square, or height and width, in pixels to which images are resized; None keeps them.
        root: where downloaded sets are kept.
        download: whether a set that is missing there may be downloaded.
        ignore: the class of masks that counts nowhere.
    """

    size: int | tuple[int, int] | None
    root: Path
    download: bool
    ignore: int | None = None


@dataclass(frozen=True)
class Parts:
    """What a source itself provides; what is None is split off deterministically by `open_data`."""

    train: ImageSet
    validation: ImageSet | None = None
    test: ImageSet | None = None


Opener = Callable[[str, DataOptions], Parts]
_F = TypeVar("_F", bound=Opener)

DATA_SOURCES: dict[str, Opener] = {}
"""Openers by the word before the colon of a source."""


def data_source(kind: str) -> Callable[[_F], _F]:
    """Decorator: sources `KIND` and `KIND:ARGUMENT` are opened by this function; it gets the argument, or ""."""

    def register(function: _F) -> _F:
        DATA_SOURCES[kind] = function
        if kind not in KINDS:
            KINDS.append(kind)
        return function

    return register


def data_root() -> Path:
    """Folder for downloaded sets: `$NETSMITH_DATA`, or `~/.cache/netsmith/data`."""
    configured = os.environ.get("NETSMITH_DATA")
    return Path(configured) if configured else Path.home() / ".cache" / "netsmith" / "data"


_PART_NAMES = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


def part_of(name: str) -> str | None:
    """Which part a file or folder name stands for (`train-00000-of-00002` is train), or None."""
    word = re.match(r"[a-z]+", name.lower())
    return _PART_NAMES.get(word.group()) if word else None


def existing_path(kind: str, argument: str) -> Path:
    """The path in a source `KIND:PATH`. Raises DataError, with the names nearby, if nothing is there."""
    if not argument:
        raise DataError(f"'{kind}:' needs a path, as in {kind}:data/flowers")
    path = as_path(argument, DataError)
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) if siblings else f"There is no '{path.parent}' either."
        raise DataError(f"'{kind}:{argument}': there is no '{path}'. {hint}")
    return path


def check_splittable(labels: Int[Tensor, " n"], parts: Container[str], where: str, ways_out: str) -> None:
    """Raises DataError where a part that `open_data` splits off would hold no image; asks before any is decoded."""
    missing = [part for part in ("validation", "test") if part not in parts]
    most = int(labels.unique(return_counts=True)[1].max()) if len(labels) else 0
    if most <= len(missing):
        unlabelled = most > 0 and int(labels.max()) < 0
        held = f"'{where}' has {most} image" if unlabelled else f"no class of '{where}' has more than {most} image"
        raise DataError(
            f"{held}{'' if most == 1 else 's'}, too few to split off {' and '.join(missing)}: "
            f"{len(missing) + 1} {'are' if unlabelled else 'of one class are'} needed. {ways_out}"
        )


def labelled(labels: Int[Tensor, " n"]) -> bool:
    """Whether there is any image with a label: public test parts often have -1 for all of them."""
    return bool((labels >= 0).any())
