"""The budget that a network has to keep: bounds on params, multiply-adds, latency and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from netsmith.errors import BudgetError

_MOST = 1e30  # beyond it, somebody means something else
_SUFFIX = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Bound:
    """A range of allowed values, both ends included; None leaves an end open.

    Examples:
        >>> netsmith.Budget(params={"min": "1k", "max": "2k"}).params.contains(1500)
        True
    """

    min: int | float | None = None
    max: int | float | None = None

    def __post_init__(self) -> None:
        for name, value in (("min", self.min), ("max", self.max)):
            if value is not None and not 0 <= value <= _MOST:
                raise BudgetError(f"a bound must be a finite number of at least 0, not {name}: {str(value)[:40]}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise BudgetError(
                f"min must not exceed max, but min is {format_count(self.min)} and max is {format_count(self.max)};"
                " swap them"
            )

    def contains(self, x: int | float) -> bool:
        """Whether `x` lies in the range."""
        return (self.min is None or x >= self.min) and (self.max is None or x <= self.max)

    def text(self, unit: str = "") -> str:
        """The range in words: `at most 3G`, `between 1M and 2M`, `any`."""
        low = None if self.min is None else format_count(self.min, unit)
        high = None if self.max is None else format_count(self.max, unit)
        if low and high:
            return f"exactly {low}" if self.min == self.max else f"between {low} and {high}"
        return f"at most {high}" if high else f"at least {low}" if low else "any"

    @classmethod
    def parse(cls, value: Any) -> Bound:
        """A bound from what a user writes: `500000` or `"0.5M"` (a maximum), or `{min: ..., max: ...}`."""
        if isinstance(value, Bound):
            return value
        if isinstance(value, dict):
            unknown = set(value) - {"min", "max"}
            if unknown or not value:
                raise BudgetError(
                    "a bound has the keys min and max, not"
                    f" {', '.join(map(repr, sorted(unknown, key=str))) or 'none at all'}"
                )
            return cls(**{k: None if v is None else parse_count(v) for k, v in value.items()})
        return cls(max=parse_count(value))


def parse_count(value: Any) -> int | float:
    """A number from `500000`, `"500000"`, `"0.5M"`, `"3G"` or `"1e6"` (suffixes k, M, G or B, T in powers of 1000)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = value.strip().replace("_", "").replace(",", "").lower()
        factor = _SUFFIX.get(text[-1:])
        try:
            number = float(text[:-1]) * factor if factor else float(text)
            return int(number) if number.is_integer() else number
        except ValueError:
            pass
    raise BudgetError(f"expected a number such as 500000, '0.5M' or '3G', not {value!r:.80}")


def _optional_bound(value: Any) -> Bound | None:
    return None if value is None else Bound.parse(value)


BoundLike = Bound | int | float | str | Mapping[str, Any] | None
"""What is taken for a bound: see `Budget`."""

OptionalBound = Annotated[Bound | None, BeforeValidator(_optional_bound)]


class Budget(BaseModel):
    """What a network may cost. A bare number or text (`"0.5M"`) is a maximum; `{min: ..., max: ...}` gives both ends.

    `params` and `macs` (one image) are counts, `latency_ms` is milliseconds, `memory_mb` is 10^6 bytes.

    Examples:
        >>> netsmith.Budget(params="0.5M", macs={"min": "1M", "max": "2M"}).params
        Bound(min=None, max=500000)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    params: OptionalBound = None
    macs: OptionalBound = None
    latency_ms: OptionalBound = None
    memory_mb: OptionalBound = None

    if TYPE_CHECKING:  # what a type checker should let through: anything that becomes a bound

        def __init__(
            self,
            *,
            params: BoundLike = None,
            macs: BoundLike = None,
            latency_ms: BoundLike = None,
            memory_mb: BoundLike = None,
        ) -> None: ...

    def bounds(self) -> dict[str, Bound]:
        """The bounds that are set, by name."""
        return {name: b for name in Budget.model_fields if (b := getattr(self, name)) is not None}

    def check(self, **values: int | float) -> list[str]:
        """One text for each bound that `values` (by the names of the fields) breaks; a value not given breaks none."""
        unknown = set(values) - set(Budget.model_fields)
        assert not unknown, f"no such resource: {unknown}"
        bounds = self.bounds()
        return [
            _broken(name, value, bounds[name])
            for name, value in values.items()
            if name in bounds and not bounds[name].contains(value)
        ]

    def __str__(self) -> str:
        return ", ".join(f"{name} {b.text(_UNITS[name])}" for name, b in self.bounds().items()) or "no bounds"


def _broken(name: str, value: int | float, bound: Bound) -> str:
    unit = _UNITS[name]
    text = f"{name} {format_count(value, unit)} is not {bound.text(unit)}"
    limit = bound.max if bound.max is not None and value > bound.max else bound.min
    if limit is not None and format_count(value, unit) == format_count(limit, unit):
        text += f" ({value:,} against {limit:,})"  # apart by less than the rounding shows
    return text


_UNITS = {"params": "", "macs": "", "latency_ms": "ms", "memory_mb": "MB"}


def format_count(n: int | float, unit: str = "") -> str:
    """`n` for people: 0, 812, 269.72k, 2.5M, 1.25G; with a unit 12.3 ms (units take no k, M or G)."""
    if unit:
        return f"{n:.4g} {unit}"
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= factor * 0.999995:
            return f"{f'{n / factor:.2f}'.rstrip('0').rstrip('.')}{suffix}"
    return f"{n:.2f}".rstrip("0").rstrip(".")
