"""Settings of morphing: the sections of its config. Without what they stand for."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from netsmith import limits
from netsmith.records.section import Section
from netsmith.training.settings import TrainSettings

Kind = Literal["nested", "grid", "inr"]
Order = Literal["auto", "importance", "smooth", "none"]
Solver = Literal["auto", "exact", "fast-tsp", "2opt", "greedy", "random"]
SOLVERS: tuple[str, ...] = get_args(Solver)
Norms = Literal["fold", "keep"]
Range = tuple[float, float] | tuple[int, int]
"""Lowest and highest width: ratios (floats) or channel counts (integers)."""

Draw = Literal["full", "low", "random", "mixed", "keyframe", "coarse"]


def checked_range(low: Any, high: Any) -> Range:
    """Return a range as channel counts, where both ends are whole numbers, or else as ratios. Raises ValueError."""
    for number in (low, high):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"expected ratios (0.25) or channel counts (16), got {number!r}")
        if number <= 0:
            raise ValueError(f"a width must be above 0, got {number}")
        if number > limits.WIDTH:
            raise ValueError(f"a width is at most {limits.WIDTH}, got {str(number)[:40]}")
    if low > high:
        raise ValueError(f"the range is empty: {low} is above {high}")
    # [1, 2] are channel counts; one float makes both ratios
    if isinstance(low, int) and isinstance(high, int):
        return low, high
    if high > limits.RATIO:
        raise ValueError(
            f"{low} to {high} are ratios, as not both are whole numbers, and go up to {limits.RATIO}; for channel "
            f"counts give two whole numbers, such as [16, 64]"
        )
    return float(low), float(high)


class SpaceSettings(Section):
    """What varies."""

    blocks: str | tuple[str, ...] = Field(
        default="all", description="all inner widths, last_block, or names of blocks or width groups"
    )
    widths: Range = Field(
        default=(0.25, 1.0),
        description="lowest and highest fitted width: ratios (0.25, 1.0) or channel counts (16, 64)",
    )
    streams: bool = Field(default=False, description="let residual streams vary too, where that is proven")

    @field_validator("widths", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError(f"expected two numbers, lowest and highest, such as [0.25, 1.0]; got {value!r}")
        return checked_range(*value)


class OrderSettings(Section):
    """In which order the channels of each group come; a bare text is `by`."""

    by: Order = Field(default="auto", description="importance for nested and grid, smooth for inr, or as they are")
    solver: Solver = Field(default="auto", description="of the shortest path of a smooth order")
    images: int = Field(
        default=2048, ge=64, le=limits.IMAGES, description="training images by which importance is measured"
    )

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"by": value} if isinstance(value, str) else value


class GeneratorSettings(Section):
    """What gives the weights; a bare text is the kind."""

    kind: Kind = Field(default="grid", description="grid, nested or inr")
    settings: dict[str, Any] = Field(
        default={}, description="of the kind: keyframes and coarse for grid; layers, hidden, frequencies ... for inr"
    )

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class FitSettings(Section):
    """What a step draws, and what its loss is made of; how weights then change is in `TrainSettings`.

    Examples:
        >>> netsmith.FitSettings(per_step=2, distillation=0.7).temperature
        2.0
    """

    draws: tuple[Draw, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="widths drawn in turn: full, low (end of the range), random (one ratio), mixed (a ratio for each "
        "group), keyframe (the grid's, below 1), coarse (the grid's coarse set alone, from the low end to half as much "
        "again); by default what suits the kind",
    )
    per_step: int = Field(default=1, ge=1, le=1000, description="how many of them make one step")
    distillation: float = Field(default=0.5, ge=0, le=1, description="share of the base network's outputs in the loss")
    temperature: float = Field(default=2.0, gt=0, description="that softens them")
    reconstruction: float = Field(
        default=0.0, ge=0, description="weight of the distance to the base's weights at full width"
    )
    norm: float = Field(default=0.0, ge=0, description="weight of the mean square of what is generated")
    noise: float = Field(
        default=0.0, ge=0, description="coordinate noise in cells, on the outputs' and inputs' positions only"
    )
    views: int = Field(
        default=8,
        ge=1,
        le=limits.COUNT,
        description="augmented views of the training images; what the base makes is kept",
    )
    cache_mb: int = Field(
        default=2048,
        ge=0,
        le=limits.INTEGER >> 20,
        description="memory for features before the first generated tensor, all views",
    )
    apart: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="share of the epochs in which a grid's keyframes are trained first, each by itself and with its "
        "batch norms; what is left, one epoch at least, fits the coarse set",
    )
    blockwise: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the steps in which block after block joins; 0 for all from the start",
    )

    @property
    def coarse_alone(self) -> bool:
        """Whether nothing but a grid's coarse set is drawn."""
        return set(self.draws or ()) == {"coarse"}


class MorphSettings(Section):
    """All settings of a morphing."""

    space: SpaceSettings = SpaceSettings()
    norms: Norms = Field(default="fold", description="fold batch norms into what is before them, or keep them")
    order: OrderSettings = OrderSettings()
    generator: GeneratorSettings = GeneratorSettings()
    fitting: FitSettings = FitSettings()
    training: TrainSettings | None = Field(default=None, description="null leaves the generator as it starts")
    ratios: tuple[float, ...] = Field(
        default=(1.0, 0.75, 0.5, 0.25), min_length=1, max_length=1000, description="at which the result is measured"
    )
    latency: bool = Field(default=False, description="measure milliseconds an image at each ratio, too")
    seed: int = Field(default=0, ge=0, le=limits.INTEGER)

    @field_validator("ratios")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0:
            raise ValueError(f"ratios must be above 0, got {list(value)}")
        if max(value) > limits.RATIO:
            raise ValueError(f"ratios go up to {limits.RATIO}, got {list(value)}")
        return tuple(dict.fromkeys(value))
