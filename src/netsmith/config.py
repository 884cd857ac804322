"""Configuration: YAML to models, every fault of a file at once with its line, overrides, and back to YAML."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from netsmith.core.data import DATA_SOURCES
from netsmith.core.document import read_file, validate
from netsmith.core.overrides import override
from netsmith.core.profile import Budget
from netsmith.core.settings import TrainSettings
from netsmith.core.sources import parse_source
from netsmith.core.yaml_text import Document, read_yaml, write_yaml
from netsmith.core.zoo import ZooEntry, check_names, load_zoo_file
from netsmith.errors import ConfigError, NetsmithError, did_you_mean
from netsmith.reassembly.adapters import STYLES
from netsmith.reassembly.recipe import HeadMethod
from netsmith.reassembly.scores import score_names
from netsmith.reassembly.search import Solver
from netsmith.reassembly.similarity import metric_names

HEADER = "# netsmith: the resolved configuration of this run; it can be used as a config file as it is\n"

M = TypeVar("M", bound=BaseModel)
Fraction = Annotated[float, Field(gt=0, lt=1)]
_FILE_SOURCES = ("folder", "masks", "parquet")


class Section(BaseModel):
    """A part of a config: no key that is not known, and nothing changes once it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _bare_source(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


class DataSection(Section):
    """The images; a bare text is the source."""

    source: str = Field(description="digits, torchvision:NAME, folder:PATH, masks:PATH, parquet:PATH or hf:NAME")
    size: int | None = Field(default=None, ge=4, description="side in pixels that images are resized to")
    validation_fraction: Fraction = Field(default=0.1, description="of the training part, if there is no other")
    seed: int = Field(default=0, ge=0, description="of the split")

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return _bare_source(value)

    @field_validator("source")
    @classmethod
    def _known(cls, value: str, info: Any) -> str:
        kind = value.partition(":")[0]
        if kind not in DATA_SOURCES:
            raise ValueError(f"unknown data source '{value}'. {did_you_mean(kind, DATA_SOURCES)}")
        base = (info.context or {}).get("base")
        return value if base is None else _anchored(value, base)


def _anchored(source: str, base: Path) -> str:
    kind, colon, path = source.partition(":")
    if not colon or kind not in _FILE_SOURCES or not path:
        return source
    return f"{kind}:{base / Path(path).expanduser()}"


class ProbeSection(Section):
    """The images on which networks are compared and adapters fitted; from the training part only."""

    images: int = Field(default=512, ge=8, description="for the similarity")
    grid: int | None = Field(default=None, ge=1, description="compare s x s means instead of one mean a channel")
    batch_size: int = Field(default=128, ge=1)


class SimilaritySection(Section):
    """How two representations are compared."""

    metric: str = "cka"
    biased: bool = Field(default=False, description="the papers' CKA instead of the unbiased one")

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        return one_of(value, metric_names())


class PartitionSection(Section):
    """How the zoo is cut into blocks."""

    k: int = Field(default=4, ge=2, description="blocks a network, and equivalence sets")
    eps: float = Field(default=0.2, ge=0, description="a block has at most (1 + eps) / k of its network")
    size: Literal["units", "params", "macs"] = Field(default="units", description="what blocks are measured by")
    restarts: int = Field(default=200, ge=1)


class BudgetSection(Budget):
    """Bounds on the network; see `netsmith.core.profile.Budget`."""

    latency_batch: int = Field(default=1, ge=1, description="images at once when latency and memory are measured")


class SearchSection(Section):
    """How candidates are found."""

    candidates: int = Field(default=20, ge=1, description="how many of the cheapest assemblies are built and scored")
    distinct_sets: bool = Field(default=True, description="at most one block of each equivalence set")
    mix: bool = Field(default=True, description="blocks of at least two networks")
    solver: Solver = "exact"


class StitchSection(Section):
    """How blocks are joined."""

    style: str = Field(default="auto", description="of the adapters")
    init: Literal["lstsq", "random"] = Field(default="lstsq", description="fitted in closed form, or drawn at random")
    ridge: tuple[float, ...] | None = Field(default=None, description="ridges to try; default: a grid")
    head: HeadMethod = "auto"
    images: int = Field(default=2000, ge=16, description="training images for the fit")

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
    images: int = Field(default=2000, ge=8, description="most validation images that a score sees")
    finalists: int = Field(default=1, ge=1, description="best candidates that are fine-tuned; validation chooses")

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        return one_of(value, score_names())

    @field_validator("also")
    @classmethod
    def _all_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(one_of(v, score_names()) for v in value)


def one_of(value: str, allowed: Sequence[str]) -> str:
    """`value`, or a ValueError with what is allowed and the nearest name."""
    if value not in allowed:
        near = did_you_mean(value, allowed)
        hint = f" {near}" if near.startswith("Did you mean") else ""
        raise ValueError(f"expected one of {', '.join(allowed)}, got '{value}'.{hint}")
    return value


class FinetuneSettings(TrainSettings):
    """`TrainSettings` with the defaults of fine-tuning: a gentler rate, one cycle of it, and bounded gradients."""

    lr: float = Field(default=0.01, gt=0, description="highest learning rate")
    schedule: Literal["cosine", "onecycle", "constant"] = Field(
        default="onecycle", description="shape of the learning rate"
    )
    augment: bool = Field(default=True, description="shift images at random, mirror them where that keeps the class")
    # adapters fitted in closed form can have large weights, and the first steps without a bound destroy them
    clip_grad: float | None = Field(default=1.0, gt=0, description="largest norm of the gradient")


class Machine(Section):
    """What every config has: randomness and the machine."""

    seed: int = Field(default=0, ge=0)
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["no", "bf16", "fp16"] = Field(default="no", description="mixed precision; fp16 needs a GPU")

    @field_validator("device")
    @classmethod
    def _a_device(cls, value: str) -> str:
        try:
            if value != "auto":
                torch.device(value)
        except RuntimeError:
            raise ValueError(f"expected auto, cpu, cuda, cuda:N or mps, got '{value}'") from None
        return value


def _read_zoo(value: Any, info: Any) -> Any:
    if not isinstance(value, str):
        return value
    base = (info.context or {}).get("base", Path())
    try:
        return load_zoo_file(base / Path(value).expanduser())
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


# --- reading and writing ----------------------------------------------------------------------------------------------


def load_config(source: Path | str | Mapping[str, Any], model: type[M], overrides: Sequence[str] = ()) -> M:
    """Read a config.

    Args:
        source: the path of a YAML file, YAML text (anything with a line break or a colon and a space), or a mapping.
            Relative paths in a file start from its folder, those in texts, mappings and overrides from the working one.
        model: `ReassembleConfig`, `TrainConfig` or another pydantic model.
        overrides: `key.subkey=value` each, the value in YAML; later ones win.

    Raises:
        ConfigError: all faults at once, each with line, dotted key, what was expected and what came.
    """
    base = Path.cwd()
    if isinstance(source, Mapping):
        document, where = Document(copy.deepcopy(dict(source))), "the configuration"
    elif isinstance(source, str) and ("\n" in source or ": " in source):
        document, where = read_yaml(source), "the configuration"
    else:
        path = Path(source).expanduser()
        document, where, base = read_yaml(read_file(path)), str(path), path.resolve().parent
    override(document, overrides, _from_here)
    return validate(document, model, where, context={"base": base})


def load_reassemble_config(source: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> ReassembleConfig:
    """`load_config` for `netsmith reassemble`."""
    return load_config(source, ReassembleConfig, overrides)


def load_train_config(source: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainConfig:
    """`load_config` for `netsmith train`."""
    return load_config(source, TrainConfig, overrides)


def dump_config(config: BaseModel) -> str:
    """YAML that `load_config` reads back as an equal config."""
    return HEADER + write_yaml(config)


to_yaml = dump_config


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a raw config with `key.subkey=value` texts applied; values are YAML, numbers in keys index lists.

    A value that is in the way of a deeper key gives way to a section, a missing section is made. A bare text for a
    section that has a `source` (`data=digits`) changes that source and keeps the rest.

    Raises:
        ConfigError: an override is malformed, or indexes a list beyond its end.
    """
    document = Document(copy.deepcopy(dict(raw)))
    override(document, overrides, _from_here)
    if document.faults:
        lines = [str(f) for f in document.faults]
        raise ConfigError("\n".join(lines), lines)
    return document.value


def _from_here(keys: Sequence[str], value: Any) -> Any:
    """Relative paths given on the command line start from the working folder, whatever file they go into."""
    here = Path.cwd()
    if not isinstance(value, str):
        return value
    if list(keys) == ["zoo"]:
        return str(here / Path(value).expanduser())
    if keys[0] == "data" and keys[-1] in {"data", "source"}:
        return _anchored(value, here)
    if keys[0] in {"zoo", "network"}:
        try:
            return str(parse_source(value, here))
        except NetsmithError:
            return value  # no source, or a wrong one: checked where it arrives
    return value
