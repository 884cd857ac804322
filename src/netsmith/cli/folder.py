"""The --out folder of a verb: refused, continued or made anew; its config.yaml and its log; taken back if empty."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from netsmith.distributed import processes
from netsmith.errors import NetsmithError, OutputError
from netsmith.files.changes import changes
from netsmith.files.output import (
    HOLDER,
    LOCK,
    MARKER,
    check_output,
    holds_something,
    mend,
    named_os_errors,
    prepare_output,
    write_json,
    write_text,
)
from netsmith.files.yaml_text import read_yaml

from .session import Session

_TRACES = {MARKER, LOCK, HOLDER, "config.yaml", "log.txt"}
"""What every run leaves; a folder that holds nothing else holds nothing."""


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
        overwrite = overwrite or was_refused(out)
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
    """Whether `out` holds a run that did not come to its end: it has a config, and no summary or still a holder."""
    begun = (out / MARKER).is_file() and (out / "config.yaml").is_file()
    return begun and (not (out / "summary.json").exists() or (out / HOLDER).exists())


def was_refused(out: Path) -> bool:
    """Whether `out` holds a run that ended because its config cannot be met: a mended one takes its place and cache."""
    holder = _holder(out) if unfinished(out) else None
    return holder is not None and holder.get("refused") is True


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
    overwrite = overwrite or was_refused(out)
    if not going_on:
        check_output(out, overwrite)
    made = not going_on and (not out.exists() or not holds_something(out))
    lock, killed = hold(out)
    session.lock, session.made = lock, made
    if not going_on:
        prepare_output(out, overwrite)
        if config_text is not None:
            write_text(out / "config.yaml", config_text)
    session.kept = out
    session.log.open(out)
    mended = mend(out)
    if killed is not None and "stopped" not in killed:
        session.console.note(f"the run before this one ({_who(killed)}) ended without a word")
    if mended:
        session.console.note(f"{mended} half-written files and folders of killed runs were cleaned up")
    if going_on:
        session.console.note(f"going on with the unfinished run in {out}")
    if changed:
        session.console.note(f"beginning anew in {out}, where an unfinished run had another config:")
        for line in changed:
            session.console.note(f"  {line}")
    return going_on


def hold(out: Path) -> tuple[FileLock, Mapping[str, Any] | None]:
    """Keep other runs out of `out` until this process ends; also who held it before, if that run did not finish.

    The operating system frees the lock when its holder ends, however it ends.

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
        before = _holder(out)
        about = {"pid": os.getpid(), "machine": platform.node(), "since": _now()}
        write_json(out / HOLDER, about)
    return lock, before


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
    """Let other runs into the folder again, at the end of this one.

    The holder's file stays where a run did not finish, whatever else is there: by it the next one knows.
    """
    if session.lock is None:
        return
    folder = Path(session.lock.lock_file).parent
    with contextlib.suppress(OSError, NetsmithError):
        if session.finished or session.kept is None:
            (folder / HOLDER).unlink(missing_ok=True)
        elif (folder / HOLDER).exists():
            refused = {"refused": True} if session.refused else {}
            write_json(folder / HOLDER, {**(_holder(folder) or {}), "stopped": _now(), **refused})
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
    session.lock.release()
    session.lock = None


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _holder(out: Path) -> Mapping[str, Any] | None:
    try:
        found = json.loads((out / HOLDER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _who(holder: Mapping[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('machine', '?')}, since {holder.get('since', '?')}"


def _busy(out: Path) -> OutputError:
    holder = _holder(out)
    who = "another run" if holder is None else f"another run ({_who(holder)})"
    return OutputError(
        f"{who} works in {out}. Wait for it, stop it, or choose another folder with --out; both may share one --cache."
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
