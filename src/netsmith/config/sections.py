"""Sections that several configs have: the base of all, data, randomness and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from netsmith import limits
from netsmith.data.names import FILE_KINDS, KINDS
from netsmith.errors import DataError, did_you_mean
from netsmith.files.paths import as_path
from netsmith.records.section import Section
from netsmith.training.devices import is_device_name
from netsmith.training.settings import DESCRIPTION, Precision, TrainSettings

Side = Annotated[int, Field(ge=4, le=limits.SIDE)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


def bare_source(value: Any) -> Any:
    """A bare text as the section whose source it is."""
    return {"source": value} if isinstance(value, str) else value


class DataSection(Section):
    """The images; a bare text is the source."""

    source: str = Field(
        description="digits, torchvision:NAME, folder:PATH, images:PATH, masks:PATH, parquet:PATH or hf:NAME"
    )
    size: Side | tuple[Side, Side] | None = Field(
        default=None, description="pixels that images are resized to: a side, or HEIGHTxWIDTH"
    )
    ignore: int | None = Field(
        default=None, ge=0, le=255, description="number of a class of masks that is left out of training and metrics"
    )
    validation_fraction: Fraction = Field(default=0.1, description="of the training part, if there is no other")
    seed: int = Field(default=0, ge=0, le=limits.INTEGER, description="of the split")

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return bare_source(value)

    @field_validator("size", mode="before")
    @classmethod
    def _two_sides(cls, value: Any) -> Any:
        parts = value.lower().split("x") if isinstance(value, str) else []
        return tuple(map(int, parts)) if len(parts) == 2 and all(part.isdigit() for part in parts) else value

    @field_validator("source")
    @classmethod
    def _known(cls, value: str, info: Any) -> str:
        kind = value.partition(":")[0]
        if kind not in KINDS:
            raise ValueError(f"unknown data source '{value}'. {did_you_mean(kind, KINDS)}")
        base = (info.context or {}).get("base")
        return value if base is None else anchored(value, base)


def anchored(source: str, base: Path) -> str:
    """A data source whose relative path, if it has one, starts from `base`."""
    kind, colon, path = source.partition(":")
    if not colon or kind not in FILE_KINDS or not path:
        return source
    return f"{kind}:{base / as_path(path, DataError)}"


class Machine(Section):
    """What every config has: randomness and the machine."""

    seed: int = Field(default=0, ge=0, le=limits.INTEGER)
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Precision = Field(default="auto", description=DESCRIPTION)

    @field_validator("device")
    @classmethod
    def _a_device(cls, value: str) -> str:
        if not is_device_name(value):
            raise ValueError(f"expected auto, cpu, cuda, cuda:N or mps, got '{value:.80}'")
        return value

    def filled(self, settings: TrainSettings, *names: str) -> TrainSettings:
        """Return settings of a training with the config's own values of these names where they leave them open."""
        own = {name: getattr(self, name) for name in names if name not in settings.model_fields_set}
        return settings.model_copy(update=own)
