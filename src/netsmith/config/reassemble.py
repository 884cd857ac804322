"""What `netsmith reassemble` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from netsmith import limits
from netsmith.config.reading import load_config
from netsmith.config.sections import DataSection, Machine, Section, one_of
from netsmith.errors import ConfigError
from netsmith.files.document import LOOK_UP
from netsmith.files.paths import as_path
from netsmith.networks.entries import ZooEntry, check_names, load_zoo_file
from netsmith.reassembly.names import METRICS, SCORES, STYLES, HeadMethod
from netsmith.search.budget import Budget
from netsmith.training.settings import TrainSettings


class ProbeSection(Section):
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


class SimilaritySection(Section):
    """How two representations are compared."""

    metric: str = "cka"
    biased: bool = Field(default=False, description="the papers' CKA instead of the unbiased one")

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        return one_of(value, METRICS)


class PartitionSection(Section):
    """How the zoo is cut into blocks."""

    k: int = Field(default=4, ge=2, le=limits.BLOCKS, description="blocks a network, and equivalence sets")
    eps: float = Field(
        default=0.2, ge=0, le=limits.BLOCKS, description="a block has at most (1 + eps) / k of its network"
    )
    size: Literal["units", "params", "macs"] = Field(default="units", description="what blocks are measured by")
    restarts: int = Field(default=200, ge=1, le=limits.COUNT)


class BudgetSection(Budget):
    """Bounds on the network; see `netsmith.Budget`."""

    latency_batch: int = Field(
        default=1, ge=1, le=limits.BATCH, description="images at once when latency and memory are measured"
    )


class SearchSection(Section):
    """How candidates are found."""

    candidates: int = Field(
        default=20, ge=1, le=limits.CANDIDATES, description="how many of the cheapest assemblies are built and scored"
    )
    distinct_sets: bool = Field(default=True, description="at most one block of each equivalence set")
    mix: bool = Field(default=True, description="blocks of at least two networks")


class StitchSection(Section):
    """How blocks are joined."""

    style: str = Field(default="auto", description="of the adapters")
    init: Literal["lstsq", "random"] = Field(default="lstsq", description="fitted in closed form, or drawn at random")
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


class ScoreSection(Section):
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


class ReassembleConfig(Machine):
    """What `netsmith reassemble` reads. `zoo` is a list of sources or sections, or the path of a zoo file."""

    zoo: Zoo
    pretrained: bool = Field(default=True, description="fetch the libraries' weights; otherwise they are random")
    data: DataSection
    probe: ProbeSection = Field(default_factory=ProbeSection)
    similarity: SimilaritySection = Field(default_factory=SimilaritySection)
    partition: PartitionSection = Field(default_factory=PartitionSection)
    budget: BudgetSection = Field(default_factory=BudgetSection)
    search: SearchSection = Field(default_factory=SearchSection)
    stitch: StitchSection = Field(default_factory=StitchSection)
    score: ScoreSection = Field(default_factory=ScoreSection)
    finetune: FinetuneSettings | None = Field(default=FinetuneSettings.model_validate({}))
    trainable: Literal["all", "adapters"] = Field(default="all", description="what fine-tuning changes")

    @field_validator("zoo")
    @classmethod
    def _two_of_different_names(cls, value: tuple[ZooEntry, ...]) -> tuple[ZooEntry, ...]:
        if len(value) < 2:
            count = "no network" if not value else "one network"
            raise ValueError(f"the zoo has {count}, and reassembly needs two at least: add another source")
        check_names(value)
        return value

    @model_validator(mode="after")
    def _enough_candidates(self) -> ReassembleConfig:
        if self.score.finalists > self.search.candidates:
            finalists, candidates = self.score.finalists, self.search.candidates
            raise ValueError(f"score.finalists ({finalists}) exceeds search.candidates ({candidates}): lower it")
        return self


def load_reassemble_config(source: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> ReassembleConfig:
    """`load_config` for `netsmith reassemble`."""
    return load_config(source, ReassembleConfig, overrides)
