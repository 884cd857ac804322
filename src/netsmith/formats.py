"""Numbers for readers: terminal, cards and reports write them alike."""

from __future__ import annotations

import math

SHARES = frozenset({"accuracy", "dice", "f1", "iou", "miou", "pixel_accuracy", "top1", "top5"})
"""Metrics between 0 and 1 that a reader knows as percentages."""


def decimals(images: float | int | None, unknown: int = 2) -> int:
    """Return the decimals of a percentage that a share of so many images is worth; `unknown` without a number.

    They end with the second digit of the largest standard error, that of a share of a half: 95% of 20 images,
    94.7% of 2,500 and 94.73% of more. Not the share's own, so that a column of a table has one number of decimals.
    """
    if not images or images < 1:
        return unknown
    return max(0, 1 - math.floor(math.log10(50 / math.sqrt(images))))


def metric_text(name: str, value: float | int, images: float | int | None = None) -> str:
    """Return a metric as text: a share of so many images in per cent, everything else with four digits."""
    if name.rpartition("/")[0] in SHARES or name in SHARES:
        return f"{100 * value:.{decimals(images)}f}%"
    return f"{value:.4g}"
