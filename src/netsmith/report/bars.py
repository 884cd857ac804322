"""The partition: one row a network, one cell a unit, blocks coloured by their equivalence set."""

from __future__ import annotations

from dataclasses import dataclass

from netsmith.report import formats
from netsmith.report.colour import ink, ramp
from netsmith.report.labels import shorten, text_width
from netsmith.report.results import NetworkRecord, PartitionRecord, Results
from netsmith.report.tips import Tips


@dataclass(frozen=True)
class SetView:
    """An equivalence set with its letter and colours."""

    index: int
    letter: str
    fill: str
    ink: str
    medoid: str
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class BlockBar:
    """A block at its place; `seams` is the path of the borders between its units."""

    name: str
    x: float
    width: float
    fill: str
    ink: str
    text: str
    medoid: bool
    chosen: bool
    seams: str
    cells: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class Row:
    """A network of the zoo."""

    name: str
    text: str
    y: float
    label_x: float
    label_y: float
    blocks: tuple[BlockBar, ...]


@dataclass(frozen=True)
class Bars:
    """A drawing, ready for the template."""

    width: float
    height: float
    bar: float
    rows: tuple[Row, ...]
    summary: str


def letter(index: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(65 + rest) + text
    return text


def _depths(partition: PartitionRecord, lengths: dict[str, int]) -> dict[int, float]:
    """Mean relative depth of each set's blocks: sets have an order, and their colours follow it."""
    places: dict[int, list[float]] = {}
    for name, blocks in partition.blocks.items():
        for start, stop in blocks:
            index = partition.assignment.get(f"{name}[{start}:{stop}]")
            if index is not None:
                places.setdefault(index, []).append((start + stop) / 2 / max(lengths[name], 1))
    return {index: sum(p) / len(p) for index, p in places.items()}


def set_views(results: Results) -> tuple[SetView, ...]:
    """The equivalence sets, lettered and coloured from shallow to deep; `index` is their number in details.json."""
    partition = results.details.partition
    if partition is None:
        return ()
    depths = _depths(partition, {n.name: len(n.units) for n in results.details.networks})
    members: dict[int, list[str]] = {}
    for block, index in partition.assignment.items():
        members.setdefault(index, []).append(block)
    indices = {*range(len(partition.sets)), *members}
    order = sorted(indices, key=lambda i: (depths.get(i, 2.0), i))
    views = []
    for place, (i, fill) in enumerate(zip(order, ramp(len(order)), strict=True)):
        given = partition.sets[i] if i < len(partition.sets) else None
        blocks = given.blocks if given and given.blocks else tuple(members.get(i, ()))
        views.append(SetView(i, letter(place), fill, ink(fill), given.medoid if given else "", blocks))
    return tuple(views)


def _block_bar(
    network: NetworkRecord,
    span: tuple[int, int],
    place: tuple[float, float],
    view: SetView | None,
    chosen: bool,
    tips: Tips,
) -> BlockBar:
    """`place` is where unit 0 begins and how wide a unit is."""
    start, stop = span
    origin, cell = place
    name = f"{network.name}[{start}:{stop}]"
    medoid = view is not None and view.medoid == name
    x, width = origin + start * cell, (stop - start) * cell
    group = f"set {view.letter}" if view else "in no set"
    about = f"{name} · {group}" + (", its medoid" if medoid else "") + (" · in the new network" if chosen else "")
    cells = []
    for i in range(start, stop):
        unit = network.units[i]
        shapes = f"{formats.shape(unit.in_shape)} → {formats.shape(unit.out_shape)}"
        size = f"{formats.count(unit.params)} params · {formats.count(unit.macs)} MACs"
        cells.append((origin + i * cell, cell, tips.add(about, f"unit {i}: {unit.name}", shapes, size)))
    text = "" if view is None else view.letter
    if medoid:
        text += " ★"
    fits = text_width(text, 11.0) + 3 < width
    return BlockBar(
        name=name,
        x=x,
        width=width,
        fill=view.fill if view else "none",
        ink=view.ink if view else "currentColor",
        text=text if fits else (text[:1] if text_width(text[:1], 11.0) < width else ""),
        medoid=medoid,
        chosen=chosen,
        seams="".join(f"M{formats.rounded(origin + i * cell)},0v1" for i in range(start + 1, stop)),
        cells=tuple(cells),
    )


def draw_bars(results: Results, tips: Tips, width: float, *, narrow: bool = False) -> Bars | None:
    """The drawing in `width` user units; with `narrow`, names stand above their bars."""
    partition = results.details.partition
    networks = [n for n in results.details.networks if partition and n.name in partition.blocks and n.units]
    if partition is None or not networks:
        return None
    views = {v.index: v for v in set_views(results)}
    used = set(results.summary.blocks)
    names = [f"{n.name} · {formats.plural(len(n.units), 'unit')}" for n in networks]
    origin = 2.0 if narrow else min(230.0, max(text_width(t, 12.0) for t in names) + 14)
    many = len(networks) > 12
    bar = 16.0 if many or narrow else 24.0
    pitch = bar + (25.0 if narrow else 7.0 if many else 12.0)
    cell = (width - origin - 4) / max(len(n.units) for n in networks)
    rows = []
    for i, (network, name) in enumerate(zip(networks, names, strict=True)):
        y = 4 + i * pitch + (14 if narrow else 0)
        blocks = tuple(
            _block_bar(
                network,
                span,
                (origin, cell),
                views.get(partition.assignment.get(f"{network.name}[{span[0]}:{span[1]}]", -1)),
                f"{network.name}[{span[0]}:{span[1]}]" in used,
                tips,
            )
            for span in partition.blocks[network.name]
        )
        label_y = y - 5 if narrow else y + bar / 2 + 4
        text = shorten(name, width - 4 if narrow else origin - 12, 12.0)
        rows.append(Row(network.name, text, y, origin if narrow else origin - 10, label_y, blocks))
    summary = (
        f"{formats.plural(len(networks), 'network')} cut into {partition.k} blocks each, in "
        f"{formats.plural(len(views), 'equivalence set')}. The table lists every set with its blocks."
    )
    return Bars(width, rows[-1].y + bar + 6, bar, tuple(rows), summary)
