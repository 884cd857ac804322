"""The kinds of generators by name, and how one is made."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from netsmith.errors import MorphError, did_you_mean
from netsmith.morphing.generator import Generator, Nested
from netsmith.morphing.grid import Grid
from netsmith.morphing.inr import INR
from netsmith.widths.groups import WidthGroup

GENERATORS: dict[str, type[Generator]] = {kind.kind: kind for kind in (Nested, Grid, INR)}
"""Kinds of generators by name."""


def make_generator(
    kind: str, tensors: Mapping[str, Tensor], groups: Sequence[WidthGroup], settings: Mapping[str, Any] | None = None
) -> Generator:
    """Return a generator of a kind; raises MorphError for an unknown kind or settings it does not have."""
    if kind not in GENERATORS:
        raise MorphError(f"unknown generator '{kind}'. {did_you_mean(kind, GENERATORS)}")
    given, hints = dict(settings or {}), get_type_hints(GENERATORS[kind].__init__)
    known = [name for name in inspect.signature(GENERATORS[kind]).parameters if name not in ("tensors", "groups")]
    for name, value in tuple(given.items()):
        if name not in known:
            hint = did_you_mean(name, known) or "It has none."
            raise MorphError(f"the generator '{kind}' has no setting '{name}'. {hint}")
        try:
            given[name] = TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = inspect.formatannotation(hints[name]).removeprefix("collections.abc.")
            raise MorphError(f"{name} of the generator '{kind}' must be {wanted}, not {value!r}") from error
    return GENERATORS[kind](tensors, groups, **given)
