"""Shortest paths through channels: exact against brute force, searches against bounds, bounds against exact paths."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netsmith.errors import ChannelError, MorphError
from netsmith.morphing.bound import candidates, lower_bound, spanning_tree
from netsmith.morphing.exchange import Tour
from netsmith.morphing.paths import channel_order, cut_at_dummy, l1_distances, solver_names

REPRODUCIBLE = [s for s in solver_names() if s != "fast-tsp"]


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def clustered(n: int, d: int, clusters: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, d, generator=generator)
    return centres[torch.randint(clusters, (n,), generator=generator)] + 0.5 * torch.randn(n, d, generator=generator)


def length(rows: torch.Tensor, order: tuple[int, ...] | list[int]) -> float:
    ordered = rows.double()[list(order)]
    return float((ordered[1:] - ordered[:-1]).abs().sum())


def shortest(rows: torch.Tensor) -> float:
    """By trying every order."""
    return min(length(rows, p) for p in itertools.permutations(range(len(rows))) if p[0] <= p[-1])


# rows with many ties, duplicates and zeros as well as rows in general position
small_rows = st.integers(1, 9).flatmap(
    lambda n: st.integers(1, 4).flatmap(
        lambda d: st.lists(
            st.lists(st.one_of(st.integers(-2, 2).map(float), st.floats(-3, 3, width=32)), min_size=d, max_size=d),
            min_size=n,
            max_size=n,
        )
    )
)


@pytest.mark.parametrize(("n", "seed"), [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2), (6, 3), (7, 4), (7, 5)])
def test_exact_is_the_shortest_of_all_orders(n, seed):
    rows = normal(n, 3, seed)
    path = channel_order(rows, solver="exact")
    assert path.length == pytest.approx(shortest(rows), rel=1e-5, abs=1e-9)
    assert path.length == pytest.approx(length(rows, path.order), rel=1e-5, abs=1e-9)
    assert path.bound == path.length
    assert path.optimal


@pytest.mark.parametrize("seed", range(6))
def test_auto_and_3opt_find_the_optimum_of_small_cases(seed):
    rows = clustered(12, 6, 3, seed)
    exact = channel_order(rows, solver="exact").length
    assert channel_order(rows, solver="3opt").length == pytest.approx(exact, rel=1e-12)
    auto = channel_order(rows)
    assert (auto.solver, auto.length) == ("exact", exact)


@settings(max_examples=40, deadline=None)
@given(small_rows, st.sampled_from(REPRODUCIBLE))
def test_every_solver_gives_an_order_with_true_numbers(values, solver):
    rows = torch.tensor(values)
    path = channel_order(rows, solver=solver, seconds=0.02)
    assert sorted(path.order) == list(range(len(rows)))
    assert path.length == pytest.approx(length(rows, path.order), rel=1e-5, abs=1e-5)
    assert path.before == pytest.approx(length(rows, range(len(rows))), rel=1e-5, abs=1e-5)
    assert path.bound <= path.length
    if solver != "random":
        assert path.length <= path.before
    assert path == channel_order(rows, solver=solver, seconds=0.02)


@settings(max_examples=40, deadline=None)
@given(small_rows)
def test_the_bound_lies_between_the_spanning_tree_and_the_shortest_path(values):
    rows = torch.tensor(values)
    distances = l1_distances(rows)
    greedy = channel_order(rows, solver="greedy")
    bound, prices = lower_bound(distances, greedy.length)
    order, parent = spanning_tree(distances)
    tree = float(distances[order[1:], parent[order[1:]]].sum())
    exact = channel_order(rows, solver="exact").length
    assert tree - 1e-9 <= bound <= exact + 1e-9 * (1 + exact)
    assert prices.shape == (len(rows),)


@pytest.mark.parametrize("upper", [0.1, 1.0, 10.0])
def test_the_bound_holds_whatever_length_it_is_given(upper):
    """The given length sets the steps only: a wrong one costs tightness, never truth."""
    for seed in range(8):
        rows = clustered(11, 4, 3, seed)
        exact = channel_order(rows, solver="exact").length
        bound, _ = lower_bound(l1_distances(rows), upper * exact)
        assert bound <= exact * (1 + 1e-9)


def test_the_spanning_tree_is_that_of_scipy():
    from scipy.sparse.csgraph import minimum_spanning_tree

    distances = l1_distances(normal(40, 5))
    order, parent = spanning_tree(distances)
    assert sorted(order.tolist()) == list(range(40))
    assert distances[order[1:], parent[order[1:]]].sum() == pytest.approx(minimum_spanning_tree(distances).sum())


def test_the_bound_is_much_nearer_than_the_spanning_tree():
    path = channel_order(clustered(200, 40, 12), seconds=0.5)
    distances = l1_distances(clustered(200, 40, 12))
    order, parent = spanning_tree(distances)
    tree = float(distances[order[1:], parent[order[1:]]].sum())
    assert path.length / path.bound - 1 < 0.01
    assert path.length / path.bound - 1 < 0.2 * (path.length / tree - 1)


def test_alpha_values_are_what_a_forced_edge_adds_to_the_tree():
    """Candidates by brute force: force each edge into the tree in turn, and see how much longer it gets."""
    rows, count = clustered(9, 3, 3), 3
    distances = l1_distances(rows)
    _, prices = lower_bound(distances, channel_order(rows, solver="greedy").length)
    n = len(rows)
    lengths, near = candidates(distances, prices, count)
    priced = distances + prices[:, None] + prices[None, :]

    def tree_with(i: int, j: int) -> float:
        forced = priced.copy()
        forced[i, j] = forced[j, i] = priced.min() - 1.0
        order, parent = spanning_tree(forced)
        return float(priced[order[1:], parent[order[1:]]].sum())

    order, parent = spanning_tree(priced)
    free = float(priced[order[1:], parent[order[1:]]].sum())
    alpha = np.full((n + 1, n + 1), np.inf)
    for i, j in itertools.combinations(range(n), 2):
        alpha[i, j] = alpha[j, i] = tree_with(i, j) - free
    alpha[n, :n] = alpha[:n, n] = np.maximum(prices - np.sort(prices)[1], 0.0)
    for city in range(n + 1):
        chosen = alpha[city, near[city]]
        left_out = np.setdiff1d(np.arange(n + 1), [*near[city], city])
        assert chosen.max() <= alpha[city, left_out].min() + 1e-6
        assert (np.diff(lengths[city, near[city]]) >= 0).all()
    assert np.isinf(np.diag(lengths)).all()


def test_the_dummy_city_is_cut_out_where_it_stands():
    assert cut_at_dummy([3, 0, 9, 4, 1], 9) == [4, 1, 3, 0]
    assert cut_at_dummy([9, 4, 1, 3, 0], 9) == [4, 1, 3, 0]
    assert cut_at_dummy([4, 1, 3, 0, 9], 9) == [4, 1, 3, 0]
    assert cut_at_dummy([9], 9) == []


@given(st.permutations(range(7)), st.integers(0, 6))
def test_turning_a_tour_changes_no_path(tour, shift):
    assert cut_at_dummy(tour[shift:] + tour[:shift], 6) == cut_at_dummy(tour, 6)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(8)))
def test_a_cut_tour_is_as_long_as_the_tour(tour):
    """With the dummy at distance zero: a splice that joins its two neighbours would be longer."""
    distances = np.zeros((8, 8))
    distances[:7, :7] = l1_distances(normal(7, 3))
    around = sum(distances[a, b] for a, b in itertools.pairwise([*tour, tour[0]]))
    path = cut_at_dummy(tour, 7)
    assert sum(distances[a, b] for a, b in itertools.pairwise(path)) == pytest.approx(around)


@pytest.mark.parametrize("depth", [2, 3])
def test_each_move_gains_what_it_says(depth):
    draw = random.Random(0)
    moves = 0
    for seed in range(40):
        n = 8 + seed % 23
        distances = l1_distances(normal(n, 3, seed))
        _, prices = lower_bound(distances, float(distances.sum()))
        lengths, near = candidates(distances, prices, 6)
        tour = Tour(lengths, near, draw.sample(range(n + 1), n + 1), depth=depth)

        def total(tour: Tour = tour, lengths: np.ndarray = lengths) -> float:
            return sum(lengths[a, b] for a, b in itertools.pairwise([*tour.cities, tour.cities[0]]))

        for city in [draw.randrange(n + 1) for _ in range(60)]:
            before = total()
            found = tour._find(city)
            if found is None:
                continue
            moves += 1
            for pair in found[2]:
                tour._exchange(*pair)
            assert before - total() == pytest.approx(found[0], abs=1e-8)
            assert sorted(tour.cities) == list(range(n + 1))
            before = total()
            added, _ = tour._disturb(draw)
            assert total() - before == pytest.approx(added, abs=1e-8)
    assert moves > 300


def test_exchanges_of_three_edges_find_shorter_paths_than_of_two():
    rows = clustered(100, 30, 8)
    two, three = channel_order(rows, solver="2opt"), channel_order(rows, solver="3opt", seconds=0.0)
    greedy, searched = channel_order(rows, solver="greedy"), channel_order(rows, solver="3opt", seconds=0.5)
    assert greedy.length > two.length > three.length > searched.length >= searched.bound


def test_a_good_order_that_came_in_is_kept():
    rows = torch.arange(40.0)[:, None].expand(40, 3)
    for solver in ("auto", "2opt", "greedy", "fast-tsp"):
        path = channel_order(rows, solver=solver, seconds=0.1)
        assert path.order == tuple(range(40))
        assert path.length == path.before == path.bound == 117.0
        assert path.optimal


def test_a_shuffled_line_is_put_in_order():
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    path = channel_order(shuffled.float()[:, None])
    assert shuffled[list(path.order)].tolist() in (list(range(100)), list(range(99, -1, -1)))
    assert path.optimal


def test_greedy_goes_on_to_the_nearest_from_the_first():
    rows = torch.tensor([[0.0], [10.0], [1.0], [-2.0], [3.0]])
    assert channel_order(rows, solver="greedy").order in ((0, 2, 4, 3, 1), (1, 3, 4, 2, 0))


def test_random_may_be_longer_and_only_random():
    rows = torch.arange(30.0)[:, None]
    path = channel_order(rows, solver="random")
    assert path.length > path.before
    assert path.order != channel_order(rows, solver="random", seed=1).order


def test_equal_rows_have_length_zero():
    for solver in solver_names():
        if solver != "exact":
            path = channel_order(torch.ones(20, 4), solver=solver, seconds=0.05)
            assert path.length == path.bound == 0.0


def test_same_seed_same_path_and_the_random_state_is_left_alone():
    rows = clustered(80, 20, 5)
    state = torch.random.get_rng_state()
    first = channel_order(rows, seed=3, seconds=0.2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == channel_order(rows, seed=3, seconds=0.2)
    assert first.deterministic


def test_fast_tsp_is_told_apart():
    path = channel_order(clustered(60, 20, 5), solver="fast-tsp", seconds=0.2)
    assert not path.deterministic
    assert path.solver == "fast-tsp"
    assert path.bound <= path.length < path.before


def test_distances_are_those_of_scipy_in_chunks_too():
    from scipy.spatial.distance import cdist

    rows = normal(7, 5000)
    expected = cdist(rows.double().numpy(), rows.double().numpy(), "cityblock")
    np.testing.assert_allclose(l1_distances(rows), expected, rtol=1e-6)
    np.testing.assert_allclose(l1_distances(rows.double()), expected, rtol=1e-13)
    np.testing.assert_allclose(l1_distances(rows.bfloat16()), expected, rtol=1e-2)


def test_scale_does_not_matter():
    rows = clustered(60, 10, 4)
    one = channel_order(rows, seconds=0.1)
    tiny = channel_order(rows * 2.0**-40, seconds=0.1)
    assert tiny.order == one.order
    assert tiny.bound == pytest.approx(one.bound * 2.0**-40, rel=1e-9)


def test_an_unknown_solver_names_the_nearest():
    with pytest.raises(MorphError, match=r"no solver for channel orders is called 'fasttsp'\. Did you mean 'fast-tsp'"):
        channel_order(normal(3, 2), solver="fasttsp")


def test_exact_is_refused_for_many_channels():
    with pytest.raises(MorphError, match="the exact solver takes up to 12 channels, got 13; solver='auto' takes any"):
        channel_order(normal(13, 2), solver="exact")


def test_rows_without_distances_are_refused():
    rows = normal(5, 2)
    rows[2, 1] = float("nan")
    rows[4, 0] = float("inf")
    with pytest.raises(ChannelError, match=r"channel 2 and 1 more \(of 5\) hold NaN or infinite values"):
        channel_order(rows)
    with pytest.raises(ChannelError, match="at least one channel"):
        channel_order(torch.zeros(0, 3))


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_seconds_must_be_a_time(seconds):
    with pytest.raises(MorphError, match="seconds of 0 or more to search for an order, got"):
        channel_order(normal(3, 2), seconds=seconds)


@pytest.mark.parametrize("solver", ["auto", "fast-tsp"])
def test_no_time_at_all_still_gives_an_order(solver):
    path = channel_order(clustered(30, 5, 3), solver=solver, seconds=0)
    assert sorted(path.order) == list(range(30))
    assert path.length < path.before
