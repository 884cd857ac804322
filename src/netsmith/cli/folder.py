"""The --out folder of a verb: refused, continued or made anew; its config.yaml and its log."""

from __future__ import annotations

from pathlib import Path

from netsmith.core.output import MARKER, check_output, prepare_output, write_text

from .session import Session


def check_folder(out: Path, overwrite: bool, config_text: str | None = None) -> None:
    """Refuse `out` before anything is loaded or computed; nothing is written. Raises OutputError."""
    if not can_continue(out, config_text):
        check_output(out, overwrite)


def can_continue(out: Path, config_text: str | None) -> bool:
    """Whether `out` holds a run of this very config that did not finish: it has no summary yet."""
    config = out / "config.yaml"
    if config_text is None or not (out / MARKER).is_file() or (out / "summary.json").exists() or not config.is_file():
        return False
    return config.read_text(encoding="utf-8") == config_text


def open_folder(out: Path, overwrite: bool, session: Session, config_text: str | None = None) -> bool:
    """Make `out` ready and start its log; returns whether an unfinished run goes on there.

    Raises:
        OutputError: the folder exists and may not be replaced, or cannot be written; nothing has been changed then.
    """
    going_on = can_continue(out, config_text)
    if not going_on:
        prepare_output(out, overwrite)
        if config_text is not None:
            write_text(out / "config.yaml", config_text)
    session.kept = out
    session.log.open(out)
    if going_on:
        session.console.note(f"going on with the unfinished run in {out}")
    return going_on
