"""Entries of a zoo file, read and checked without loading the libraries behind them before all else is right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from netsmith import limits
from netsmith.errors import SourceError
from netsmith.files.document import LOOK_UP, load_document
from netsmith.networks.sources import HUB, check_here, parse_source, speakable


class ZooEntry(BaseModel):
    """One network of a zoo, as a config file names it; a bare string is its source.

    Examples:
        >>> netsmith.ZooEntry(source="timm:resnet18", num_classes=10).called()
        'resnet18'
    """

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
        base = info.context["base"]
        if info.context.get(LOOK_UP, True):
            from netsmith.networks import hub  # noqa: F401 - it fetches what a source of the Hub names
            from netsmith.networks.libraries import check_source

            parsed = parse_source(value, base)
            check_source(parsed)
        elif value.partition(":")[0] == HUB:
            return value
        else:
            parsed = parse_source(value, base)
            check_here(parsed)
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
        if self.name is not None:
            return self.name
        scheme, _, place = self.source.partition(":")
        found = place.partition("@")[0].rpartition("/")[2] if scheme == HUB else parse_source(self.source).default_name
        return speakable(found)


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


def load_zoo_file(path: Path | str, *, look_up: bool = True) -> tuple[ZooEntry, ...]:
    """The entries of a zoo file: YAML with one key, `networks`, a list of sources or of sections (see `ZooEntry`).

    Relative paths in it start from its own folder, and come out absolute. Without `look_up`, the libraries are not
    asked for the networks that it names.

    Raises:
        ConfigError: the file cannot be read or has faults: all at once, with lines.

    Examples:
        >>> from pathlib import Path
        >>> characters = Path("zoo.yaml").write_text("networks: [{source: timm:resnet18, name: small}]")
        >>> [entry.called() for entry in netsmith.load_zoo_file("zoo.yaml")]
        ['small']
    """
    return load_document(Path(path), _ZooFile, look_up=look_up).networks
