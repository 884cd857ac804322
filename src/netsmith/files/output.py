"""Writing to disk so that nothing is left half done: atomic files, and the guard in front of an output folder."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from netsmith.errors import OutputError
from netsmith.files.paths import portable

MARKER = ".netsmith"
"""An empty file that tells a folder made by `prepare_output` from one that is somebody else's."""

LOCK = ".lock"
"""In an output folder: held while a run works there; it stays until a run succeeds."""

_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.(tmp|old)")

OWN_FILES = ("summary.json", "config.yaml", "report.html", "recipe.json", "details.json", "log.txt")
OWN_FOLDERS = ("artifact",)
_CONFIG_HEADER = "# netsmith"


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file completely or not at all: a temporary sibling first, then a rename. Raises OutputError."""
    path = Path(path)
    half = temporary(path)
    try:
        with named_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with half.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            half.replace(path)
    finally:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
    return path


def sweep(folder: Path, pattern: str) -> int:
    """Remove files of `folder` that match and that killed processes left half written; how many. Others stay."""
    removed = 0
    for file in Path(folder).glob(pattern):
        with contextlib.suppress(OSError):
            file.unlink()
            removed += 1
    return removed


def temporary(path: Path, suffix: str = "tmp") -> Path:
    """Return a hidden name beside `path` that nothing else has, and that `mend` knows."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.{suffix}")


def mend(folder: Path) -> int:
    """Clean an output folder of what a killed run left half done there; return how many files and folders that were.

    A folder that was being replaced is put back where its successor is missing. Call it where no other run works: under
    the folder's lock. A cache in the folder may be shared with others and is left alone.
    """
    mended = 0
    for path in sorted(folder.rglob(".*"), key=lambda p: len(p.parts)):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or "cache" in path.relative_to(folder).parts or not path.exists():
            continue
        if path.is_dir() and match[2] == "old" and not path.with_name(match[1]).exists():
            path.rename(path.with_name(match[1]))
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        mended += 1
    return mended


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text completely or not at all. Raises OutputError."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object) -> Path:
    """Write JSON completely or not at all, with `portable` paths. Numbers must be finite: JSON knows no NaN."""
    plain = portable(json.loads(to_json(value, sort_keys=False)), path.parent)
    return write_text(path, to_json(plain, indent=2, sort_keys=False) + "\n")


def to_json(value: object, *, indent: int | None = None, sort_keys: bool = True) -> str:
    """JSON, sorted by key unless asked otherwise; understands paths, NumPy values, dataclasses and pydantic models."""
    return json.dumps(value, indent=indent, sort_keys=sort_keys, allow_nan=False, ensure_ascii=False, default=_plain)


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="python")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    state = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


@contextlib.contextmanager
def named_os_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write at `path` into an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """The OutputError that explains one refusal of the operating system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"No space left for {path}. Free some, or choose a folder on another disk with --out.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"No permission to write {path}. Choose a folder that you may write with --out.")
    if error.errno == errno.ENAMETOOLONG:
        return OutputError(f"The name {_short(path)} is too long for the file system. Choose a shorter one with --out.")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return OutputError(f"Cannot create {path}: a file is in the way. Choose another folder with --out.")
    return OutputError(f"Cannot write {path}: {error.strerror or error}. Choose another folder with --out.")


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def holds_something(folder: Path) -> bool:
    """Whether there is more in a folder than the traces of a run that came to nothing: its config, log and lock.

    A temporary name is such a trace. What was put aside to be replaced (`.old`) is none: it may be all there is of it.
    """
    traces = {MARKER, LOCK, *(("config.yaml", "log.txt") if (folder / MARKER).is_file() else ())}
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[0] not in traces and not any(map(_half_written, parts)):
            return True
    return False


def _half_written(name: str) -> bool:
    match = _TEMPORARY.fullmatch(name)
    return match is not None and match[2] == "tmp"


def check_output(folder: Path, overwrite: bool = False, *, need_bytes: int = 0) -> None:
    """Refuse an output folder that cannot or must not be written, without touching the disk.

    Args:
        folder: where results are to go; it need not exist.
        overwrite: whether results of an earlier run there may be replaced.
        need_bytes: free space to insist on.

    Raises:
        OutputError: a file is in the way, the folder holds something (and `overwrite` is off, or what it holds was not
            written by Netsmith), it may not be written, or the disk has too little room.
    """
    folder = Path(folder)
    with named_os_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file, expected a folder for the results. Choose another one with --out.")
        if folder.exists() and holds_something(folder):
            _refuse_if_precious(folder, overwrite)
        standing = folder
        while not standing.exists() and standing != standing.parent:
            standing = standing.parent
        if not standing.is_dir():
            raise OutputError(f"Cannot create {folder}: {standing} is a file. Choose another folder with --out.")
        if not os.access(standing, os.W_OK | os.X_OK):
            raise OutputError(f"No permission to write in {standing}. Choose a folder that you may write with --out.")
        free = shutil.disk_usage(standing).free
    if free < need_bytes:
        raise OutputError(
            f"{folder} needs about {need_bytes / 2**20:.0f} MiB and its disk has {free / 2**20:.0f} MiB free. "
            "Free some, or choose a folder on another disk with --out."
        )


def _refuse_if_precious(folder: Path, overwrite: bool) -> None:
    real = folder.resolve()
    here = Path.cwd().resolve()
    if real in {Path.home().resolve(), Path(real.anchor), here} or real in here.parents:
        raise OutputError(f"{folder} is your home, the root or the folder you are in. Choose a new folder with --out.")
    if not overwrite:
        raise OutputError(f"{folder} exists and is not empty. Pass --overwrite, or choose a new folder with --out.")
    if not is_own(folder):
        raise OutputError(
            f"{folder} holds files that Netsmith did not write, so --overwrite leaves it alone. "
            "Choose a new folder with --out, or empty it yourself."
        )


def is_own(folder: Path) -> bool:
    """Whether a folder looks like one that Netsmith wrote: its marker, a manifest, a summary or a resolved config."""
    folder = Path(folder)
    if (folder / MARKER).is_file():
        return True
    for name in ("manifest.json", "summary.json"):
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(value, dict) and {"schema", "kind"} <= value.keys():
            return True
    try:
        with (folder / "config.yaml").open(encoding="utf-8") as file:
            return file.readline().lower().startswith(_CONFIG_HEADER)
    except (OSError, ValueError):
        return False


def prepare_output(folder: Path, overwrite: bool = False, *, need_bytes: int = 0) -> Path:
    """Create the output folder, or clear an earlier run's results from it; returns the folder.

    Only files that Netsmith writes are removed. Its `cache/` and checkpoints stay, so that an interrupted run goes on
    where it was, and so do files it does not know.

    Raises:
        OutputError: see `check_output`; nothing has been changed then.
    """
    folder = Path(folder)
    check_output(folder, overwrite, need_bytes=need_bytes)
    with named_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()
        for name in OWN_FILES:
            (folder / name).unlink(missing_ok=True)
        for name in OWN_FOLDERS:
            if (folder / name).is_dir() and is_own(folder / name):
                shutil.rmtree(folder / name)
    return folder
