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
from netsmith.morphing.settings import GENERATORS, RIVALS, SOLVERS, FitSettings
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


class RivalsSection(Section):
    """What else is measured at the same sizes, for the same steps; a bare text or list is `which`."""

    which: tuple[str, ...] = Field(
        default=(), description="l1, taylor (Torch-Pruning), nested (slimmable weights), alone (trained from scratch)"
    )
    steps: int | None = Field(
        default=None, ge=1, le=10**9, description="optimizer steps; default: as many as fitting takes"
    )
    each: bool = Field(
        default=False, description="l1 and taylor once more with these steps for each size, not shared among the sizes"
    )
    scratch: TrainSettings | None = Field(
        default=None, description="training settings of alone (epochs follow from the steps); default: `training`"
    )

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        if value is None:
            return {}
        return {"which": value} if isinstance(value, str | list | tuple) else value

    @field_validator("which", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("which")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one_of(name, tuple(RIVALS)) for name in value))


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
    rivals: RivalsSection = Field(
        default=RivalsSection.model_validate({}), description="what else is measured at the ratios below 1"
    )

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

    @model_validator(mode="after")
    def _rivals_can_be(self) -> MorphConfig:
        below = [r for r in self.ratios if r < 1]
        steps = self.rivals.steps
        if self.rivals.which and self.training is None:
            raise ValueError("rivals are trained as the generator is, and training is null: leave one of them out")
        if self.rivals.which and not below:
            raise ValueError(f"rivals are measured at ratios below 1, and ratios has none: {list(self.ratios)}")
        if self.rivals.which and steps is not None and steps < len(below):
            raise ValueError(f"rivals.steps: {steps} steps cannot be shared among {len(below)} ratios below 1")
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
