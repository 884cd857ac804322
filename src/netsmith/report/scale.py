"""From values to places on a drawing: linear and logarithmic axes with readable ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where it is on the drawing, and what it says (`""` for a minor one)."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """Maps `low..high` of the data to `start..end` of the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of `value`; values beyond the axis are held at its ends."""
        return self.beyond(min(max(value, self.low), self.high))

    def beyond(self, value: float) -> float:
        """The place of `value`, outside the drawing for values beyond the axis."""
        if not self.high > self.low:  # shares beyond 1 on an axis that ends there: nothing that could be told apart
            share = 0.5
        elif self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, text: Callable[[float], str], most: int = 6) -> tuple[Tick, ...]:
        """Ticks at round values, `most` of them or fewer, give or take one."""
        values = _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)
        return tuple(Tick(self(v), text(v)) for v in values)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    if not high > low:
        return [low]
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if len(decades) > most:
        powers = [10.0**d for d in decades[:: math.ceil(len(decades) / most)]]
        return [v for v in powers if low * 0.999 <= v <= high * 1.001]
    found: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        values = [m * 10.0**d for d in decades for m in steps]
        inside = [v for v in values if low * 0.999 <= v <= high * 1.001]
        if len(inside) > most and found:
            break
        found = inside
    return found


def axis(values: Sequence[float], start: float, end: float, *, log: bool = False, margin: float = 0.06) -> Axis:
    """An axis that holds all of `values` with some air on both sides; a single value is put in the middle."""
    low, high = min(values), max(values)
    if log:
        assert low > 0
        if high <= low * 1.001:
            low, high = low / 1.5, high * 1.5
        air = (high / low) ** margin
        return Axis(low / air, high * air, start, end, log=True)
    if high - low < 1e-9 * max(abs(high), 1e-9) or high == low:
        wide = abs(high) * 0.1 or 1.0
        low, high = low - wide, high + wide
    air = (high - low) * margin
    return Axis(low - air, high + air, start, end)


def wants_log(values: Sequence[float], range_: float = 8.0) -> bool:
    """Whether `values` span so much that a linear axis would squeeze most of them together."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > range_
