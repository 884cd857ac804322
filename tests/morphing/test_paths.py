"""Shortest paths through channels: exact against brute force, searches against exact paths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netsmith.errors import ChannelError, MorphError
from netsmith.morphing.paths import channel_order, l1_distances, reproducible_order
from netsmith.morphing.settings import SOLVERS

REPRODUCIBLE = [s for s in SOLVERS if s not in ("auto", "fast-tsp")]


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


@pytest.mark.parametrize("seed", range(6))
def test_auto_and_fast_tsp_find_the_optimum_of_small_cases(seed):
    rows = clustered(12, 6, 3, seed)
    exact = channel_order(rows, solver="exact").length
    assert channel_order(rows, solver="fast-tsp").length == pytest.approx(exact, rel=1e-4)  # 16 bits a distance
    auto = channel_order(rows)
    assert (auto.solver, auto.length) == ("exact", exact)
    assert reproducible_order(rows) == auto


@settings(max_examples=40, deadline=None)
@given(small_rows, st.sampled_from(REPRODUCIBLE))
def test_every_solver_gives_an_order_with_true_numbers(values, solver):
    rows = torch.tensor(values)
    path = channel_order(rows, solver=solver, seconds=0.02)
    assert sorted(path.order) == list(range(len(rows)))
    assert path.length == pytest.approx(length(rows, path.order), rel=1e-5, abs=1e-5)
    assert path.before == pytest.approx(length(rows, range(len(rows))), rel=1e-5, abs=1e-5)
    if solver != "random":
        assert path.length <= path.before
    assert path == channel_order(rows, solver=solver, seconds=0.02)


def test_turning_pieces_round_shortens_the_greedy_path_and_a_search_does_more():
    rows = clustered(100, 30, 8)
    greedy, two, searched = (channel_order(rows, solver=s).length for s in ("greedy", "2opt", "fast-tsp"))
    assert greedy > 1.02 * two
    assert two > searched
    assert reproducible_order(rows) == channel_order(rows, solver="2opt")


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10**6))
def test_no_turned_piece_makes_a_2opt_path_shorter(n, seed):
    rows = normal(n, 3, seed)
    path = channel_order(rows, solver="2opt")
    order = list(path.order)
    for i, j in itertools.combinations(range(n + 1), 2):
        turned = [*order[:i], *order[i:j][::-1], *order[j:]]
        assert length(rows, turned) >= path.length * (1 - 1e-6)


def test_a_good_order_that_came_in_is_kept():
    rows = torch.arange(40.0)[:, None].expand(40, 3)
    for solver in ("auto", "2opt", "greedy", "fast-tsp"):
        path = channel_order(rows, solver=solver, seconds=0.1)
        assert path.order == tuple(range(40))
        assert path.length == path.before == 117.0


def test_a_shuffled_line_is_put_in_order():
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    path = channel_order(shuffled.float()[:, None])
    assert shuffled[list(path.order)].tolist() in (list(range(100)), list(range(99, -1, -1)))


def test_greedy_goes_on_to_the_nearest_from_the_first():
    rows = torch.tensor([[0.0], [10.0], [1.0], [-2.0], [3.0]])
    assert channel_order(rows, solver="greedy").order in ((0, 2, 4, 3, 1), (1, 3, 4, 2, 0))


def test_random_may_be_longer_and_only_random():
    rows = torch.arange(30.0)[:, None]
    path = channel_order(rows, solver="random")
    assert path.length > path.before
    assert path.order != channel_order(rows, solver="random", seed=1).order


def test_equal_rows_have_length_zero():
    for solver in SOLVERS:
        if solver != "exact":
            path = channel_order(torch.ones(20, 4), solver=solver, seconds=0.05)
            assert path.length == 0.0


def test_same_seed_same_path_and_the_random_state_is_left_alone():
    rows = clustered(80, 20, 5)
    state = torch.random.get_rng_state()
    first = reproducible_order(rows, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first == reproducible_order(rows, seed=3)
    assert first.deterministic


def test_fast_tsp_is_told_apart():
    path = channel_order(clustered(60, 20, 5), solver="fast-tsp", seconds=0.2)
    assert not path.deterministic
    assert path.solver == "fast-tsp"
    assert path.length < path.before


def test_distances_are_those_of_scipy_in_chunks_too():
    from scipy.spatial.distance import cdist

    rows = normal(7, 5000)
    expected = cdist(rows.double().numpy(), rows.double().numpy(), "cityblock")
    np.testing.assert_allclose(l1_distances(rows), expected, rtol=1e-6)
    np.testing.assert_allclose(l1_distances(rows.double()), expected, rtol=1e-13)
    np.testing.assert_allclose(l1_distances(rows.bfloat16()), expected, rtol=1e-2)


def test_scale_does_not_matter():
    rows = clustered(60, 10, 4)
    one, tiny = (channel_order(scaled, solver="2opt") for scaled in (rows, rows * 2.0**-40))
    assert tiny.order == one.order
    assert tiny.length == pytest.approx(one.length * 2.0**-40, rel=1e-9)


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
