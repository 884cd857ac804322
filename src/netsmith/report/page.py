"""`report.html` of a finished run: one self-contained file, drawn from the result files alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from netsmith.errors import OutputError
from netsmith.report import formats
from netsmith.report.bars import draw_bars, set_views
from netsmith.report.colour import ink, network_colours
from netsmith.report.curve import tuning_curves
from netsmith.report.flow import pieces
from netsmith.report.heatmap import HeatmapData, draw_heatmap, fill, group_means, heatmap_data, scale_stops
from netsmith.report.results import CandidateRecord, Results, read_results
from netsmith.report.scatter import draw_scatter, scatter_data
from netsmith.report.tips import Tips
from netsmith.report.verdict import chosen_resources, limits_of, network_accuracy, resources, verdict, within

# drawings come in two widths, shown by the width of the window: text keeps its size in both
WIDE, NARROW = 960.0, 340.0
HEAT = 700.0  # beside the heatmap stand its scale and the values under the pointer
CANDIDATE_ROWS = 150
_ACCURACIES = (
    ("stitched_validation", "stitched, validation"),
    ("finetuned_validation", "tuned, validation"),
    ("finetuned_test", "tuned, test"),
)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("netsmith.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=formats.count,
        exact=formats.exact,
        mb=formats.megabytes,
        percent=formats.percent,
        points=formats.points,
        decimal=formats.decimal,
        duration=formats.duration,
        ms=formats.milliseconds,
        raw=formats.raw,
        plural=formats.plural,
        px=formats.rounded,
        ink=ink,
    )
    return environment


def render(template: str, **values: Any) -> str:
    """A page from a template of this package; every value is escaped."""
    return _environment().get_template(template).render(**values)


def write_atomically(path: Path, content: bytes) -> Path:
    """Writes all of `content` or nothing; OutputError says what stood in the way."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}. Check that the folder exists, is yours to write "
            "and has room."
        ) from error
    return path


@dataclass(frozen=True)
class CandidateRow:
    """A row of the table of candidates."""

    record: CandidateRecord
    accuracies: tuple[float | None, ...]
    fits: bool | None
    memory: float | None


def _candidates(results: Results) -> dict[str, Any]:
    records = results.details.candidates
    # the chosen one is always in the table, wherever it ranks
    shown = [c for i, c in enumerate(records) if i < CANDIDATE_ROWS or c.chosen]
    keys = [(k, t) for k, t in _ACCURACIES if any(c.accuracy.get(k) is not None for c in shown)]
    known = {k for k, _ in _ACCURACIES}
    more = dict.fromkeys(k for c in shown for k, v in c.accuracy.items() if k not in known and v is not None)
    keys += [(k, k.replace("_", " ")) for k in more]
    limits = limits_of(results)
    return {
        "rows": [
            CandidateRow(
                c, tuple(c.accuracy.get(k) for k, _ in keys), within(resources(c), limits), resources(c)["memory_mb"]
            )
            for c in shown
        ],
        "accuracies": [t for _, t in keys],
        "scores": list(dict.fromkeys(s for c in shown for s in c.scores)),
        "memory": sum(resources(c)["memory_mb"] is not None for c in shown) > 1,
        "latency": sum(c.latency_ms is not None for c in shown) > 1,
        "cost": any(c.cost is not None for c in shown),
        "hidden": len(records) - len(shown),
        "total": len(records),
    }


def _zoo(results: Results, colours: Mapping[str, str]) -> dict[str, Any]:
    used = {b.rpartition("[")[0] for b in results.summary.blocks}
    limits = limits_of(results)
    rows = [
        {
            "record": n,
            "fill": colours[n.name],
            "validation": network_accuracy(results, n.name, "validation"),
            "test": network_accuracy(results, n.name, "test"),
            "fits": within(resources(n), limits) if limits else None,
            "used": n.name in used,
        }
        for n in results.details.networks
    ]
    return {
        "rows": rows,
        "validation": any(r["validation"] is not None for r in rows),
        "test": any(r["test"] is not None for r in rows),
        "barred": [n.name for n in results.details.networks if n.commercial is False],
        "limited": bool(limits),
    }


def _similarity(results: Results) -> HeatmapData | None:
    record = results.details.similarity
    if record is None or results.similarity is None:
        return None
    groups = list(zip(record.networks, record.offsets, strict=True))
    # labels may carry the network's name in front: the readout gives that on its own
    ends = [*record.offsets[1:], len(record.labels)]
    labels = [
        record.labels[i].removeprefix(name).lstrip(":/. ") or record.labels[i]
        for (name, start), end in zip(groups, ends, strict=True)
        for i in range(start, end)
    ]
    return heatmap_data(results.similarity, labels, labels, groups, groups, record.metric)


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings and lists as `(dotted name, text)` rows."""
    if isinstance(value, Mapping):
        return [row for k, v in value.items() for row in flatten(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(value, (list, tuple)):
        return [(prefix, ", ".join(str(v) for v in value))]
    return [(prefix, formats.DASH if value is None else str(value))]


def _seeds(config: str | None, details_extra: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Seeds, of details.json if it has them, else the lines of the configuration that set one."""
    given = {k: v for k, v in details_extra.items() if "seed" in k}
    if given or config is None:
        return flatten(given)
    lines = [line.strip() for line in config.splitlines() if line.strip().split(":")[0].strip("\"'").endswith("seed")]
    return [(k.strip(), v.strip()) for k, _, v in (line.partition(":") for line in lines) if v.strip()]


def _hashes(results: Results) -> list[tuple[str, str]]:
    """SHA-256 of the small result files as they are, and of the artifact's files as its manifest has them."""
    found = []
    for name in ("summary.json", "details.json", "recipe.json", "config.yaml"):
        path = results.folder / name
        if path.is_file():
            found.append((name, hashlib.sha256(path.read_bytes()).hexdigest()))
    digests = ((n.name, n.extra.get("sha256")) for n in results.details.networks)
    found += [(f"weights of {name}", digest) for name, digest in digests if isinstance(digest, str)]
    files = results.artifact.get("files")
    for name, entry in files.items() if isinstance(files, Mapping) else ():
        value = entry.get("sha256") if isinstance(entry, Mapping) else entry
        if isinstance(value, str):
            found.append((f"artifact/{name}", value))
    return found


def _provenance(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    details = results.details
    groups = [
        ("Versions", flatten(details.versions)),
        ("Data", flatten(details.extra.get("data", {}))),
        ("Machine", flatten(details.machine)),
        ("Seeds", _seeds(results.config, details.extra)),
        ("SHA-256", [*flatten(details.extra.get("hashes", {})), *_hashes(results)]),
    ]
    return [(title, rows) for title, rows in groups if rows]


def _seconds(results: Results) -> list[tuple[str, float, float]]:
    """`(step, seconds, share of the longest)`; a field `total` is no step."""
    raw = results.details.seconds or results.summary.seconds
    steps = {k: v for k, v in raw.items() if v is not None and k != "total"}
    longest = max(steps.values(), default=1.0) or 1.0
    return [(k.replace("_", " "), v, v / longest) for k, v in steps.items()]


def _drawings(results: Results, tips: Tips) -> dict[str, Any]:
    """Every drawing in both widths."""
    limits = limits_of(results)
    scatters = []
    for resource in ("params", "macs"):
        data = scatter_data(results, resource, tips) if resource == "params" or resource in limits else None
        if data is not None:
            scatters.append((data, draw_scatter(data, WIDE, 460.0), draw_scatter(data, NARROW, 380.0, font=11.0)))
    heat = _similarity(results)
    # many networks need the whole width: scale and readout go below
    stacked = heat is not None and len(heat.row_groups) > 10
    return {
        "scatters": scatters,
        "bars": (draw_bars(results, tips, WIDE), draw_bars(results, tips, NARROW, narrow=True)),
        "heat": heat,
        "stacked": stacked,
        "heatmaps": (draw_heatmap(heat, WIDE if stacked else HEAT), draw_heatmap(heat, NARROW, narrow=True))
        if heat
        else None,
        "means": group_means(heat) if heat else None,
        "scale": scale_stops(),
        "curves": (tuning_curves(results, tips, 470.0, 260.0), tuning_curves(results, tips, NARROW, 240.0)),
    }


def report_html(results: Results) -> str:
    """The page of a reassembly."""
    tips = Tips()
    head = verdict(results)
    names = [n.name for n in results.details.networks]
    used = list(dict.fromkeys(b.rpartition("[")[0] for b in results.summary.blocks))
    colours = network_colours(names, used)
    drawings = _drawings(results, tips)
    seconds = _seconds(results)
    return render(
        "report.html.j2",
        head=head,
        summary=results.summary,
        details=results.details,
        values=chosen_resources(results),
        colours=colours,
        used=used,
        pieces=pieces(results, colours),
        sets=set_views(results),
        candidates=_candidates(results),
        zoo=_zoo(results, colours),
        seconds=seconds,
        total=results.details.seconds.get("total") or sum(s for _, s, _ in seconds),
        config=results.config,
        provenance=_provenance(results),
        fill=fill,
        tips=tips.texts,
        **drawings,
    )


def write_report(folder: Path) -> Path:
    """Reads `summary.json` and `details.json` of `folder` (and `config.yaml`, `artifact/manifest.json` if there) and
    writes `report.html` beside them, all or nothing. Returns its path.

    Raises ArtifactError when a file is missing or malformed, OutputError when the page cannot be written.
    """
    page = report_html(read_results(folder))
    return write_atomically(folder / "report.html", page.encode("utf-8"))
