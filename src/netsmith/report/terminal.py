"""The same results for the console: each function takes plain rows and returns something that rich can print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from netsmith.report import formats

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


def _licence(row: Row) -> Text:
    licence = row.get("licence") or "not stated"
    return Text(f"{licence} (non-commercial)", style="yellow") if row.get("commercial") is False else Text(str(licence))


def terminal_zoo(networks: Sequence[Row]) -> Table:
    """The zoo; rows as `networks` of details.json (`name`, `source`, `licence`, `params`, `macs`, `accuracy`, ...)."""
    splits = [s for s in ("validation", "test") if any(split_value(n, s) is not None for n in networks)]
    table = plain_table("", ["network", "source", "licence"], ["units", "params", "MACs", *splits])
    for n in networks:
        units = n.get("units")
        table.add_row(
            Text(str(n["name"])),
            Text(str(n.get("source") or formats.DASH)),
            _licence(n),
            str(units if isinstance(units, int) else len(units)) if units is not None else formats.DASH,
            formats.count(n.get("params")),
            formats.count(n.get("macs")),
            *(formats.percent(split_value(n, s)) for s in splits),
        )
    return table


def terminal_candidates(candidates: Sequence[Row], *, most: int = 10) -> Table:
    """The first `most` candidates and the chosen one; rows as `candidates` of details.json."""
    shown = [c for i, c in enumerate(candidates) if i < most or c.get("chosen")]
    scores = list(dict.fromkeys(s for c in shown for s in c.get("scores") or {}))
    keys = list(dict.fromkeys(k for c in shown for k, v in (c.get("accuracy") or {}).items() if v is not None))
    title = f"{len(shown)} of {len(candidates)} candidates" if len(shown) < len(candidates) else ""
    table = plain_table(
        title, ["", "blocks"], ["params", "MACs", "cost", *scores, *(k.replace("_", " ") for k in keys)]
    )
    for c in shown:
        table.add_row(
            Text(f"{c['rank']}{' ←' if c.get('chosen') else ''}"),
            Text(" → ".join(c["blocks"])),
            formats.count(c.get("params")),
            formats.count(c.get("macs")),
            formats.decimal(c.get("cost")),
            *(formats.decimal((c.get("scores") or {}).get(s)) for s in scores),
            *(formats.percent((c.get("accuracy") or {}).get(k)) for k in keys),
            style="bold" if c.get("chosen") else None,
        )
    return table


def terminal_dissection(network: Row) -> Table:
    """The units of one network; `network` as in `networks` of details.json (layouts as words or as `{"kind": ...}`)."""
    table = plain_table(str(network["name"]), ["", "unit", "layout", "shape"], ["params", "MACs"])

    def add(index: str, name: str, layout: Any, shapes: str, row: Row) -> None:
        kind = layout.get("kind") if isinstance(layout, Mapping) else layout
        params, macs = formats.count(row.get("params")), formats.count(row.get("macs"))
        table.add_row(index, Text(name), Text(str(kind or "")), shapes, params, macs)

    if network.get("stem"):
        add("", "(stem)", None, "", network["stem"])
    for i, u in enumerate(network.get("units") or ()):
        shapes = f"{formats.shape(u.get('in_shape'))} → {formats.shape(u.get('out_shape'))}"
        add(str(i), str(u["name"]), u.get("layout"), shapes, u)
    if network.get("head"):
        add("", "(head)", None, "", network["head"])
    table.add_section()
    add("", "whole network", None, "", network)
    return table


def terminal_baselines(baselines: Sequence[Row]) -> Table:
    """What the new network is compared with; rows as `baselines` of details.json."""
    table = plain_table("", ["baseline", "note"], ["params", "MACs", "accuracy"])
    for b in baselines:
        table.add_row(
            Text(str(b["name"])),
            Text(str(b.get("note") or "")),
            formats.count(b.get("params")),
            formats.count(b.get("macs")),
            formats.percent(b.get("accuracy")),
        )
    return table


def terminal_comparison(data: Row, *, most: int = 40) -> Table:
    """For each cut of the first network the cut of the second that is most like it; `data` as `write_comparison`'s."""
    rows, columns = data["rows"], data["columns"]
    table = plain_table(
        f"{rows['name']} against {columns['name']}", ["cut", "most like"], [str(data.get("metric", "similarity"))]
    )
    for name, values in list(zip(rows["cuts"], data["values"], strict=True))[:most]:
        known = [(v, j) for j, v in enumerate(values) if v is not None and v == v]
        value, j = max(known, default=(None, -1))
        table.add_row(Text(name), Text(columns["cuts"][j]) if known else formats.DASH, formats.decimal(value, 3))
    if len(rows["cuts"]) > most:
        table.caption = f"{len(rows['cuts']) - most} more cuts"
    return table
