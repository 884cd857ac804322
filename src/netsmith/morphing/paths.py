"""Channel order: the shortest path through all channels, where the step between two channels is their L1 distance.

Neural Metamorphosis (Yang et al., ECCV 2024), section 3.3, orders channels so that neighbours are alike, as the
shortest Hamiltonian path. It is a tour through the channels and a dummy city at distance zero from all of them, cut at
the dummy. How good an order is shows in the lower bound that comes with each.
"""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import fast_tsp
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from netsmith.errors import ChannelError, MorphError, did_you_mean
from netsmith.morphing.bound import Floats, Ints, candidates, lower_bound
from netsmith.morphing.exchange import Tour

# Up to here "auto" is exact, in 0.05 s: time and memory double with every further channel.
_EXACT_MOST = 12
# Disturbances of a search: some for each channel, within limits; and how many are reckoned for a second.
_TRIALS_PER_CHANNEL, _TRIALS_LEAST, _TRIALS_MOST, _TRIALS_A_SECOND = 10, 3000, 20_000, 2500
# Where few channels need few trials, these are shared among this many searches, each from a start of its own; and the
# number of channels from which one search takes all.
_STARTS, _ONE_START = 6, 256
# Likely neighbours of a channel: more find better paths, and take longer.
_NEIGHBOURS = 6
# Columns whose distances are summed in single precision; the sums are added in double.
_CHUNK = 2048


@dataclass(frozen=True)
class Path:
    """An order of n channels: `order[j]` is the old index of the channel that comes in place j.

    `length`, `before` (of the order that came in) and `bound` (no order is shorter) are sums of the L1 distances of
    neighbours, in units of the weights. `solver` is the one that ran: "auto" runs "exact" or "3opt". A path that is
    not `deterministic` comes out otherwise the next time: keep the order.
    """

    order: tuple[int, ...]
    length: float
    before: float
    bound: float
    solver: str
    deterministic: bool

    @property
    def optimal(self) -> bool:
        """Whether no order is shorter, up to rounding."""
        return self.length <= self.bound + 1e-9 * abs(self.bound)


@dataclass(frozen=True)
class _Problem:
    """What a solver may use; `greedy` is the nearest-neighbour order, `prices` those of the lower bound."""

    distances: Floats
    greedy: Ints
    bound: float
    prices: Floats
    seconds: int | float | None
    seed: int


def channel_order(
    rows: Float[Tensor, "n d"], *, solver: str = "auto", seconds: int | float | None = None, seed: int = 0
) -> Path:
    """The order of rows in which the L1 distances between neighbours add up to the least, as near as a solver comes.

    Args:
        rows: (n, d) all weights of each channel.
        solver: "auto": exact up to 12 channels, then "3opt". "3opt": iterated local search of our own with exchanges
            of up to three edges (Lin and Kernighan, 1973), chosen among likely ones (Helsgaun, 2000). "2opt": one local
            search from the greedy path, two edges at a time, and moves of up to three channels. "exact": up to 12
            channels (Held and Karp, 1962). "greedy": from the first channel always on to the nearest one left.
            "random": a random order, which may be longer than the one that came in; no other solver's is. "fast-tsp":
            the library of that name, on distances rounded to 16 bits; it draws its own random numbers, so its path is
            not deterministic.
        seconds: how long to search. For "fast-tsp" by the clock, default 2. For "3opt" a number of steps that takes
            about as long on one core, so that the result does not depend on the machine's load; default 10 steps a
            channel, at least 3000 and at most 20000 (under 1 s for 64 channels, 2 s for 512, 10 to 20 s for
            2048), fewer where the path meets the lower bound. Others ignore it.
        seed: same rows and seed, same path, except for "fast-tsp".

    Returns:
        The path with its length, the length before, and a lower bound. Time of the distances grows with n * n * d,
        memory with n * n (40 bytes: 170 MB for 2048 channels) and not with d.

    Raises:
        MorphError: an unknown solver, "exact" for too many channels, or seconds that are negative or endless.
        ChannelError: no rows, or weights that are NaN or infinite.
    """
    _check(rows, solver, seconds)
    distances = l1_distances(rows)
    before = _length(distances, np.arange(len(rows)))
    if len(rows) == 1:
        return Path((0,), 0.0, 0.0, 0.0, "exact", deterministic=True)
    if solver == "auto":
        solver = "exact" if len(rows) <= _EXACT_MOST else "3opt"
    greedy = _nearest_neighbour(distances)
    upper = min(before, _length(distances, greedy))
    bound, prices = lower_bound(distances, upper)
    order = _SOLVERS[solver](_Problem(distances, greedy, bound, prices, seconds, seed))
    assert sorted(order.tolist()) == list(range(len(rows))), f"{solver} gives no order"
    length = _length(distances, order)
    if solver != "random" and length >= before * (1 - 1e-12):
        order, length = np.arange(len(rows)), before
    elif order[0] > order[-1]:  # a path and its reverse are one
        order = order[::-1]
    if solver == "exact":
        bound = length
    assert bound <= length * (1 + 1e-9), f"a path of {length} is shorter than its lower bound {bound}"
    return Path(tuple(order.tolist()), length, before, min(bound, length), solver, deterministic=solver != "fast-tsp")


def solver_names() -> tuple[str, ...]:
    """What `solver` may be, the default first."""
    return ("auto", *_SOLVERS)


def l1_distances(rows: Float[Tensor, "n d"]) -> Floats:
    """(n, n) L1 distances between all rows, in double precision; on the device of the rows, some columns at a time."""
    n = len(rows)
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.float()
    above = torch.zeros(n * (n - 1) // 2, dtype=torch.float64)
    for columns in rows.detach().split(_CHUNK, dim=1):
        above += torch.pdist(columns.contiguous(), p=1).cpu()
    distances = np.zeros((n, n))
    distances[np.triu_indices(n, 1)] = above.numpy()
    return distances + distances.T


def cut_at_dummy(tour: Sequence[int], dummy: int) -> list[int]:
    """The path that a tour is without its dummy city: rotated until the dummy comes first, which then goes."""
    at = tour.index(dummy)
    return [*tour[at + 1 :], *tour[:at]]


def _check(rows: Tensor, solver: str, seconds: int | float | None) -> None:
    if solver not in solver_names():
        raise MorphError(f"no solver for channel orders is called '{solver}'. {did_you_mean(solver, solver_names())}")
    n = len(rows)
    if n == 0:
        raise ChannelError("expected rows (n, d) of at least one channel to order, got none")
    if solver == "exact" and n > _EXACT_MOST:
        raise MorphError(
            f"the exact solver takes up to {_EXACT_MOST} channels, got {n}; solver='auto' takes any number"
        )
    if seconds is not None and not 0 <= seconds < np.inf:
        raise MorphError(f"expected a number of seconds of 0 or more to search for an order, got {seconds}")
    finite = torch.isfinite(rows).all(dim=1)
    if not bool(finite.all()):
        bad = torch.nonzero(~finite).flatten().tolist()
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ChannelError(
            f"the weights of channel {bad[0]}{more} (of {n}) hold NaN or infinite values, which have no distance; "
            "check that the checkpoint is whole and its training did not diverge"
        )


def _length(distances: Floats, order: Ints) -> float:
    return float(distances[order[:-1], order[1:]].sum())


def _nearest_neighbour(distances: Floats) -> Ints:
    n = len(distances)
    order, free = np.zeros(n, np.int64), np.zeros(n)
    free[0] = np.inf
    for i in range(1, n):
        order[i] = (distances[order[i - 1]] + free).argmin()
        free[order[i]] = np.inf
    return order


def _greedy(problem: _Problem) -> Ints:
    return problem.greedy


def _random(problem: _Problem) -> Ints:
    return np.random.default_rng(problem.seed).permutation(len(problem.distances))


def _exact(problem: _Problem) -> Ints:
    """Dynamic programming over the set of channels visited and the last of them (Held and Karp, 1962)."""
    distances = problem.distances
    n = len(distances)
    cost = np.full((1 << n, n), np.inf)
    came = np.zeros((1 << n, n), np.int64)
    cost[1 << np.arange(n), np.arange(n)] = 0.0
    masks = np.arange(1 << n)
    size = sum((masks >> i) & 1 for i in range(n))
    for visited, last in itertools.product(range(2, n + 1), range(n)):
        into = masks[(size == visited) & ((masks >> last) & 1 == 1)]
        steps = cost[into ^ (1 << last)] + distances[last]  # (sets, channel before)
        came[into, last] = steps.argmin(axis=1)
        cost[into, last] = steps.min(axis=1)
    order, left, last = [], (1 << n) - 1, int(cost[-1].argmin())
    while left:
        order.append(last)
        left, last = left ^ (1 << last), int(came[left, last])
    return np.array(order)


def _local(problem: _Problem, depth: int, trials: int, starts: int = 1) -> Ints:
    """The best of some searches, the first from the greedy path and others from random ones."""
    dummy = len(problem.distances)
    lengths, near = candidates(problem.distances, problem.prices, _NEIGHBOURS)
    # In the length of a tour with prices, each price counts twice.
    goal = problem.bound + 2.0 * float(problem.prices.sum())
    rng = random.Random(problem.seed)
    cities = [dummy, *problem.greedy.tolist()]
    best, shortest = problem.greedy, np.inf
    for _ in range(starts):
        tour = Tour(lengths, near, cities, depth=depth)
        tour.improve(rng)
        tour.search(rng, trials // starts, goal)
        order = np.array(cut_at_dummy(tour.cities, dummy))
        length = _length(problem.distances, order)
        if length < shortest:
            best, shortest = order, length
        if length <= problem.bound * (1 + 1e-9):
            break
        rng.shuffle(cities)
    return best


def _two_opt(problem: _Problem) -> Ints:
    return _local(problem, depth=2, trials=0)


def _three_opt(problem: _Problem) -> Ints:
    n = len(problem.distances)
    trials = min(max(_TRIALS_PER_CHANNEL * n, _TRIALS_LEAST), _TRIALS_MOST)
    if problem.seconds is not None:
        trials = round(problem.seconds * _TRIALS_A_SECOND)
    return _local(
        problem, depth=3, trials=trials, starts=max(1, min(_STARTS, _STARTS * (_ONE_START - n) // _ONE_START))
    )


def _fast_tsp(problem: _Problem) -> Ints:
    distances = problem.distances
    n = len(distances)
    apart = distances[~np.eye(n, dtype=bool)]
    least, most = float(apart.min()), float(apart.max())
    whole = np.zeros((n + 1, n + 1), np.uint16)
    if most > least:
        # A path has n - 1 steps: what all of them have in common may go, and leaves more of the 16 bits for the rest.
        whole[:n, :n] = np.rint(np.clip((distances - least) / (most - least), 0.0, 1.0) * 65535)
    seconds = 2.0 if problem.seconds is None else max(float(problem.seconds), 0.01)  # it refuses 0
    # Its own choice of neighbours for short times is the nearest, which goes astray on trained weights.
    if "candidates" in inspect.signature(fast_tsp.find_tour).parameters:
        tour = fast_tsp.find_tour(whole, seconds, candidates="alpha")
    else:  # releases before 0.2.2
        tour = fast_tsp.find_tour(whole, seconds)
    return np.array(cut_at_dummy(tour, n))


_SOLVERS: dict[str, Callable[[_Problem], Ints]] = {
    "3opt": _three_opt,
    "2opt": _two_opt,
    "exact": _exact,
    "greedy": _greedy,
    "random": _random,
    "fast-tsp": _fast_tsp,
}
