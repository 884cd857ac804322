"""The zoo: the networks at hand, as entries of a file, described without loading, and loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from netsmith import limits
from netsmith.core import artifact
from netsmith.core import trained as _trained  # noqa: F401  its loader must be there when an artifact is a source
from netsmith.core.document import load_document
from netsmith.core.libraries import check_source, commercial_use, facts, state_values
from netsmith.core.network import (
    Network,
    Preprocess,
    Provenance,
    builder_options,
    load_source,
    manifest_of,
    speakable,
    told,
)
from netsmith.core.sources import parse_source
from netsmith.core.weights import load_state, load_weights_file
from netsmith.errors import SourceError

__all__ = [
    "Network",
    "Preprocess",
    "Provenance",
    "SourceInfo",
    "ZooEntry",
    "check_names",
    "describe_source",
    "load_source",
    "load_state",
    "load_weights_file",
    "load_zoo",
    "load_zoo_file",
]


@dataclass(frozen=True)
class SourceInfo:
    """What loading a source would take: known without network, weights or user code.

    `download_bytes` is 0 when nothing has to be fetched; `params` is None when only running user code would tell.
    """

    name: str
    source: str
    weights: str | None
    params: int | None
    download_bytes: int
    licence: str | None
    commercial: bool | None
    url: str | None
    note: str


class ZooEntry(BaseModel):
    """One network of a zoo, as a config file names it; a bare string is its source."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str = Field(
        description="timm:NAME, torchvision:NAME, netsmith:NAME, smp:ARCH/ENCODER, py:PATH.py:FUNCTION or a folder"
    )
    name: str | None = Field(default=None, description="what to call it; default: the architecture's name")
    num_classes: int | None = Field(default=None, ge=1, le=limits.CLASSES, description="classes of its head")
    input_size: tuple[int, int, int] | None = Field(default=None, description="channels, height, width")
    mean: tuple[float, ...] | None = Field(default=None, description="per channel, of images in [0, 1]")
    std: tuple[float, ...] | None = Field(default=None, description="per channel, of images in [0, 1]")
    licence: str | None = Field(default=None, description="licence of its weights")
    options: dict[str, Any] = Field(default_factory=dict, description="arguments of the function that builds it")

    @model_validator(mode="before")
    @classmethod
    def _bare_source(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("source")
    @classmethod
    def _there(cls, value: str, info: Any) -> str:
        if not info.context or "base" not in info.context:
            return value
        # read from a file: its paths start there, and a name that does not exist is a fault of this line
        parsed = parse_source(value, info.context["base"])
        check_source(parsed)
        return str(parsed)

    @field_validator("name")
    @classmethod
    def _speakable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_.-]+", value):
            raise ValueError(f"a name is letters, digits, '_', '.' and '-', got '{value}'")
        return value

    @field_validator("input_size")
    @classmethod
    def _positive(cls, value: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        fault = None if value is None else limits.input_fault(value)
        if fault is not None:
            raise ValueError(fault)
        return value

    @field_validator("std")
    @classmethod
    def _not_zero(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and (not value or min(value) <= 0):
            raise ValueError(f"expected numbers greater than 0, one a channel, got {list(value)}")
        return value

    def called(self) -> str:
        """The name it goes by in the zoo."""
        return self.name or speakable(parse_source(self.source).default_name)


class _ZooFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    networks: tuple[ZooEntry, ...]

    @field_validator("networks")
    @classmethod
    def _named(cls, value: tuple[ZooEntry, ...]) -> tuple[ZooEntry, ...]:
        if not value:
            raise ValueError("the list is empty: name the networks of the zoo, such as - timm:resnet18")
        check_names(value)
        return value


def describe_source(source: str | ZooEntry, *, pretrained: bool = True) -> SourceInfo:
    """What loading a source would take, without network, weights or user code.

    Raises:
        SourceError: nothing of that name. ArtifactError: an artifact folder is damaged.
    """
    entry = ZooEntry.model_validate(source)
    parsed = parse_source(entry.source)
    known = facts(parsed, pretrained=pretrained)
    params: int | None = None
    if parsed.scheme == "artifact":
        manifest = artifact.read_manifest(parsed.name)
        known, params = told(known, manifest), manifest.get("params")
    else:
        known = told(known, manifest_of(parsed.weights))
    if parsed.scheme not in ("artifact", "py"):
        wanted = builder_options(parsed, known, entry.num_classes, entry.input_size, entry.options, pretrained)
        params = state_values(parsed, wanted, parameters=True)
    return SourceInfo(
        name=entry.called(),
        source=str(parsed),
        weights=known.weights,
        params=params,
        download_bytes=known.download_bytes,
        licence=entry.licence or known.licence,
        commercial=commercial_use(entry.licence) if entry.licence else known.commercial,
        url=known.url,
        note=known.note,
    )


def check_names(entries: Sequence[ZooEntry]) -> tuple[str, ...]:
    """The names of the entries, in order.

    Raises:
        SourceError: two entries have one name.
    """
    named: dict[str, str] = {}
    for entry in entries:
        name = entry.called()
        if name in named:
            raise SourceError(
                f"Two networks of the zoo are called '{name}': {named[name]} and {entry.source}. "
                f"Give one of them another name, such as name: {name}_2."
            )
        named[name] = entry.source
    return tuple(named)


def load_zoo_file(path: Path | str) -> tuple[ZooEntry, ...]:
    """The entries of a zoo file: YAML with one key, `networks`, a list of sources or of sections (see `ZooEntry`).

    Relative paths in it start from its own folder, and come out absolute.

    Raises:
        ConfigError: the file cannot be read or has faults: all at once, with lines.
    """
    return load_document(Path(path), _ZooFile).networks


def load_zoo(entries: Sequence[ZooEntry], *, pretrained: bool = True, seed: int = 0) -> tuple[Network, ...]:
    """Load every entry, in order.

    Raises:
        SourceError: two entries have one name; or as `load_source`.
    """
    return tuple(
        load_source(
            entry.source,
            name=name,
            pretrained=pretrained,
            num_classes=entry.num_classes,
            input_size=entry.input_size,
            mean=entry.mean,
            std=entry.std,
            seed=seed,
            licence=entry.licence,
            options=entry.options,
        )
        for name, entry in zip(check_names(entries), entries, strict=True)
    )
