"""The morphed widths as a curve over size, beside their rivals, the base network and the skip-only floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import quantiles

from netsmith.report import formats
from netsmith.report.colour import network_colours
from netsmith.report.morph_results import MorphResults, RivalPoint, WidthRecord
from netsmith.report.series import SHAPES, Dot, Legend, Lines, Plot, Series, draw_lines, legend
from netsmith.report.tips import Tips

OWN = "var(--accent)"
BASE = "var(--ink)"
_MANY = 6  # values from which on a close-up leaves some out


@dataclass(frozen=True)
class Drawing:
    """A tab: its name, and the drawing for wide and for narrow windows."""

    name: str
    wide: Lines
    narrow: Lines


def split_of(results: MorphResults) -> str:
    """The split that the page speaks of: test where it was read, else validation."""
    return "test" if any(w.accuracy.test is not None for w in results.widths) else "validation"


def width_text(ratio: float | None) -> str:
    """A ratio as a mark in a drawing: ``0.5×``."""
    return "" if ratio is None else f"{ratio:.3g}×"


def rival_colours(results: MorphResults) -> list[str]:
    """One colour a rival, none of them like the artifact's own."""
    names = [str(i) for i in range(len(results.details.rivals) + 1)]
    colours = network_colours(names, names)
    return [colours[n] for n in names[1:]]


def _size(record: WidthRecord | RivalPoint) -> str:
    return f"{formats.count(record.params)} params · {formats.count(record.macs)} MACs"


def _own(results: MorphResults, resource: str, split: str, tips: Tips) -> Series:
    metric = results.metric
    dots = []
    for w in results.widths:
        x, y = getattr(w, resource), w.accuracy.on(split)
        if x is None or y is None:
            continue
        head = f"{results.details.base.name} at {width_text(w.ratio)}" if w.ratio is not None else "widths of their own"
        note = "" if w.fitted else "outside the range that was fitted"
        tip = tips.add(head, _size(w), f"{metric.said(y)} on {split}", note)
        dots.append(Dot(x, y, tip, hollow=not w.fitted, text=width_text(w.ratio)))
    dots.sort(key=lambda d: d.x)
    return Series("read from this artifact", OWN, "circle", tuple(dots))


def _rivals(results: MorphResults, resource: str, split: str, tips: Tips) -> list[Series]:
    metric = results.metric
    found = []
    for i, (rival, colour) in enumerate(zip(results.details.rivals, rival_colours(results), strict=True)):
        dots = []
        for p in rival.points:
            x, y = getattr(p, resource), p.accuracy.on(split)
            if x is not None and y is not None:
                at = "" if p.ratio is None else f"ratio {p.ratio:.3g}"
                dots.append(Dot(x, y, tips.add(rival.name, rival.note, at, _size(p), f"{metric.said(y)} on {split}")))
        if dots:
            name = f"{rival.name}, {rival.note}" if rival.note else rival.name
            dots.sort(key=lambda d: d.x)
            found.append(Series(name, colour, SHAPES[i % len(SHAPES)], tuple(dots)))
    return found


def _base(results: MorphResults, resource: str, split: str, tips: Tips) -> Series | None:
    base, y = results.details.base, results.base_accuracy.on(split)
    x = getattr(base, resource)
    if x is None or y is None:
        return None
    size = f"{formats.count(base.params)} params · {formats.count(base.macs)} MACs"
    tip = tips.add(base.name, "the base network", size, f"{results.metric.said(y)} on {split}")
    return Series("the base network", BASE, "diamond", (Dot(x, y, tip, text=base.name),), joined=False, ring=True)


def close_up(plot: Plot, *, higher_is_better: bool) -> tuple[float, float] | None:
    """The best values, where the rest of the drawing squeezes them together: three quarters, of few all; else None."""
    values = [d.y for s in plot.series for d in s.dots if not d.hollow]
    everything = [d.y for s in plot.series for d in s.dots] + [v for v, _ in plot.levels]
    if len(values) < 2:
        return None
    quarters = quantiles(values, n=4) if len(values) >= _MANY else (min(values), 0.0, max(values))
    best, last = (max(values), quarters[0]) if higher_is_better else (min(values), quarters[2])
    if not 0 < abs(best - last) < 0.4 * (max(everything) - min(everything)):
        return None
    edge = last - 0.05 * (best - last)
    return min(edge, best), max(edge, best)


def draw_family(results: MorphResults, tips: Tips, wide: float, narrow: float) -> tuple[list[Drawing], list[Legend]]:
    """The tabs (over params, over MACs, close-ups) and their legend; empty without a size that has a value."""
    split, metric = split_of(results), results.metric
    floor = results.floor.on(split)
    levels = [] if floor is None else [(floor, f"skip-only floor: {metric.text(floor)}")]
    drawings: list[Drawing] = []
    entries: list[Legend] = []
    for resource, title in (("params", "params"), ("macs", "MACs")):
        base = _base(results, resource, split, tips)
        own, rivals = _own(results, resource, split, tips), _rivals(results, resource, split, tips)
        drawn = [s for s in (own, *([base] if base else []), *rivals) if s.dots]
        if not drawn:
            continue
        plot = Plot(
            tuple(drawn),
            tuple(levels),
            title,
            f"{metric.title} on {split}",
            formats.count,
            metric.text,
            fraction=metric.fraction,
        )
        windows = [("", None), (", close-up", close_up(plot, higher_is_better=metric.higher_is_better))]
        for suffix, window in windows:
            if not suffix or window is not None:
                view = Plot(**{**vars(plot), "window": window})
                drawings.append(
                    Drawing(
                        f"over {title}{suffix}",
                        draw_lines(view, wide, 460.0),
                        draw_lines(view, narrow, 380.0, font=11.0),
                    )
                )
        if not entries:
            hollow = any(d.hollow for d in own.dots)
            entries = list(legend(drawn, [(own, "outside the range that was fitted")] if hollow else []))
    return drawings, entries


def curve_at(widths: Sequence[WidthRecord], split: str, params: formats.Real | None) -> float | None:
    """What the artifact reaches at `params`: between two fitted sizes on a straight line over the logarithm of params.

    None outside the fitted sizes (by more than one part in a hundred).
    """
    points = sorted((w.params, y) for w in widths if w.fitted and w.params and (y := w.accuracy.on(split)) is not None)
    if not points or not params or params <= 0:
        return None
    if not points[0][0] * 0.99 <= params <= points[-1][0] * 1.01:
        return None
    held = min(max(params, points[0][0]), points[-1][0])
    for (a, low), (b, high) in pairwise(points):
        if a <= held <= b and b > a:
            return low + (high - low) * math.log(held / a) / math.log(b / a)
    return points[0][1]
