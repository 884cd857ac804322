"""What a launcher such as torchrun says of this process, in its environment: its number, and how many there are.

Without torch, so that the command line can ask before it loads anything.
"""

from __future__ import annotations

import os
import re

from netsmith.errors import ConfigError


def world() -> int:
    """How many processes were launched together; 1 for a process launched alone. Raises ConfigError."""
    return _number("WORLD_SIZE", 1, least=1)


def rank() -> int:
    """Number of this process, from 0; 0 for one launched alone, whatever RANK is then.

    Raises:
        ConfigError: RANK or WORLD_SIZE is no number, or RANK counts beyond WORLD_SIZE.
    """
    number, count = _number("RANK", 0), world()
    if count == 1:
        return 0
    if number >= count:
        raise ConfigError(f"RANK is {number}, expected less than WORLD_SIZE, which is {count}. {_WAY_OUT}")
    return number


def local_rank() -> int:
    """Number of this process among those on its machine, from 0; 0 for one launched alone. Raises ConfigError."""
    number = _number("LOCAL_RANK", 0)
    return number if world() > 1 else 0


_WAY_OUT = "Launch with torchrun, which sets it, or unset it."


def _number(name: str, otherwise: int, *, least: int = 0) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return otherwise
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise ConfigError(
            f"the environment's {name} is '{text:.40}', expected a whole number of at least {least}. {_WAY_OUT}"
        )
    return int(text)
