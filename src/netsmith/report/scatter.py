"""All candidates, the zoo and the baselines: accuracy (or score) over a resource, with the budget shaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from netsmith.report import formats
from netsmith.report.labels import Box, Label, place, text_width
from netsmith.report.results import CandidateRecord, Results
from netsmith.report.scale import Axis, Tick, axis, wants_log
from netsmith.report.tips import Tips
from netsmith.report.verdict import RESOURCES, bound_text, limits_of, network_accuracy, resources

Kind = Literal["candidate", "chosen", "tuned", "zoo", "baseline"]
LEGEND: dict[str, str] = {
    "candidate": "candidate",
    "chosen": "chosen, as stitched",
    "tuned": "after tuning",
    "zoo": "network of the zoo",
    "baseline": "baseline",
}
_OWN_TUNED = "this network, tuned"
_SCORE_ORDER = ("stitch", "knn", "logme")


@dataclass(frozen=True)
class Point:
    """Something to be drawn, in the units of the data; `y` is None when it has no such value."""

    kind: Kind
    name: str
    x: float
    y: float | None
    tip: int


@dataclass(frozen=True)
class Mark:
    """A point at its place."""

    kind: Kind
    x: float
    y: float
    tip: int


@dataclass(frozen=True)
class Region:
    """What the budget allows along x."""

    x: float
    width: float
    low: float | None
    high: float | None
    text: str
    text_x: float


@dataclass(frozen=True)
class Scatter:
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
    region: Region | None
    marks: tuple[Mark, ...]
    rug: tuple[Mark, ...]
    labels: tuple[Label, ...]
    rise: tuple[Mark, Mark] | None
    legend: tuple[tuple[str, str], ...]
    summary: str


@dataclass(frozen=True)
class ScatterData:
    """The points of all kinds, and what y means."""

    resource: str
    y_name: str
    fraction: bool
    points: tuple[Point, ...]
    low: float | None
    high: float | None
    notes: tuple[str, ...] = field(default=())


def main_score(candidates: Sequence[CandidateRecord]) -> str | None:
    """The score that stands for the candidates when they have no accuracy."""
    names = list(dict.fromkeys(s for c in candidates for s, v in c.scores.items() if v is not None))
    return next((s for s in _SCORE_ORDER if s in names), names[0] if names else None)


def _candidate_points(results: Results, resource: str, score: str | None, tips: Tips) -> list[Point]:
    points = []
    for c in results.details.candidates:
        x = resources(c)[resource]
        stitched = c.accuracy.get("stitched_validation")
        tuned = c.accuracy.get("finetuned_validation", c.accuracy.get("finetuned_test"))
        if x is None:
            continue
        head = f"Candidate {c.rank}" + (" (chosen)" if c.chosen else "")
        size = f"{formats.count(c.params)} params · {formats.count(c.macs)} MACs"
        blocks = " → ".join(c.blocks)
        y = stitched if score is None else c.scores.get(score)
        said = (
            f"{formats.percent(stitched, results.images)} stitched, on validation"
            if score is None
            else f"{score} {formats.decimal(y)}"
        )
        points.append(Point("chosen" if c.chosen else "candidate", head, x, y, tips.add(head, blocks, size, said)))
        if tuned is not None and score is None:
            where = "validation" if c.accuracy.get("finetuned_validation") is not None else "test"
            tip = tips.add(head, blocks, size, f"{formats.percent(tuned, results.images)} after tuning, on {where}")
            points.append(Point("tuned", _OWN_TUNED if c.chosen else head, x, tuned, tip))
    return points


def _other_points(results: Results, resource: str, tips: Tips, *, accuracy: bool) -> list[Point]:
    points = []
    for n in results.details.networks:
        x = resources(n)[resource]
        if x is None:
            continue
        split = "validation"
        y = network_accuracy(results, n.name, split)
        if y is None:
            split = "test"
            y = network_accuracy(results, n.name, split)
        said = f"{formats.percent(y, results.images)} on {split}" if y is not None else "accuracy not measured"
        size = f"{formats.count(n.params)} params · {formats.count(n.macs)} MACs"
        points.append(
            Point("zoo", n.name, x, y if accuracy else None, tips.add(n.name, "network of the zoo", size, said))
        )
    for b in results.details.baselines:
        x = resources(b)[resource]
        if x is not None:
            size = f"{formats.count(b.params)} params · {formats.count(b.macs)} MACs"
            tip = tips.add(b.name, "baseline", size, formats.percent(b.accuracy, results.images), b.note or "")
            points.append(Point("baseline", b.name, x, b.accuracy if accuracy else None, tip))
    return points


def scatter_data(results: Results, resource: str, tips: Tips) -> ScatterData | None:
    """What to draw over `resource`; None when there is nothing with a value on both axes."""
    candidates = results.details.candidates
    accurate = any(c.accuracy.get("stitched_validation") is not None for c in candidates)
    score = None if accurate or not candidates else main_score(candidates)
    points = _candidate_points(results, resource, score, tips)
    points += _other_points(results, resource, tips, accuracy=score is None)
    if not any(p.y is not None for p in points):
        return None
    low, high = limits_of(results).get(resource, (None, None))
    notes = []
    without = sum(p.kind == "candidate" and p.y is None for p in points)
    if without:
        notes.append(f"{formats.plural(without, 'candidate')} without a value is not drawn.")
    others = [
        bound_text(n, *b) + " " + RESOURCES[n] for n, b in limits_of(results).items() if n not in ("params", "macs")
    ]
    if others:
        notes.append(f"The budget also asks for {formats.listing(others)}, which no drawing here shows.")
    if score is not None:
        notes.append("No candidate's accuracy has been measured; networks of the zoo are ticks along the axis.")
    name = f"score “{score}” (higher is better)" if score is not None else "accuracy on validation"
    return ScatterData(resource, name, score is None, tuple(points), low, high, tuple(notes))


def _region(data: ScatterData, x: Axis, font: float) -> Region | None:
    if data.low is None and data.high is None:
        return None
    start = x.start if data.low is None else x(data.low)
    end = x.end if data.high is None else x(data.high)
    text = "budget: " + bound_text(data.resource, data.low, data.high)
    # the words stand in the region if it has room for them, else beside it if there is room
    wide = text_width(text, font) * 1.08 + 16
    right = end - start < wide and end + wide < x.end
    return Region(
        x=start,
        width=end - start,
        low=None if data.low is None else start,
        high=None if data.high is None else end,
        text=text,
        text_x=end + 8 if right else min(start + 8, x.end - wide + 8),
    )


def _labels(
    data: ScatterData, points: Sequence[Point], marks: Sequence[Mark], bounds: Box, font: float
) -> tuple[Label, ...]:
    """Names of all but the candidates, as far as there is room: those that matter to the comparison come first."""

    def rank(pair: tuple[Point, Mark]) -> tuple[int, bool, float]:
        p = pair[0]
        inside = (data.low is None or p.x >= data.low) and (data.high is None or p.x <= data.high)
        first = {"tuned": 0, "chosen": 1, "baseline": 2, "zoo": 3}
        return first[p.kind], not inside, -(p.y or 0.0)

    named = sorted(((p, m) for p, m in zip(points, marks, strict=True) if p.kind != "candidate"), key=rank)
    taken = [(m.x - 6, m.y - 6, m.x + 6, m.y + 6) for _, m in named]
    texts = [(m.x, m.y, "this network, stitched" if p.kind == "chosen" else p.name) for p, m in named]
    return tuple(label for label in place(texts, taken, bounds, size=font) if label is not None)


def draw_scatter(data: ScatterData, width: float, height: float, *, font: float = 12.0) -> Scatter:
    """The drawing of `data` in `width` x `height` user units, with text of `font`."""
    left, right, top, bottom = 52.0, width - 12.0, 30.0, height - 44.0
    shown = [p for p in data.points if p.y is not None]
    xs = [p.x for p in data.points] + [v for v in (data.low, data.high) if v]
    ys = [p.y for p in shown if p.y is not None]
    x = axis(xs, left, right, log=wants_log(xs), margin=0.07)
    y = axis(ys, bottom, top, margin=0.08)
    if data.fraction:
        y = Axis(max(y.low, 0.0), min(y.high, 1.02), bottom, top)
    order = {"candidate": 0, "zoo": 1, "baseline": 2, "chosen": 3, "tuned": 4}
    points = sorted(shown, key=lambda p: order[p.kind])
    marks = [Mark(p.kind, x(p.x), y(p.y or 0.0), p.tip) for p in points]
    rug = tuple(
        Mark(p.kind, x(p.x), bottom, p.tip) for p in data.points if p.y is None and p.kind in ("zoo", "baseline")
    )
    region = _region(data, x, font)
    own = {p.kind: m for p, m in zip(points, marks, strict=True) if p.kind == "chosen" or p.name == _OWN_TUNED}
    kinds = {p.kind for p in data.points}
    text = formats.percent if data.fraction else formats.decimal
    return Scatter(
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_title=RESOURCES[data.resource] + (" (logarithmic)" if x.log else ""),
        y_title=data.y_name,
        x_ticks=x.ticks(lambda v: formats.short(formats.resource(data.resource, v)), most=max(4, int(width // 110))),
        y_ticks=y.ticks(lambda v: formats.short(text(v)), most=6),
        region=region,
        marks=tuple(marks),
        rug=rug,
        labels=_labels(data, points, marks, (left, top + (4 if region else 0), right, bottom), font),
        rise=(own["chosen"], own["tuned"]) if len(own) == 2 else None,
        legend=tuple((kind, text) for kind, text in LEGEND.items() if kind in kinds),
        summary=_summary(data, shown),
    )


def _summary(data: ScatterData, shown: Sequence[Point]) -> str:
    """The drawing in words, for those who hear it."""
    count = {kind: sum(p.kind == kind for p in shown) for kind in LEGEND}
    parts = [
        formats.plural(count["candidate"] + count["chosen"], "candidate"),
        formats.plural(count["zoo"], "network of the zoo", "networks of the zoo"),
        formats.plural(count["baseline"], "baseline"),
    ]
    ys = [p.y for p in shown if p.y is not None]
    text = formats.percent if data.fraction else formats.decimal
    return (
        f"{formats.listing(parts)}; {data.y_name} from {text(min(ys))} to {text(max(ys))}. "
        "Their values are in the tables of candidates, zoo and baselines."
    )
