"""The head of a morph's report: what the artifact reaches at which width, and what else reaches that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netsmith.report import formats
from netsmith.report.family import split_of, width_text
from netsmith.report.morph_results import MorphResults, WidthRecord

# ratio: how it is said first in a sentence, and how after that
_SAID = {
    1.0: ("full width", "full width"),
    0.75: ("three quarters of the width", "three quarters"),
    0.5: ("half width", "half"),
    0.25: ("a quarter of the width", "a quarter"),
    0.125: ("an eighth of the width", "an eighth"),
    2.0: ("double width", "double width"),
}
_WANTED = (1.0, 0.5, 0.25)
_ALIKE = 0.03  # relative difference of params up to which a rival has the same size


@dataclass(frozen=True)
class Milestone:
    """One of the widths that stand for all."""

    title: str
    record: WidthRecord
    value: float
    gap: float | None


@dataclass(frozen=True)
class MorphVerdict:
    """The head of the page, in words and numbers."""

    title: str
    sentence: str
    split: str
    milestones: tuple[Milestone, ...]
    more: tuple[str, ...]
    warning: str


def said(ratio: float, *, first: bool) -> str:
    """A ratio in words: ``half width``, later in the sentence ``half``."""
    for known, words in _SAID.items():
        if abs(ratio - known) < 1e-6:
            return words[0] if first else words[1]
    return f"{width_text(ratio)} the width" if first else width_text(ratio)


def milestones(results: MorphResults) -> tuple[WidthRecord, ...]:
    """Up to three measured widths, widest first: full, half, a quarter if they are there, else the ends.

    Of those that were fitted, where there are any.
    """
    split = split_of(results)
    measured = [w for w in results.widths if w.ratio is not None and w.accuracy.on(split) is not None]
    known = [w for w in measured if w.fitted] or measured
    picks = [next((w for w in known if abs((w.ratio or 0) - r) < 1e-6), None) for r in _WANTED]
    rest = [w for w in known if w not in picks]
    ends = [rest[i] for i in (-1, 0, len(rest) // 2) if rest]
    chosen = [w for w in picks if w is not None]
    for w in ends:
        if len(chosen) < len(_WANTED) and w not in chosen:
            chosen.append(w)
    return tuple(sorted(chosen, key=lambda w: -(w.ratio or 0)))


def _sentence(results: MorphResults, shown: Sequence[WidthRecord], split: str) -> str:
    name, metric = results.details.base.name, results.metric
    parts = []
    for i, w in enumerate(shown):
        value = w.accuracy.on(split)
        text = metric.said(value) if i == 0 else metric.text(value)
        size = f" ({formats.short(formats.count(w.params))} params)" if w.params is not None else ""
        parts.append(f"{text} at {said(w.ratio or 0.0, first=i == 0)}{size}")
    begin = f"{name}: {', '.join(parts)}" if parts else f"{name}: no width has been measured yet"
    ratio = results.artifact_ratio
    if ratio is not None:
        return f"{begin}; one artifact of {ratio:.2g}× the base's bytes."
    return begin + "."


def _best_rivals(results: MorphResults, shown: Sequence[WidthRecord], split: str) -> str:
    """The best rival of the same number of params at each width below the full one."""
    metric = results.metric
    parts = []
    for w in shown:
        best: tuple[float, str] | None = None
        for rival in results.details.rivals:
            for p in rival.points:
                y = p.accuracy.on(split)
                if y is None or not p.params or not w.params or abs(p.params / w.params - 1) > _ALIKE:
                    continue
                if best is None or metric.better(y, best[0]):
                    best = (y, rival.name)
        if best is not None and w.ratio is not None and w.ratio < 1 - 1e-6:
            parts.append(f"{metric.text(best[0])} at {said(w.ratio, first=not parts)} ({best[1]})")
    return f"The best rival of the same number of params has {formats.listing(parts)}." if parts else ""


def _base_and_floor(results: MorphResults, split: str) -> str:
    metric = results.metric
    base, floor = results.base_accuracy.on(split), results.floor.on(split)
    begin = f"The base network has {metric.said(base)} on {split}" if base is not None else ""
    if floor is None:
        return f"{begin}." if begin else ""
    left = f"ithout the morphed layers {metric.said(floor)} would be left (skip-only floor)."
    return f"{begin}; w{left}" if begin else f"W{left}"


def _counts(results: MorphResults) -> str:
    where = f"in {formats.plural(n, 'width group')}" if (n := len(results.details.space.groups)) else ""
    if results.details.space.mode == "last_block":
        where = "in the last block alone"
    begin = f"Widths vary {where}; c" if where else "C"
    return f"{begin}ounts are of the whole network."


def _title(results: MorphResults) -> str:
    name, fitted = results.details.base.name, results.fitted
    whose = f"{name}, its last block" if results.details.space.mode == "last_block" else name
    if fitted is None:
        return f"{whose} at any width"
    ends = {(g.min, g.max) for g in results.details.space.groups}
    if len(ends) == 1 and len({g.width for g in results.details.space.groups}) > 1:  # a range in channel counts
        low, high = ends.pop()
        if low is not None and high is not None:
            return f"{whose} at any width from {formats.count(low)} to {formats.count(high)} channels"
    return f"{whose} at any width from {width_text(fitted[0])} to {width_text(fitted[1])}"


def morph_verdict(results: MorphResults) -> MorphVerdict:
    """The head of the page."""
    split = split_of(results)
    shown = milestones(results)
    base = results.base_accuracy.on(split)
    marks = []
    for w in shown:
        value = w.accuracy.on(split)
        if value is not None:
            gap = None if base is None else value - base
            marks.append(Milestone(f"At {said(w.ratio or 0.0, first=True)}", w, value, gap))
    record = results.details.base
    warning = ""
    if record.commercial is False:
        licence = record.licence or "licence not stated"
        warning = f"Not for commercial use: the artifact is made of the weights of {record.name} ({licence})."
    more = (_base_and_floor(results, split), _best_rivals(results, shown, split), _counts(results))
    return MorphVerdict(
        title=_title(results),
        sentence=_sentence(results, shown, split),
        split=split,
        milestones=tuple(marks),
        more=tuple(text for text in more if text),
        warning=warning,
    )
