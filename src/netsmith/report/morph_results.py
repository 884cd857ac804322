"""The result files of `netsmith morph`, read and checked: only the base network has to be there, all else may come."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from netsmith.errors import ArtifactError
from netsmith.report.metric import Metric
from netsmith.report.results import Number, Record, matrix, parse, read_json, surroundings

MOST_PIXELS = 256  # rows or columns of a weight picture; the format promises 64
Picture = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+=*$", max_length=2**22)]  # PNG in base64


class Partial(Record):
    """A record in which null means the same as a field that is left out."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class Measured(Partial):
    """The task's primary metric on the two splits; a bare number in the file (summary.json) is of the test split."""

    validation: Number = None
    test: Number = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"test": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    def on(self, split: str) -> float | None:
        """The value on `split`."""
        return self.test if split == "test" else self.validation


class Sized(Partial):
    """Params and MACs of a whole network, and what it reaches."""

    params: Number = None
    macs: Number = None
    accuracy: Measured = Measured()
    metrics: dict[str, dict[str, Number]] = Field(default_factory=dict)
    reconstruction: Number = None
    pictures: dict[str, Picture] = Field(default_factory=dict)

    def error(self, split: str) -> float | None:
        """The mean squared error of reconstructed images; a bare number in the file (summary.json) is of test."""
        value = self.metrics.get(split, {}).get("reconstruction")
        return self.reconstruction if value is None and split == "test" else value

    def of_classes(self, split: str) -> dict[str, float | None]:
        """The IoU of each class by its name."""
        return {k[4:]: v for k, v in self.metrics.get(split, {}).items() if k.startswith("iou/")}


class BaseRecord(Sized):
    """The network that was morphed."""

    name: str = "the network"
    source: str = ""
    licence: str | None = None
    commercial: bool | None = None
    bytes: Number = None
    latency_ms: Number = None


class TaskRecord(Partial):
    """What is measured; the files have it under its own name, `primary`, these records as `accuracy`."""

    name: str = "classification"
    primary: str = "accuracy"
    higher_is_better: bool = True


class GroupRecord(Partial):
    """A width group that varies, with its fitted range."""

    name: str
    width: Number = None
    min: Number = None
    max: Number = None
    kind: str = ""


class RefusedRecord(Partial):
    """A width group that could not be proved."""

    name: str
    reason: str = ""


class SpaceRecord(Partial):
    """Which widths vary, and between which ratios they were fitted."""

    mode: str = ""
    groups: tuple[GroupRecord, ...] = ()
    refused: tuple[RefusedRecord, ...] = ()
    fitted: tuple[Number, Number] | None = None


class VariationRecord(Partial):
    """Total variation along the channels of one group."""

    name: str
    width: Number = None
    before: Number = None
    after: Number = None
    bound: Number = None


class PictureRecord(Partial):
    """A corner of a weight matrix before and after, rows of numbers."""

    tensor: str = ""
    before: Any = None
    after: Any = None


class SmoothRecord(Partial):
    """How the channels were put in order: by what (`order`), and by which `solver` where a path was sought."""

    order: str = "smooth"
    solver: str = ""
    deterministic: bool | None = None
    before: Number = None
    after: Number = None
    bound: Number = None
    groups: tuple[VariationRecord, ...] = ()
    picture: PictureRecord | None = None


class GeneratorRecord(Partial):
    """What the weights are read from."""

    kind: str = ""
    params: Number = None
    bytes: Number = None
    settings: dict[str, Any] = Field(default_factory=dict)


class StepRecord(Partial):
    """The fit at one step (or after one epoch); `metric` maps ratios (as text) to the primary metric on validation."""

    step: Number = None
    epoch: Number = None
    loss: Number = None
    lr: Number = None
    metric: dict[str, Number] = Field(default_factory=dict)


class FitRecord(Partial):
    """The training of the generator; `keyframe_epochs` of its epochs are those of `keyframes`, one after another.

    `undone` names those (or the coarse set) that stayed as they began, as training made them worse.
    """

    steps: Number = None
    epochs: Number = None
    best_epoch: Number = None
    seconds: Number = None
    keyframes: Number = None
    keyframe_epochs: Number = None
    undone: tuple[str, ...] = ()
    history: tuple[StepRecord, ...] = ()

    @property
    def unit(self) -> str:
        """What the history is counted in: ``epoch`` where every entry names one, else ``step``."""
        return "epoch" if self.history and all(h.epoch is not None for h in self.history) else "step"

    @property
    def timed(self) -> list[tuple[float | None, StepRecord]]:
        """The history, each entry with when it was taken, in `unit`."""
        by_epoch = self.unit == "epoch"
        return [(h.epoch if by_epoch else h.step, h) for h in self.history]


class WidthRecord(Sized):
    """The network read at one size; `fitted` is false outside the range that was trained."""

    ratio: Annotated[float, Field(ge=0, le=1000)] | None = None
    widths: dict[str, Number] = Field(default_factory=dict)
    fitted: bool = True
    latency_ms: Number = None


class RivalPoint(Sized):
    """A rival at one size."""

    ratio: Number = None


class RivalRecord(Partial):
    """Another way to the same sizes."""

    name: str
    note: str = ""
    steps: Number = None
    points: tuple[RivalPoint, ...] = ()


class ArtifactRecord(Partial):
    """The file that holds all sizes."""

    bytes: Number = None
    ratio_to_base: Number = None


def _as_accuracy(data: Any, name: object) -> Any:
    """Put the metric of base, widths and rivals under `accuracy`, where earlier versions wrote every metric."""
    if not isinstance(data, dict) or not isinstance(name, str) or name == "accuracy":
        return data

    def row(value: Any) -> Any:
        return {**value, "accuracy": value[name]} if isinstance(value, dict) and name in value else value

    def rows(value: Any) -> Any:
        return [row(item) for item in value] if isinstance(value, list) else value

    found = {**data, "base": row(data.get("base")), "widths": rows(data.get("widths"))}
    if isinstance(data.get("rivals"), list):
        found["rivals"] = [{**r, "points": rows(r.get("points"))} if isinstance(r, dict) else r for r in data["rivals"]]
    return {key: value for key, value in found.items() if key in data}


class MorphDetails(Partial):
    """`details.json` of a morph: everything that its report is drawn from."""

    @model_validator(mode="before")
    @classmethod
    def _own_names(cls, data: Any) -> Any:
        task = data.get("task") if isinstance(data, dict) else None
        return _as_accuracy(data, task.get("primary") if isinstance(task, dict) else None)

    schema_: int = Field(alias="schema")
    kind: Literal["morph"] = "morph"
    base: BaseRecord
    task: TaskRecord = TaskRecord()
    floor: Measured = Measured()
    images: Measured = Measured()
    space: SpaceRecord = SpaceRecord()
    smooth: SmoothRecord | None = None
    generator: GeneratorRecord = GeneratorRecord()
    fit: FitRecord = FitRecord()
    widths: tuple[WidthRecord, ...] = ()
    rivals: tuple[RivalRecord, ...] = ()
    artifact: ArtifactRecord = ArtifactRecord()
    seconds: dict[str, Number] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)


class MorphSummary(Partial):
    """`summary.json` of a morph."""

    @model_validator(mode="before")
    @classmethod
    def _own_names(cls, data: Any) -> Any:
        return _as_accuracy(data, data.get("metric") if isinstance(data, dict) else None)

    kind: Literal["morph"]
    schema_: int = Field(alias="schema")
    base: Sized = Sized()
    floor: Measured = Measured()
    metric: str | None = None
    widths: tuple[WidthRecord, ...] = ()
    artifact_bytes: Number = None
    seconds: dict[str, Number] = Field(default_factory=dict)


@dataclass(frozen=True)
class MorphResults:
    """What is in an output folder. `picture` is weights before and after, `(rows, columns)` float64 each."""

    folder: Path
    summary: MorphSummary
    details: MorphDetails
    picture: tuple[np.ndarray, np.ndarray] | None
    config: str | None
    manifest: dict[str, Any]

    @property
    def metric(self) -> Metric:
        """The task's primary metric."""
        task = self.details.task
        named = "primary" in task.model_fields_set or self.summary.metric is None
        counts = [n for n in (self.details.images.validation, self.details.images.test) if n]
        name = task.primary if named else str(self.summary.metric)
        return Metric(name, task.higher_is_better, min(counts, default=None))

    @property
    def widths(self) -> tuple[WidthRecord, ...]:
        """The sizes that were measured, widest first: of details.json, or else of summary.json."""
        found = self.details.widths or self.summary.widths
        return tuple(sorted(found, key=lambda w: (-(w.ratio or 0.0), -(w.params or 0.0))))

    @property
    def base_accuracy(self) -> Measured:
        """What the base network reaches: of details.json, or else of summary.json."""
        given = self.details.base.accuracy
        return self.summary.base.accuracy if given.test is None and given.validation is None else given

    def noise(self, split: str) -> float:
        """One standard error of the base's metric on `split`; 0 where it is no share or the images were not counted."""
        share, images = self.base_accuracy.on(split), self.details.images.on(split)
        if not self.metric.fraction or share is None or not images:
            return 0.0
        return math.sqrt(max(0.0, share * (1 - share)) / images)

    @property
    def floor(self) -> Measured:
        """What is reached with the morphed layers left out: of details.json, or else of summary.json."""
        given = self.details.floor
        return self.summary.floor if given.test is None and given.validation is None else given

    @property
    def fitted(self) -> tuple[float, float] | None:
        """The lowest and highest fitted ratio; None where the file does not say.

        Widths are whole numbers, so a group of few channels may be at the end of its range at more than one ratio:
        a measured width that was fitted belongs to the range.
        """
        span = self.details.space.fitted
        if span is None or span[0] is None or span[1] is None:
            return None
        inside = [w.ratio for w in self.widths if w.fitted and w.ratio is not None]
        return min([span[0], *inside]), max([span[1], *inside])

    @property
    def artifact_bytes(self) -> float | None:
        """The artifact's size."""
        given = self.details.artifact.bytes
        return self.summary.artifact_bytes if given is None else given

    @property
    def artifact_ratio(self) -> float | None:
        """The artifact's bytes over the base network's."""
        given, base = self.details.artifact.ratio_to_base, self.details.base.bytes
        if given is not None or self.artifact_bytes is None or not base:
            return given
        return self.artifact_bytes / base


def _picture(details: MorphDetails, path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    record = details.smooth.picture if details.smooth else None
    if record is None or not record.before or not record.after:
        return None
    where = f"{path}: smooth.picture"
    rows = len(record.before) if isinstance(record.before, list) else 0
    columns = len(record.before[0]) if rows and isinstance(record.before[0], list) else 0
    if not 0 < rows <= MOST_PIXELS or not 0 < columns <= MOST_PIXELS:
        raise ArtifactError(
            f"{where}.before: expected 1 to {MOST_PIXELS} rows of 1 to {MOST_PIXELS} numbers, came {rows} rows of "
            f"{columns}. Run the command that wrote it again; finished steps come from its cache."
        )
    return matrix(record.before, rows, columns, f"{where}.before"), matrix(
        record.after, rows, columns, f"{where}.after"
    )


def read_morph(folder: Path) -> MorphResults:
    """Reads and checks `summary.json` and `details.json` of `folder`, and `config.yaml` and the manifest if there.

    Raises ArtifactError with what was expected, what came and where.
    """
    summary_path, details_path = folder / "summary.json", folder / "details.json"
    summary = parse(MorphSummary, read_json(summary_path), str(summary_path))
    details = parse(MorphDetails, read_json(details_path), str(details_path))
    picture = _picture(details, details_path)
    config, manifest = surroundings(folder)
    return MorphResults(folder, summary, details, picture, config, manifest)
