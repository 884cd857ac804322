"""A weight matrix before and after smoothing, as two pictures on one scale, and the variation of every group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from netsmith.report.colour import VIRIDIS, diverging, hexadecimal
from netsmith.report.morph_results import MorphResults, VariationRecord
from netsmith.report.png import data_uri, palette_png

_STEPS = 255  # odd, so that 0 has a colour of its own; one more stands for what is missing
_MISSING = (128, 128, 128)


@dataclass(frozen=True)
class Pictures:
    """Two pictures as `data:` addresses; `low` and `high` are values at the ends of the scale, `stops` its colours.

    `signed` ones have 0 in the middle of the scale, others (magnitudes) begin near their smallest value.
    """

    tensor: str
    rows: int
    columns: int
    before: str
    after: str
    low: float
    high: float
    signed: bool
    stops: tuple[str, ...]


@dataclass(frozen=True)
class Variation:
    """A group's total variation; shares are of the longest bar of its row, 0..1."""

    record: VariationRecord
    before: float
    after: float
    bound: float | None
    change: float


def _scale(values: np.ndarray) -> tuple[float, float]:
    """Both ends of the scale, cut at the 1st and 99th percentile; about 0 where there are values below it."""
    if not values.size:
        return 0.0, 1.0
    if values.min() < 0:
        high = float(np.percentile(np.abs(values), 99)) or float(np.abs(values).max())
        return -high, high
    low, high = (float(v) for v in np.percentile(values, [1, 99]))
    return (low, high) if high > low else (0.0, high or 1.0)


def weight_pictures(results: MorphResults) -> Pictures | None:
    """The two pictures on one scale: one of two colours where weights have signs, else one that grows lighter."""
    smooth = results.details.smooth
    if results.picture is None or smooth is None or smooth.picture is None:
        return None
    both = np.concatenate([a.ravel() for a in results.picture])
    low, high = _scale(both[np.isfinite(both)])
    signed = low < 0
    palette = diverging(_STEPS) if signed else VIRIDIS[:_STEPS]
    last = len(palette) - 1

    def picture(values: np.ndarray) -> str:
        finite = np.isfinite(values)
        scaled = np.clip((np.where(finite, values, low) - low) / (high - low), 0.0, 1.0)
        indices = np.where(finite, np.rint(scaled * last), last + 1).astype(np.uint8)
        return data_uri(palette_png(indices, (*palette, _MISSING)))

    before, after = results.picture
    stops = tuple(hexadecimal(palette[round(i * last / 8)]) for i in range(9))
    rows, columns = before.shape
    return Pictures(smooth.picture.tensor, rows, columns, picture(before), picture(after), low, high, signed, stops)


def variations(records: Sequence[VariationRecord]) -> tuple[Variation, ...]:
    """The groups whose variation is known before and after, as bars."""
    found = []
    for r in records:
        if r.before is None or r.after is None:
            continue
        longest = max(r.before, r.after) or 1.0
        bound = None if r.bound is None else min(max(r.bound / longest, 0.0), 1.0)
        change = r.after / r.before - 1 if r.before else 0.0
        found.append(Variation(r, r.before / longest, r.after / longest, bound, change))
    return tuple(found)
