"""Which names of devices are taken, in configs and on the command line; without torch, which is slow to load."""

from __future__ import annotations

import re

_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:(0|[1-9][0-9]?))?")


def is_device_name(text: str) -> bool:
    """Whether this names a device on which networks can run; whether it is there is checked when it is used."""
    return _DEVICE.fullmatch(text) is not None
