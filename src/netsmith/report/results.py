"""The result files of an output folder, read and checked. Fields that are not known here are welcome and kept."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from netsmith.errors import ArtifactError

SCHEMA = 1


def _finite(value: Any) -> Any:
    """JSON of Python may hold NaN and Infinity: for a report they are numbers that are not there."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


_LARGEST = 1e18  # drawn beside others, a larger number leaves nothing to see of them
Number = Annotated[Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)] | None, BeforeValidator(_finite)]


class Record(BaseModel):
    """Base of all records here: lenient about more fields, strict about those it knows."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    @property
    def extra(self) -> dict[str, Any]:
        """Fields that were in the file and are not known here."""
        return dict(self.model_extra or {})


class Bound(Record):
    """Bounds on one resource; a bare number in the file is a maximum."""

    min: Number = None
    max: Number = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"max": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value


class Budget(Record):
    """The four resources that can be bounded."""

    params: Bound | None = None
    macs: Bound | None = None
    latency_ms: Bound | None = None
    memory_mb: Bound | None = None


class Size(Record):
    """Params and MACs of a piece."""

    params: Number = None
    macs: Number = None


class SplitAccuracy(Record):
    """Accuracy 0..1 on the two splits that are reported."""

    validation: Number = None
    test: Number = None


class UnitRecord(Size):
    """One unit of a network."""

    name: str
    layout: Any = None
    in_shape: tuple[int, ...] = ()
    out_shape: tuple[int, ...] = ()


class NetworkRecord(Size):
    """One member of the zoo."""

    name: str
    source: str = ""
    licence: str | None = None
    commercial: bool | None = None
    accuracy: SplitAccuracy | None = None
    units: tuple[UnitRecord, ...] = ()
    stem: Size | None = None
    head: Size | None = None


class SimilarityRecord(Record):
    """All cuts against all cuts; `offsets[i]` is the first row of network i."""

    metric: str
    networks: tuple[str, ...]
    offsets: tuple[int, ...]
    labels: tuple[str, ...]
    values: Any


class SetRecord(Record):
    """An equivalence set: its medoid and all its blocks."""

    medoid: str
    blocks: tuple[str, ...] = ()


class PartitionRecord(Record):
    """Every network cut into blocks, every block in one set."""

    k: int
    eps: Number = None
    size: str | None = None
    objective: Number = None
    trace: tuple[Number, ...] = ()
    sets: tuple[SetRecord, ...] = ()
    blocks: dict[str, tuple[tuple[int, int], ...]]
    assignment: dict[str, Annotated[int, Field(ge=0)]] = {}


class CandidateRecord(Size):
    """One recipe that the search returned."""

    rank: int
    blocks: tuple[str, ...]
    cost: Number = None
    scores: dict[str, Number] = {}
    latency_ms: Number = None
    accuracy: dict[str, Number] = {}
    chosen: bool = False


class SearchRecord(Record):
    """What the search can say about its own answer."""

    optimal: bool | None = None
    gap: Number = None
    explored: Number = None


class PartRecord(Size):
    """One piece of the chosen network, in the order in which data flows."""

    kind: Literal["stem", "block", "adapter", "head"]
    network: str | None = None
    name: str = ""
    in_shape: tuple[int, ...] | None = None
    out_shape: tuple[int, ...] | None = None
    layout_in: Any = None
    layout_out: Any = None
    units: tuple[Any, ...] = ()


class EpochRecord(Record):
    """One epoch of fine-tuning."""

    epoch: Number
    loss: Number = None
    accuracy: Number = None


class ChosenRecord(Size):
    """The network that was built."""

    parts: tuple[PartRecord, ...] = ()
    accuracy: dict[str, Any] = {}
    history: tuple[EpochRecord, ...] = ()


class BaselineRecord(Size):
    """Something to compare with that is neither a candidate nor in the zoo."""

    name: str
    accuracy: Number = None
    note: str | None = None


class Details(Record):
    """`details.json`: everything that a report is drawn from."""

    schema_: int = Field(alias="schema")
    networks: tuple[NetworkRecord, ...]
    similarity: SimilarityRecord | None = None
    partition: PartitionRecord | None = None
    budget: Budget | None = None
    candidates: tuple[CandidateRecord, ...] = ()
    search: SearchRecord | None = None
    chosen: ChosenRecord | None = None
    baselines: tuple[BaselineRecord, ...] = ()
    seconds: dict[str, Number] = {}
    machine: dict[str, Any] = {}
    versions: dict[str, Any] = {}


class SummaryNetwork(Size):
    """A member of the zoo as the summary gives it."""

    name: str
    accuracy: Number = None


class Summary(Record):
    """`summary.json` of a reassembly."""

    kind: Literal["reassembly"]
    schema_: int = Field(alias="schema")
    budget: Budget | None = None
    blocks: tuple[str, ...] = ()
    params: Number = None
    macs: Number = None
    accuracy: dict[str, Any] = {}
    zoo: tuple[SummaryNetwork, ...] = ()
    seconds: dict[str, Number] = {}


@dataclass(frozen=True)
class Results:
    """What is in an output folder. `similarity` is `(C, C)` float64, NaN where a value is missing."""

    folder: Path
    summary: Summary
    details: Details
    similarity: np.ndarray | None
    config: str | None
    artifact: dict[str, Any]

    @property
    def images(self) -> float | int | None:
        """How many images the summary's accuracies were measured on; None where it does not say."""
        value = self.summary.accuracy.get("images")
        return value if isinstance(value, (int, float)) and value >= 1 else None


RecordT = TypeVar("RecordT", bound=Record)


def read_json(path: Path) -> Any:
    """The JSON in `path`; ArtifactError when it is missing, unreadable or no JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(
            f"{path.parent} holds no {path.name}, so it is no finished output folder of `netsmith reassemble` or "
            "`netsmith morph`. Give the folder that --out named, or run the command to the end first."
        ) from None
    except json.JSONDecodeError as error:
        raise ArtifactError(
            f"{path} is no JSON (line {error.lineno}, column {error.colno}: {error.msg}): truncated or edited? "
            "Run the command that wrote it again; finished steps come from its cache."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from error


def parse(kind: type[RecordT], data: Any, where: str) -> RecordT:
    """`data` as a record of `kind`; ArtifactError names the file (`where`) and every fault with its place in it."""
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise ArtifactError(
            f"{where} has schema {schema}, and this netsmith reads up to {SCHEMA}: it was written by a newer one. "
            "Upgrade with `pip install --upgrade netsmith`."
        )
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = []
        for fault in error.errors()[:12]:
            place = (
                "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in fault["loc"]).lstrip(".") or "the whole"
            )
            came = "" if fault["type"] == "missing" else f", came {_brief(fault['input'])}"
            lines.append(f"  {place}: {fault['msg']}{came}")
        rest = error.error_count() - len(lines)
        more = f"\n  and {rest} more" if rest else ""
        raise ArtifactError(
            f"{where} does not have the fields a report is drawn from:\n" + "\n".join(lines) + more + "\n"
            "Run the command that wrote it again; finished steps come from its cache."
        ) from error


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def matrix(values: Any, rows: int, columns: int, where: str) -> np.ndarray:
    """`values` (nested lists, `null` for missing) as float64 `(rows, columns)`; ArtifactError on another shape."""
    try:
        table = np.asarray([[np.nan if v is None else v for v in row] for row in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{where}: expected {rows} rows of {columns} numbers, came {_brief(values)}.") from error
    if table.shape != (rows, columns):
        raise ArtifactError(f"{where}: expected {rows} rows of {columns} numbers, came the shape {table.shape}.")
    return table


def _check(details: Details, path: Path) -> np.ndarray | None:
    """The fields of `details` against each other; returns the similarity table."""
    names = [n.name for n in details.networks]
    if not names:
        raise ArtifactError(f"{path}: networks is empty, and a report needs the zoo.")
    if details.partition is not None:
        units = {n.name: len(n.units) for n in details.networks}
        for name, blocks in details.partition.blocks.items():
            if name not in units:
                raise ArtifactError(f"{path}: partition.blocks names the network '{name}', which is not in networks.")
            if any(not 0 <= start < stop <= units[name] for start, stop in blocks):
                raise ArtifactError(
                    f"{path}: partition.blocks of '{name}' must lie within its {units[name]} units, came "
                    f"{_brief([list(b) for b in blocks])}."
                )
    table = details.similarity
    if table is None:
        return None
    ends = (*table.offsets[1:], len(table.labels))
    rising = all(a < b for a, b in zip(table.offsets, ends, strict=True)) if table.offsets else False
    if len(table.offsets) != len(table.networks) or not rising or table.offsets[0] != 0:
        raise ArtifactError(
            f"{path}: similarity.offsets must hold the first row of each of the {len(table.networks)} networks, "
            f"rising from 0 and below {len(table.labels)}, came {_brief(list(table.offsets))}."
        )
    return matrix(table.values, len(table.labels), len(table.labels), f"{path}: similarity.values")


def read_kind(folder: Path) -> Literal["reassembly", "morph"]:
    """What `summary.json` of `folder` sums up. Raises ArtifactError when it is missing, no JSON, or of another kind."""
    path = folder / "summary.json"
    raw = read_json(path)
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if kind == "reassembly" or kind == "morph":
        return kind
    raise ArtifactError(f"{path}: a report is drawn for kind 'reassembly' or 'morph', came {kind!r}.")


def surroundings(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """`config.yaml` as text and the artifact's manifest, as far as they are there."""
    config = folder / "config.yaml"
    manifest = folder / "artifact" / "manifest.json"
    found = read_json(manifest) if manifest.is_file() else {}
    try:
        text = config.read_text("utf-8") if config.is_file() else None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{config} cannot be read: {error}.") from error
    return text, found if isinstance(found, dict) else {}


def read_results(folder: Path) -> Results:
    """Reads and checks `summary.json` and `details.json` of `folder`, and `config.yaml` and the manifest if there.

    Raises ArtifactError with what was expected, what came and where.
    """
    summary_path, details_path = folder / "summary.json", folder / "details.json"
    summary = parse(Summary, read_json(summary_path), str(summary_path))
    details = parse(Details, read_json(details_path), str(details_path))
    similarity = _check(details, details_path)
    config, artifact = surroundings(folder)
    return Results(folder, summary, details, similarity, config, artifact)
