"""`report.html` of a finished run: one self-contained file, drawn from the result files alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netsmith.files.output import write_bytes
from netsmith.report.bars import draw_bars, set_views
from netsmith.report.colour import network_colours
from netsmith.report.curve import tuning_curves
from netsmith.report.flow import pieces
from netsmith.report.heatmap import HeatmapData, draw_heatmap, fill, group_means, heatmap_data, scale_stops
from netsmith.report.morph_page import morph_html
from netsmith.report.morph_results import read_morph
from netsmith.report.origin import families_of
from netsmith.report.provenance import provenance, steps
from netsmith.report.rendering import NARROW, WIDE, render
from netsmith.report.results import CandidateRecord, Results, read_kind, read_results
from netsmith.report.scatter import draw_scatter, scatter_data
from netsmith.report.tips import Tips
from netsmith.report.verdict import chosen_resources, limits_of, network_accuracy, resources, verdict, within

HEAT = 700.0  # beside the heatmap stand its scale and the values under the pointer
CANDIDATE_ROWS = 150
_ACCURACIES = (
    ("stitched_validation", "stitched, validation"),
    ("finetuned_validation", "tuned, validation"),
    ("finetuned_test", "tuned, test"),
)


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
    details = results.details
    seconds, total = steps(details.seconds or results.summary.seconds)
    return render(
        "report.html.j2",
        head=head,
        images=results.images,
        summary=results.summary,
        details=details,
        values=chosen_resources(results),
        colours=colours,
        used=used,
        pieces=pieces(results, colours),
        sets=set_views(results),
        candidates=_candidates(results),
        zoo=_zoo(results, colours),
        seconds=seconds,
        total=total,
        config=results.config,
        provenance=provenance(
            results.folder,
            versions=details.versions,
            machine=details.machine,
            extra=details.extra,
            config=results.config,
            weights=[(n.name, n.extra.get("sha256")) for n in details.networks],
            manifest=results.artifact,
        ),
        fill=fill,
        families=families_of(results.folder),
        tips=tips.texts,
        **drawings,
    )


def write_report(folder: Path) -> Path:
    """Reads `summary.json` and `details.json` of `folder` (and `config.yaml`, `artifact/manifest.json` if there) and
    writes `report.html` beside them, all or nothing. Returns its path.

    The folder is of `netsmith reassemble` or of `netsmith morph`: `kind` in summary.json says which.

    Raises ArtifactError when a file is missing or malformed, OutputError when the page cannot be written.
    """
    page = morph_html(read_morph(folder)) if read_kind(folder) == "morph" else report_html(read_results(folder))
    return write_bytes(folder / "report.html", page.encode("utf-8"))
