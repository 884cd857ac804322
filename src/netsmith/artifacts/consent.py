"""Whose code runs: what a user names runs, what somebody's artifact names does not, unless the user says so.

A source `py:FILE.py:FUNCTION` that is typed, or stands in a config, is the user's word. The same source in an artifact
or a recipe is the word of whoever wrote that: while one is loaded, such code is refused. It runs where the user allows
it (`run_code=True`, `--run-code`), and where the user has run the same file, unchanged, earlier in this process.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from netsmith.errors import ArtifactError

_origin: ContextVar[str | None] = ContextVar("origin", default=None)
_allowed: ContextVar[bool] = ContextVar("allowed", default=False)
_ran: set[tuple[str, str]] = set()
"""Path and hash of the files that were run because the user named them."""


@contextlib.contextmanager
def recorded(origin: str) -> Iterator[None]:
    """What is built meanwhile was read from `origin`, an artifact or a recipe."""
    token = _origin.set(origin)
    try:
        yield
    finally:
        _origin.reset(token)


@contextlib.contextmanager
def code_allowed(allowed: bool = True) -> Iterator[None]:
    """Artifacts and recipes may run the code that they name; False changes nothing."""
    token = _allowed.set(_allowed.get() or allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


def origin() -> str | None:
    """The artifact or recipe that is being read; None when what is built was named by the user."""
    return _origin.get()


def check_code(file: Path, function: str) -> None:
    """That a file of Python code may be run now; remembers it when it is the user who named it.

    Raises:
        ArtifactError: an artifact or a recipe names it, and the user has not allowed that.
    """
    key = (str(file.resolve()), hashlib.sha256(file.read_bytes()).hexdigest())
    read_from = _origin.get()
    if read_from is None or _allowed.get():
        _ran.add(key)
    elif key not in _ran:
        raise ArtifactError(
            f"{read_from} is built by running code: {function} of {file}. It was not run, as whoever wrote the "
            "artifact chose that file. If it is yours and you trust it, add --run-code (in Python: run_code=True)."
        )
