"""The chosen network, piece by piece in the order in which data flows, each with the network it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netsmith.report import formats
from netsmith.report.bars import set_views
from netsmith.report.colour import ink
from netsmith.report.results import PartRecord, Results

_NEW = "#7b8491"  # what was made for this network and comes from none of the zoo


@dataclass(frozen=True)
class Piece:
    """One piece; `share` is its part of all params and MACs, 0..1."""

    kind: str
    title: str
    origin: str
    fill: str
    ink: str
    set_letter: str
    shape_in: str
    shape_out: str
    layout_in: str
    layout_out: str
    params: float | None
    macs: float | None
    params_share: float
    macs_share: float
    units: tuple[str, ...]

    @property
    def reshapes(self) -> bool:
        """Whether the piece turns one layout into another."""
        return bool(self.layout_in and self.layout_out and self.layout_in != self.layout_out)


def layout_text(layout: Any) -> str:
    """A layout as a word: of a name, or of a record with a kind."""
    if isinstance(layout, Mapping):
        layout = layout.get("kind")
    return "" if layout is None else str(layout)


def _unit_text(unit: Any) -> str:
    return str(unit.get("name", unit)) if isinstance(unit, Mapping) else str(unit)


def _title(part: PartRecord, number: int) -> str:
    if part.kind == "block":
        return part.name or f"block {number}"
    named = {"stem": "Stem", "head": "Head", "adapter": "Adapter"}[part.kind]
    more = part.name if part.name.lower() not in ("", part.kind) else ""
    return f"{named} · {more}" if more else named


def _origin(part: PartRecord) -> str:
    if part.kind == "block":
        return ""  # its title begins with the network's name
    if part.network:
        return part.network
    return "fitted for this network" if part.kind in ("adapter", "head") else ""


def pieces(results: Results, colours: Mapping[str, str]) -> tuple[Piece, ...]:
    """The pieces of the chosen network; empty when none is recorded."""
    chosen = results.details.chosen
    if chosen is None or not chosen.parts:
        return ()
    params = sum(p.params or 0 for p in chosen.parts) or 1
    macs = sum(p.macs or 0 for p in chosen.parts) or 1
    partition = results.details.partition
    letters = {v.index: v.letter for v in set_views(results)}
    found = []
    blocks = 0
    for part in chosen.parts:
        blocks += part.kind == "block"
        fill = colours.get(part.network or "", _NEW)
        group = partition.assignment.get(part.name) if partition and part.kind == "block" else None
        found.append(
            Piece(
                kind=part.kind,
                title=_title(part, blocks),
                origin=_origin(part),
                fill=fill,
                ink=ink(fill),
                set_letter=letters.get(group, "") if group is not None else "",
                shape_in=formats.shape(part.in_shape),
                shape_out=formats.shape(part.out_shape),
                layout_in=layout_text(part.layout_in),
                layout_out=layout_text(part.layout_out),
                params=part.params,
                macs=part.macs,
                params_share=(part.params or 0) / params,
                macs_share=(part.macs or 0) / macs,
                units=tuple(_unit_text(u) for u in part.units),
            )
        )
    return tuple(found)
