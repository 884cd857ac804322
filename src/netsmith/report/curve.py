"""Fine-tuning, epoch by epoch: one small drawing for accuracy, one for loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from netsmith.report import formats
from netsmith.report.labels import spread
from netsmith.report.results import Results
from netsmith.report.scale import Tick, axis
from netsmith.report.tips import Tips
from netsmith.report.verdict import best_that_fits, number


@dataclass(frozen=True)
class Reference:
    """A dashed level, with its name."""

    y: float
    text: str
    text_y: float


@dataclass(frozen=True)
class Curve:
    """One line over the epochs, ready for the template."""

    title: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    path: str
    dots: tuple[tuple[float, float, int], ...]
    last: str
    references: tuple[Reference, ...]
    summary: str


def references(
    levels: Sequence[tuple[float, str]], y: Callable[[float], float], top: float, bottom: float
) -> list[Reference]:
    """Dashed lines at `levels` `(value, name)`, their names moved apart where they would touch."""
    levels = sorted(levels, reverse=True)
    places = [y(value) for value, _ in levels]
    texts = spread([p - 5 for p in places], 14.0, top + 8, bottom - 4)
    return [Reference(p, text, t) for p, (_, text), t in zip(places, levels, texts, strict=True)]


def draw_curve(
    title: str,
    values: Sequence[tuple[float, float]],
    text: Callable[[float | None], str],
    tips: Tips,
    *,
    width: float,
    height: float,
    levels: Sequence[tuple[float, str]] = (),
) -> Curve:
    """The drawing of `values` `(epoch, value)`; `levels` are `(value, name)` of dashed lines."""
    left, right, top, bottom = 52.0, width - 14.0, 14.0, height - 36.0
    y = axis([v for _, v in values] + [v for v, _ in levels], bottom, top, margin=0.12)
    x = axis([e for e, _ in values], left, right, margin=0.03)
    epochs = [e for e, _ in values]
    step = max(1, -(-len(epochs) // 8))
    first, last = f"{text(values[0][1])} in epoch {epochs[0]:g}", f"{text(values[-1][1])} in epoch {epochs[-1]:g}"
    dots = tuple((x(e), y(v), tips.add(f"epoch {e:g}", f"{title} {text(v)}")) for e, v in values)
    return Curve(
        title=title,
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=tuple(Tick(x(e), f"{e:g}") for e in epochs[::-1][::step]),
        y_ticks=y.ticks(lambda v: formats.short(text(v)), most=4),
        path="M" + "L".join(f"{formats.rounded(a)},{formats.rounded(b)}" for a, b, _ in dots),
        dots=dots if len(dots) <= 60 else dots[-1:],
        last=text(values[-1][1]),
        references=tuple(references(levels, y, top, bottom)),
        summary=f"{title} from {first} to {last}.",
    )


def tuning_curves(results: Results, tips: Tips, width: float, height: float) -> tuple[Curve, ...]:
    """Accuracy and loss of the chosen network while it was tuned; empty when it was not."""
    chosen = results.details.chosen
    history = chosen.history if chosen else ()
    accuracy = [(h.epoch, h.accuracy) for h in history if h.epoch is not None and h.accuracy is not None]
    loss = [(h.epoch, h.loss) for h in history if h.epoch is not None and h.loss is not None]
    curves = []
    if accuracy:
        levels = []
        stitched = [c.accuracy.get("stitched_validation") for c in results.details.candidates if c.chosen]
        if stitched and number(stitched[0]) is not None:
            levels.append(
                (stitched[0], f"stitched, before any training: {formats.percent(stitched[0], results.images)}")
            )
        best, value = best_that_fits(results, "validation")
        if best is not None and value is not None:
            levels.append((value, f"{best.name}: {formats.percent(value, results.images)}"))
        curves.append(
            draw_curve(
                "accuracy on validation",
                accuracy,
                partial(formats.percent, images=results.images),
                tips,
                width=width,
                height=height,
                levels=levels,
            )
        )
    if loss:
        curves.append(draw_curve("training loss", loss, formats.decimal, tips, width=width, height=height))
    return tuple(curves)
