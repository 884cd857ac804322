"""Why nothing fits a budget: which bound cannot be met, and the nearest value that can."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from netsmith.errors import BudgetError
from netsmith.search.branch_and_bound import branch_and_bound
from netsmith.search.budget import Budget, format_count
from netsmith.search.space import Floats, Limit, Space, Steps, along, limit_value
from netsmith.trace.chain import Chain


@dataclass(frozen=True)
class _Side:
    """One side of a limit."""

    limit: Limit
    upper: bool

    @property
    def bound(self) -> float:
        return self.limit.high if self.upper else self.limit.low

    def __str__(self) -> str:
        return f"{self.limit.name} of {'at most' if self.upper else 'at least'} {readable(self.limit.name, self.bound)}"


def explain(space: Space, *, most_explored: int) -> str:
    """The message for a space without an assembly; solves the same search again with each bound as the cost."""
    free = space.without_limits()
    if not len(branch_and_bound(free, 1, most_explored=most_explored).paths):
        return _structure(free)
    sides = [_Side(x, False) for x in space.limits if math.isfinite(x.low)]
    sides += [_Side(x, True) for x in space.limits if math.isfinite(x.high)]
    nearest = [(side, _extreme(space, side, _others(sides, side), most_explored)) for side in sides]
    options = [f"{_word(s)} {readable(s.limit.name, v, up=s.upper)}" for s, v in nearest if v is not None]
    if len(sides) == 1 and options:
        return f"no assembly has {sides[0]}. The nearest budget that one fits is {options[0]}."
    listed = ", ".join(map(str, sides))
    if options:
        # each alone, with all other bounds as they are, would do
        either = " or to ".join(options)
        return f"no assembly has {listed}. With the other bounds as they are, change one to {either}."
    alone = [(s, _extreme(space, s, [], most_explored)) for s in sides]
    beyond = [(s, v) for s, v in alone if v is not None and (v > s.bound if s.upper else v < s.bound)]
    if beyond:
        text = "; ".join(f"{s}, where the nearest is {readable(s.limit.name, v, up=s.upper)}" for s, v in beyond)
        return f"no assembly fits the budget, and no one bound is to blame: by themselves out of reach are {text}."
    return f"no assembly has {listed}: each can be met by itself, but not together. Widen at least two of them."


def check_reach(chains: Sequence[Chain], budget: Budget, k: int) -> None:
    """Raise BudgetError where even a stem and `k` units, the smallest there are, exceed a maximum of the budget.

    It takes nothing but the networks' shapes, and not every budget that passes can be met.
    """
    for name in ("params", "macs"):
        bound = budget.bounds().get(name)
        if bound is None or bound.max is None:
            continue
        stem = min(getattr(chain, f"stem_{name}") for chain in chains)
        least = stem + k * min(getattr(unit, name) for chain in chains for unit in chain.units)
        if least > bound.max:
            raise BudgetError(
                f"no assembly has {name} of at most {readable(name, bound.max)}: the smallest stem and {k} of the "
                f"smallest units have {readable(name, least, up=True)} already. Raise budget.{name}, or lower k."
            )


def readable(name: str, value: int | float, *, up: bool | None = None) -> str:
    """A quantity for people: 270k, 1.25G, 12.5 ms, 3.2 MB; with `up`, rounded so that as a bound it can be met."""
    unit = ""
    if name.endswith("_ms"):
        unit = "ms"
    elif name.endswith("_bytes"):
        value, unit = value / 1e6, "MB"
    if up is not None and value:
        # as coarse as what is printed: four digits with a unit, else two decimals of k, M, G or T
        size = math.floor(math.log10(abs(value)))
        digits = 3 - size if unit else 2 - 3 * max(0, min(4, size // 3))
        grains = value * 10.0**digits * (1 - 1e-12 if up else 1 + 1e-12)
        value = (math.ceil if up else math.floor)(grains) / 10.0**digits
    return format_count(value, unit)


def _word(side: _Side) -> str:
    return f"{side.limit.name} of {'at most' if side.upper else 'at least'}"


def _structure(free: Space) -> str:
    """The message when no assembly exists whatever the budget."""
    stages = len(free.cost)
    if not len(branch_and_bound(replace(free, mix=False), 1, most_explored=10**8).paths):
        offered = "; ".join(f"stage {s} offers {sorted(set(g.tolist()))}" for s, g in enumerate(free.group))
        return (
            f"no assembly takes one block at each of {stages} stages from as many different equivalence sets: "
            f"{offered}. Allow a set to be used twice (distinct sets off), or partition with another seed or eps."
        )
    return "no assembly mixes blocks of two networks: add a network to the zoo, or allow blocks of one network only."


def _others(sides: Sequence[_Side], one: _Side) -> list[_Side]:
    return [s for s in sides if s is not one]


def _limits(sides: Sequence[_Side]) -> tuple[Limit, ...]:
    return tuple(replace(s.limit, low=-math.inf) if s.upper else replace(s.limit, high=math.inf) for s in sides)


def _extreme(space: Space, side: _Side, others: Sequence[_Side], most_explored: int) -> float | None:
    """The least value (of a maximum) or greatest (of a minimum) that an assembly within `others` has, exactly."""
    sign = 1.0 if side.upper else -1.0
    limits = _limits(others)
    stages = [np.zeros_like(step) for step in space.cost]
    steps = tuple(stages) if side.limit.steps is None else tuple(sign * step for step in side.limit.steps)
    peaks = side.limit.peaks
    best: float | None = None
    # A peak is no sum: the sums are solved for one threshold on the peaks after another, each beyond the last.
    threshold: Floats | None = None
    while True:
        bounds = limits
        if threshold is not None:
            bounds += tuple(_beyond(peak, t, side.upper) for peak, t in zip(peaks, threshold, strict=True))
        found = branch_and_bound(replace(space, cost=steps, limits=bounds), 1, most_explored=most_explored)
        if not len(found.paths):
            return best
        value = float(limit_value(side.limit, found.paths)[0])
        best = value if best is None else (min if side.upper else max)(best, value)
        if not peaks:
            return best
        assert len(peaks) == 1, "a total has one peak at most"
        threshold = np.array([float(along(peak, found.paths).max()) for peak in peaks])


def _beyond(peak: Steps, threshold: float, upper: bool) -> Limit:
    """The peak must be strictly below (or above) the threshold."""
    inf = math.inf
    if upper:
        return Limit("peak", None, (peak,), -inf, math.nextafter(threshold, -inf))
    return Limit("peak", None, (peak,), math.nextafter(threshold, inf), inf)
