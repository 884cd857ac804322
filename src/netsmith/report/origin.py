"""From zoo to family: the reassembly that a morph's base network came from, and the morphs of a reassembly."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netsmith.errors import ArtifactError
from netsmith.report.morph_results import Partial
from netsmith.report.results import Number, parse, read_json

_REPORT = "report.html"
_ADDRESS = re.compile(r"[^:\\]+\.html")  # a path beside this page: no scheme, no drive


class ParentRecord(Partial):
    """A network of the zoo."""

    name: str
    params: Number = None
    macs: Number = None
    accuracy: Number = None


class ReachedRecord(Partial):
    """Accuracy before any training, after it, and on which split."""

    stitched: Number = None
    finetuned: Number = None
    undone: bool = False
    split: str = ""


class OriginRecord(Partial):
    """A reassembly as its `summary.json` sums it up, and in `report` the address of its page, seen from this one."""

    kind: str = "reassembly"
    blocks: tuple[str, ...] = ()
    params: Number = None
    macs: Number = None
    accuracy: ReachedRecord = ReachedRecord()
    zoo: tuple[ParentRecord, ...] = ()
    report: str = ""

    @property
    def used(self) -> list[str]:
        """The networks that its blocks are of, in the order in which data flows."""
        return list(dict.fromkeys(b.rpartition("[")[0] for b in self.blocks))

    @property
    def address(self) -> str:
        """`report` where it is a path, else nothing: a page must not lead elsewhere."""
        return self.report if _ADDRESS.fullmatch(self.report) else ""


@dataclass(frozen=True)
class Family:
    """A morph of this network: its folder's name, the address of its page, and its lowest and highest ratio."""

    name: str
    address: str
    span: tuple[float, float] | None


def _read(path: Path) -> Mapping[str, Any]:
    """The object in a file beside the results; empty where there is none, or one that cannot be read.

    What lies in another folder is welcome and never needed, so its faults are not this page's.
    """
    try:
        found = read_json(path)
    except ArtifactError:
        return {}
    return found if isinstance(found, dict) else {}


def _relative(page: Path, folder: Path) -> str:
    """The address of `page` as seen from `folder`; empty where there is no such page, or none can be given."""
    if not page.is_file():
        return ""
    try:
        return Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on another drive
        return ""


def origin_of(base: Mapping[str, Any], source: str, folder: Path) -> OriginRecord | None:
    """The reassembly that made the base network: of details.json (`base.origin`), else of the folder of its source.

    `source` is a morph's base as details.json has it; `netsmith reassemble` leaves the artifact in a folder with its
    `summary.json` beside it. None where the base did not come from a reassembly.

    Raises ArtifactError for a malformed `base.origin`.
    """
    given = base.get("origin")
    if given is not None:
        record = parse(OriginRecord, given, f"{folder / 'details.json'}: base.origin")
        return record if record.kind == "reassembly" else None
    artifact = folder / source.partition("#")[0]
    if not source or _read(artifact / "manifest.json").get("kind") != "reassembly":
        return None
    summary = _read(artifact.parent / "summary.json")
    if summary.get("kind") != "reassembly":
        return None
    try:
        record = parse(OriginRecord, dict(summary), str(artifact.parent))
    except ArtifactError:
        return None
    return record.model_copy(update={"report": _relative(artifact.parent / _REPORT, folder)})


def families_of(folder: Path) -> list[Family]:
    """The morphs of the network in `folder`/artifact whose folders lie in `folder`, as `netsmith demo` leaves them."""
    found = []
    for path in sorted(folder.glob("*/summary.json")):
        if _read(path).get("kind") != "morph":
            continue
        details = _read(path.parent / "details.json")
        base, space = details.get("base"), details.get("space")
        source = base.get("source") if isinstance(base, dict) else None
        if not isinstance(source, str) or (path.parent / source).resolve() != (folder / "artifact").resolve():
            continue
        span = space.get("fitted") if isinstance(space, dict) else None
        ends = (
            span
            if isinstance(span, list) and len(span) == 2 and all(isinstance(v, (int, float)) for v in span)
            else None
        )
        address = _relative(path.parent / _REPORT, folder)
        found.append(Family(path.parent.name, address, (ends[0], ends[1]) if ends else None))
    return [f for f in found if f.address]
