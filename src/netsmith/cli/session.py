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

    `made` tells of that folder whether this run began it, so that a run that comes to nothing may take it back; `lock`
    keeps other runs out of it until this one ends; `finished` is set once all results are there, and `refused` where
    what was asked for cannot be had, so that going on with the same config would be of no use.
    """

    console: Console
    log: RunLog
    argv: tuple[str, ...]
    kept: Path | None = None
    made: bool = False
    lock: FileLock | None = None
    finished: bool = False
    refused: bool = False
