"""What `netsmith morph` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from netsmith.config.reading import load_config
from netsmith.config.sections import DataSection, Machine
from netsmith.files.paths import as_path
from netsmith.morphing.settings import MorphSettings
from netsmith.networks.entries import ZooEntry
from netsmith.training.settings import TrainSettings


class MorphTraining(TrainSettings):
    """`TrainSettings` with the defaults of fitting a generator."""

    lr: float = Field(default=0.03, gt=0, description="highest learning rate")
    weight_decay: float = Field(default=1e-4, ge=0, description="on what is added to the base's weights")
    augment: bool = Field(default=True, description="shift images at random, mirror them where that keeps the class")
    ema: float | None = Field(default=0.998, gt=0, lt=1, description="decay of the moving average of the weights")
    clip_grad: float | None = Field(default=2.0, gt=0, description="largest norm of the gradient")


class MorphConfig(MorphSettings, Machine):
    """What `netsmith morph` reads. `network` is a source, or a section as in a zoo file."""

    network: ZooEntry
    pretrained: bool = Field(default=True, description="fetch the library's weights; otherwise they are random")
    weights: Path | None = Field(
        default=None, description="file of the base's weights; unlike one behind a #, it may be missing for --plan"
    )
    data: DataSection
    task: Literal["classification", "segmentation", "generation"] | None = Field(
        default=None, description="what the network is for; default: what its source says"
    )
    training: MorphTraining | None = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=MorphTraining.model_validate({}), description="null leaves the generator as it starts"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_rivals(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "rivals" in value:
            raise ValueError("rivals are measured by benchmarks/morph_rivals.py since 0.2.0: leave the key out")
        return value

    @field_validator("weights")
    @classmethod
    def _from_the_config(cls, value: Path | None, info: Any) -> Path | None:
        base = (info.context or {}).get("base")
        return value if value is None or base is None else base / as_path(value)

    @model_validator(mode="after")
    def _one_weights_file(self) -> MorphConfig:
        if self.weights is not None and "#" in self.network.source:
            raise ValueError("weights are given twice: behind the # of network.source, and in weights")
        return self


def load_morph_config(
    source: Path | str | Mapping[str, Any], overrides: Sequence[str] = (), *, base: Path | None = None
) -> MorphConfig:
    """`load_config` for `netsmith morph`."""
    return load_config(source, MorphConfig, overrides, base=base)
