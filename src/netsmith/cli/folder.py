"""The --out folder of a verb: refused, continued or made anew; its config.yaml and its log; taken back if empty."""

from __future__ import annotations

import contextlib
from pathlib import Path

from netsmith.core.changes import changes
from netsmith.core.output import MARKER, check_output, prepare_output, write_text
from netsmith.core.yaml_text import read_yaml
from netsmith.errors import OutputError

from .session import Session

_TRACES = {MARKER, "config.yaml", "log.txt"}
"""What every run leaves; a folder that holds nothing else holds nothing."""


def check_folder(out: Path, overwrite: bool, config_text: str | None = None) -> None:
    """Refuse `out` before anything is loaded or computed; nothing is written.

    Raises:
        OutputError: it may not be written; or it holds an unfinished run of another config: says what changed.
    """
    if can_continue(out, config_text):
        return
    changed = [] if overwrite else changed_keys(out, config_text)
    if changed:
        raise OutputError(
            f"{out} holds an unfinished run of another config:\n" + "".join(f"  {line}\n" for line in changed) + "Give "
            "the old values to go on with it, --overwrite to begin anew, or choose a new folder with --out."
        )
    check_output(out, overwrite)


def unfinished(out: Path) -> bool:
    """Whether `out` holds a run that did not come to its end: it has a config and no summary yet."""
    return (out / MARKER).is_file() and (out / "config.yaml").is_file() and not (out / "summary.json").exists()


def can_continue(out: Path, config_text: str | None) -> bool:
    """Whether `out` holds a run of this very config that did not finish."""
    if config_text is None or not unfinished(out):
        return False
    return (out / "config.yaml").read_text(encoding="utf-8") == config_text


def changed_keys(out: Path, config_text: str | None) -> list[str]:
    """What this config has changed in that of the unfinished run in `out`, one line a key; empty without such a run."""
    if config_text is None or not unfinished(out):
        return []
    old, new = read_yaml((out / "config.yaml").read_text(encoding="utf-8")), read_yaml(config_text)
    return [] if old.faults else changes(old.value, new.value)


def open_folder(out: Path, overwrite: bool, session: Session, config_text: str | None = None) -> bool:
    """Make `out` ready and start its log; returns whether an unfinished run goes on there.

    Raises:
        OutputError: the folder exists and may not be replaced, or cannot be written; nothing has been changed then.
    """
    going_on = can_continue(out, config_text)
    changed = [] if going_on else changed_keys(out, config_text)
    session.made = not going_on and (not out.exists() or not any(out.iterdir()))
    if not going_on:
        prepare_output(out, overwrite)
        if config_text is not None:
            write_text(out / "config.yaml", config_text)
    session.kept = out
    session.log.open(out)
    if going_on:
        session.console.note(f"going on with the unfinished run in {out}")
    if changed:
        session.console.note(f"beginning anew in {out}, where an unfinished run had another config:")
        for line in changed:
            session.console.note(f"  {line}")
    return going_on


def take_back(session: Session) -> None:
    """After a failure: remove the folder that this run has made, if it came to nothing but its config and log."""
    out = session.kept
    if out is None or not session.made:
        return
    with contextlib.suppress(OSError):  # what cannot be removed stays
        if any(path.is_file() and path.name not in _TRACES for path in out.rglob("*")):
            return
        for name in _TRACES:
            (out / name).unlink(missing_ok=True)
        for folder in sorted((p for p in out.rglob("*") if p.is_dir()), reverse=True):
            folder.rmdir()
        out.rmdir()
