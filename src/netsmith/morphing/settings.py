"""Settings of morphing, and names that a config may give. Without what they stand for."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from netsmith import limits

GENERATORS = ("nested", "grid", "inr")
SOLVERS = ("auto", "3opt", "2opt", "exact", "greedy", "random", "fast-tsp")

Draw = Literal["full", "low", "random", "mixed", "keyframe", "coarse"]


class FitSettings(BaseModel):
    """What a step draws, and what its loss is made of; how weights then change is in `TrainSettings`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
