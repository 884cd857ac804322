"""The --out folder of a verb: refused, continued or made anew; its config.yaml, its log and its lock."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from netsmith.distributed import processes
from netsmith.errors import OutputError
from netsmith.files.changes import changes
from netsmith.files.output import (
    LOCK,
    MARKER,
    check_output,
    holds_something,
    mend,
    named_os_errors,
    prepare_output,
    write_text,
)
from netsmith.files.yaml_text import read_yaml

from .session import Session


def check_folder(out: Path, overwrite: bool, config_text: str | None = None) -> None:
    """Refuse `out` before anything is loaded or computed; nothing is written.

    Of processes that were launched together, the first one looks.

    Raises:
        OutputError: it may not be written; or it holds an unfinished run of another config: says what changed; or
            another run works there.
    """
    if not processes.first():
        return
    with named_os_errors(out):
        refuse_if_held(out)
        if can_continue(out, config_text):
            return
        if not overwrite:
            _refuse_another_config(out, config_text)
        check_output(out, overwrite)


def _refuse_another_config(out: Path, config_text: str | None) -> None:
    """Raise OutputError if an unfinished run in `out` cannot be gone on with; nothing to say where there is none."""
    if config_text is None or not unfinished(out):
        return
    if _kept_config(out) is None:
        raise OutputError(
            f"{out / 'config.yaml'} cannot be read as a config, so the unfinished run there cannot be gone on with. "
            "Pass --overwrite to begin anew, or choose a new folder with --out."
        )
    changed = changed_keys(out, config_text)
    if changed:
        raise OutputError(
            f"{out} holds an unfinished run of another config:\n" + "".join(f"  {line}\n" for line in changed) + "Give "
            "the old values to go on with it, --overwrite to begin anew, or choose a new folder with --out."
        )


def unfinished(out: Path) -> bool:
    """Whether `out` holds what a run that did not come to its end can go on from.

    A run that finished has a summary, and has taken its lock away.
    """
    begun = (out / MARKER).is_file() and (out / "config.yaml").is_file() and holds_something(out)
    return begun and (not (out / "summary.json").exists() or (out / LOCK).exists())


def can_continue(out: Path, config_text: str | None) -> bool:
    """Whether `out` holds a run of this very config that did not finish."""
    return config_text is not None and unfinished(out) and _kept_config(out) == config_text


def changed_keys(out: Path, config_text: str | None) -> list[str]:
    """What this config has changed in that of the unfinished run in `out`, one line a key; empty without such a run."""
    old = _kept_config(out) if config_text is not None and unfinished(out) else None
    return [] if old is None or config_text is None else changes(read_yaml(old).value, read_yaml(config_text).value)


def _kept_config(out: Path) -> str | None:
    """The config of the run in `out`; None where what is there is no text of keys and values, and so not ours."""
    try:
        text = (out / "config.yaml").read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    document = read_yaml(text)
    return text if isinstance(document.value, dict) and not document.faults else None


def open_folder(out: Path, overwrite: bool, session: Session, config_text: str | None = None) -> bool:
    """Make `out` ready, keep other runs out of it, and start its log; returns whether an unfinished run goes on there.

    Of processes that were launched together, the first one does it and the others wait.

    Raises:
        OutputError: the folder exists and may not be replaced, or cannot be written, or another run works there;
            nothing has been changed then.
    """
    going_on = processes.first() and _open(out, overwrite, session, config_text)
    processes.wait()
    return going_on


def _open(out: Path, overwrite: bool, session: Session, config_text: str | None) -> bool:
    going_on = can_continue(out, config_text)
    changed = [] if going_on else changed_keys(out, config_text)
    if not going_on:
        check_output(out, overwrite)
    made = not out.exists()
    session.lock, session.made = hold(out), made
    if not going_on:
        prepare_output(out, overwrite)
        if config_text is not None:
            write_text(out / "config.yaml", config_text)
    session.kept = out
    session.log.open(out)
    if mended := mend(out):
        session.console.note(f"{mended} half-written files and folders of killed runs were cleaned up")
    if going_on:
        session.console.note(f"going on with the unfinished run in {out}")
    if changed:
        session.console.note(f"beginning anew in {out}, where an unfinished run had another config:")
        for line in changed:
            session.console.note(f"  {line}")
    return going_on


def hold(out: Path) -> FileLock:
    """Keep other runs out of `out` until this process ends, however it ends: the operating system frees the lock.

    Raises:
        OutputError: another run holds it, or it cannot be written.
    """
    with named_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise _busy(out) from None
    return lock


def refuse_if_held(out: Path) -> None:
    """Raise OutputError if another run works in `out`; nothing is written."""
    if not (out / LOCK).is_file():
        return
    lock = FileLock(out / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise _busy(out) from None
    except OSError:
        return  # no permission: said by the check of the folder
    lock.release()


def let_go(session: Session) -> None:
    """Let other runs into the folder again; the file of the lock stays where a run did not finish, for the next one."""
    if session.lock is None:
        return
    if session.finished or session.kept is None:
        Path(session.lock.lock_file).unlink(missing_ok=True)
    session.lock.release()
    session.lock = None


def _busy(out: Path) -> OutputError:
    return OutputError(
        f"another run works in {out}. Wait for it, stop it, or choose another folder with --out; both may share one "
        "--cache."
    )


def clear_checkpoints(out: Path) -> None:
    """Remove what a run in `out` would have gone on from: it has finished."""
    if not processes.first():
        return
    for name in ("last.safetensors", "best.safetensors"):  # the last first: without it there is nothing to go on from
        for file in (out / "checkpoints").rglob(name):
            file.unlink()
    for folder in [*sorted((out / "checkpoints").rglob("*"), reverse=True), out / "checkpoints"]:
        with contextlib.suppress(OSError):  # what else is there stays
            folder.rmdir()


def take_back(session: Session) -> None:
    """After a failure: remove the folder that this run has made, if it came to nothing but its config and log."""
    out = session.kept
    if out is not None and session.made and not holds_something(out):
        shutil.rmtree(out, ignore_errors=True)
