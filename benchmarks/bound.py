"""How short a path through all points can be, and which edges the shortest one is likely to use.

The bound is that of Held and Karp (1971) for the path problem: a dummy city at distance zero from all others turns the
path into a tour; a tour is a spanning tree of the other cities with two edges to the dummy, in which every city has
degree two. A price on each city for a degree other than two leaves the lengths of tours alone and lengthens the
shortest such tree; its length under any prices is a lower bound, without prices it is the minimum spanning tree.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import minimum_spanning_tree

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

# Steps of the ascent between two exact evaluations, in each of which the sparse graph is chosen anew.
_ROUNDS = (60, 40, 40, 40, 40)
# Neighbours of a city in the sparse graph on which the ascent takes its steps.
_NEIGHBOURS = 24
# Steps without a gain before the step length shrinks, and by how much.
_PATIENCE, _SHRINK = 3, 0.7


def lower_bound(distances: Floats, upper: float) -> tuple[float, Floats]:
    """A lower bound on the length of every path through all points, and the prices that prove it.

    Args:
        distances: (n, n) symmetric, not negative.
        upper: length of some path through all points; it sets the length of the steps.

    Returns:
        The bound, at least the length of the minimum spanning tree, and the price of each city (n,). Each bound comes
        from a spanning tree of the complete graph, so it holds for any prices, however well the ascent went.
    """
    n = len(distances)
    best_prices = np.zeros(n)
    best = _tree_value(distances, best_prices)
    scale = float(distances.max(initial=0.0))
    if n < 4 or scale == 0.0:
        return best, best_prices
    step = 1.0
    for steps in _ROUNDS:
        first, second = _sparse_graph(distances, best_prices)
        weights = distances[first, second] / scale
        prices, step = _ascend(n, first, second, weights, best_prices / scale, upper / scale, steps, step)
        value = _tree_value(distances, prices * scale)
        if value > best:
            best, best_prices = value, prices * scale
    return best, best_prices


def candidates(distances: Floats, prices: Floats, count: int) -> tuple[Floats, Ints]:
    """Edges that a shortest path is likely to use, of n points and a dummy city of index n.

    Returns the (n + 1, n + 1) lengths of edges with prices added (infinite from a city to itself) and for each city
    the `count` others with the least alpha value, nearest first. The alpha value of an edge is by how much the tree
    lengthens when it must hold that edge (Helsgaun, "An effective implementation of the Lin-Kernighan traveling
    salesman heuristic", EJOR 2000, section 4.1): it finds the edges of good tours where the mere nearest cities do not.
    """
    n = len(distances)
    priced = distances + prices[:, None] + prices[None, :]
    alpha = np.empty((n + 1, n + 1))
    alpha[:n, :n] = priced - _longest_on_tree(priced)
    alpha[n, :n] = alpha[:n, n] = np.maximum(prices - np.sort(prices)[min(1, n - 1)], 0.0)
    lengths = np.empty((n + 1, n + 1))
    lengths[:n, :n] = priced
    lengths[n, :n] = lengths[:n, n] = prices
    np.fill_diagonal(alpha, np.inf)
    np.fill_diagonal(lengths, np.inf)
    count = min(count, n)
    chosen = np.stack([np.lexsort((far, near))[:count] for far, near in zip(lengths, alpha, strict=True)])
    nearest_first = np.take_along_axis(lengths, chosen, axis=1).argsort(axis=1, kind="stable")
    return lengths, np.take_along_axis(chosen, nearest_first, axis=1)


def spanning_tree(lengths: Floats) -> tuple[Ints, Ints]:
    """Minimum spanning tree of a complete graph (Prim): cities in the order they join, and the parent of each city."""
    n = len(lengths)
    order, parent = np.zeros(n, np.int64), np.zeros(n, np.int64)
    nearest, outside = lengths[0].copy(), np.ones(n, bool)
    nearest[0], outside[0] = np.inf, False
    for i in range(1, n):
        city = int(nearest.argmin())
        order[i], outside[city], nearest[city] = city, False, np.inf
        nearer = (lengths[city] < nearest) & outside
        nearest[nearer] = lengths[city][nearer]
        parent[nearer] = city
    return order, parent


def _tree_value(distances: Floats, prices: Floats) -> float:
    """The lower bound by these prices: the shortest tree with two edges to the dummy, less what they add to a tour."""
    order, parent = spanning_tree(distances + prices[:, None] + prices[None, :])
    joined = order[1:]
    degree = _degrees(len(distances), joined, parent[joined], prices)
    return float(distances[joined, parent[joined]].sum() + ((degree - 2) * prices).sum())


def _degrees(n: int, first: Ints, second: Ints, prices: Floats) -> Floats:
    degree = np.bincount(first, minlength=n) + np.bincount(second, minlength=n)
    if n == 1:
        return np.array([2.0])
    degree[np.argsort(prices, kind="stable")[:2]] += 1  # the dummy's two edges go to the two lowest prices
    return degree.astype(np.float64)


def _sparse_graph(distances: Floats, prices: Floats) -> tuple[Ints, Ints]:
    """Edges (first < second, sorted) to the nearest cities under the prices, and those of the spanning tree."""
    n = len(distances)
    priced = distances + prices[:, None] + prices[None, :]
    order, parent = spanning_tree(priced)
    np.fill_diagonal(priced, np.inf)
    count = min(_NEIGHBOURS, n - 1)
    near = np.argpartition(priced, count - 1, axis=1)[:, :count]
    one = np.concatenate([np.repeat(np.arange(n), count), order[1:]])
    other = np.concatenate([near.ravel(), parent[order[1:]]])
    edges = np.unique(np.minimum(one, other) * n + np.maximum(one, other))
    return edges // n, edges % n


def _ascend(
    n: int, first: Ints, second: Ints, weights: Floats, prices: Floats, upper: float, steps: int, step: float
) -> tuple[Floats, float]:
    """Subgradient steps on a sparse graph: the best prices met, and the step factor for the next round."""
    starts = np.concatenate([[0], np.cumsum(np.bincount(first, minlength=n))])
    best, best_prices, idle = -np.inf, prices, 0
    before: Floats | None = None
    for _ in range(steps):
        priced = weights + prices[first] + prices[second]
        lift = 1.0 - priced.min()  # scipy takes a zero for no edge; a constant on all edges changes no tree
        tree = minimum_spanning_tree(csr_matrix((priced + lift, second, starts), shape=(n, n))).tocoo()
        surplus = _degrees(n, tree.row, tree.col, prices) - 2.0
        lowest = np.partition(prices, 1)[:2].sum()
        value = float(tree.data.sum() - lift * (n - 1) + lowest - 2.0 * prices.sum())
        if value > best + 1e-12 * abs(value):
            best, best_prices, idle = value, prices, 0
        elif (idle := idle + 1) >= _PATIENCE:
            step, idle = step * _SHRINK, 0
        size = float((surplus * surplus).sum())
        if size == 0.0 or upper <= value:
            break  # every degree is two: this tree is a shortest path
        way = surplus if before is None else 0.7 * surplus + 0.3 * before
        prices, before = prices + step * (upper - value) / size * way, surplus
    return best_prices, step


def _longest_on_tree(lengths: Floats) -> Floats:
    """(n, n) the longest edge on the way between two cities along the minimum spanning tree."""
    n = len(lengths)
    order, parent = spanning_tree(lengths)
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    longest = np.full((n, n), -np.inf)  # both axes in the order of joining, so that all before a city is one slice
    for i in range(1, n):
        up = place[parent[order[i]]]
        row = np.maximum(longest[up, :i], lengths[order[i], order[up]])
        longest[i, :i] = longest[:i, i] = row
    return longest[np.ix_(place, place)]
