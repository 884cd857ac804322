"""The slider over width: every place of it, with what was measured there or between which widths it lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from netsmith.report import formats
from netsmith.report.family import OWN, split_of, width_text
from netsmith.report.metric import Metric
from netsmith.report.morph_results import GroupRecord, MorphResults, WidthRecord
from netsmith.report.scale import Axis
from netsmith.report.series import Dot, Lines, Plot, Series, draw_lines
from netsmith.report.tips import Tips

_STEPS = (0.05, 0.025, 0.02, 0.0125, 0.01, 0.005, 0.0025, 0.001)
_FEWEST, _MOST = 24, 400  # places of the slider, where the measured widths allow it
_NAMED = 24  # more groups than this are a silhouette: bars without names
_AMOUNTS = ("params", "macs", "latency_ms")


@dataclass(frozen=True)
class Lane:
    """A width group as a bar. `scale` is the width that fills the lane: that of the widest thing drawn, but attention
    heads (`unit`) have a scale of their own, for one head is many channels. A bar without a name beside it has a `tip`.
    """

    name: str
    base: float | None
    unit: str
    scale: float
    tip: int | None

    def share(self, width: formats.Real | None) -> float:
        """How much of the lane a width takes, 0..1."""
        return (width or 0.0) / self.scale


@dataclass(frozen=True)
class Stop:
    """A place of the slider.

    `texts` and `shares` are what the page shows there, by the name of the place that shows it; `widths` are channels,
    a lane each; `cursor` is where it lies in the drawing, y None where the metric is not known.
    """

    ratio: float
    measured: bool
    fitted: bool
    said: str
    texts: dict[str, str]
    shares: dict[str, float]
    widths: tuple[int | None, ...]
    cursor: tuple[float, float | None]

    @property
    def shape(self) -> str:
        """All widths in a sentence, for those who hear it."""
        known = [w for w in self.widths if w is not None]
        span = f"{min(known):,} to {max(known):,} wide" if known else "widths not recorded"
        groups = formats.plural(len(self.widths), "group")
        return f"The shape of the network at {self.texts['ratio']} its width: {groups}, {span}."

    @property
    def state(self) -> str:
        """``measured``, ``between``, or either with ``outside`` after it where the ratio was not fitted."""
        return ("measured" if self.measured else "between") + ("" if self.fitted else " outside")


@dataclass(frozen=True)
class Slider:
    """All of it. `first` is the number of the first stop: stop i stands at `first + i`; `start` is one of them."""

    step: float
    first: int
    start: int
    stops: tuple[Stop, ...]
    lanes: tuple[Lane, ...]
    amounts: tuple[tuple[str, str], ...]
    fitted: tuple[float, float]
    chart: Lines | None

    @property
    def last(self) -> int:
        """The number of the last stop."""
        return self.first + len(self.stops) - 1

    @property
    def now(self) -> Stop:
        """The stop that is shown first."""
        return self.stops[self.start - self.first]

    @property
    def compact(self) -> bool:
        """Whether there are too many lanes for names."""
        return len(self.lanes) > _NAMED

    @property
    def lane_height(self) -> float:
        """Height of a bar in pixels: all lanes together are about as high as what stands beside them."""
        room = 430.0 / max(len(self.lanes), 1)
        return max(room - 1, 2.0) if self.compact else min(max(room - 6, 14.0), 84.0)

    @property
    def digits(self) -> int:
        """Letters of the longest count, so that nothing moves while the slider does."""
        longest = max((w for s in self.stops for w in s.widths if w is not None), default=0)
        return max((len(f"{longest:,} of {formats.exact(lane.base)} {lane.unit}") for lane in self.lanes), default=0)

    @property
    def scales(self) -> int:
        """How many scales the lanes have."""
        return len({lane.unit for lane in self.lanes})

    @property
    def marks(self) -> list[tuple[int, float, Stop]]:
        """`(number, share of the way, stop)` of the measured stops, widest first."""
        run = max(len(self.stops) - 1, 1)
        return [(self.first + i, i / run, s) for i, s in enumerate(self.stops) if s.measured][::-1]

    def share(self, ratio: float) -> float:
        """Where a ratio lies on the slider, 0..1, held at its ends."""
        run = max(len(self.stops) - 1, 1)
        return min(max((ratio / self.step - self.first) / run, 0.0), 1.0)

    @property
    def lookup(self) -> dict[str, Any]:
        """What the page's script needs."""
        return {
            "first": self.first,
            "scales": [lane.scale for lane in self.lanes],
            "stops": [
                {
                    "state": s.state,
                    "said": s.said,
                    "texts": s.texts,
                    "shares": {k: round(v, 4) for k, v in s.shares.items()},
                    "widths": s.widths,
                    **({"shape": s.shape} if self.compact else {}),
                    "cursor": [None if v is None else round(v, 1) for v in s.cursor],
                }
                for s in self.stops
            ],
        }


def _grid(ratios: Sequence[float]) -> tuple[float, dict[int, float]]:
    """The step, and the measured ratio that stands at each number (its place in whole steps).

    The coarsest step that has every measured ratio on it, else the coarsest that keeps them apart.
    """
    span = max(ratios) - min(ratios)
    fits = [s for s in _STEPS if _FEWEST <= span / s <= _MOST] or [span / _FEWEST]
    exact = (s for s in fits if all(abs(r / s - round(r / s)) < 1e-6 for r in ratios))
    apart = (s for s in fits if len({round(r / s) for r in ratios}) == len(ratios))
    step = next(exact, next(apart, fits[-1]))
    return step, {round(r / step): r for r in sorted(ratios)}


def _between(low: float | None, high: float | None, share: float, ends: tuple[float, float] | None) -> float | None:
    """A value between two: on a power law over the ratio (`ends`) where both are positive, else on a straight line.

    Params and MACs of a width grow with a power of it between 0 and 2, so a line through both would be too high.
    """
    if low is None or high is None:
        return None
    if ends is not None and low > 0 and high > 0 and ends[0] > 0:
        ratio = ends[0] + share * (ends[1] - ends[0])
        return low * (high / low) ** (math.log(ratio / ends[0]) / math.log(ends[1] / ends[0]))
    return low + share * (high - low)


def _rough(name: str, value: float | None) -> str:
    """A value that was not measured, without digits that nobody knows: ``about 141k``."""
    if value is None:
        return formats.DASH
    if name == "latency_ms":
        return f"about {value:.2g} ms"
    digits = f"{value:.3g}"
    return f"about {formats.short(formats.count(float(digits)))}"


def _exact(name: str, value: float | None) -> str:
    return formats.milliseconds(value) if name == "latency_ms" else formats.count(value)


def _share_text(value: float | None, base: float | None, largest: float) -> str:
    if value is None:
        return ""
    return f"{100 * value / base:.0f}% of the base" if base else f"{100 * value / largest:.0f}% of the largest"


def _channels(record: WidthRecord, group: GroupRecord) -> float | None:
    """A group's channels: as they were recorded, else what the ratio makes of the base's."""
    found = record.widths.get(group.name)
    if found is not None or group.width is None or record.ratio is None:
        return found
    return max(1.0, float(round(record.ratio * group.width)))


@dataclass(frozen=True)
class _Maker:
    """Makes the stops: knows the measured records by ratio, ascending, and what they are compared with."""

    results: MorphResults
    split: str
    metric: Metric
    records: tuple[WidthRecord, ...]
    groups: tuple[GroupRecord, ...]
    amounts: tuple[str, ...]
    x: Axis | None
    y: Axis | None

    def fitted(self, ratio: float, records: Sequence[WidthRecord]) -> bool:
        span = self.results.fitted
        if len(records) > 1 and span is not None:
            return span[0] - 1e-6 <= ratio <= span[1] + 1e-6
        return all(r.fitted for r in records)

    def at(self, ratio: float) -> Stop:
        for r in self.records:
            if r.ratio is not None and abs(r.ratio - ratio) < 1e-9:
                return self._stop(ratio, (r,), 0.0)
        low, high = next((a, b) for a, b in pairwise(self.records) if (a.ratio or 0) < ratio < (b.ratio or 0))
        start, end = low.ratio or 0.0, high.ratio or 0.0
        return self._stop(ratio, (low, high), (ratio - start) / (end - start))

    def _stop(self, ratio: float, records: Sequence[WidthRecord], share: float) -> Stop:
        low, high = records[0], records[-1]
        measured, fitted = len(records) == 1, self.fitted(ratio, records)
        ends = None if measured else (low.ratio or 0.0, high.ratio or 0.0)
        value = _between(low.accuracy.on(self.split), high.accuracy.on(self.split), share, None)
        state = (
            "measured" if measured else f"not measured: between {width_text(low.ratio)} and {width_text(high.ratio)}"
        )
        texts = {
            "ratio": f"{ratio:.4g}×",
            "state": state if fitted else f"{state}, outside the fitted range",
            **self._metric(value, measured),
        }
        shares = {}
        for name in self.amounts:
            amount = _between(getattr(low, name), getattr(high, name), share, ends)
            base = getattr(self.results.details.base, name)
            texts[name] = _exact(name, amount) if measured else _rough(name, amount)
            texts[f"{name}-share"] = _share_text(amount, base, self._largest(name))
            shares[name] = min((amount or 0.0) / (base or self._largest(name)), 1.0)
        channels = [_between(_channels(low, g), _channels(high, g), share, None) for g in self.groups]
        x, y = self.x, self.y
        return Stop(
            ratio,
            measured,
            fitted,
            f"{ratio:.4g} times the width, {texts['state']}",
            texts,
            shares,
            tuple(None if c is None else max(1, round(c)) for c in channels),
            (x(ratio) if x else 0.0, None if value is None or y is None else y(value)),
        )

    def _metric(self, value: float | None, measured: bool) -> dict[str, str]:
        base = self.results.base_accuracy.on(self.split)
        gap = None if value is None or base is None else value - base
        text = self.metric.text(value) if measured or value is None else f"about {self.metric.text(value)}"
        unit = f" {self.metric.unit}" if self.metric.unit else ""
        return {"metric": text, "gap": "" if gap is None else f"{self.metric.gap(gap)}{unit} to the base"}

    def _largest(self, name: str) -> float:
        return max((getattr(r, name) or 0.0 for r in self.records), default=0.0) or 1.0


def _groups(results: MorphResults) -> tuple[GroupRecord, ...]:
    """The groups that vary, in the order of the network; without a morph space, of those that measured widths name."""
    return tuple(g for g in _all_groups(results) if _varies(g, results.widths))


def _varies(group: GroupRecord, records: Sequence[WidthRecord]) -> bool:
    """Whether a group is not as wide at every measured width; one of unknown width may be."""
    found = {_channels(r, group) for r in records}
    return len(found) > 1 or found == {None}


def _all_groups(results: MorphResults) -> tuple[GroupRecord, ...]:
    if results.details.space.groups:
        return results.details.space.groups
    full = next((w.widths for w in results.widths if w.ratio == 1.0), {})
    names = dict.fromkeys(n for w in results.widths for n in w.widths)
    return tuple(GroupRecord(name=n, width=full.get(n)) for n in names)


def _lanes(groups: Sequence[GroupRecord], stops: Sequence[Stop], tips: Tips) -> tuple[Lane, ...]:
    units = ["heads" if g.kind == "heads" else "" for g in groups]
    widest = dict.fromkeys(units, 1.0)
    for i, (g, unit) in enumerate(zip(groups, units, strict=True)):
        widest[unit] = max(widest[unit], g.width or 0.0, *(float(s.widths[i] or 0) for s in stops))
    if "" in widest and "heads" in widest:
        widest["heads"] *= 2  # half of a lane, among lanes of channels
    many = len(groups) > _NAMED
    return tuple(
        Lane(g.name, g.width, unit, widest[unit], tips.add(g.name, _base_text(g.width, unit)) if many else None)
        for g, unit in zip(groups, units, strict=True)
    )


def _chart(results: MorphResults, records: Sequence[WidthRecord], split: str, tips: Tips) -> Lines | None:
    """The metric over the ratio, at the measured widths."""
    metric = results.metric
    dots = []
    for r in records:
        value = r.accuracy.on(split)
        if r.ratio is not None and value is not None:
            tip = tips.add(f"{width_text(r.ratio)} the width, measured", f"{metric.said(value)} on {split}")
            dots.append(Dot(r.ratio, value, tip, hollow=not r.fitted))
    if not dots:
        return None
    base = results.base_accuracy.on(split)
    levels = () if base is None else ((base, f"base: {metric.text(base)}"),)
    series = (Series("read from this artifact", OWN, "circle", tuple(dots)),)
    title = f"{metric.title} on {split}"
    plot = Plot(
        series, levels, "ratio", title, width_text, metric.text, log=False, fraction=metric.fraction, named_left=True
    )
    return draw_lines(plot, 340.0, 230.0, font=11.0)


def _base_text(base: float | None, unit: str) -> str:
    return "" if base is None else f"{formats.exact(base)} {unit or 'channels'} in the base network"


def _start(records: dict[int, WidthRecord]) -> int:
    """Where the slider stands first: at the fitted width nearest to half of the base's, where outlines show."""
    return min(records, key=lambda k: (not records[k].fitted, abs((records[k].ratio or 0.0) - 0.5)))


def draw_slider(results: MorphResults, tips: Tips) -> Slider | None:
    """The slider over all measured ratios; None with fewer than two of them."""
    by_ratio = {w.ratio: w for w in reversed(results.widths) if w.ratio is not None and w.ratio > 0}
    if len(by_ratio) < 2:
        return None
    step, places = _grid(sorted(by_ratio))
    records = tuple(by_ratio[r] for r in sorted(places.values()))
    if len(records) < 2:
        return None
    split, groups = split_of(results), _groups(results)
    amounts = tuple(a for a in _AMOUNTS if any(getattr(r, a) is not None for r in records))
    chart = _chart(results, records, split, tips)
    x, y = (chart.x_axis, chart.y_axis) if chart else (None, None)
    maker = _Maker(results, split, results.metric, records, groups, amounts, x, y)
    first, last = min(places), max(places)
    stops = tuple(maker.at(places.get(k, k * step)) for k in range(first, last + 1))
    titles = {"params": "Params", "macs": "MACs", "latency_ms": "Latency"}
    return Slider(
        step=step,
        first=first,
        start=_start({k: by_ratio[r] for k, r in places.items()}),
        stops=stops,
        lanes=_lanes(groups, stops, tips),
        amounts=tuple((a, titles[a]) for a in amounts),
        fitted=results.fitted or (stops[0].ratio, stops[-1].ratio),
        chart=chart,
    )
