"""What a reassembly leaves behind as data: `summary.json`, a contract, and `details.json`, drawn by the report.

`Summary` is the contract of the command line: its names stay, more may come. `Details` holds everything the report
shows, down to the last candidate. Both are plain JSON: no tensor, no pickle, no live object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class Accuracy(_Record):
    """Accuracy of the chosen network, in 0..1, on `split`.

    `stitched` is that of the assembled network before any gradient step; `finetuned` is None without fine-tuning, and
    where it made the network worse and was `undone`. `images` is how many `split` has.
    """

    stitched: float
    finetuned: float | None
    split: Literal["test", "validation"]
    undone: bool = False
    images: int | None = None


class Member(_Record):
    """One network of the zoo: counts of the whole network; `accuracy` is None where its classes are not the data's."""

    name: str
    params: int
    macs: int
    accuracy: float | None


class Summary(_Record):
    """`summary.json` of a reassembly (schema 1).

    `params` and `macs` count the whole assembled network, adapters and head included; `seconds` has one entry a step.
    `precision` is the fine-tuning's (`no` is float32), None without. `licence` joins those of the networks that it is
    made of; `commercial` is False where one forbids commercial use.
    """

    kind: Literal["reassembly"] = "reassembly"
    schema_: int = SCHEMA
    budget: dict[str, Any]
    blocks: list[str]
    params: int
    macs: int
    accuracy: Accuracy
    zoo: list[Member]
    seconds: dict[str, float]
    licence: str | None = None
    commercial: bool | None = None
    precision: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; the field `schema_` is called `schema` there."""
        data = self.model_dump(mode="json")
        return {"kind": data.pop("kind"), "schema": data.pop("schema_"), **data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Summary:
        """The inverse of `to_dict`; raises pydantic's ValidationError where a field is missing or mistyped."""
        return cls(**{("schema_" if key == "schema" else key): value for key, value in data.items()})


class UnitRow(_Record):
    """One unit: `in_shape` and `out_shape` without the batch axis."""

    name: str
    layout: str
    in_shape: list[int]
    out_shape: list[int]
    params: int
    macs: int


class NetworkRow(_Record):
    """One network of the zoo with its units and, where they could be had, its accuracies in 0..1."""

    name: str
    source: str
    licence: str | None
    commercial: bool | None
    params: int
    macs: int
    accuracy: dict[str, float] | None
    units: list[UnitRow]
    stem: dict[str, int]
    head: dict[str, int]
    sha256: str | None = None


class Candidate(_Record):
    """One assembly that was scored: `cost` is additive, and found it; `scores` rank it without additivity."""

    rank: int
    blocks: list[str]
    params: int
    macs: int
    cost: float
    scores: dict[str, float]
    latency_ms: float | None = None
    memory_mb: float | None = None
    accuracy: dict[str, float] = {}
    chosen: bool = False


class Part(_Record):
    """One piece of the chosen network, in order: stem, block, adapter or head."""

    kind: Literal["stem", "block", "adapter", "head"]
    network: str | None
    name: str
    in_shape: list[int] | None
    out_shape: list[int] | None
    layout_in: str | None
    layout_out: str | None
    params: int
    macs: int
    units: list[str] = []


class Chosen(_Record):
    """The network that was chosen, part by part, with its training history."""

    parts: list[Part]
    params: int
    macs: int
    accuracy: dict[str, float | None]
    history: list[dict[str, Any]]
    latency_ms: float | None = None
    memory_mb: float | None = None


class Details(_Record):
    """`details.json`: everything the report shows. Sections are described in docs/formats.md."""

    schema_: int = SCHEMA
    networks: list[NetworkRow]
    similarity: dict[str, Any]
    partition: dict[str, Any]
    budget: dict[str, Any]
    candidates: list[Candidate]
    search: dict[str, Any]
    chosen: Chosen
    baselines: list[dict[str, Any]] = []
    seconds: dict[str, float]
    machine: dict[str, Any]
    versions: dict[str, str]
    data: dict[str, Any] = {}
    seed: int = 0
    hashes: dict[str, Any] = {}

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; the field `schema_` is called `schema` there."""
        data = self.model_dump(mode="json")
        return {"schema": data.pop("schema_"), **data}
