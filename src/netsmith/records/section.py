"""The base of all settings: sections of a config, and what functions of the library take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from netsmith.errors import ConfigError, did_you_mean

S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A part of a config: no key that is not known, and nothing changes once it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def with_changes(model: type[S], settings: S | None, changes: Mapping[str, Any]) -> S:
    """Return settings (None for the defaults) with other values of some of their keys.

    A section may be given as a mapping of its keys. Raises ConfigError, naming the key, for what is not allowed.
    """
    if settings is not None and not changes:
        return settings
    kept = {} if settings is None else {name: getattr(settings, name) for name in settings.model_fields_set}
    try:
        return model.model_validate({name: v for name, v in kept.items() if name in model.model_fields} | {**changes})
    except ValidationError as error:
        fault = error.errors()[0]
        place, message = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            message = f"there is no such setting. {did_you_mean(str(fault['loc'][-1]), model.model_fields)}"
        raise ConfigError(f"{place}: {message}") from error


def one_of(value: str, allowed: Sequence[str]) -> str:
    """Return `value`; raises ValueError with what is allowed and the nearest name for any other."""
    if value not in allowed:
        near = did_you_mean(value, allowed)
        hint = f" {near}" if near.startswith("Did you mean") else ""
        raise ValueError(f"expected one of {', '.join(allowed)}, got '{value}'.{hint}")
    return value
