"""Places for labels such that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Label:
    """A text at its place; `anchor` is SVG's text-anchor."""

    x: float
    y: float
    anchor: str
    text: str


def text_width(text: str, size: float) -> float:
    """An upper estimate of the width of `text` in a sans-serif face of `size`: no font is at hand to measure with."""
    return sum(0.42 if c in "ijlt.,:;|'[]()f1 " else 0.9 if c in "mwMW@%" else 0.61 for c in text) * size


def shorten(text: str, width: float, size: float) -> str:
    """`text` with its middle cut out until it fits `width`."""
    if text_width(text, size) <= width + 0.01:  # a width that came from this very text must hold it
        return text
    for keep in range(len(text) - 1, 1, -1):
        head, tail = (keep + 1) // 2, keep // 2
        short = text[:head] + "…" + text[len(text) - tail :]
        if text_width(short, size) <= width:
            return short
    return text[:1] + "…"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near `wanted` (ascending), at least `gap` apart, within `low..high` when there is room.

    Pools neighbours that are too close and centres each pool on the mean of what it wanted: the least-squares answer
    for positions with minimum gaps (isotonic regression by pool-adjacent-violators, with the gaps taken out first).
    """
    pools: list[tuple[float, int]] = []
    for i, w in enumerate(wanted):
        pools.append((w - i * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    flat = [value for value, size in pools for _ in range(size)]
    room = high - (len(wanted) - 1) * gap
    return [min(max(f, low), max(room, low)) + i * gap for i, f in enumerate(flat)]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def place(
    points: Sequence[tuple[float, float, str]],
    taken: Sequence[Box],
    bounds: Box,
    *,
    size: float,
    gap: float = 9.0,
    above: bool = False,
) -> list[Label | None]:
    """A label beside each point, first come first served; `None` where no side is free.

    `points` are `(x, y, text)`; `taken` are boxes that no label may cover (the marks themselves). Beside a point comes
    first, or with `above`, over and under it: where lines run from left to right.
    """
    boxes = list(taken)
    labels: list[Label | None] = []
    for x, y, text in points:
        width = text_width(text, size)
        up, down, level = y - gap, y + gap + 0.72 * size, y + 0.35 * size
        sides = (
            (x + gap, level, "start"),
            (x - gap, level, "end"),
            (x, up, "middle"),
            (x, down, "middle"),
            (x + 0.6 * gap, up, "start"),
            (x + 0.6 * gap, down, "start"),
            (x - 0.6 * gap, up, "end"),
            (x - 0.6 * gap, down, "end"),
        )
        places = (*sides[2:], *sides[:2]) if above else sides
        labels.append(None)
        for left, base, anchor in places:
            begin = left - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (begin - 2, base - 0.8 * size, begin + width + 2, base + 0.25 * size)
            inside = box[0] >= bounds[0] and box[1] >= bounds[1] and box[2] <= bounds[2] and box[3] <= bounds[3]
            if inside and not any(_overlap(box, other) for other in boxes):
                labels[-1] = Label(left, base, anchor, text)
                boxes.append(box)
                break
    return labels
