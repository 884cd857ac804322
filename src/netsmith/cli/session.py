"""What a verb gets beside its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .console import Console, RunLog

if TYPE_CHECKING:
    from filelock import FileLock


@dataclass
class Session:
    """The two streams, the log, the words of the command line, and the folder in which results are kept.

    `made` tells whether this run made that folder, and takes it back where it comes to nothing; `lock` keeps other runs
    out of it until this one ends; `finished` is set once all results are there.
    """

    console: Console
    log: RunLog
    argv: tuple[str, ...]
    kept: Path | None = None
    made: bool = False
    lock: FileLock | None = None
    finished: bool = False
