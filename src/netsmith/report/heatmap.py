"""Similarity of cuts as one picture: a palette PNG for the values, SVG for names, separators and the cross-hair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netsmith.report import formats
from netsmith.report.colour import VIRIDIS, hexadecimal, ink
from netsmith.report.labels import shorten, spread, text_width
from netsmith.report.png import data_uri, palette_png

_MISSING = (128, 128, 128)
_FINE, _COARSE = 254, 127  # steps of the scale; the index after the last says "no value"
_LARGE = 40_000  # values beyond which the coarse scale is used, which packs a third smaller


@dataclass(frozen=True)
class HeatmapData:
    """Values with their names. A group is a network: `(name, first row)`."""

    values: np.ndarray
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_groups: tuple[tuple[str, int], ...]
    column_groups: tuple[tuple[str, int], ...]
    metric: str
    picture: str
    low: float
    high: float
    clipped: int
    steps: int

    @property
    def lookup(self) -> dict[str, Any]:
        """What the page's script needs to name the cell under the pointer."""
        return {
            "rows": list(self.rows),
            "columns": list(self.columns) if self.columns != self.rows else None,
            "rowGroups": [list(g) for g in self.row_groups],
            "columnGroups": [list(g) for g in self.column_groups],
            "low": self.low,
            "high": self.high,
            "steps": self.steps,
            "metric": self.metric,
        }


@dataclass(frozen=True)
class GroupLabel:
    """A network's name beside or above its band, with the line that leads to it."""

    text: str
    at: float
    middle: float


@dataclass(frozen=True)
class CellText:
    """A value written into its cell."""

    x: float
    y: float
    text: str
    ink: str


@dataclass(frozen=True)
class Heatmap:
    """A drawing, ready for the template."""

    width: float
    height: float
    left: float
    top: float
    plot_width: float
    plot_height: float
    rows: int
    columns: int
    row_labels: tuple[GroupLabel, ...]
    column_labels: tuple[GroupLabel, ...]
    row_lines: tuple[float, ...]
    column_lines: tuple[float, ...]
    texts: tuple[CellText, ...]
    summary: str


def heatmap_data(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    row_groups: Sequence[tuple[str, int]],
    column_groups: Sequence[tuple[str, int]],
    metric: str,
) -> HeatmapData:
    """The picture of `values` `(len(rows), len(columns))` on the scale 0..1, wider only if values exceed 1.

    Values below 0 (unbiased estimates of a similarity near 0) are drawn as 0, and their number is kept.
    """
    assert values.shape == (len(rows), len(columns))
    known = np.isfinite(values)
    high = max(1.0, float(values[known].max())) if known.any() else 1.0
    scaled = np.clip(np.where(known, values, 0.0) / high, 0.0, 1.0)
    steps = _FINE if values.size <= _LARGE else _COARSE
    indices = np.where(known, np.rint(scaled * steps), steps + 1).astype(np.uint8)
    palette = (*(VIRIDIS[i * (_FINE // steps)] for i in range(steps + 1)), _MISSING)
    return HeatmapData(
        values=values,
        rows=tuple(rows),
        columns=tuple(columns),
        row_groups=tuple(row_groups),
        column_groups=tuple(column_groups),
        metric=metric,
        picture=data_uri(palette_png(indices, palette)),
        low=0.0,
        high=high,
        clipped=int((values[known] < -5e-4).sum()),
        steps=steps,
    )


def fill(value: float, high: float = 1.0) -> str:
    """The colour of `value` as a hexadecimal."""
    if not np.isfinite(value):
        return hexadecimal(_MISSING)
    return hexadecimal(VIRIDIS[round(min(max(value / high, 0.0), 1.0) * _FINE)])


def _group_labels(
    groups: Sequence[tuple[str, int]], total: int, start: float, length: float, gap: float
) -> list[GroupLabel]:
    ends = [g[1] for g in groups[1:]] + [total]
    middles = [start + (g[1] + e) / 2 / total * length for g, e in zip(groups, ends, strict=True)]
    gap = min(gap, length / len(groups))
    places = spread(middles, gap, start + gap / 2, start + length - gap / 2)
    return [GroupLabel(g[0], at, middle) for g, at, middle in zip(groups, places, middles, strict=True)]


def _texts(data: HeatmapData, left: float, top: float, cell: tuple[float, float]) -> list[CellText]:
    """Values in the cells, when every cell has room for one."""
    if min(cell[0] / 30, cell[1] / 16) < 1:
        return []
    found = []
    for (i, j), value in np.ndenumerate(data.values):
        x, y = left + (j + 0.5) * cell[0], top + (i + 0.5) * cell[1] + 4
        text = f"{value:.2f}".replace("-", "−") if np.isfinite(value) else formats.DASH
        found.append(CellText(x, y, text, ink(fill(value, data.high))))
    return found


def _cut_labels(names: Sequence[str], start: float, length: float, gap: float) -> list[GroupLabel]:
    """Every cut's name at its cell, or every second, third, ... where there is no room for all."""
    cell = length / len(names)
    step = max(1, math.ceil(gap / cell))
    places = [(name, start + (i + 0.5) * cell) for i, name in enumerate(names)]
    return [GroupLabel(name, at, at) for name, at in places[::step]]


def draw_heatmap(data: HeatmapData, width: float, *, narrow: bool = False, cuts: bool = False) -> Heatmap:
    """The drawing in `width` user units; with `cuts`, every cut is named instead of every network."""
    rows, columns = len(data.rows), len(data.columns)
    row_names = data.rows if cuts else [g[0] for g in data.row_groups]
    column_names = data.columns if cuts else [g[0] for g in data.column_groups]
    size = 10.0 if narrow else 12.0
    left = min(110.0 if narrow else 220.0, max(text_width(n, size) for n in row_names)) + 22
    # a square table has its columns in the order of its rows: on a phone the names at the left are enough
    above = 0.0 if narrow and not cuts else min(170.0, max(text_width(n, size) for n in column_names))
    top = above + 20 if above else 4.0
    plot_width = width - left - 4
    # square cells, unless one side is so much longer that the drawing would be a sliver
    plot_height = min(max(plot_width * rows / columns, 60.0), plot_width * 1.6)
    gap = size + 2.0
    if cuts:
        row_labels = _cut_labels(data.rows, top, plot_height, gap)
        column_labels = _cut_labels(data.columns, left, plot_width, gap)
    else:
        row_labels = _group_labels(data.row_groups, rows, top, plot_height, gap)
        column_labels = _group_labels(data.column_groups, columns, left, plot_width, gap) if above else []
    return Heatmap(
        width=width,
        height=top + plot_height + 4,
        left=left,
        top=top,
        plot_width=plot_width,
        plot_height=plot_height,
        rows=rows,
        columns=columns,
        row_labels=tuple(GroupLabel(shorten(g.text, left - 22, size), g.at, g.middle) for g in row_labels),
        column_labels=tuple(GroupLabel(shorten(g.text, above, size), g.at, g.middle) for g in column_labels),
        row_lines=tuple(top + g[1] / rows * plot_height for g in data.row_groups[1:]),
        column_lines=tuple(left + g[1] / columns * plot_width for g in data.column_groups[1:]),
        texts=tuple(_texts(data, left, top, (plot_width / columns, plot_height / rows)) if not narrow else ()),
        summary=f"Similarity ({data.metric}) of {formats.plural(rows, 'cut')} with {formats.plural(columns, 'cut')}.",
    )


def scale_stops() -> tuple[str, ...]:
    """Colours of the legend's gradient, from 0 to 1."""
    return tuple(hexadecimal(VIRIDIS[round(i / 10 * _FINE)]) for i in range(11))


def group_means(data: HeatmapData) -> list[list[float]]:
    """Mean similarity of every network's cuts with every other's, `(row groups, column groups)`; NaN if none known."""
    row_ends = [g[1] for g in data.row_groups[1:]] + [len(data.rows)]
    column_ends = [g[1] for g in data.column_groups[1:]] + [len(data.columns)]
    means = []
    for (_, r0), r1 in zip(data.row_groups, row_ends, strict=True):
        means.append([])
        for (_, c0), c1 in zip(data.column_groups, column_ends, strict=True):
            part = data.values[r0:r1, c0:c1]
            known = part[np.isfinite(part)]
            means[-1].append(float(known.mean()) if known.size else float("nan"))
    return means
