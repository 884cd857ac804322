"""The widths of a morph as a table for the console, from rows of summary.json or details.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from netsmith.report import formats
from netsmith.report.metric import RECONSTRUCTION, UNITS, Metric

_SPLITS = ("validation", "test")

Row = Mapping[str, Any]


def plain_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """A table with `left` columns of text and `right` columns of numbers. Names may hold brackets: never markup."""
    table = Table(
        title=Text(title) if title else None, title_justify="left", header_style="bold", box=None, pad_edge=False
    )
    for name in left:
        table.add_column(Text(name), overflow="fold")
    for name in right:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table


def split_value(row: Row, split: str, name: str = "accuracy") -> formats.Real | None:
    """The metric `name` of `row` on `split`; a bare number is of the test split.

    Earlier versions wrote every metric under the name of `accuracy`.
    """
    value = row.get(name, row.get("accuracy"))
    return value.get(split) if isinstance(value, Mapping) else (value if split == "test" else None)


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
