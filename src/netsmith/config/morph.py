"""What `netsmith morph` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from netsmith import limits
from netsmith.config.reading import load_config
from netsmith.config.sections import DataSection, Machine, Section, one_of
from netsmith.files.paths import as_path
from netsmith.morphing.settings import GENERATORS, SOLVERS, FitSettings
from netsmith.networks.entries import ZooEntry
from netsmith.training.settings import TrainSettings


class SpaceSection(Section):
    """What varies."""

    blocks: str | tuple[str, ...] = Field(
        default="all", description="all inner widths, last_block, or names of blocks or width groups"
    )
    widths: tuple[float, float] | tuple[int, int] = Field(
        default=(0.25, 1.0),
        description="lowest and highest fitted width: ratios (0.25, 1.0) or channel counts (16, 64)",
    )
    streams: bool = Field(default=False, description="let residual streams vary too, where that is proven")

    @field_validator("widths", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError(f"expected two numbers, lowest and highest, such as [0.25, 1.0]; got {value!r}")
        for number in value:
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise ValueError(f"expected ratios (0.25) or channel counts (16), got {number!r}")
            if number <= 0:
                raise ValueError(f"a width must be above 0, got {number}")
            if number > limits.WIDTH:
                raise ValueError(f"a width is at most {limits.WIDTH}, got {str(number)[:40]}")
        low, high = value
        if low > high:
            raise ValueError(f"the range is empty: {low} is above {high}")
        # [1, 2] are channel counts; one float makes both ratios
        counts = isinstance(low, int) and isinstance(high, int)
        if not counts and high > limits.RATIO:
            raise ValueError(
                f"{low} to {high} are ratios, as not both are whole numbers, and go up to {limits.RATIO}; for channel "
                f"counts give two whole numbers, such as [16, 64]"
            )
        return (low, high) if counts else (float(low), float(high))


class OrderSection(Section):
    """In which order the channels of each group come."""

    by: Literal["auto", "importance", "smooth", "none"] = Field(
        default="auto", description="importance for nested and grid, smooth for inr, or as they are"
    )
    solver: str = Field(default="auto", description="of the shortest path of a smooth order")
    images: int = Field(
        default=2048, ge=64, le=limits.IMAGES, description="training images by which importance is measured"
    )

    @field_validator("solver")
    @classmethod
    def _known(cls, value: str) -> str:
        return one_of(value, SOLVERS)


class GeneratorSection(Section):
    """What gives the weights; a bare text is the kind."""

    kind: str = Field(default="grid", description="grid, nested or inr")
    settings: dict[str, Any] = Field(
        default={}, description="of the kind: keyframes and coarse for grid; layers, hidden, frequencies ... for inr"
    )

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("kind")
    @classmethod
    def _known(cls, value: str) -> str:
        return one_of(value, GENERATORS)


class MorphTraining(TrainSettings):
    """`TrainSettings` with the defaults of fitting a generator."""

    lr: float = Field(default=0.03, gt=0, description="highest learning rate")
    weight_decay: float = Field(default=1e-4, ge=0, description="on what is added to the base's weights")
    augment: bool = Field(default=True, description="shift images at random, mirror them where that keeps the class")
    ema: float | None = Field(default=0.998, gt=0, lt=1, description="decay of the moving average of the weights")
    clip_grad: float | None = Field(default=2.0, gt=0, description="largest norm of the gradient")


class MorphConfig(Machine):
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
    space: SpaceSection = Field(default=SpaceSection.model_validate({}))
    norms: Literal["fold", "keep"] = Field(
        default="fold", description="fold batch norms into what is before them, or keep them"
    )
    order: OrderSection = Field(default=OrderSection.model_validate({}))
    generator: GeneratorSection = Field(default=GeneratorSection.model_validate({}))
    fitting: FitSettings = Field(default=FitSettings.model_validate({}))
    training: MorphTraining | None = Field(
        default=MorphTraining.model_validate({}), description="null leaves the generator as it starts"
    )
    ratios: tuple[float, ...] = Field(
        default=(1.0, 0.75, 0.5, 0.25), min_length=1, max_length=1000, description="at which the result is measured"
    )
    latency: bool = Field(default=False, description="measure milliseconds an image at each ratio, too")

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

    @field_validator("ratios")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0:
            raise ValueError(f"ratios must be above 0, got {list(value)}")
        if max(value) > limits.RATIO:
            raise ValueError(f"ratios go up to {limits.RATIO}, got {list(value)}")
        return tuple(dict.fromkeys(value))


def load_morph_config(
    source: Path | str | Mapping[str, Any], overrides: Sequence[str] = (), *, base: Path | None = None
) -> MorphConfig:
    """`load_config` for `netsmith morph`."""
    return load_config(source, MorphConfig, overrides, base=base)
