"""All assemblies of a zoo as paths through stages: costs, resources and bounds as arrays.

A path takes one choice at every stage. Entering choice j of stage s from choice i of stage s - 1 costs the pair's cost
and j's own; so cost and resources sit on the steps, as arrays (choices before, choices after), the first with one row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Steps = tuple[Floats, ...]


@dataclass(frozen=True)
class Limit:
    """Bounds on one resource: the sum of `steps` along a path plus, for each of `peaks`, its greatest step."""

    name: str
    steps: Steps | None
    peaks: tuple[Steps, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Space:
    """The assemblies to choose from. `group` and `network` hold one id a choice, (m_s,) for each stage."""

    cost: Steps
    group: tuple[Ints, ...]
    network: tuple[Ints, ...]
    limits: tuple[Limit, ...]
    distinct: bool
    mix: bool

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of choices at each stage."""
        return tuple(step.shape[1] for step in self.cost)

    @property
    def grain(self) -> float:
        """Costs that differ by less are ties: what rounding may make of sums in another order."""
        return 1e-12 * (1.0 + sum(float(np.abs(step).max()) for step in self.cost))

    def without_limits(self) -> Space:
        """The same assemblies, unbounded."""
        return replace(self, limits=())

    def fits(self, paths: Ints) -> NDArray[np.bool_]:
        """Which of the paths (n, stages) are within all bounds, and mixed and of distinct sets if they must be."""
        good = np.ones(len(paths), bool)
        for limit in self.limits:
            value = limit_value(limit, paths)
            good &= (value >= limit.low) & (value <= limit.high)
        if self.distinct:
            groups = np.sort(taken(self.group, paths), axis=1)
            good &= (groups[:, 1:] != groups[:, :-1]).all(axis=1)
        if self.mix:
            networks = taken(self.network, paths)
            good &= (networks != networks[:, :1]).any(axis=1)
        return good


def taken(ids: Sequence[Ints], paths: Ints) -> Ints:
    """(n, stages) the id of each choice on the paths."""
    return np.stack([column[paths[:, s]] for s, column in enumerate(ids)], axis=1)


def along(steps: Steps, paths: Ints) -> Floats:
    """(n, stages) the value of each step on the paths."""
    before = np.concatenate([np.zeros((len(paths), 1), np.int64), paths[:, :-1]], axis=1)
    return np.stack([step[before[:, s], paths[:, s]] for s, step in enumerate(steps)], axis=1)


def summed(steps: Steps, paths: Ints) -> Floats:
    """(n,) the sum along each path, added up in the order of the stages."""
    return along(steps, paths).cumsum(axis=1)[:, -1]


def limit_value(limit: Limit, paths: Ints) -> Floats:
    """(n,) the bounded quantity of each path."""
    value = summed(limit.steps, paths) if limit.steps is not None else np.zeros(len(paths))
    for peak in limit.peaks:
        value = value + along(peak, paths).max(axis=1)
    return value


def into_steps(own: Sequence[Floats], pairs: Sequence[Floats], *, peak: bool = False) -> Steps:
    """Own values (m_s,) and pair values (m_s, m_s+1) as values of steps: added, or the greater of both for peaks."""
    steps = [own[0][None, :].copy()]
    for pair, after in zip(pairs, own[1:], strict=True):
        steps.append(np.maximum(pair, after) if peak else pair + after)
    return tuple(steps)


def add_steps(terms: Sequence[tuple[float, Steps]]) -> Steps:
    """The weighted sum of steps."""
    weight, first = terms[0]
    total = [weight * step for step in first]
    for weight, steps in terms[1:]:
        total = [a + weight * b for a, b in zip(total, steps, strict=True)]
    return tuple(total)


def finite_bounds(low: int | float | None, high: int | float | None) -> tuple[float, float]:
    """Bounds with infinities for what is open."""
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


def ids(values: Sequence[Sequence[str | int]]) -> tuple[Ints, ...]:
    """Small whole numbers for names, the same number for the same name at every stage."""
    known: Mapping[str | int, int] = {v: i for i, v in enumerate(dict.fromkeys(v for line in values for v in line))}
    return tuple(np.array([known[v] for v in line], np.int64) for line in values)
