"""A weight matrix before and after smoothing, as two pictures on one scale, and the variation of every group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from netsmith.report.colour import diverging, hexadecimal
from netsmith.report.morph_results import MorphResults, VariationRecord
from netsmith.report.png import data_uri, palette_png

_STEPS = 255  # odd, so that 0 has a colour of its own
_MISSING = (128, 128, 128)


@dataclass(frozen=True)
class Pictures:
    """Two pictures as `data:` addresses; `high` is the value at both ends of the scale."""

    tensor: str
    rows: int
    columns: int
    before: str
    after: str
    high: float
    stops: tuple[str, ...]


@dataclass(frozen=True)
class Variation:
    """A group's total variation; shares are of the longest bar of its row, 0..1."""

    record: VariationRecord
    before: float
    after: float
    bound: float | None
    change: float


def weight_pictures(results: MorphResults) -> Pictures | None:
    """The two pictures, their scale symmetric about 0 and cut at the 99th percentile of the magnitudes."""
    smooth = results.details.smooth
    if results.picture is None or smooth is None or smooth.picture is None:
        return None
    both = np.concatenate([a.ravel() for a in results.picture])
    known = np.abs(both[np.isfinite(both)])
    high = float(np.percentile(known, 99)) if known.size else 1.0
    high = high or float(known.max(initial=0.0)) or 1.0
    palette = (*diverging(_STEPS), _MISSING)

    def picture(values: np.ndarray) -> str:
        finite = np.isfinite(values)
        scaled = np.clip(np.where(finite, values, 0.0) / high, -1.0, 1.0)
        indices = np.where(finite, np.rint((scaled + 1) / 2 * (_STEPS - 1)), _STEPS).astype(np.uint8)
        return data_uri(palette_png(indices, palette))

    before, after = results.picture
    stops = tuple(hexadecimal(c) for c in diverging(9))
    return Pictures(
        smooth.picture.tensor, before.shape[0], before.shape[1], picture(before), picture(after), high, stops
    )


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
