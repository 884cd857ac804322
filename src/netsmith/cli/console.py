"""What a user sees: results on standard output; notes, bars and errors on standard error; all of it in log.txt."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_LOG = logging.getLogger("netsmith.cli")
_WIDTH_WHEN_PIPED = 200
_OTHERS_WAIT = 10.0  # seconds


class RunLog(logging.Handler):
    """Keeps every record in memory until the output folder is known to be ours, then writes them to its log.txt."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
        self.path: Path | None = None
        self._waiting: list[str] = []

    def open(self, folder: Path) -> None:
        """From now on write to `folder`/log.txt, beginning with what was kept; a second run adds to the first's log."""
        self.path = folder / "log.txt"
        lines, self._waiting = self._waiting, []
        self._write(lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep or write one record."""
        with contextlib.suppress(TypeError, ValueError):  # a library's arguments that do not fit its own format
            self._write([self.format(record)])

    def _write(self, lines: Sequence[str]) -> None:
        """Keep or write lines. A log that cannot be written must not stop the run: it is kept in memory then."""
        if self.path is not None:
            try:
                # names of files need not be UTF-8
                with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.writelines(line + "\n" for line in lines)
                return
            except (OSError, ValueError):
                self.path = None
        self._waiting += lines


class NoteHandler(logging.Handler):
    """Shows netsmith's own notes and warnings on standard error; the libraries' warnings only reach the log."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING if console.quiet else logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record of netsmith; the command line's own texts are already on the screen."""
        if record.name.startswith("netsmith") and not record.name.startswith("netsmith.cli"):
            prefix = "warning: " if record.levelno >= logging.WARNING else ""
            self._console.show_error(prefix + record.getMessage())


class Console:
    """The two streams of one run of the command line; of processes that were launched together, the first one's."""

    def __init__(self, *, quiet: bool = False, rank: int = 0) -> None:
        self.quiet = quiet or rank > 0
        self._rank = rank
        _tolerate()
        self.out = RichConsole(file=sys.stdout, highlight=False, markup=False, emoji=False, width=_width(sys.stdout))
        self.err = RichConsole(file=sys.stderr, highlight=False, markup=False, emoji=False, width=_width(sys.stderr))

    def result(self, text: str = "") -> None:
        """One text of what was asked for, on standard output."""
        if not self._rank:
            self.out.print(Text(text), soft_wrap=True)
        _log_lines(logging.INFO, text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", last: int = 0) -> None:
        """A table on standard output. Columns marked with a leading ``>`` are numbers; the `last` rows are totals."""
        table = Table(
            title=Text(title) if title else None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0)
        )
        for column in columns:
            table.add_column(
                Text(column.lstrip(">")), justify="right" if column.startswith(">") else "left", no_wrap=True
            )
        for i, row in enumerate(rows):
            table.add_row(*(Text(cell) for cell in row), style="bold" if i >= len(rows) - last else "")
        if not self._rank:
            self.out.print(table, soft_wrap=False)
        if title:
            _log_lines(logging.INFO, title)
        for row in [[c.lstrip(">") for c in columns], *rows]:
            _log_lines(logging.INFO, " | ".join(row))

    def show(self, table: Table) -> None:
        """A table of the report, on standard output and in the log."""
        if not self._rank:
            self.out.print(table)
        text = io.StringIO()
        RichConsole(file=text, width=_WIDTH_WHEN_PIPED, highlight=False, markup=False, emoji=False).print(table)
        _log_lines(logging.INFO, text.getvalue())

    def note(self, text: str) -> None:
        """A remark on the way, on standard error; none with --quiet."""
        if not self.quiet:
            self.show_error(text)
        _log_lines(logging.INFO, text)

    def error(self, text: str) -> None:
        """What went wrong, on standard error.

        A process that is not the first says it after a while, in which the launcher ends it where the first one says
        the same: the user reads it once.
        """
        if self._rank:
            time.sleep(_OTHERS_WAIT)
            text = f"process {self._rank}: {text}"
        self.show_error(f"netsmith: {text}")
        _log_lines(logging.ERROR, text)

    def show_error(self, text: str) -> None:
        """Print on standard error without a copy in the log."""
        self.err.print(Text(text), soft_wrap=True)

    def _line(self, text: str) -> None:
        """How far the work is: in the log, and on standard error where no bar can show it."""
        if not self.quiet and not self.err.is_terminal:
            self.show_error(text)
        _log_lines(logging.INFO, text)

    @contextmanager
    def progress(self) -> Iterator[Bars]:
        """Bars for long work on a terminal, lines elsewhere; once a piece of work takes longer than a moment."""
        bars = Bars(None if self.quiet or not self.err.is_terminal else self.err, self._line)
        try:
            yield bars
        finally:
            bars.close()


class Bars:
    """Progress bars by the library's protocol: called with what is done, how far, and out of how much."""

    DELAY = 1.0  # seconds before a bar appears, and between two lines that say something new
    SILENCE = 60.0  # seconds after which a line says how far the work is, though nothing is new

    def __init__(self, console: RichConsole | None, line: Callable[[str], None]) -> None:
        self._console, self._line = console, line
        self._said: dict[str, tuple[str, bool]] = {}
        self._live: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._began = self._told = time.monotonic()

    def __call__(self, what: str, done: float | int, total: float | int | None, note: str = "") -> None:
        """Move the bar named `what` to `done` out of `total` (None: unknown); `note` stands behind it."""
        self._tell(what, done, total, note)
        if self._console is None or (self._live is None and time.monotonic() - self._began < self.DELAY):
            return
        live = self._start()
        if what not in self._tasks:
            self._tasks[what] = live.add_task(what, total=total, note=note)
        live.update(self._tasks[what], completed=done, total=total, note=note)

    def _tell(self, what: str, done: float | int, total: float | int | None, note: str) -> None:
        """Say in a line what has ended, or what is new of it: an epoch's result, the next piece."""
        latest, now = (note, done == total), time.monotonic()
        if now - self._told < (self.SILENCE if self._said.get(what) == latest else self.DELAY):
            return
        self._said[what], self._told = latest, now
        many = "" if total is None else f" of {total:.10g}"
        self._line(f"{what}: {done:.10g}{many}" + (f" ({note})" if note else ""))

    def step(self, what: str) -> Callable[[int, int], None]:
        """The bar named `what`, as a function of what is done and out of how much."""
        return lambda done, total: self(what, done, total)

    def close(self) -> None:
        """Take the bars off the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            self._tasks.clear()

    def _start(self) -> Progress:
        if self._live is None:
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
                transient=True,
            )
            self._live.start()
        return self._live


def open_missing_streams() -> None:
    """Where the caller has closed a standard stream (`>&-`), let what goes there come to nothing."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(nowhere, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - until the end


def start_logging(console: Console) -> tuple[RunLog, NoteHandler]:
    """Send all loggers and Python's warnings to a `RunLog`, and netsmith's own also to the console."""
    log, notes = RunLog(), NoteHandler(console)
    root = logging.getLogger()
    root.addHandler(log)
    root.addHandler(notes)
    logging.getLogger("netsmith").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    return log, notes


def stop_logging(log: RunLog, notes: NoteHandler) -> None:
    """Leave logging as it was found."""
    logging.captureWarnings(False)
    for handler in (log, notes):
        logging.getLogger().removeHandler(handler)
    logging.getLogger("netsmith").setLevel(logging.NOTSET)


def _log_lines(level: int, text: str) -> None:
    for line in text.splitlines():
        if line.strip():
            _LOG.log(level, "%s", line)


def _tolerate() -> None:
    """Show what standard output cannot encode (a name that is not UTF-8) as `\\udce9`, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _width(stream) -> int | None:
    return None if stream.isatty() else _WIDTH_WHEN_PIPED
