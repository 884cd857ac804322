"""The two exact steps of the partition, for many restarts at once.

Blocks are pairs of cuts in one numbering of all networks' cuts, so that blocks of different networks never overlap.
`S(b, m) = s(in(b), in(m)) + s(out(b), out(m))` is a sum of two table entries: nothing of the size of all pairs of
blocks is ever built. Arrays carry the restarts in their last axis: `r` restarts, `q` candidate blocks, `c` cuts,
`n` networks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# How many numbers an array over (candidates, restarts) may hold: small enough to stay near the cache.
_CHUNK = 1 << 18

# How many numbers (candidates times trials) one round of swaps may score: half a second of work.
_SWAP_WORK = 1 << 23

# As many to try every set of medoids there is: under a second.
_ALL_WORK = 1 << 24


@dataclass(frozen=True)
class _Step:
    """Candidates that may be the j-th block of their network, sorted by the cut they end at."""

    rows: Ints  # into the candidates
    ends: Ints  # the distinct end cuts
    first: Ints  # where each end's run of rows begins
    count: Ints  # (c,) how many rows end at a cut
    begin: Ints  # (c,) where they begin; 0 where there are none


@dataclass(frozen=True)
class State:
    """Where `r` restarts stand; `objective[i]` is the sum of S(block, its medoid) of restart i."""

    chosen: Ints  # (n * k, r) candidates, network by network, in order along the network
    label: Ints  # (n * k, r) index of the medoid each is assigned to
    medoids: Ints  # (k, r) candidates
    objective: Floats  # (r,)

    def columns(self, which: NDArray[np.bool_] | Ints) -> State:
        """The restarts that `which` selects."""
        return State(self.chosen[:, which], self.label[:, which], self.medoids[:, which], self.objective[which])


class Cutter:
    """The admissible blocks of a zoo and the exact steps over them.

    Args:
        table: (c, c) similarity of cuts; the row is the block's, the column the medoid's.
        first: (n + 1,) the first cut of each network, then the number of cuts.
        candidates: (q, 2) start and stop cut of every block that is within the size bound.
        k: blocks of a network, and medoids.
    """

    def __init__(self, table: Floats, first: Ints, candidates: Ints, k: int) -> None:
        self.table = np.ascontiguousarray(table)
        self.transposed = np.ascontiguousarray(table.T)
        self.first = first
        self.k = k
        order = np.lexsort((candidates[:, 0], candidates[:, 1]))
        self.start = np.ascontiguousarray(candidates[order, 0])
        self.stop = np.ascontiguousarray(candidates[order, 1])
        self.steps = self._steps()
        used = np.unique(np.concatenate([s.rows for s in self.steps]))
        if len(used) < len(self.start):  # blocks that no complete cut of their network contains
            self.start, self.stop = self.start[used], self.stop[used]
            self.steps = self._steps()
        self.own = self.table[self.start, self.start] + self.table[self.stop, self.stop]

    def _steps(self) -> list[_Step]:
        cuts = int(self.first[-1])
        ahead = np.zeros((self.k + 1, cuts), bool)
        ahead[0, self.first[:-1]] = True
        for j in range(1, self.k + 1):
            ahead[j, self.stop[ahead[j - 1, self.start]]] = True
        behind = np.zeros((self.k + 1, cuts), bool)
        behind[0, self.first[1:] - 1] = True
        for j in range(1, self.k + 1):
            behind[j, self.start[behind[j - 1, self.stop]]] = True
        steps = []
        for j in range(1, self.k + 1):
            rows = np.flatnonzero(ahead[j - 1, self.start] & behind[self.k - j, self.stop])
            ends, first, number = np.unique(self.stop[rows], return_index=True, return_counts=True)
            count, begin = np.zeros(cuts, np.int64), np.zeros(cuts, np.int64)
            count[ends], begin[ends] = number, first
            steps.append(_Step(rows, ends, first, count, begin))
        return steps

    def chunks(self, restarts: int) -> list[slice]:
        """Runs of restarts whose working arrays stay small."""
        widest = max(len(self.start), len(self.table) * 2)
        step = max(1, _CHUNK // widest)
        return [slice(i, min(i + step, restarts)) for i in range(0, restarts, step)]

    def similarity(self, blocks: Ints, medoids: Ints) -> Floats:
        """S of candidates with candidates, elementwise with broadcasting."""
        return self.table[self.start[blocks], self.start[medoids]] + self.table[self.stop[blocks], self.stop[medoids]]

    def best_paths(self, score: Floats) -> Floats:
        """(n, r) best total score of a cut of each network into k candidates; `score` is (q, r)."""
        return self._forward(score)[-1][self.first[1:] - 1]

    def _forward(self, score: Floats) -> list[Floats]:
        """`reached[j][cut]`: best sum over j blocks that end at `cut`."""
        cuts, restarts = int(self.first[-1]), score.shape[1]
        reached = [np.full((cuts, restarts), -np.inf) for _ in range(self.k + 1)]
        reached[0][self.first[:-1]] = 0.0
        for j, step in enumerate(self.steps, start=1):
            value = np.take(reached[j - 1], self.start[step.rows], axis=0)
            value += np.take(score, step.rows, axis=0)
            reached[j][step.ends] = np.maximum.reduceat(value, step.first, axis=0)
        return reached

    def cut(self, score: Floats) -> tuple[Ints, Floats]:
        """The best cut of every network: chosen candidates (n * k, r) and the totals (n, r)."""
        reached = self._forward(score)
        networks, restarts = len(self.first) - 1, score.shape[1]
        column = np.arange(restarts)
        chosen = np.empty((networks, self.k, restarts), np.int64)
        end = np.repeat(self.first[1:, None] - 1, restarts, axis=1)
        for j in range(self.k, 0, -1):
            step = self.steps[j - 1]
            width = np.arange(int(step.count.max()))[:, None, None]
            place = np.minimum(step.begin[end] + width, len(step.rows) - 1)
            rows = step.rows[place]
            value = reached[j - 1][self.start[rows], column] + score[rows, column]
            value[np.broadcast_to(width, value.shape) >= step.count[end]] = -np.inf
            pick = value.argmax(axis=0)
            chosen[:, j - 1] = np.take_along_axis(rows, pick[None], axis=0)[0]
            end = self.start[chosen[:, j - 1]]
        return chosen.reshape(networks * self.k, restarts), reached[self.k][self.first[1:] - 1]

    def assign(self, medoids: Ints) -> tuple[Floats, Ints]:
        """Score and label (q, r) of every candidate, given medoids (k, r) that do not overlap.

        A candidate takes the medoid it is most similar to. The medoids themselves must be blocks of the cut: what
        overlaps one of them is out (-inf), and each belongs to its own set.
        """
        restarts = medoids.shape[1]
        score = np.full((len(self.start), restarts), -np.inf)
        label = np.zeros((len(self.start), restarts), np.int64)
        for k, medoid in enumerate(medoids):
            value = np.take(np.ascontiguousarray(self.transposed[self.start[medoid]].T), self.start, axis=0)
            value += np.take(np.ascontiguousarray(self.transposed[self.stop[medoid]].T), self.stop, axis=0)
            np.copyto(label, k, where=value > score)
            np.maximum(score, value, out=score)
        for medoid in medoids:
            overlaps = (self.start[:, None] < self.stop[medoid]) & (self.stop[:, None] > self.start[medoid])
            np.copyto(score, -np.inf, where=overlaps)
        column = np.arange(restarts)
        for k, medoid in enumerate(medoids):
            score[medoid, column] = self.own[medoid]
            label[medoid, column] = k
        return score, label

    def recut(self, medoids: Ints) -> State:
        """First exact step: medoids given, the best blocks (dynamic programming over block and end cut)."""
        score, label = self.assign(medoids)
        chosen, totals = self.cut(score)
        return State(chosen, np.take_along_axis(label, chosen, axis=0), medoids, totals.sum(axis=0))

    def recentre(self, state: State) -> State:
        """Second exact step: blocks given, each set's medoid is its member of greatest total S to the members."""
        k, cuts = self.k, len(self.table)
        restarts = len(state.objective)
        cell = (state.label + np.arange(restarts) * k) * cuts
        sums = []
        for ends in (self.start, self.stop):
            counts = np.bincount((cell + ends[state.chosen]).ravel(), minlength=restarts * k * cuts)
            sums.append((counts.reshape(restarts * k, cuts).astype(float) @ self.table).ravel())
        total = sums[0][cell + self.start[state.chosen]] + sums[1][cell + self.stop[state.chosen]]
        medoids = state.medoids.copy()
        objective = np.zeros(restarts)
        column = np.arange(restarts)
        for j in range(k):
            inside = np.where(state.label == j, total, -np.inf)
            # the medoid at hand wins ties, so that a fixed point is one of both steps
            is_now = state.chosen == medoids[j]
            now = np.where(is_now, inside, -np.inf).max(axis=0)
            pick = inside.argmax(axis=0)
            best = inside[pick, column]
            better = best > now + 1e-12 * np.abs(now)
            medoids[j] = np.where(better, state.chosen[pick, column], medoids[j])
            objective += np.where(better, best, now)
        return State(state.chosen, state.label, medoids, objective)


def concatenate(states: Sequence[State]) -> State:
    """Restarts of several states side by side."""
    return State(
        np.concatenate([s.chosen for s in states], axis=1),
        np.concatenate([s.label for s in states], axis=1),
        np.concatenate([s.medoids for s in states], axis=1),
        np.concatenate([s.objective for s in states]),
    )


def climb(cutter: Cutter, medoids: Ints) -> tuple[State, list[list[float]]]:
    """Alternates the two steps until neither changes anything; medoids (k, r), traces one a restart.

    No step may lower the objective (beyond rounding): asserted.
    """
    traces: list[list[float]] = [[] for _ in range(medoids.shape[1])]
    active = np.arange(medoids.shape[1])
    last = np.full(len(active), -np.inf)
    held: list[State] = []
    places: list[Ints] = []
    while len(active):
        cut = cutter.recut(medoids)
        state = cutter.recentre(cut)
        slack = 1e-9 * (1.0 + np.abs(state.objective))
        assert np.all(cut.objective >= last - slack), "the exact cut lowered the objective"
        assert np.all(state.objective >= cut.objective - slack), "the exact medoids lowered the objective"
        for i, before, after in zip(active, cut.objective, state.objective, strict=True):
            traces[i] += [float(before), float(after)]
        moved = np.any(state.medoids != cut.medoids, axis=0)
        rises = state.objective > last + 1e-13 * (1.0 + np.abs(state.objective))  # else rounding could go in circles
        done = ~(moved & rises)
        held.append(state.columns(done))
        places.append(active[done])
        active, last, medoids = active[~done], state.objective[~done], state.medoids[:, ~done]
    return concatenate(held).columns(np.argsort(np.concatenate(places))), traces


def improve_by_swaps(cutter: Cutter, state: State, trace: list[float], rng: np.random.Generator) -> State:
    """Goes on from one restart: tries every candidate in the place of every medoid, exactly, while that helps.

    The result cannot be bettered by changing any one medoid and then cutting anew (a local optimum of PAM, with the cut
    solved to optimality for each trial). When the candidates are too many for that, a random part of the changes is
    tried, as many as `_SWAP_WORK` allows. Appends to `trace`.
    """
    assert state.medoids.shape[1] == 1
    while True:
        trials = _swaps(cutter, state.medoids[:, 0])
        most = max(1, _SWAP_WORK // len(cutter.start))
        if trials.shape[1] > most:
            trials = trials[:, np.sort(rng.choice(trials.shape[1], most, replace=False))]
        if not trials.shape[1]:
            return state
        value = _values(cutter, trials)
        best = int(value.argmax())
        if not value[best] > state.objective[0] + 1e-9 * (1.0 + abs(state.objective[0])):
            return state
        state, traces = climb(cutter, trials[:, best : best + 1])
        trace += traces[0]


def best_of_all(cutter: Cutter) -> State | None:
    """The optimum, by trying every set of medoids with the exact cut; None where there are too many sets for that."""
    blocks = len(cutter.start)
    if math.comb(blocks, cutter.k) * blocks > _ALL_WORK:
        return None
    trials = np.array(list(itertools.combinations(range(blocks), cutter.k)), dtype=np.int64).T
    for a, b in itertools.combinations(range(cutter.k), 2):
        after = cutter.start[trials[a]] >= cutter.stop[trials[b]]
        apart = after | (cutter.stop[trials[a]] <= cutter.start[trials[b]])
        trials = trials[:, apart]
    best = int(_values(cutter, trials).argmax())
    return cutter.recentre(cutter.recut(trials[:, best : best + 1]))


def _values(cutter: Cutter, trials: Ints) -> Floats:
    """(t,) the objective of the best cut for each set of medoids; -inf where no cut holds them all."""
    parts = [trials[:, part] for part in cutter.chunks(trials.shape[1])]
    return np.concatenate([cutter.best_paths(cutter.assign(part)[0]).sum(axis=0) for part in parts])


def _swaps(cutter: Cutter, medoids: Ints) -> Ints:
    """(k, t) every set of medoids that differs from `medoids` in one, and whose blocks do not overlap."""
    columns = []
    for j in range(len(medoids)):
        others = np.delete(medoids, j)
        overlaps = (cutter.start[:, None] < cutter.stop[others]) & (cutter.stop[:, None] > cutter.start[others])
        free = np.flatnonzero(~overlaps.any(axis=1))
        free = free[free != medoids[j]]
        column = np.repeat(medoids[:, None], len(free), axis=1)
        column[j] = free
        columns.append(column)
    return np.concatenate(columns, axis=1)
