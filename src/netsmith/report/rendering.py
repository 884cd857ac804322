"""Templates filled in: what every page needs, whatever it shows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import jinja2

from netsmith.report import formats
from netsmith.report.colour import ink

# drawings come in two widths, shown by the width of the window: text keeps its size in both
WIDE, NARROW = 960.0, 340.0


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("netsmith.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=formats.count,
        exact=formats.exact,
        mb=formats.megabytes,
        bytes=formats.size_bytes,
        percent=formats.percent,
        points=formats.points,
        decimal=formats.decimal,
        amount=formats.amount,
        duration=formats.duration,
        ms=formats.milliseconds,
        raw=formats.raw,
        plural=formats.plural,
        px=formats.rounded,
        ink=ink,
    )
    return environment


def render(template: str, **values: Any) -> str:
    """A page from a template of this package; every value is escaped."""
    return _environment().get_template(template).render(**values)


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings and lists as `(dotted name, text)` rows."""
    if isinstance(value, Mapping):
        return [row for k, v in value.items() for row in flatten(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(value, (list, tuple)):
        return [(prefix, ", ".join(str(v) for v in value))]
    return [(prefix, formats.DASH if value is None else str(value))]
