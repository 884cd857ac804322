"""A morph for the console: its widths, its rivals and its width groups, as rows of summary.json or details.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from netsmith.report import formats
from netsmith.report.metric import RECONSTRUCTION, UNITS, Metric
from netsmith.report.terminal import Row, plain_table, split_value

_SPLITS = ("validation", "test")


def metric_of(data: Row) -> Metric:
    """The metric that `task` (details.json) or `metric` (summary.json) names; accuracy where there is neither."""
    task, images = data.get("task"), data.get("images")
    fewest = min((n for n in images.values() if n), default=None) if isinstance(images, Mapping) else images
    if isinstance(data.get("metric"), str):
        return Metric(data["metric"], images=fewest)
    if not isinstance(task, Mapping):
        return Metric(images=fewest)
    return Metric(str(task.get("primary") or "accuracy"), task.get("higher_is_better") is not False, fewest)


def _heads(metric: Metric, rows: Sequence[Row], base: Row) -> list[tuple[str, str]]:
    """`(split, heading)` of the columns that hold a value; bare numbers (summary.json) need no name of a split."""
    named = any(isinstance(r.get(metric.name, r.get("accuracy")), Mapping) for r in (base, *rows))
    found = [s for s in _SPLITS if any(split_value(r, s, metric.name) is not None for r in (base, *rows))]
    return [(s, f"{metric.title}, {s}" if named else metric.title) for s in found]


def _error(row: Row, split: str) -> formats.Real | None:
    """The reconstruction error: by split among the `metrics` of details.json, a bare number in summary.json."""
    metrics = row.get("metrics")
    if isinstance(metrics, Mapping):
        return (metrics.get(split) or {}).get("reconstruction")
    return row.get("reconstruction") if split == "test" else None


def terminal_widths(data: Row, *, title: str = "") -> Table:
    """The widths of a morph, with the base network and the skip-only floor below them.

    `data` is summary.json or details.json of `netsmith morph` as a mapping: `widths` (`ratio`, `params`, `macs`,
    the metric, `fitted`, `latency_ms`), `base`, `floor`, `images` (how many it was measured on), and `task` or
    `metric`, which say how the metric is called.
    """
    widths: Sequence[Row] = data.get("widths") or ()
    base: Row = data.get("base") or {}
    metric = metric_of(data)
    heads = _heads(metric, widths, base)
    latency = any(w.get("latency_ms") is not None for w in widths)
    errors = [s for s, _ in heads if any(_error(row, s) is not None for row in (base, *widths))]
    right = ["params", "MACs", *(t for _, t in heads), *(f"{RECONSTRUCTION}, {s}" for s in errors)]
    table = plain_table(title, ["ratio"], [*right, *(["latency"] if latency else [])])
    table.caption = Text(UNITS) if errors else None
    table.caption_justify = "left"

    def add(name: Text, row: Row) -> None:
        table.add_row(
            name,
            formats.count(row.get("params")),
            formats.count(row.get("macs")),
            *(metric.text(split_value(row, s, metric.name)) for s, _ in heads),
            *(formats.decimal(_error(row, s)) for s in errors),
            *([formats.milliseconds(row.get("latency_ms"))] if latency else []),
        )

    for w in widths:
        fitted = w.get("fitted") is not False
        text = formats.decimal(w.get("ratio"))
        add(Text(text) if fitted else Text(f"{text} (outside the fitted range)", style="yellow"), w)
    table.add_section()
    add(Text(f"base: {base['name']}" if base.get("name") else "base"), base)
    floor: Any = data.get("floor")
    if floor is not None:
        add(Text("skip-only floor"), {metric.name: floor})
    return table


def terminal_rivals(rivals: Sequence[Row], task: Row | None = None, images: Row | None = None) -> Table:
    """What reaches the same sizes in other ways; rows as `rivals` of details.json, `task` and `images` as there."""
    metric = metric_of({"task": task, "images": images})
    points = [(r, p) for r in rivals for p in r.get("points") or ()]
    heads = _heads(metric, [p for _, p in points], {})
    table = plain_table("", ["rival", "note"], ["steps", "ratio", "params", "MACs", *(t for _, t in heads)])
    for rival, p in points:
        table.add_row(
            Text(str(rival["name"])),
            Text(str(rival.get("note") or "")),
            formats.exact(rival.get("steps")),
            formats.decimal(p.get("ratio")),
            formats.count(p.get("params")),
            formats.count(p.get("macs")),
            *(metric.text(split_value(p, s, metric.name)) for s, _ in heads),
        )
    return table


def terminal_space(space: Row) -> Table:
    """The width groups that may vary, then those refused with the reason; `space` as in details.json."""
    refused: Sequence[Row] = space.get("refused") or ()
    table = plain_table("", ["group", "kind", *(["refused because"] if refused else [])], ["base", "min", "max"])
    more = [""] if refused else []
    for g in space.get("groups") or ():
        sizes = (formats.exact(g.get(k)) for k in ("width", "min", "max"))
        table.add_row(Text(str(g["name"])), Text(str(g.get("kind") or "")), *more, *sizes)
    table.add_section()
    for r in refused:
        width = formats.exact(r.get("width"))
        table.add_row(Text(str(r["name"])), "", Text(str(r.get("reason") or "no reason recorded")), width, "", "")
    return table
