"""What surrounds long work: signals that stop it kindly, and the processes that torchrun launched together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .session import Session


@contextmanager
def long_work(session: Session, device: str) -> Iterator[None]:
    """SIGINT and SIGTERM stop at the next safe point; processes that were launched together have found each other.

    Raises:
        TrainingError: they did not.
    """
    from netsmith.distributed import processes, stopping
    from netsmith.training.session import join

    with stopping.graceful(session.console.note):
        join(device)
        yield
        processes.leave()
