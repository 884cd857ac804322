"""What `netsmith reassemble` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from netsmith.config.reading import load_config
from netsmith.config.sections import DataSection, Machine
from netsmith.errors import ConfigError
from netsmith.files.document import LOOK_UP
from netsmith.files.paths import as_path
from netsmith.networks.entries import ZooEntry, check_names, load_zoo_file
from netsmith.reassembly.settings import ReassemblySettings
from netsmith.training.settings import TrainSettings


class FinetuneSettings(TrainSettings):
    """`TrainSettings` with the defaults of fine-tuning: a gentler rate, one cycle of it, and bounded gradients."""

    lr: float = Field(default=0.01, gt=0, description="highest learning rate")
    schedule: Literal["cosine", "onecycle", "constant"] = Field(
        default="onecycle", description="shape of the learning rate"
    )
    augment: bool = Field(default=True, description="shift images at random, mirror them where that keeps the class")
    # adapters fitted in closed form can have large weights, and the first steps without a bound destroy them
    clip_grad: float | None = Field(default=1.0, gt=0, description="largest norm of the gradient")


def _read_zoo(value: Any, info: Any) -> Any:
    if not isinstance(value, str):
        return value
    context = info.context or {}
    try:
        path = context.get("base", Path()) / as_path(value, ConfigError)
        return load_zoo_file(path, look_up=context.get(LOOK_UP, True))
    except ConfigError as error:
        raise ValueError(str(error)) from error


Zoo = Annotated[tuple[ZooEntry, ...], BeforeValidator(_read_zoo)]


class ReassembleConfig(ReassemblySettings, Machine):
    """What `netsmith reassemble` reads. `zoo` is a list of sources or sections, or the path of a zoo file."""

    zoo: Zoo
    pretrained: bool = Field(default=True, description="fetch the libraries' weights; otherwise they are random")
    data: DataSection
    finetune: FinetuneSettings | None = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=FinetuneSettings.model_validate({}), description="null leaves the network as it is stitched"
    )

    @field_validator("zoo")
    @classmethod
    def _two_of_different_names(cls, value: tuple[ZooEntry, ...]) -> tuple[ZooEntry, ...]:
        if len(value) < 2:
            count = "no network" if not value else "one network"
            raise ValueError(f"the zoo has {count}, and reassembly needs two at least: add another source")
        check_names(value)
        return value


def load_reassemble_config(source: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> ReassembleConfig:
    """`load_config` for `netsmith reassemble`."""
    return load_config(source, ReassembleConfig, overrides)
