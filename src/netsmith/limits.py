"""What is refused before anything is allocated: one number for each kind of input, and why it is that large.

Each is far above what people use and far below what would fill a machine; `docs/hostile-input.md` lists them.
"""

from __future__ import annotations

import os

GIB = 2**30

# --- files that are read ----------------------------------------------------------------------------------------------

INTEGER = 2**63 - 1
"""Highest whole number that is read: what a tensor's index can hold."""

NAME = 200
"""Characters in the name of a file that a manifest lists; file systems allow 255."""

DIMENSIONS = 16
"""Dimensions of one tensor."""

CLASSES = 1_000_000
"""Classes of a data set or a network."""

# --- what is built ----------------------------------------------------------------------------------------------------

SIDE = 16_384
"""Pixels along one side of a network's input, or of what images are resized to."""

CHANNELS = 4096
"""Channels of a network's input."""

INPUT_VALUES = 2**26
"""Numbers in one input of a network: 3 x 4729 x 4729, or 268 MB."""

OPTION = 1_000_000
"""Highest whole number among the options of a network: a width, a depth, a number of classes."""

MODULES = 20_000
"""Modules of one network; the largest of timm have some 3,000."""

WIDTH = 1_048_576
"""Channels of one width group."""

RATIO = 8
"""Times as wide as the base network; so much takes 64 times its parameters."""

BATCH = 1_048_576
"""Images at once."""

EPOCHS = 1_000_000
"""Times through the training images."""

COUNT = 1_000_000
"""Restarts, candidates, views and other things that are done so many times."""

CANDIDATES = 100_000
"""Candidates that are searched for."""

BLOCKS = 1000
"""Blocks of one network, and equivalence sets."""

PROBE = 50_000
"""Probe images: the Gram matrix of one cut of that many has 10 GB."""

IMAGES = 100_000_000
"""Images used for anything else."""


def memory() -> int:
    """Bytes that one network may take, so that it is refused before it is built: this machine's memory.

    `NETSMITH_MEMORY` (in GiB) says otherwise, for machines that are shared.
    """
    said = os.environ.get("NETSMITH_MEMORY", "")
    try:
        return int(float(said) * GIB)
    except (ValueError, OverflowError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # no such thing on this system
        return 64 * GIB


def amount(count: int | float) -> str:
    """Bytes for a reader: `12.3 MB`, `4.0 GB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def input_fault(size: tuple[int, ...] | list[int]) -> str | None:
    """What is wrong with the size (channels, height, width) of a network's input; None for nothing."""
    if len(size) != 3 or min(size) < 1:
        return f"expected three numbers of at least 1 (channels, height, width), got {str(list(size))[:80]}"
    if size[0] > CHANNELS or max(size[1:]) > SIDE or size[0] * size[1] * size[2] > INPUT_VALUES:
        return (
            f"expected at most {CHANNELS} channels, {SIDE} pixels a side and {INPUT_VALUES} numbers in all, "
            f"got {str(list(size))[:80]}"
        )
    return None
