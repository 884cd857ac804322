"""SIGINT and SIGTERM stop long work at its next safe point, where nothing that was finished is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: list[int] = []
"""The signals that came since `graceful` was entered."""


class Stopped(KeyboardInterrupt):
    """Work was stopped by a signal, at a safe point. `number` is the signal's."""

    def __init__(self, number: int, *texts: object) -> None:
        super().__init__(*texts)
        self.number = number


@contextmanager
def graceful(told: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile the first SIGINT or SIGTERM only asks to stop; the same one again stops at once (KeyboardInterrupt).

    Args:
        told: gets one text for the user when the first signal comes.

    Outside the main thread, where Python takes no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, _: FrameType | None) -> None:
        if number in _asked:
            raise Stopped(number)
        _asked.append(number)
        if len(_asked) == 1:  # a launcher sends SIGTERM after the terminal's SIGINT: no second request
            name = signal.Signals(number).name
            told(f"{name}: stopping at the next safe point. The same signal again stops at once.")

    # what is ignored (`nohup`, a shell's background) stays ignored
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    _asked.clear()
    try:
        yield
    finally:
        _asked.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def asked() -> bool:
    """Whether a signal has asked to stop."""
    return bool(_asked)


def stop(*texts: object) -> Stopped:
    """The exception for stopping now; by SIGTERM where only another process was asked."""
    return Stopped(_asked[0] if _asked else signal.SIGTERM, *texts)


def safe_point() -> None:
    """Raise Stopped if a signal has asked to; called where nothing that was finished would be lost."""
    if _asked:
        raise stop()
