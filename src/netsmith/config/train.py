"""What `netsmith train` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from netsmith.config.reading import load_config
from netsmith.config.sections import DataSection, Machine
from netsmith.networks.entries import ZooEntry
from netsmith.training.settings import TrainSettings


class TrainConfig(Machine):
    """What `netsmith train` reads. `network` is a source, or a section as in a zoo file."""

    network: ZooEntry
    pretrained: bool = Field(default=False, description="whether a library's weights are fetched to start from")
    data: DataSection
    task: Literal["classification", "segmentation", "generation"] = Field(
        default="classification", description="what the network is trained for"
    )
    training: TrainSettings = Field(default=TrainSettings.model_validate({}))

    @model_validator(mode="after")
    def _labels_that_can_be_softened(self) -> TrainConfig:
        training = self.training
        if self.task != "classification" and (training.mixup or training.cutmix):
            raise ValueError(f"training.mixup and training.cutmix mix labels of images: leave them 0 for {self.task}")
        if self.task == "generation" and training.label_smoothing:
            raise ValueError("training.label_smoothing means nothing for generation: leave it 0")
        return self


def load_train_config(source: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainConfig:
    """`load_config` for `netsmith train`."""
    return load_config(source, TrainConfig, overrides)
