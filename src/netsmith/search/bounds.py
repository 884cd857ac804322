"""What can still come: bounds on the rest of a path from where it stands, by dynamic programming from the last stage.

The least cost to go is exact with respect to distinct equivalence sets (a state for each family of sets already used,
while these are few) and to mixing networks (a state for "all blocks so far from one network"). Budgets enter through
Lagrange multipliers: the least of `cost + sum of multiplier * resource` bounds the cost of every path within them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from netsmith.errors import BudgetError
from netsmith.search.space import Floats, Ints, Limit, Space, Steps, add_steps, summed

# How many elements one pass over all states may touch; beyond, families of used sets are not told apart.
_STATE_WORK = 1 << 25

# Up to so many paths, multipliers cost more than they save.
_FEW_PATHS = 1 << 14


@dataclass(frozen=True)
class Families:
    """States of the search beside the choice: which sets are used, and whether one network gave all blocks so far.

    `bits[s][j]` is the bit of the set of choice j at stage s (0 for a set that no other stage offers), `known[s]` the
    families that may be in use after stage s, `after[s][f, j]` the family reached at stage s + 1 from family f (of
    stage s) with choice j, or -1 when j's set is in use already. `told_apart` is False where all families are one
    state; the search then still keeps to distinct sets by the bits.
    """

    bits: tuple[Ints, ...]
    known: tuple[Ints, ...]
    begin: Ints  # (m_0,) family after the first choice
    after: tuple[Ints, ...]
    told_apart: bool
    modes: int  # 2 when networks must mix: mode 1 is "one network so far"

    @property
    def states(self) -> int:
        """The most states beside the choice at any stage."""
        return max(len(k) for k in self.known) * self.modes


def families(space: Space) -> Families:
    """The states for `space`. Raises `BudgetError` for more than 62 sets that several stages offer."""
    stages = len(space.cost)
    modes = 2 if space.mix else 1
    bits = [np.zeros(w, np.int64) for w in space.widths]
    if space.distinct:
        everywhere = np.concatenate([np.unique(g) for g in space.group])
        shared = [int(g) for g in np.unique(everywhere) if (everywhere == g).sum() > 1]
        if len(shared) > 62:
            raise BudgetError(
                f"expected at most 62 equivalence sets that several stages offer, got {len(shared)}: "
                "allow a set to be used twice (distinct sets off), or partition into fewer"
            )
        for bit, g in enumerate(shared):
            for s in range(stages):
                bits[s][space.group[s] == g] = 1 << bit
    known = [np.unique(bits[0])]
    work = 0
    for s in range(1, stages):
        union = known[-1][:, None] | bits[s]
        reached = np.unique(union[(known[-1][:, None] & bits[s]) == 0])
        known.append(reached if len(reached) else np.zeros(1, np.int64))  # a state that nothing leads to
        work += len(known[s - 1]) * space.widths[s - 1] * space.widths[s] * modes
        if work > _STATE_WORK:
            break
    if work > _STATE_WORK:
        one = np.zeros(1, np.int64)
        after = [np.zeros((1, w), np.int64) for w in space.widths[1:]]
        return Families(tuple(bits), (one,) * stages, np.zeros(space.widths[0], np.int64), tuple(after), False, modes)
    after = []
    for s in range(1, stages):
        union = known[s - 1][:, None] | bits[s]
        place = np.searchsorted(known[s], union)
        after.append(np.where((known[s - 1][:, None] & bits[s]) == 0, place, -1))
    begin = np.searchsorted(known[0], bits[0])
    return Families(tuple(bits), tuple(known), begin, tuple(after), True, modes)


def least_to_go(space: Space, states: Families, steps: Steps) -> list[Floats]:
    """For each stage (families, modes, m_s): least sum of the steps that follow; inf where no path follows."""
    last = len(steps) - 1
    togo: list[Floats] = [np.empty(0)] * len(steps)
    togo[last] = np.zeros((len(states.known[last]), states.modes, space.widths[last]))
    if states.modes == 2:
        togo[last][:, 1] = np.inf
    for s in range(last - 1, -1, -1):
        step, ahead = steps[s + 1], togo[s + 1]
        same = space.network[s][:, None] == space.network[s + 1]
        column = np.arange(space.widths[s + 1])
        value = np.empty((len(states.known[s]), states.modes, space.widths[s]))
        for f, to in enumerate(states.after[s]):
            rest = np.where(to >= 0, ahead[to, :, column].T, np.inf)  # (modes, m_s+1)
            value[f, 0] = (step + rest[0]).min(axis=1)
            if states.modes == 2:
                value[f, 1] = (step + np.where(same, rest[1], rest[0])).min(axis=1)
        togo[s] = value
    return togo


def follow(space: Space, states: Families, steps: Steps, togo: list[Floats]) -> Ints | None:
    """(1, stages) the path of least sum, or None when there is none."""
    first = states.modes - 1
    value = steps[0][0] + togo[0][states.begin, first, np.arange(space.widths[0])]
    path = [int(value.argmin())]
    if not np.isfinite(value[path[0]]):
        return None
    family, mode = int(states.begin[path[0]]), first
    for s in range(1, len(steps)):
        to = states.after[s - 1][family]
        modes = np.where(space.network[s] == space.network[s - 1][path[-1]], mode, 0)
        value = steps[s][path[-1]] + np.where(to >= 0, togo[s][to, modes, np.arange(space.widths[s])], np.inf)
        path.append(int(value.argmin()))
        family, mode = int(to[path[-1]]), int(modes[path[-1]])
    return np.array([path])


@dataclass(frozen=True)
class Relaxed:
    """Steps `cost + sum of multiplier * resource`, the constant that makes them a lower bound, and their cost to go."""

    steps: Steps
    constant: float
    togo: list[Floats]


def relax(space: Space, states: Families, steps: Steps, multipliers: Floats, room: Floats) -> Relaxed:
    """Relaxation with multipliers (limits, 2) for the low and the high side; `room` holds those bounds on the sums."""
    terms = [(1.0, space.cost)]
    for limit, (low, high) in zip(space.limits, multipliers, strict=True):
        if limit.steps is not None and low != high:
            terms.append((float(high - low), limit.steps))
    total = add_steps(terms)
    active = multipliers > 0
    constant = float((multipliers * np.where(active, room * [1.0, -1.0], 0.0)).sum())
    return Relaxed(total, constant, least_to_go(space, states, total))


def best_relaxation(space: Space, states: Families) -> Relaxed | None:
    """Multipliers of a good lower bound, by subgradient steps; None when no sum is bounded or paths are few."""
    room = sum_room(space.limits)
    bounded = np.isfinite(room)
    if not bounded.any() or math.prod(space.widths) <= _FEW_PATHS:
        return None
    scale = np.array([1.0 if x.steps is None else _span(x.steps) for x in space.limits])[:, None]
    unit = max(_span(space.cost), 1e-12)
    multipliers = np.zeros((len(space.limits), 2))
    work = sum(a * b for a, b in zip(space.widths, space.widths[1:], strict=False)) * states.states
    best, best_bound, pace, since = None, -np.inf, 1.0, 0
    for _ in range(int(np.clip(4e7 / max(work, 1), 12, 80))):
        found = relax(space, states, space.cost, multipliers, room)
        path = follow(space, states, found.steps, found.togo)
        if path is None:
            return None
        bound = float(summed(found.steps, path)[0]) + found.constant
        if bound > best_bound + 1e-9 * (1 + abs(best_bound) if np.isfinite(best_bound) else 0.0):
            best, best_bound, since = found, bound, 0
        else:
            since += 1
            if since >= 3:
                pace, since = pace / 2, 0
        used = np.array([0.0 if x.steps is None else float(summed(x.steps, path)[0]) for x in space.limits])[:, None]
        over = np.where(bounded, (used - room) * [-1.0, 1.0] / scale, 0.0)
        over = np.where((over < 0) & (multipliers <= 0), 0.0, over)
        norm = float(np.sqrt((over**2).sum()))
        if norm < 1e-12:
            break
        multipliers = np.clip(multipliers + pace * unit * over / norm / scale, 0.0, None)
    return best


def sum_room(limits: Sequence[Limit]) -> Floats:
    """(limits, 2) bounds on the summed part of each limit: what its peaks take at least and at most is set aside."""
    rows = []
    for limit in limits:
        least = sum(least_peak(p)[0] for p in limit.peaks)
        most = sum(max(float(step.max()) for step in p) for p in limit.peaks)
        rows.append([-np.inf, np.inf] if limit.steps is None else [limit.low - most, limit.high - least])
    return np.array(rows, float).reshape(len(limits), 2)


def least_peak(steps: Steps) -> tuple[float, list[Floats]]:
    """The least possible peak of a whole path, and of what follows each choice."""
    togo = bounds_to_go(steps, np.minimum, np.maximum)
    return float(np.maximum(steps[0][0], togo[0]).min()), togo


def bounds_to_go(steps: Steps, choose: np.ufunc, join: np.ufunc) -> list[Floats]:
    """For each stage (m_s,): the least or greatest (`choose`) sum or peak (`join`) of the steps that follow."""
    togo = [np.zeros(step.shape[1]) for step in steps]
    if join is np.maximum:
        togo[-1] = np.full(steps[-1].shape[1], -np.inf)
    for s in range(len(steps) - 2, -1, -1):
        togo[s] = choose.reduce(join(steps[s + 1], togo[s + 1]), axis=1)
    return togo


def _span(steps: Steps) -> float:
    """How far sums along paths can differ, roughly."""
    return max(sum(float(np.ptp(step)) for step in steps), 1e-12)
