"""Exact k best paths by branch and bound, many partial paths at a time.

Depth first, best bound first within a depth: the first dives find good assemblies, after which a partial path is kept
only while its bound says that it may still belong to the k best. When nothing is left, the k best are proven.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from netsmith.search.bounds import Relaxed, best_relaxation, bounds_to_go, families, least_peak, relax
from netsmith.search.space import Floats, Ints, Limit, Space, summed

# How many children one expansion scores at most.
_BATCH = 1 << 18

# How many partial paths an expansion takes while fewer than k assemblies are known.
_DIVE = 32


@dataclass(frozen=True)
class Found:
    """The k best paths (n, stages), best first, their costs, and what is proven.

    `bound` is below or at the cost of every assembly that is not among `paths`; infinite when `proven` (nothing was
    left unexamined). `explored` counts the partial paths that were scored.
    """

    paths: Ints
    costs: Floats
    proven: bool
    bound: float
    explored: int


@dataclass(frozen=True)
class _Batch:
    """Partial paths of one length, with what is needed to go on."""

    paths: Ints  # (n, stages so far)
    cost: Floats
    relaxed: Floats  # cost with the multipliers' resources, without the constant
    bits: Ints
    family: Ints
    mode: Ints
    sums: Floats  # (limits, n)
    peaks: Floats  # (peaks, n)
    bound: Floats

    def __getitem__(self, which: NDArray[np.bool_] | Ints | slice) -> _Batch:
        return _Batch(
            self.paths[which],
            self.cost[which],
            self.relaxed[which],
            self.bits[which],
            self.family[which],
            self.mode[which],
            self.sums[:, which],
            self.peaks[:, which],
            self.bound[which],
        )

    def __len__(self) -> int:
        return len(self.paths)


@dataclass
class _Best:
    """The k best complete paths so far; ties (costs within `grain`) go to the path that comes first."""

    k: int
    grain: float
    paths: Ints
    costs: Floats = field(default_factory=lambda: np.empty(0))

    def add(self, paths: Ints, costs: Floats) -> None:
        paths, costs = np.concatenate([self.paths, paths]), np.concatenate([self.costs, costs])
        order = np.lexsort((*paths.T[::-1], np.round(costs / self.grain)))[: self.k]
        self.paths, self.costs = paths[order], costs[order]

    def may_enter(self, paths: Ints, bound: Floats) -> NDArray[np.bool_]:
        """Which partial paths may still lead to one of the k best."""
        if len(self.costs) < self.k:
            return np.isfinite(bound)
        worst, last = self.costs[-1], self.paths[-1]
        keep = bound <= worst + 4 * self.grain
        tied = np.flatnonzero(keep & (bound >= worst - 4 * self.grain))
        if len(tied):  # among ties only those that come before the last of the k best matter
            differs = paths[tied] != last[: paths.shape[1]]
            at = differs.argmax(axis=1)
            later = differs.any(axis=1) & (paths[tied, at] > last[at])
            keep[tied[later]] = False
        return keep


class _Bounds:
    """Prunes partial paths that no completion brings within a limit."""

    def __init__(self, limits: tuple[Limit, ...], stages: int) -> None:
        self.limits = limits
        self.sum_low = [self._togo(x, np.minimum) for x in limits]
        self.sum_high = [self._togo(x, np.maximum) for x in limits]
        self.peaks = [peak for x in limits for peak in x.peaks]
        self.owner = [i for i, x in enumerate(limits) for _ in x.peaks]
        self.peak_low = [least_peak(p)[1] for p in self.peaks]
        self.peak_high = [bounds_to_go(p, np.maximum, np.maximum) for p in self.peaks]
        self.slack = [1e-9 * (1 + max((abs(b) for b in (x.low, x.high) if np.isfinite(b)), default=0)) for x in limits]
        self.stages = stages

    def _togo(self, limit: Limit, choose: np.ufunc) -> list[Floats] | None:
        return None if limit.steps is None else bounds_to_go(limit.steps, choose, np.add)

    def keep(self, stage: int, choice: Ints, sums: Floats, peaks: Floats) -> NDArray[np.bool_]:
        good = np.ones(len(choice), bool)
        for i, limit in enumerate(self.limits):
            low, high = sums[i].copy(), sums[i].copy()
            lows, highs = self.sum_low[i], self.sum_high[i]
            if lows is not None and highs is not None:
                low += lows[stage][choice]
                high += highs[stage][choice]
            for p, owner in enumerate(self.owner):
                if owner == i:
                    low += np.maximum(peaks[p], self.peak_low[p][stage][choice])
                    high += np.maximum(peaks[p], self.peak_high[p][stage][choice])
            good &= (low <= limit.high + self.slack[i]) & (high >= limit.low - self.slack[i])
        return good


class _Search:
    def __init__(self, space: Space, k: int) -> None:
        self.space = space
        self.states = families(space)
        none = np.zeros((len(space.limits), 2))
        self.plain = relax(space, self.states, space.cost, none, none)
        self.relaxed: Relaxed = best_relaxation(space, self.states) or self.plain
        self.bounds = _Bounds(space.limits, len(space.cost))
        self.best = _Best(k, space.grain, np.empty((0, len(space.cost)), np.int64))
        self.explored = 0

    def root(self) -> _Batch:
        """The first choices, as children of the one empty path (which stands at row 0 of the first steps)."""
        width = self.space.widths[0]
        choice = np.arange(width)
        mode = np.full(width, self.states.modes - 1)
        return self._children(
            stage=0,
            parents=np.empty((width, 0), np.int64),
            before=np.zeros(width, np.int64),
            choice=choice,
            cost=np.zeros(width),
            relaxed=np.zeros(width),
            bits=self.states.bits[0].copy(),
            family=self.states.begin,
            mode=mode,
            sums=np.zeros((len(self.space.limits), width)),
            peaks=np.full((len(self.bounds.peaks), width), -np.inf),
        )

    def expand(self, batch: _Batch) -> _Batch:
        """All continuations by one choice that may still matter."""
        stage = batch.paths.shape[1]
        here = batch.paths[:, -1]
        to = self.states.after[stage - 1][batch.family]  # (n, m)
        allowed = (to >= 0) & ((batch.bits[:, None] & self.states.bits[stage]) == 0)
        self.explored += allowed.size
        row, choice = np.nonzero(allowed)
        # the cheap bound first, before anything else is gathered
        mode = batch.mode[row]
        if self.states.modes == 2:
            same = self.space.network[stage - 1][here][row] == self.space.network[stage][choice]
            mode = np.where(same, mode, 0)
        family = to[row, choice]
        cost = batch.cost[row] + self.space.cost[stage][here[row], choice]
        if len(self.best.costs) == self.best.k:
            bound = cost + self.plain.togo[stage][family, mode, choice]
            keep = bound <= self.best.costs[-1] + 4 * self.space.grain
            row, choice, mode, family = row[keep], choice[keep], mode[keep], family[keep]
        return self._children(
            stage=stage,
            parents=batch.paths[row],
            before=here[row],
            choice=choice,
            cost=batch.cost[row],
            relaxed=batch.relaxed[row],
            bits=batch.bits[row] | self.states.bits[stage][choice],
            family=family,
            mode=mode,
            sums=batch.sums[:, row],
            peaks=batch.peaks[:, row],
        )

    def _children(
        self,
        *,
        stage: int,
        parents: Ints,
        before: Ints,
        choice: Ints,
        cost: Floats,
        relaxed: Floats,
        bits: Ints,
        family: Ints,
        mode: Ints,
        sums: Floats,
        peaks: Floats,
    ) -> _Batch:
        space = self.space
        cost = cost + space.cost[stage][before, choice]
        relaxed = relaxed + self.relaxed.steps[stage][before, choice]
        bound = np.maximum(
            cost + self.plain.togo[stage][family, mode, choice],
            relaxed + self.relaxed.togo[stage][family, mode, choice] + self.relaxed.constant - self.slack,
        )
        sums = sums.copy()
        for i, limit in enumerate(space.limits):
            if limit.steps is not None:
                sums[i] += limit.steps[stage][before, choice]
        peaks = peaks.copy()
        for p, steps in enumerate(self.bounds.peaks):
            np.maximum(peaks[p], steps[stage][before, choice], out=peaks[p])
        paths = np.concatenate([parents, choice[:, None]], axis=1)
        batch = _Batch(paths, cost, relaxed, bits, family, mode, sums, peaks, bound)
        batch = batch[self.best.may_enter(paths, bound)]
        return batch[self.bounds.keep(stage, batch.paths[:, -1], batch.sums, batch.peaks)]

    @property
    def slack(self) -> float:
        """What rounding may add to the relaxed bound."""
        return 1e-9 * (1.0 + abs(self.relaxed.constant)) if self.relaxed is not self.plain else 0.0

    def complete(self, batch: _Batch) -> None:
        """Takes in complete paths: bounds and costs are computed anew, in one fixed order."""
        paths = batch.paths[self.space.fits(batch.paths)]
        self.best.add(paths, summed(self.space.cost, paths))


def branch_and_bound(space: Space, k: int, *, most_explored: int, seconds: int | float | None = None) -> Found:
    """The k paths of least cost within the limits of `space`, ties to the path that comes first.

    Stops early after `most_explored` partial paths or `seconds`, and then says how good what is left may be.
    """
    search = _Search(space, k)
    stages = len(space.cost)
    width = max(1, _BATCH // max(space.widths))
    stacks: list[list[_Batch]] = [[] for _ in range(stages + 1)]

    def push(batch: _Batch) -> None:
        if not len(batch):
            return
        if batch.paths.shape[1] == stages:
            search.complete(batch)
            return
        batch = batch[np.argsort(batch.bound, kind="stable")]
        parts = [batch[i : i + width] for i in range(0, len(batch), width)]
        stacks[batch.paths.shape[1]].extend(reversed(parts))

    deadline = None if seconds is None else time.perf_counter() + seconds
    push(search.root())
    while True:
        depth = next((d for d in range(stages, 0, -1) if stacks[d]), None)
        if depth is None:
            return Found(search.best.paths, search.best.costs, True, np.inf, search.explored)
        if search.explored >= most_explored or (deadline is not None and time.perf_counter() > deadline):
            break
        batch = stacks[depth].pop()
        if len(search.best.costs) < k and len(batch) > _DIVE:  # nothing to prune with yet: go down first
            stacks[depth].append(batch[_DIVE:])
            batch = batch[:_DIVE]
        batch = batch[search.best.may_enter(batch.paths, batch.bound)]
        if len(batch):
            push(search.expand(batch))
    left = [batch[search.best.may_enter(batch.paths, batch.bound)].bound for stack in stacks for batch in stack]
    bound = min((float(b.min()) for b in left if len(b)), default=np.inf)
    return Found(search.best.paths, search.best.costs, not np.isfinite(bound), bound, search.explored)
