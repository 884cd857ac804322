"""Several lines in one drawing, each with its own colour and mark: hollow marks and dashed lines stand for less."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from netsmith.report import formats
from netsmith.report.curve import Reference, references
from netsmith.report.labels import Box, Label, place, text_width
from netsmith.report.scale import Axis, Tick, axis, wants_log

SHAPES = ("square", "up", "down", "plus", "bow")  # marks of lines that are not the first
Text = Callable[[float | None], str]


@dataclass(frozen=True)
class Dot:
    """A value of a line, in the units of the data; `tip` is None where no text is to appear."""

    x: float
    y: float
    tip: int | None = None
    hollow: bool = False
    text: str = ""


@dataclass(frozen=True)
class Series:
    """A line, its dots in the order in which they are joined. `colour` is one of CSS.

    The marks of a `ring` are open and lie over all others: what they stand for may coincide with something else.
    """

    name: str
    colour: str
    shape: str
    dots: tuple[Dot, ...]
    joined: bool = True
    marked: bool = True
    ring: bool = False


@dataclass(frozen=True)
class Mark:
    """A dot at its place, as a path."""

    path: str
    colour: str
    hollow: bool
    tip: int | None
    ring: bool = False


@dataclass(frozen=True)
class Trace:
    """A line, or the part of one that is `away` from what was fitted."""

    path: str
    colour: str
    away: bool


@dataclass(frozen=True)
class Legend:
    """A mark with what it stands for."""

    mark: Mark
    text: str


@dataclass(frozen=True)
class Lines:
    """A drawing, ready for the template."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    references: tuple[Reference, ...]
    traces: tuple[Trace, ...]
    marks: tuple[Mark, ...]
    labels: tuple[Label, ...]
    clipped: bool
    named_left: bool
    summary: str
    x_axis: Axis
    y_axis: Axis


@dataclass(frozen=True)
class Plot:
    """What is to be drawn: lines, dashed levels `(value, name)`, and how the axes are called and written.

    With `whole`, x has no ticks between whole numbers. `window` holds y between two values: the rest is cut off.
    With `named_left`, levels are named at the left end of the drawing.
    """

    series: tuple[Series, ...]
    levels: tuple[tuple[float, str], ...]
    x_title: str
    y_title: str
    x_text: Text
    y_text: Text
    log: bool | None = None  # None: where the values span much
    fraction: bool = False
    whole: bool = False
    window: tuple[float, float] | None = None
    named_left: bool = False


def mark_path(shape: str, x: float, y: float, r: float = 5.0) -> str:
    """A mark of radius `r` as an SVG path."""
    n = formats.rounded
    if shape == "square":
        return f"M{n(x - 0.9 * r)},{n(y - 0.9 * r)}h{n(1.8 * r)}v{n(1.8 * r)}h{n(-1.8 * r)}z"
    if shape == "diamond":
        a, b = 1.4 * r, 1.7 * r
        return f"M{n(x)},{n(y - b)}l{n(a)},{n(b)}l{n(-a)},{n(b)}l{n(-a)},{n(-b)}z"
    if shape in ("up", "down"):
        s = 1.0 if shape == "up" else -1.0
        return f"M{n(x)},{n(y - s * 1.15 * r)}l{n(1.1 * r)},{n(s * 1.95 * r)}h{n(-2.2 * r)}z"
    if shape == "plus":
        a, b = 0.4 * r, 0.8 * r
        return (
            f"M{n(x - a)},{n(y - a - b)}h{n(2 * a)}v{n(b)}h{n(b)}v{n(2 * a)}h{n(-b)}v{n(b)}h{n(-2 * a)}v{n(-b)}h{n(-b)}"
            f"v{n(-2 * a)}h{n(b)}z"
        )
    if shape == "bow":
        return f"M{n(x - r)},{n(y - r)}L{n(x + r)},{n(y + r)}V{n(y - r)}L{n(x - r)},{n(y + r)}z"
    return f"M{n(x - r)},{n(y)}a{n(r)},{n(r)} 0 1 0 {n(2 * r)},0a{n(r)},{n(r)} 0 1 0 {n(-2 * r)},0z"


def legend(series: Sequence[Series], extra: Sequence[tuple[Series, str]] = ()) -> tuple[Legend, ...]:
    """One entry a line; `extra` are marks with words of their own. Marks stand in a box of 18 x 18."""
    entries = [(s, s.name, False) for s in series] + [(s, text, True) for s, text in extra]
    return tuple(
        Legend(Mark(mark_path(s.shape, 9.0, 9.0, 4.0 if s.ring else 5.0), s.colour, h, None, s.ring), text)
        for s, text, h in entries
    )


def _traces(series: Series, at: Callable[[Dot], tuple[float, float]]) -> list[Trace]:
    """The line in runs: solid between filled dots, dashed where an end is hollow."""
    runs: list[tuple[bool, list[tuple[float, float]]]] = []
    for a, b in pairwise(series.dots):
        away = a.hollow or b.hollow
        if not runs or runs[-1][0] != away:
            runs.append((away, [at(a)]))
        runs[-1][1].append(at(b))
    paths = ((away, "M" + "L".join(f"{formats.rounded(x)},{formats.rounded(y)}" for x, y in run)) for away, run in runs)
    return [Trace(path, series.colour, away) for away, path in paths]


_LONGEST = 10_000.0  # pixels: far out of any drawing, names need no room


def _along(series: Series, x: Axis, y: Axis) -> list[tuple[float, float]]:
    """Places on the line, close enough together that no name fits between two."""
    found = []
    for a, b in pairwise(series.dots):
        start, end = (x.beyond(a.x), y.beyond(a.y)), (x.beyond(b.x), y.beyond(b.y))
        length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        steps = max(1, int(min(length, _LONGEST) // 8))
        shares = [i / steps for i in range(steps + 1)]
        found += [(start[0] + s * (end[0] - start[0]), start[1] + s * (end[1] - start[1])) for s in shares]
    return found


def _axes(plot: Plot, area: Box) -> tuple[Axis, Axis, bool]:
    left, top, right, bottom = area
    dots = [d for s in plot.series for d in s.dots]
    ys = [d.y for d in dots] + [v for v, _ in plot.levels]
    if plot.window is not None:
        low, high = plot.window
        dots = [d for d in dots if low <= d.y <= high] or dots
        ys = [d.y for d in dots] + [low, high]
    xs = [d.x for d in dots]
    log = min(xs) > 0 and (wants_log(xs) if plot.log is None else plot.log)
    x = axis(xs, left, right, log=log, margin=0.05)
    y = axis(ys, bottom, top, margin=0.07)
    if plot.fraction:
        y = Axis(max(y.low, 0.0), min(y.high, 1.02), bottom, top)
    return x, y, log


def draw_lines(plot: Plot, width: float, height: float, *, font: float = 12.0) -> Lines:
    """The drawing of `plot`, which has at least one dot, in `width` x `height` user units, with text of `font`."""
    y_width = 58.0
    left, right, top, bottom = y_width, width - 12.0, 30.0, height - 44.0
    x, y, log = _axes(plot, (left, top, right, bottom))
    inside = [[d for d in s.dots if x.low <= d.x <= x.high and y.low <= d.y <= y.high] for s in plot.series]
    marks = [
        Mark(mark_path(s.shape, x(d.x), y(d.y)), s.colour, d.hollow, d.tip, s.ring)
        for s, dots in sorted(zip(plot.series[::-1], inside[::-1], strict=True), key=lambda pair: pair[0].ring)
        for d in dots
        if s.marked
    ]
    named = [(x(d.x), y(d.y), d.text) for dots in inside for d in dots if d.text]
    taken = [(x(d.x) - 6, y(d.y) - 6, x(d.x) + 6, y(d.y) + 6) for dots in inside for d in dots]
    taken += [(a - 2, b - 2, a + 2, b + 2) for s in plot.series if s.joined for a, b in _along(s, x, y)]
    shown = [(v, text) for v, text in plot.levels if y.low <= v <= y.high]
    dashed = references(shown, y, top - 10, bottom)  # a name may stand over the drawing, not on its own line
    for r in dashed:
        long = text_width(r.text, font)
        start = left + 6 if plot.named_left else right - long
        taken.append((start, r.text_y - font, start + long, r.text_y + 3))
    gap = 11.0 if any(s.ring for s in plot.series) else 9.0  # rings are the larger marks
    labels = place(named, taken, (left, top, right, bottom), size=font, gap=gap, above=True)
    x_ticks = x.ticks(lambda v: formats.short(plot.x_text(v)), most=max(4, int(width // 110)))
    return Lines(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_title=plot.x_title + (" (logarithmic)" if log else ""),
        y_title=plot.y_title,
        x_ticks=tuple(t for t in x_ticks if not plot.whole or "." not in t.text),
        y_ticks=y.ticks(_tick_text(plot), most=6 if height > 300 else 4),
        references=tuple(dashed),
        traces=tuple(
            t for s in reversed(plot.series) if s.joined for t in _traces(s, lambda d: (x.beyond(d.x), y.beyond(d.y)))
        ),
        marks=tuple(marks),
        labels=tuple(label for label in labels if label is not None),
        clipped=plot.window is not None,
        named_left=plot.named_left,
        summary=_summary(plot),
        x_axis=x,
        y_axis=y,
    )


def _tick_text(plot: Plot) -> Callable[[float], str]:
    """How y is written at a tick: percentages with as many digits as the tick has."""
    if plot.fraction:
        return lambda v: f"{100 * v:.4g}%"
    return lambda v: formats.short(plot.y_text(v))


def _summary(plot: Plot) -> str:
    """The drawing in words, for those who hear it."""
    parts = []
    for s in plot.series:
        ys = [d.y for d in s.dots]
        if ys:
            low, high = plot.y_text(min(ys)), plot.y_text(max(ys))
            span = low if len(ys) == 1 else f"{low} to {high} in {len(ys)} values"
            parts.append(f"{s.name}: {span}")
    parts += [text for _, text in plot.levels]
    return f"{plot.y_title} over {plot.x_title}. " + "; ".join(parts) + ". The values are in tables on this page."
