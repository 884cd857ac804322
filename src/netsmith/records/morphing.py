"""What a morphing leaves behind as data: `summary.json`, a contract, and `details.json`, drawn by the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

SCHEMA = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; the field `schema_` is called `schema` there."""
        data = self.model_dump(mode="json")
        return {"kind": data.pop("kind"), "schema": data.pop("schema_"), **data}


class Base(BaseModel):
    """The base network: counts of the whole, and the task's metric on test, under its own name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str
    params: int
    macs: int


class Width(BaseModel):
    """The network at one ratio: counts of the whole, the metric on test, and whether such widths were fitted."""

    model_config = ConfigDict(frozen=True, extra="allow")

    ratio: float
    params: int
    macs: int
    fitted: bool


class Summary(_Record):
    """`summary.json` of a morphing (schema 1).

    `metric` is the name under which base, widths and rivals have what they reach, and what `floor` holds: `accuracy`
    and `miou` in 0..1, or `elbo`. `floor` is the network without what is generated; `rivals` what else was measured at
    those sizes; `artifact_bytes` the tensor files of the artifact; `seconds` has one entry a step.
    """

    kind: Literal["morph"] = "morph"
    schema_: int = SCHEMA
    base: Base
    floor: float
    metric: str
    widths: list[Width]
    rivals: list[dict[str, Any]] = []
    artifact_bytes: int
    seconds: dict[str, float]
    precision: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Summary:
        """The inverse of `to_dict`; raises pydantic's ValidationError where a field is missing or mistyped.

        Earlier versions wrote every metric under the name of `accuracy`.
        """
        plain = {("schema_" if key == "schema" else key): value for key, value in data.items()}
        return cls(**renamed(plain, "accuracy", str(plain.get("metric", "accuracy"))))

    @model_validator(mode="after")
    def _measured(self) -> Summary:
        for row in (self.base, *self.widths):
            if not isinstance((row.model_extra or {}).get(self.metric), int | float):
                raise ValueError(f"base and widths need a number under the name of the metric, '{self.metric}'")
        return self


class Details(_Record):
    """`details.json` of a morphing (schema 1): everything that the report shows. See docs/formats.md."""

    kind: Literal["morph"] = "morph"
    schema_: int = SCHEMA
    base: dict[str, Any]
    task: dict[str, Any]
    floor: dict[str, float] | None
    images: dict[str, int] = {}
    space: dict[str, Any]
    smooth: dict[str, Any] | None
    generator: dict[str, Any]
    fit: dict[str, Any] | None
    widths: list[dict[str, Any]]
    rivals: list[dict[str, Any]] = []  # of runs before 0.2
    artifact: dict[str, Any]
    seconds: dict[str, float]
    machine: dict[str, Any]
    versions: dict[str, str]
    hashes: dict[str, Any] = {}


def renamed(data: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """Return results whose base, widths and rivals have what they reach under `new` instead of `old`."""

    def row(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {(new if key == old and new not in value else key): item for key, item in value.items()}

    def rows(value: Any) -> Any:
        return [row(item) for item in value] if isinstance(value, list | tuple) else value

    found = dict(data)
    found |= {key: change(data[key]) for key, change in (("base", row), ("widths", rows)) if key in data}
    if isinstance(data.get("rivals"), list | tuple):
        found["rivals"] = [
            {**rival, "points": rows(rival.get("points"))} if isinstance(rival, Mapping) else rival
            for rival in data["rivals"]
        ]
    return found


def ratio_of(name: str) -> float | None:
    """The ratio in a metric's name (``accuracy@0.5``); None where there is none."""
    try:
        ratio = float(name.partition("@")[2])
    except ValueError:
        return None
    return ratio if 0 < ratio < math.inf else None


def by_ratio(metrics: Mapping[str, Any]) -> dict[float, float]:
    """What a manifest says of sizes (``{"accuracy@0.5": 0.88}``), by ratio; what is not of this form is left out."""
    found = {ratio_of(name): value for name, value in metrics.items()}
    return {
        ratio: float(value)
        for ratio, value in found.items()
        if ratio is not None and isinstance(value, int | float) and math.isfinite(value)
    }


def better_narrower(
    measured: Mapping[float, float], ratio: float, noise: Callable[[float], float] = lambda value: 0.0
) -> tuple[float, float, float] | None:
    """The best narrower size that was measured, where it is better than what is to be expected at `ratio`.

    Between keyframes a network may be worse than at the next keyframe below. More is better in every task's metric.

    Args:
        measured: the metric by ratio.
        ratio: a size. What is expected there is on the line between the measured sizes around it; at the ends, theirs.
        noise: of a value of the metric; what is better by no more is not told from it.

    Returns:
        The narrower ratio, its metric, and what is expected at `ratio`; None where nothing narrower is better.
    """
    ratios = sorted(measured)
    narrower = [r for r in ratios if r < ratio]
    if not narrower:
        return None
    best = max(narrower, key=lambda r: (measured[r], -r))
    value, expected = measured[best], float(np.interp(ratio, ratios, [measured[r] for r in ratios]))
    return (best, value, expected) if value - expected > noise(value) else None
