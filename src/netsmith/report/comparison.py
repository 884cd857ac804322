"""One network's cuts against another's: a page that needs nothing, or a PNG through matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from netsmith.errors import MissingDependencyError, OutputError
from netsmith.files.output import write_bytes
from netsmith.report.heatmap import HeatmapData, draw_heatmap, fill, heatmap_data, scale_stops
from netsmith.report.rendering import NARROW, flatten, render
from netsmith.report.results import Number, Record, matrix, parse

_HEAT = 700.0  # width of the picture: beside it stand its scale and the values under the pointer
_CUT_NAMES = 48  # more cuts than this and the PNG leaves their names out


class Side(Record):
    """One of the two networks, with the names of its cuts."""

    name: str
    cuts: tuple[str, ...]
    source: str = ""

    @model_validator(mode="after")
    def _some(self) -> Side:
        if not self.cuts:
            raise ValueError("needs at least one cut")
        return self


class SameUnit(Record):
    """A unit that both networks have, by its name, and the similarity of its outputs."""

    unit: str
    similarity: Number = None


class Divergences(Record):
    """Kullback-Leibler divergences, KL(first || second) and KL(second || first)."""

    first_second: Number = None
    second_first: Number = None


class Outputs(Record):
    """How alike the two networks' answers are, or in `missing` why that is not known."""

    kl: Divergences = Divergences()
    unit: str = "nats"
    agreement: Number = None
    per: str = "image"
    missing: str = ""


class Comparison(Record):
    """What `netsmith compare` measured; `values[i][j]` is the similarity of row cut i with column cut j."""

    rows: Side
    columns: Side
    metric: str
    values: Any
    images: int | None = None
    same: tuple[SameUnit, ...] = ()
    outputs: Outputs | None = None
    facts: dict[str, Any] = Field(default_factory=dict)


def _best(comparison: Comparison, values: np.ndarray) -> list[tuple[str, str | None, float]]:
    """For each row cut the most similar column cut and the value."""
    found: list[tuple[str, str | None, float]] = []
    for name, row in zip(comparison.rows.cuts, values, strict=True):
        known = np.isfinite(row)
        j = int(np.where(known, row, -np.inf).argmax())
        found.append((name, comparison.columns.cuts[j], float(row[j])) if known.any() else (name, None, float("nan")))
    return found


def _page(comparison: Comparison, heat: HeatmapData, values: np.ndarray) -> str:
    best = _best(comparison, values)
    scored = [b for b in best if b[1] is not None]
    return render(
        "comparison.html.j2",
        comparison=comparison,
        heat=heat,
        heatmaps=(draw_heatmap(heat, _HEAT, cuts=True), draw_heatmap(heat, NARROW, narrow=True, cuts=True)),
        best=best,
        top=max(scored, key=lambda b: b[2]) if scored else None,
        table=values.tolist() if values.size <= 2500 else None,
        facts=flatten(comparison.facts),
        scale=scale_stops(),
        fill=fill,
        tips=[],
    )


def _png(comparison: Comparison, values: np.ndarray) -> bytes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "A PNG needs matplotlib, which the extra `plot` brings: pip install 'netsmith[plot]'. "
            "The HTML page needs nothing more: give a path that ends in .html."
        ) from error
    rows, columns = len(comparison.rows.cuts), len(comparison.columns.cuts)
    figure = Figure(figsize=(min(16, 3.2 + 0.28 * columns), min(16, 2.4 + 0.22 * rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = axes.imshow(
        values, vmin=0.0, vmax=max(1.0, float(np.nanmax(values, initial=1.0))), cmap="viridis", aspect="auto"
    )
    if columns <= _CUT_NAMES:
        axes.set_xticks(range(columns), comparison.columns.cuts, rotation=90, fontsize=8, parse_math=False)
    if rows <= _CUT_NAMES:
        axes.set_yticks(range(rows), comparison.rows.cuts, fontsize=8, parse_math=False)
    axes.set_xlabel(comparison.columns.name, parse_math=False)
    axes.set_ylabel(comparison.rows.name, parse_math=False)
    figure.colorbar(picture, label=comparison.metric)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=150)
    return target.getvalue()


def write_comparison(path: Path, data: Mapping[str, Any]) -> Path:
    """Writes the similarity of two networks' cuts, all or nothing, and returns the file's path.

    `path` is a folder (`comparison.html` is written there), or a file that ends in `.html`, or in `.png` (needs
    matplotlib, extra `plot`). `data` is `{"metric": "cka", "rows": {"name", "cuts": [names], "source"?}, "columns":
    {...}, "values": [[...]] (rows x columns, null where missing), "images"?: n, "same"?: [{"unit", "similarity"}],
    "outputs"?: {"kl": {"first_second", "second_first"}, "unit", "agreement", "per"} or {"missing": why}, "facts"?:
    {anything worth a line}}`.

    Raises ArtifactError for malformed data, OutputError for a path that cannot be written or ends otherwise,
    MissingDependencyError for a PNG without matplotlib.
    """
    if path.is_dir() or not path.suffix:
        path = path / "comparison.html"
    if path.suffix not in (".html", ".png"):
        raise OutputError(f"{path}: a comparison is written as .html or .png, came '{path.suffix}'.")
    plain = dict(data)
    if isinstance(plain.get("values"), np.ndarray):
        plain["values"] = plain["values"].tolist()
    comparison = parse(Comparison, plain, "the comparison")
    rows, columns = comparison.rows, comparison.columns
    values = matrix(comparison.values, len(rows.cuts), len(columns.cuts), "values of the comparison")
    if path.suffix == ".png":
        return write_bytes(path, _png(comparison, values))
    heat = heatmap_data(values, rows.cuts, columns.cuts, [(rows.name, 0)], [(columns.name, 0)], comparison.metric)
    return write_bytes(path, _page(comparison, heat, values).encode("utf-8"))
