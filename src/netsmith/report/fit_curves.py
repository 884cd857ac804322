"""The fit of a generator as it went: its loss, and the metric at a few widths."""

from __future__ import annotations

from collections.abc import Sequence

from netsmith.report import formats
from netsmith.report.colour import network_colours
from netsmith.report.family import OWN
from netsmith.report.morph_results import MorphResults, StepRecord
from netsmith.report.series import SHAPES, Dot, Legend, Lines, Plot, Series, draw_lines, legend
from netsmith.report.tips import Tips

_POINTS = 300  # a longer loss is thinned to about as many values as a drawing has places
_MARKED = 60


def _thinned(values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbours, so that what is left out of the drawing is not lost from it."""
    run = -(-len(values) // _POINTS)
    groups = [values[i : i + run] for i in range(0, len(values), run)]
    return [(g[-1][0], sum(v for _, v in g) / len(g)) for g in groups]


def ratio_keys(history: Sequence[StepRecord]) -> list[str]:
    """The ratios at which the metric was followed, widest first; keys that are no number come last."""

    def order(key: str) -> tuple[bool, float, str]:
        try:
            return False, -float(key), key
        except ValueError:
            return True, 0.0, key

    return sorted({k for h in history for k, v in h.metric.items() if v is not None}, key=order)


def ratio_name(key: str) -> str:
    """A key of the history in words: ``0.5× wide``."""
    try:
        return f"{float(key):.3g}× wide"
    except ValueError:
        return key


def _loss(results: MorphResults, tips: Tips) -> Plot | None:
    fit = results.details.fit
    unit = fit.unit
    known = [(at, h.loss) for at, h in fit.timed if at is not None and h.loss is not None]
    if not known:
        return None
    values = _thinned(known)
    marked = len(values) <= _MARKED
    dots = tuple(
        Dot(s, v, tips.add(f"{unit} {s:,.0f}", f"loss {formats.decimal(v)}") if marked else None) for s, v in values
    )
    series = Series("training loss", OWN, "circle", dots, marked=marked)
    return Plot((series,), (), unit, "training loss", formats.exact, formats.decimal, log=False, whole=True)


def _metric(results: MorphResults, tips: Tips) -> Plot | None:
    fit, metric = results.details.fit, results.metric
    keys, unit, timed = ratio_keys(fit.history), fit.unit, fit.timed
    colours = network_colours([str(i) for i in range(len(keys))], [])
    lines = []
    for i, key in enumerate(keys):
        known = [(at, v) for at, h in timed if at is not None and (v := h.metric.get(key)) is not None]
        values = _thinned(known) if known else []
        marked = len(values) <= _MARKED
        name = ratio_name(key)
        dots = tuple(
            Dot(s, v, tips.add(f"{unit} {s:,.0f}, {name}", f"{metric.title} {metric.text(v)}") if marked else None)
            for s, v in values
        )
        shape = "circle" if i == 0 else SHAPES[(i - 1) % len(SHAPES)]
        if dots:
            lines.append(Series(name, OWN if i == 0 else colours[str(i)], shape, dots, marked=marked))
    if not lines:
        return None
    title = f"{metric.title} on validation"
    return Plot(
        tuple(lines), (), unit, title, formats.exact, metric.text, log=False, fraction=metric.fraction, whole=True
    )


def fit_curves(
    results: MorphResults, tips: Tips, wide: float, narrow: float
) -> tuple[list[tuple[Lines, Lines]], list[Legend]]:
    """`(wide, narrow)` drawings of metric and loss, and the legend of the first; empty without a history."""
    metric, loss = _metric(results, tips), _loss(results, tips)
    drawings = [
        (draw_lines(p, wide, 280.0), draw_lines(p, narrow, 250.0, font=11.0)) for p in (metric, loss) if p is not None
    ]
    return drawings, list(legend(metric.series)) if metric else []
