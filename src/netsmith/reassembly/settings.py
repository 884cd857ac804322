"""Settings of a reassembly: the sections of its config. Without what they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from netsmith import limits
from netsmith.reassembly.names import METRICS, SCORES, STYLES, HeadMethod
from netsmith.records.section import Section, one_of
from netsmith.search.budget import Budget
from netsmith.training.settings import TrainSettings

Init = Literal["lstsq", "random"]
Size = Literal["units", "params", "macs"]
Trainable = Literal["all", "adapters"]


class ProbeSettings(Section):
    """The images on which networks are compared and adapters fitted; from the training part only."""

    images: int | None = Field(
        default=None,
        ge=8,
        le=limits.PROBE,
        description="for the similarity; default: 512, or all of fewer",
    )
    grid: int | None = Field(
        default=None, ge=1, le=1000, description="compare s x s means instead of one mean a channel"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_batch_size(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "batch_size" in value:
            raise ValueError(
                "batch_size has never changed anything, and is gone: images run in batches that suit the memory of a "
                "layer. Remove this key"
            )
        return value


class SimilaritySettings(Section):
    """How two representations are compared."""

    metric: str = "cka"
    biased: bool = Field(default=False, description="the papers' CKA instead of the unbiased one")

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        return one_of(value, METRICS)


class PartitionSettings(Section):
    """How the zoo is cut into blocks."""

    k: int = Field(default=4, ge=2, le=limits.BLOCKS, description="blocks a network, and equivalence sets")
    eps: float = Field(
        default=0.2, ge=0, le=limits.BLOCKS, description="a block has at most (1 + eps) / k of its network"
    )
    size: Size = Field(default="units", description="what blocks are measured by")
    restarts: int = Field(default=200, ge=1, le=limits.COUNT)


class BudgetSettings(Budget):
    """Bounds on the network; see `netsmith.Budget`."""

    latency_batch: int = Field(
        default=1, ge=1, le=limits.BATCH, description="images at once when latency and memory are measured"
    )


class SearchSettings(Section):
    """How candidates are found."""

    candidates: int = Field(
        default=20, ge=1, le=limits.CANDIDATES, description="how many of the cheapest assemblies are built and scored"
    )
    distinct_sets: bool = Field(default=True, description="at most one block of each equivalence set")
    mix: bool = Field(default=True, description="blocks of at least two networks")


class StitchSettings(Section):
    """How blocks are joined."""

    style: str = Field(default="auto", description="of the adapters")
    init: Init = Field(default="lstsq", description="fitted in closed form, or drawn at random")
    ridge: tuple[float, ...] | None = Field(default=None, description="ridges to try; default: a grid")
    head: HeadMethod = "auto"
    recalibrate: bool | None = Field(
        default=None, description="statistics of batch norms behind adapters anew; default: what held-out images prefer"
    )
    images: int = Field(default=2000, ge=16, le=limits.IMAGES, description="training images for the fit")

    @field_validator("style")
    @classmethod
    def _known(cls, value: str) -> str:
        return one_of(value, STYLES)

    @field_validator("ridge", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("ridge")
    @classmethod
    def _not_negative(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and (not value or min(value) < 0):
            raise ValueError(f"expected one or more numbers of at least 0, got {list(value)}")
        return value


class ScoreSettings(Section):
    """How candidates are ranked."""

    name: str = "stitch"
    also: tuple[str, ...] = Field(default=("params",), description="further scores to note")
    images: int = Field(default=2000, ge=8, le=limits.IMAGES, description="most validation images that a score sees")
    finalists: int = Field(default=1, ge=1, description="best candidates that are fine-tuned; validation chooses")

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        return one_of(value, sorted(SCORES))

    @field_validator("also")
    @classmethod
    def _all_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(one_of(v, sorted(SCORES)) for v in value)


class ReassemblySettings(Section):
    """All settings of a reassembly."""

    probe: ProbeSettings = ProbeSettings()
    similarity: SimilaritySettings = SimilaritySettings()
    partition: PartitionSettings = PartitionSettings()
    budget: BudgetSettings = BudgetSettings()
    search: SearchSettings = SearchSettings()
    stitch: StitchSettings = StitchSettings()
    score: ScoreSettings = ScoreSettings()
    finetune: TrainSettings | None = Field(default=None, description="null leaves the network as it is stitched")
    trainable: Trainable = Field(default="all", description="what fine-tuning changes")
    seed: int = Field(default=0, ge=0, le=limits.INTEGER)

    @model_validator(mode="after")
    def _enough_candidates(self) -> ReassemblySettings:
        if self.score.finalists > self.search.candidates:
            finalists, candidates = self.score.finalists, self.search.candidates
            raise ValueError(f"score.finalists ({finalists}) exceeds search.candidates ({candidates}): lower it")
        return self
