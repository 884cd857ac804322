"""Work in pieces that any number of processes share through a cache: each is done once, by whoever gets to it first.

The processes need not know of each other, nor start together: those of one torchrun, the jobs of a cluster and a second
run by hand all take what is still to do. A piece is claimed by a lock of the operating system on a file, which is free
again as soon as its holder ends, however it ends.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from netsmith.distributed import stopping
from netsmith.distributed.processes import rank, world
from netsmith.files.cache import Cache, CacheEntry
from netsmith.files.output import named_os_errors, sweep, to_json

_log = logging.getLogger("netsmith.sharing")
_POLL = 0.2  # seconds between two looks at what others are doing

Compute = Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]]


@dataclass(frozen=True)
class Piece:
    """One piece of work: the key of its result in the cache, a name for the user, and what computes it.

    `compute` gives tensors and meta, as `Cache.store` takes them. It must not wait for other processes.
    """

    key: str
    name: str
    compute: Compute


@contextmanager
def claim(cache: Cache, key: str) -> Iterator[bool]:
    """Whether this process alone may now compute the entry `key`; the claim ends with the block.

    A claim whose holder was killed is free. What it had half written is removed.

    Raises:
        OutputError: the cache cannot be written.
    """
    entry = cache.path(key)
    file = entry.with_name(f".{key}.lock")
    with named_os_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
    try:
        sweep(cache.root, f".{key}.*.tmp")
        yield True
        # only now, with the entry in place: whoever waits for the old file finds the work done
        file.unlink(missing_ok=True)
    finally:
        lock.release()


def share(
    pieces: Sequence[Piece], cache: Cache | None, progress: Callable[[int, int, str], None] | None = None
) -> list[CacheEntry]:
    """The results of all pieces, in their order; those that no process has yet are computed, each by one.

    Without a cache this process computes all. A process that has nothing left to take waits for the others, and takes
    over what one of them leaves behind.

    Args:
        progress: called with how many are there, out of how many, and the name of the one that is next.

    Raises:
        OutputError: the cache cannot be written; and whatever computing raises.
        Stopped: a signal asked for it, between two pieces.
    """
    found: dict[str, CacheEntry] = {}
    # everyone begins elsewhere, so that claims rarely meet
    shift = len(pieces) * rank() // world()
    waiting = [*pieces[shift:], *pieces[:shift]]
    while waiting:
        left = []
        for piece in waiting:
            stopping.safe_point()
            if progress is not None:
                progress(len(found), len(pieces), piece.name)
            entry = _result(piece, cache)
            if entry is None:
                left.append(piece)
            else:
                found[piece.key] = entry
        if len(left) == len(waiting):
            time.sleep(_POLL)
        waiting = left
    if progress is not None:
        progress(len(pieces), len(pieces), "")
    return [found[piece.key] for piece in pieces]


def _result(piece: Piece, cache: Cache | None) -> CacheEntry | None:
    """The entry of one piece, computed if need be; None while another process is at it."""
    if cache is None:
        tensors, meta = piece.compute()
        return CacheEntry(tensors, json.loads(to_json(dict(meta))))
    entry = cache.load(piece.key)
    if entry is not None:
        return entry
    with claim(cache, piece.key) as ours:
        if not ours:
            return None
        entry = cache.load(piece.key)  # it may have come while we asked
        if entry is None:
            tensors, meta = piece.compute()
            cache.store(piece.key, tensors, meta)
            entry = cache.load(piece.key)
            assert entry is not None, piece.key
    return entry
