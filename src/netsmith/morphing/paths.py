"""Channel order: the shortest path through all channels, where the step between two channels is their L1 distance.

Neural Metamorphosis (Yang et al., ECCV 2024), section 3.3, orders channels so that neighbours are alike, as the
shortest Hamiltonian path: a tour through the channels and a dummy city at distance zero from all of them, cut there.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import fast_tsp
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from netsmith.errors import ChannelError, MorphError, did_you_mean
from netsmith.morphing.settings import SOLVERS

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

EXACT_MOST = 12
"""Channels up to which "auto" is exact, in 0.05 s: time and memory double with every further channel."""

_SECONDS_A_CHANNEL = 1.5e-3  # EfficientNet-Lite0: paths 0.005% longer than after a search of twice the time
_CHUNK = 2048  # columns whose distances are summed in single precision; the sums are added in double


@dataclass(frozen=True)
class Path:
    """An order of n channels: `order[j]` is the old index of the channel that comes in place j.

    `length` and `before` (of the order that came in) are sums of the L1 distances of neighbours, in units of the
    weights. `solver` is the one that ran: "auto" runs "exact" or "fast-tsp". A path that is not `deterministic` comes
    out otherwise the next time: keep the order.
    """

    order: tuple[int, ...]
    length: float
    before: float
    solver: str
    deterministic: bool


def channel_order(
    rows: Float[Tensor, "n d"], *, solver: str = "auto", seconds: int | float | None = None, seed: int = 0
) -> Path:
    """Return an order of rows in which the L1 distances between neighbours add up to little.

    Args:
        rows: (n, d) all weights of each channel.
        solver: "auto": exact up to 12 channels, then fast-tsp. "exact": up to 12 channels (Held and Karp, 1962).
            "fast-tsp": the library of that name, on distances rounded to 16 bits; it draws its own random numbers, so
            its path is not deterministic. "2opt": turns pieces of the greedy path, or of the order that came
            in, round until none gets shorter.
            "greedy": from the first channel always on to the nearest one left. "random": a random order, which may be
            longer than the one that came in; no other solver's is.
        seconds: limit of fast-tsp's search, by the clock; default 1.5 for 1000 channels. Others ignore it.
        seed: of "random".

    Returns:
        The path with its length and the length before. Time of the distances grows with n * n * d, memory with n * n.

    Raises:
        MorphError: an unknown solver, "exact" for too many channels, or seconds that are negative or endless.
        ChannelError: no rows, or weights that are NaN or infinite.
    """
    _check(rows, solver, seconds)
    n = len(rows)
    distances = l1_distances(rows)
    before = _length(distances, np.arange(n))
    if n == 1:
        return Path((0,), 0.0, 0.0, "exact", deterministic=True)
    if solver == "auto":
        solver = "exact" if n <= EXACT_MOST else "fast-tsp"
    if solver == "exact":
        order = _exact(distances)
    elif solver == "random":
        order = np.random.default_rng(seed).permutation(n)
    elif solver == "fast-tsp":
        order = _fast_tsp(distances, n * _SECONDS_A_CHANNEL if seconds is None else float(seconds))
    else:
        order = _nearest_neighbour(distances)
        if solver == "2opt":
            order = _two_opt(distances, min(order, np.arange(n), key=lambda o: _length(distances, o)))
    length = _length(distances, order)
    if solver != "random" and length >= before * (1 - 1e-12):
        order, length = np.arange(n), before
    elif order[0] > order[-1]:  # a path and its reverse are one
        order = order[::-1]
    return Path(tuple(order.tolist()), length, before, solver, deterministic=solver != "fast-tsp")


def reproducible_order(rows: Float[Tensor, "n d"], solver: str = "auto", seed: int = 0) -> Path:
    """`channel_order`, where "auto" is "2opt" beyond 12 channels: a fit that goes on needs the same order.

    On trained residual networks its paths are 0.3 to 0.5% longer than those of fast-tsp.
    """
    return channel_order(rows, solver="2opt" if solver == "auto" and len(rows) > EXACT_MOST else solver, seed=seed)


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


def _check(rows: Tensor, solver: str, seconds: int | float | None) -> None:
    if solver not in SOLVERS:
        raise MorphError(f"no solver for channel orders is called '{solver}'. {did_you_mean(solver, SOLVERS)}")
    n = len(rows)
    if n == 0:
        raise ChannelError("expected rows (n, d) of at least one channel to order, got none")
    if solver == "exact" and n > EXACT_MOST:
        raise MorphError(f"the exact solver takes up to {EXACT_MOST} channels, got {n}; solver='auto' takes any number")
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


def _two_opt(distances: Floats, order: Ints) -> Ints:
    """Turn round the piece from i on whose turning shortens the path most, for each i, until nothing is gained."""
    n, least, gained = len(order), 1e-10 * float(distances.max()), True
    while gained:
        gained = False
        for i in range(n - 1):
            here, rest = order[i], order[i:]
            change = distances[order[i - 1], rest] - distances[order[i - 1], here] if i else np.zeros(n)
            change[:-1] += distances[here, rest[1:]] - distances[rest[:-1], rest[1:]]
            best = int(change.argmin())
            if change[best] < -least:
                order[i : i + best + 1] = order[i : i + best + 1][::-1].copy()
                gained = True
    return order


def _exact(distances: Floats) -> Ints:
    """Dynamic programming over the set of channels visited and the last of them (Held and Karp, 1962)."""
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


def _fast_tsp(distances: Floats, seconds: float) -> Ints:
    n = len(distances)
    apart = distances[~np.eye(n, dtype=bool)]
    least, most = float(apart.min()), float(apart.max())
    whole = np.zeros((n + 1, n + 1), np.uint16)
    if most > least:
        # A path has n - 1 steps: what all of them have in common may go, and leaves more of the 16 bits for the rest.
        whole[:n, :n] = np.rint(np.clip((distances - least) / (most - least), 0.0, 1.0) * 65535)
    # its own choice of neighbours for short times is the nearest, which goes astray on trained weights; 0 it refuses
    tour = fast_tsp.find_tour(whole, max(seconds, 0.01), candidates="alpha", stop_when_converged=True)
    at = tour.index(n)
    return np.array([*tour[at + 1 :], *tour[:at]])
