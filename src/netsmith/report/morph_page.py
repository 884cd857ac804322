"""The page of a morph: one base network, its widths, what rivals them, and how the generator came to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from netsmith.report import formats
from netsmith.report.family import curve_at, draw_family, rival_colours, split_of, width_text
from netsmith.report.fit_curves import fit_curves, ratio_keys, ratio_name
from netsmith.report.metric import RECONSTRUCTION, UNITS
from netsmith.report.morph_results import GroupRecord, MorphResults, RivalPoint, RivalRecord, Sized, WidthRecord
from netsmith.report.morph_verdict import morph_verdict
from netsmith.report.origin import origin_of
from netsmith.report.provenance import provenance, steps
from netsmith.report.rendering import NARROW, WIDE, flatten, render
from netsmith.report.slider import draw_slider
from netsmith.report.tips import Tips
from netsmith.report.weights import variations, weight_pictures

HISTORY_ROWS = 200
_HALF = 470.0  # two drawings beside each other
_INLINE = 2  # widths of so many groups are written out; of more, their span


@dataclass(frozen=True)
class WidthRow:
    """A row of the table of widths: `gap` is the metric's difference to the base network's."""

    record: WidthRecord
    gap: float | None
    span: str
    groups: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RivalRow:
    """A row of the table of rivals: `here` is what the artifact reaches with as many params."""

    rival: RivalRecord
    point: RivalPoint
    colour: str
    here: float | None
    ahead: float | None


@dataclass(frozen=True)
class RangeRow:
    """A group with its range as a bar; `start` and `share` are of the widest thing drawn, 0..1."""

    record: GroupRecord
    start: float
    share: float
    base: float


@dataclass(frozen=True)
class PictureRow:
    """What one size makes of the originals, and what it draws, as `data:` addresses; empty where there is none."""

    name: str
    reconstructions: str
    draws: str


def _pictures(results: MorphResults) -> tuple[str, list[PictureRow]]:
    """The originals, and a row for the base network and for each width."""

    def address(sized: Sized, what: str) -> str:
        png = sized.pictures.get(what)
        return f"data:image/png;base64,{png}" if png else ""

    base = results.details.base
    sizes: list[tuple[str, Sized]] = [("the base network", base)]
    sizes += [(f"{width_text(w.ratio)} the width", w) for w in results.widths]
    rows = [PictureRow(name, address(s, "reconstructions"), address(s, "draws")) for name, s in sizes if s.pictures]
    return address(base, "originals"), rows


def _width_rows(results: MorphResults, split: str) -> list[WidthRow]:
    base = results.base_accuracy.on(split)
    rows = []
    for w in results.widths:
        value = w.accuracy.on(split)
        gap = None if value is None or base is None else value - base
        groups = tuple((name, formats.exact(n)) for name, n in w.widths.items())
        counts = [n for n in w.widths.values() if n is not None]
        span = ""
        if len(groups) > _INLINE and counts:
            low, high = formats.exact(min(counts)), formats.exact(max(counts))
            span = f"{formats.plural(len(groups), 'group')}, " + (low if low == high else f"{low} to {high}")
        rows.append(WidthRow(w, gap, span, groups))
    return rows


def _class_rows(results: MorphResults, split: str) -> list[tuple[str, list[float | None]]]:
    """Each class with its IoU in the base network and at each width."""
    columns = [sized.of_classes(split) for sized in (results.details.base, *results.widths)]
    return [(name, [column.get(name) for column in columns]) for name in dict.fromkeys(k for c in columns for k in c)]


def _rival_rows(results: MorphResults, split: str) -> list[RivalRow]:
    rows = []
    for rival, colour in zip(results.details.rivals, rival_colours(results), strict=True):
        for p in rival.points:
            here, value = curve_at(results.widths, split, p.params), p.accuracy.on(split)
            ahead = None if here is None or value is None else here - value
            rows.append(RivalRow(rival, p, colour, here, ahead))
    return rows


def _ranges(results: MorphResults) -> list[RangeRow]:
    """Ranges relative to the base's width, so that groups of any width compare."""
    groups = results.details.space.groups
    spans = []
    for g in groups:
        known = g.width is not None and g.min is not None and g.max is not None and g.width > 0
        spans.append((g.min / g.width, g.max / g.width) if known else None)  # type: ignore[operator]
    widest = max([1.0, *(s[1] for s in spans if s)])
    return [
        RangeRow(g, s[0] / widest if s else 0.0, (s[1] - s[0]) / widest if s else 0.0, 1 / widest)
        for g, s in zip(groups, spans, strict=True)
    ]


def _history(results: MorphResults) -> dict[str, Any]:
    """The steps at which a metric was taken (else all), evenly thinned, the last one kept."""
    fit = results.details.fit
    records = [(at, h) for at, h in fit.timed if h.metric] or fit.timed
    every = -(-len(records) // HISTORY_ROWS) or 1
    shown = records[::-1][::every][::-1]
    keys = ratio_keys(fit.history)
    return {
        "rows": shown,
        "unit": fit.unit,
        "keys": keys,
        "names": [ratio_name(k) for k in keys],
        "lr": any(h.lr is not None for _, h in shown),
        "hidden": len(records) - len(shown),
        "total": len(records),
    }


def _columns(results: MorphResults, split: str) -> dict[str, bool]:
    """Which columns hold anything."""
    widths, base = results.widths, results.base_accuracy
    points = [p.accuracy for r in results.details.rivals for p in r.points]
    own = [base, *(w.accuracy for w in widths)]
    return {
        "validation": any(a.validation is not None for a in own),
        "test": any(a.test is not None for a in own),
        "latency": any(w.latency_ms is not None for w in widths),
        "rival_validation": any(a.validation is not None for a in points),
        "rival_test": any(a.test is not None for a in points),
        "error": any(s.error(split) is not None for s in (results.details.base, *widths)),
    }


def _facts(results: MorphResults) -> list[tuple[str, str]]:
    """The base network, and what holds all its sizes."""
    base, generator = results.details.base, results.details.generator
    ratio = results.artifact_ratio
    over = f", {ratio:.2f}× the base's" if ratio is not None else ""
    share = ""
    if generator.bytes is not None and base.bytes:
        share = f", {generator.bytes / base.bytes:.2f}× the base's"
    rows = [
        ("base network", base.name + (f" · {base.source}" if base.source else "")),
        ("licence", base.licence or "not stated"),
        ("base weights", formats.size_bytes(base.bytes) if base.bytes is not None else ""),
        ("generator", generator.kind),
        ("generator params", formats.exact(generator.params) if generator.params is not None else ""),
        ("generator weights", formats.size_bytes(generator.bytes) + share if generator.bytes is not None else ""),
        ("artifact", formats.size_bytes(results.artifact_bytes) + over if results.artifact_bytes is not None else ""),
    ]
    return [(k, v) for k, v in rows if v]


def _fit_facts(results: MorphResults) -> str:
    """``40 epochs in 3 min 05 s, the best of them number 38.``, as far as it is known.

    Of keyframes: ``20 epochs in 39 min: 18 for 6 keyframes, each trained by itself, and then 2 for the coarse set.``
    """
    fit = results.details.fit
    counts = ((fit.epochs, "epoch"), (fit.steps, "step"))
    parts = [f"{formats.exact(n)} {unit}" + ("" if n == 1 else "s") for n, unit in counts if n is not None]
    text = ", ".join(parts)
    if fit.seconds is not None:
        text += f"{' in ' if text else ''}{formats.duration(fit.seconds)}"
    if fit.best_epoch == 0:
        text += f"{', ' if text else ''}none of them better than what it began with, so it stayed that"
    elif fit.best_epoch is not None:
        text += f"{', ' if text else ''}the best of them number {formats.exact(fit.best_epoch)}"
    if fit.keyframes is not None and fit.keyframe_epochs is not None:
        one = fit.keyframes == 1
        text += f"{': ' if text else ''}{formats.exact(fit.keyframe_epochs)} for {formats.exact(fit.keyframes)} "
        text += "keyframe" if one else "keyframes, each trained by itself"
        left = (fit.epochs or fit.keyframe_epochs) - fit.keyframe_epochs
        text += f", and then {formats.exact(left)} for the coarse set" if left else ""
    text = f"{text}." if text else ""
    if fit.undone:
        names = [name if name == "coarse set" else f"{name}×" for name in fit.undone]
        text += f" Training made worse, so stayed as it began: {', '.join(names)}."
    return text


def _order(results: MorphResults) -> str:
    """By what the channels were put in order, in a sentence."""
    order = results.details.smooth.order if results.details.smooth else "none"
    known = {
        "none": "The channels were left in the order in which they were trained.",
        "importance": "The channels were put in order of importance: those that every width has come first.",
        "smooth": "The channels were put in an order in which neighbours are alike.",
    }
    return known.get(order, "The channels were put in another order.")


def morph_html(results: MorphResults) -> str:
    """The page of a morph."""
    tips = Tips()
    details, split = results.details, split_of(results)
    family, family_legend = draw_family(results, tips, WIDE, NARROW)
    slider = draw_slider(results, tips)
    originals, shown = _pictures(results)
    curves, curves_legend = fit_curves(results, tips, _HALF, NARROW)
    seconds, total = steps(details.seconds or results.summary.seconds)
    return render(
        "morph.html.j2",
        head=morph_verdict(results),
        metric=results.metric,
        noise=results.noise(split),
        split=split,
        details=details,
        base_accuracy=results.base_accuracy,
        floor=results.floor,
        artifact_bytes=results.artifact_bytes,
        artifact_ratio=results.artifact_ratio,
        origin=origin_of(details.base.extra, details.base.source, results.folder),
        slider=slider,
        family=family,
        family_legend=family_legend,
        columns=_columns(results, split),
        error_name=RECONSTRUCTION,
        units=UNITS,
        widths=_width_rows(results, split),
        rivals=_rival_rows(results, split),
        classes=_class_rows(results, split),
        ranges=_ranges(results),
        variations=variations(details.smooth.groups) if details.smooth else (),
        pictures=weight_pictures(results),
        originals=originals,
        shown=shown,
        curves=curves,
        curves_legend=curves_legend,
        history=_history(results),
        facts=_facts(results),
        fit_facts=_fit_facts(results),
        order=_order(results),
        settings=flatten(details.generator.settings),
        seconds=seconds,
        total=total,
        config=results.config,
        provenance=provenance(
            results.folder,
            versions=details.versions,
            machine=details.machine,
            extra=details.extra,
            config=results.config,
            weights=[(details.base.name, details.base.extra.get("sha256"))],
            manifest=results.manifest,
        ),
        heat=None,
        tips=tips.texts,
    )
