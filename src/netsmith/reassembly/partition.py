"""Equivalence sets: cut every network of a zoo into K blocks and group the blocks that do the same job.

Maximises the sum over all blocks of `S(block, its medoid)`, `S(B, B') = s(in B, in B') + s(out B, out B')`, over the
cuts of every network into K contiguous blocks, K medoids among those blocks, and the assignment of blocks to medoids
(any block may go to any medoid; a medoid belongs to its own set). Problem: Yang et al., "Deep Model Reassembly",
NeurIPS 2022, section 3.2. There it is a heuristic with swaps at the borders; here both steps of the alternation are
exact, all restarts run at once, and the best of them are improved until no change of one medoid helps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from netsmith.errors import PartitionError
from netsmith.reassembly.medoids import (
    Cutter,
    Floats,
    Ints,
    State,
    best_of_all,
    climb,
    concatenate,
    improve_by_swaps,
)
from netsmith.search.blocks import Block

# Sums of parameters or MACs are compared with a bound that is a product of floats.
_ROUNDING = 1.0 + 1e-9

# How many of the best restarts are improved by swaps of a medoid: on tables without structure the best restart is not
# always the one that leads highest.
_POLISHED = 6


@dataclass(frozen=True)
class Partition:
    """Every network cut into K blocks, and every block in one of K equivalence sets.

    `blocks` holds one tuple a network, in the order of the zoo and along the network; `assignment` the set (0..K-1) of
    each block; `medoids` the block that represents each set and is one of its members. Sets are numbered by how deep
    their blocks lie on average. `objective` is the sum of S(block, its medoid), `trace` its values after each exact
    step of the winning restart: it never falls. `optimal` says that no partition is better (every set of medoids was
    tried, as for a few small networks); otherwise it is a local optimum of exact steps.

    Examples:
        >>> netsmith.partition({"a": [1, 1], "b": [1, 1]}, torch.eye(6).numpy(), k=2).k
        2
    """

    blocks: tuple[tuple[Block, ...], ...]
    assignment: dict[Block, int]
    medoids: tuple[Block, ...]
    objective: float
    trace: tuple[float, ...]
    optimal: bool = False

    @property
    def k(self) -> int:
        """Number of equivalence sets, and of blocks of each network."""
        return len(self.medoids)

    @property
    def sets(self) -> tuple[tuple[Block, ...], ...]:
        """The blocks of each equivalence set, in the order of the zoo."""
        return tuple(
            tuple(b for blocks in self.blocks for b in blocks if self.assignment[b] == i) for i in range(self.k)
        )

    def to_json(self) -> str:
        """Text that `from_json` reads back to an equal partition."""
        return json.dumps(
            {
                "blocks": [[str(b) for b in blocks] for blocks in self.blocks],
                "assignment": {str(b): i for b, i in self.assignment.items()},
                "medoids": [str(b) for b in self.medoids],
                "objective": self.objective,
                "trace": list(self.trace),
                "optimal": self.optimal,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Partition:
        """The partition that `to_json` wrote. Raises `PartitionError` for any other text."""
        try:
            raw = json.loads(text)
            found = cls(
                blocks=tuple(tuple(Block.parse(b) for b in blocks) for blocks in raw["blocks"]),
                assignment={Block.parse(b): int(i) for b, i in raw["assignment"].items()},
                medoids=tuple(Block.parse(b) for b in raw["medoids"]),
                objective=float(raw["objective"]),
                trace=tuple(float(v) for v in raw["trace"]),
                optimal=bool(raw["optimal"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as cause:
            raise PartitionError(
                f"expected the JSON text of a partition, got one that does not parse: {cause}"
            ) from cause
        placed = {b for blocks in found.blocks for b in blocks}
        if placed != set(found.assignment) or not placed.issuperset(found.medoids):
            raise PartitionError("the JSON text of this partition assigns other blocks than it lists")
        return found


def partition(
    networks: Mapping[str, Sequence[int | float]],
    table: ArrayLike,
    k: int,
    *,
    eps: int | float = 0.2,
    restarts: int = 200,
    seed: int = 0,
) -> Partition:
    """Cuts every network into `k` blocks and groups them into `k` equivalence sets.

    Args:
        networks: for each network the size of each of its units: ones for a bound in units, or params, or MACs.
        table: (C, C) similarity of cuts. The cuts of the networks follow one another in the order of `networks`, a
            network of u units has u + 1 of them. An asymmetric table (`lr`) is read as `table[i, j]`, i a cut of the
            block, j of the medoid: with R² of predicting j from i, how well the block predicts its medoid.
        k: number of blocks of each network, and of sets.
        eps: no block is larger than `(1 + eps) / k` of its network, in the measure of `networks`.
        restarts: starting points; the best end wins.
        seed: same inputs and seed, same partition.

    Returns:
        The best partition found. Each step is exact given the other, and no change of a single medoid, with all
        networks cut anew, betters it (where candidates run into the thousands, a random part of these changes is
        tried). For a few small networks every set of medoids is tried, and the result is the optimum.

    Raises:
        PartitionError: a network with fewer units than `k`, or bounds that no cut satisfies; the message names the
            networks and the smallest eps that works.

    Examples:
        >>> import numpy as np
        >>> alike = np.kron(np.ones((2, 2)), np.eye(3))  # two networks of two units: three cuts each, alike in pairs
        >>> found = netsmith.partition({"a": [1, 1], "b": [1, 1]}, alike, k=2, eps=0)
        >>> [[str(block) for block in blocks] for blocks in found.blocks]
        [['a[0:1]', 'a[1:2]'], ['b[0:1]', 'b[1:2]']]
    """
    sizes = {name: np.asarray(units, dtype=np.float64) for name, units in networks.items()}
    values = _check_inputs(sizes, table, k, eps, restarts)
    first = np.concatenate([[0], np.cumsum([len(u) + 1 for u in sizes.values()])])
    check_feasible(networks, k, eps)
    candidates = _candidates(sizes, first, k, eps)
    cutter = Cutter(values, first, candidates, k)
    rng = np.random.default_rng(seed)

    ends: list[State] = []
    traces: list[list[float]] = []
    for part in cutter.chunks(restarts):
        state, trace = climb(cutter, _starts(cutter, rng, np.arange(part.start, part.stop)))
        ends.append(state)
        traces += trace
    state = concatenate(ends)
    finals = [
        (improve_by_swaps(cutter, state.columns(np.array([i])), traces[i], rng), traces[i])
        for i in _distinct_best(state.objective, _POLISHED)
    ]
    final, trace = max(finals, key=lambda end: end[0].objective[0])
    every = best_of_all(cutter)
    if every is not None and every.objective[0] > final.objective[0] + 1e-9 * (1 + abs(final.objective[0])):
        final, trace = every, [*trace, float(every.objective[0])]
    return _result(cutter, sizes, final, trace, eps, optimal=every is not None)


def _distinct_best(objective: Floats, most: int) -> list[int]:
    """The restarts of greatest objective, best first, one for each value."""
    order = np.argsort(-objective, kind="stable")
    values = objective[order]
    new = np.concatenate([[True], values[1:] < values[:-1] - 1e-9 * (1 + np.abs(values[:-1]))])
    return [int(i) for i in order[new][:most]]


def smallest_eps(networks: Mapping[str, Sequence[int | float]], k: int) -> dict[str, float]:
    """For each network the least `eps` at which it can be cut into `k` blocks within `(1 + eps) / k` of its size.

    Exact, by dynamic programming over the largest block. Raises `PartitionError` for a network of fewer than k units.
    """
    _check_units({name: np.asarray(units, dtype=np.float64) for name, units in networks.items()}, k)
    return {name: _smallest_eps(np.asarray(units, dtype=np.float64), k) for name, units in networks.items()}


def check_feasible(networks: Mapping[str, Sequence[int | float]], k: int, eps: int | float) -> None:
    """Refuse, before anything is computed, a zoo that cannot be cut into `k` blocks within `(1 + eps) / k` each.

    Raises `PartitionError`, naming the networks and the smallest eps that works for all.
    """
    tight = {name: e for name, e in smallest_eps(networks, k).items() if (1 + e) > (1 + eps) * _ROUNDING}
    if tight:
        listed = ", ".join(f"'{name}' needs {_round_up(e)}" for name, e in tight.items())
        raise PartitionError(
            f"with K = {k} and eps = {eps:g} no cut keeps every block within (1 + eps) / K of its network: {listed}. "
            f"The smallest eps that works for all is {_round_up(max(tight.values()))}; or choose another K or size."
        )


def _smallest_eps(units: Floats, k: int) -> float:
    ahead = np.concatenate([[0.0], np.cumsum(units)])
    largest = np.full(len(ahead), np.inf)
    largest[0] = 0.0
    size = ahead[None, :] - ahead[:, None]  # (start, stop)
    size[np.tril_indices(len(ahead))] = np.inf
    for _ in range(k):
        largest = np.maximum(largest[:, None], size).min(axis=0)
    return max(0.0, float(largest[-1]) * k / float(ahead[-1]) - 1.0)


def _check_inputs(sizes: dict[str, Floats], table: ArrayLike, k: int, eps: int | float, restarts: int) -> Floats:
    if not sizes:
        raise PartitionError("a partition needs at least one network, got none")
    if k < 1 or restarts < 1:
        raise PartitionError(f"expected k and restarts of at least 1, got k = {k}, restarts = {restarts}")
    if not (eps >= 0 and math.isfinite(eps)):
        raise PartitionError(
            f"expected eps of 0 or more (the part by which a block may exceed its even share), got {eps}"
        )
    _check_units(sizes, k)
    values = np.asarray(table, dtype=np.float64)
    cuts = sum(len(u) + 1 for u in sizes.values())
    if values.shape != (cuts, cuts):
        raise PartitionError(
            f"expected a similarity table of {cuts} x {cuts} (each network has one cut more than units), "
            f"got {' x '.join(map(str, values.shape))}"
        )
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise PartitionError(
            f"the similarity table holds {values[row, column]} at cuts {row}, {column}: representations that are "
            "constant or not finite cannot be compared; look at the probe images and at the networks' outputs"
        )
    return values


def _check_units(sizes: dict[str, Floats], k: int) -> None:
    short = {name: len(u) for name, u in sizes.items() if len(u) < k}
    if short:
        listed = ", ".join(f"'{name}' has {n}" for name, n in short.items())
        least = min(short.values())
        remedy = f"Take K = {least} at most, or leave them out" if least > 0 else "Leave them out"
        raise PartitionError(f"K = {k} blocks need networks of at least {k} units, but {listed}. {remedy}.")
    for name, units in sizes.items():
        if not np.isfinite(units).all() or (units < 0).any() or units.sum() <= 0:
            raise PartitionError(f"the unit sizes of '{name}' must be finite, not negative, and not all zero")


def _candidates(sizes: dict[str, Floats], first: Ints, k: int, eps: int | float) -> Ints:
    """(q, 2) start and stop cuts of all blocks within the bound."""
    pairs = []
    for offset, units in zip(first[:-1], sizes.values(), strict=True):
        ahead = np.concatenate([[0.0], np.cumsum(units)])
        bound = (1 + eps) * ahead[-1] / k * _ROUNDING
        for start in range(len(units)):
            # a block never takes so much that fewer units than blocks are left; the cutter drops the rest
            stops = np.arange(start + 1, len(units) + 1)
            stops = stops[ahead[stops] - ahead[start] <= bound]
            pairs.append(np.stack([np.full(len(stops), start), stops], axis=1) + offset)
    return np.concatenate(pairs).astype(np.int64)


def _round_up(eps: float) -> str:
    """Four decimals that are still feasible."""
    return f"{math.ceil(eps * 1e4 - 1e-6) / 1e4:g}"


def _starts(cutter: Cutter, rng: np.random.Generator, which: Ints) -> Ints:
    """(k, r) medoids to start from, three ways in turn; all are blocks of one random cut, so they never overlap.

    K blocks at random; K blocks apart from one another (k-means++); the K blocks of one network, in order.
    """
    # The best cut under random scores is a random cut within the bounds.
    chosen, _ = cutter.cut(rng.random((len(cutter.start), len(which))))
    blocks, restarts = chosen.shape
    column = np.arange(restarts)
    medoids = np.empty((cutter.k, restarts), np.int64)
    spread = which % 3 == 1
    taken = np.zeros((blocks, restarts), bool)
    nearest = np.full((blocks, restarts), -np.inf)
    for j in range(cutter.k):
        away = np.ones((blocks, restarts))
        if j:
            far = np.clip(cutter.own[chosen] - nearest, 0.0, None) ** 2
            far[:, ~(spread & ((far * ~taken).sum(axis=0) > 0))] = 1.0
            away = far
        away[taken] = 0.0
        ahead = np.cumsum(away, axis=0)
        pick = (ahead <= rng.random(restarts) * ahead[-1]).sum(axis=0)
        pick = np.minimum(pick, blocks - 1)
        assert not taken[pick, column].any(), "a block was drawn twice"
        taken[pick, column] = True
        medoids[j] = chosen[pick, column]
        nearest = np.maximum(nearest, cutter.similarity(chosen, medoids[j]))
    one = which % 3 == 2
    network = rng.integers(0, blocks // cutter.k, restarts)
    rows = network * cutter.k + np.arange(cutter.k)[:, None]
    return np.where(one, chosen[rows, column], medoids)


def _result(
    cutter: Cutter, sizes: dict[str, Floats], state: State, trace: list[float], eps: int | float, *, optimal: bool
) -> Partition:
    k = cutter.k
    chosen, label, medoids = state.chosen[:, 0].reshape(len(sizes), k), state.label[:, 0], state.medoids[:, 0]
    place = np.tile(np.arange(k), len(sizes))
    depth = [(float(place[label == j].mean()), int(medoids[j])) for j in range(k)]
    number = {j: i for i, j in enumerate(sorted(range(k), key=lambda j: depth[j]))}

    blocks: list[tuple[Block, ...]] = []
    by_row: dict[int, Block] = {}
    for (name, units), offset, rows in zip(sizes.items(), cutter.first[:-1], chosen, strict=True):
        line = tuple(Block(name, int(cutter.start[q] - offset), int(cutter.stop[q] - offset)) for q in rows)
        by_row.update(zip(rows.tolist(), line, strict=True))
        blocks.append(line)
        bound = (1 + eps) * units.sum() / k * _ROUNDING
        edges = [0, *(b.stop for b in line)]
        assert [b.start for b in line] == edges[:-1], f"the blocks of {name} are not contiguous"
        assert edges[-1] == len(units), f"the blocks of {name} do not end at its end"
        assert all(units[b.start : b.stop].sum() <= bound * _ROUNDING for b in line), f"a block of {name} is too large"
    objective = float(cutter.similarity(chosen.ravel(), medoids[label]).sum())
    assert abs(objective - state.objective[0]) <= 1e-6 * (1 + abs(objective)), "the objective is not what was summed"
    assignment = {by_row[int(q)]: number[int(j)] for q, j in zip(chosen.ravel(), label, strict=True)}
    return Partition(
        blocks=tuple(blocks),
        assignment=assignment,
        medoids=tuple(by_row[int(medoids[j])] for j in sorted(range(k), key=number.__getitem__)),
        objective=objective,
        trace=tuple(trace),
        optimal=optimal,
    )
