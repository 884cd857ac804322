"""What cards say of licences: that of the whole, and the sources it follows from, with their hashes."""

from __future__ import annotations

from collections.abc import Iterable

from netsmith.networks.network import Provenance


def licence_lines(licence: str | None, commercial: bool | None) -> list[str]:
    """The licence of a network made of others, and the warning where one of them forbids commercial use."""
    lines = [f"- licence: {licence or 'none, or not stated by the sources'}"]
    if commercial is False:
        lines.append("- **non-commercial**: a source forbids commercial use, and so the result must not be used so")
    return lines


def source_lines(sources: Iterable[Provenance]) -> list[str]:
    """One line for each network whose weights went into the result."""
    return [
        f"- `{s.source}`, sha256 `{s.sha256}`, licence {s.licence or 'not stated'}"
        + (" (**non-commercial**)" if s.commercial is False else "")
        + (f", {s.url}" if s.url else "")
        for s in sources
    ]
