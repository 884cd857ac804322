from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsmith.errors import PartitionError
from netsmith.reassembly.medoids import Cutter, climb
from netsmith.reassembly.partition import Partition, _candidates, partition, smallest_eps
from netsmith.search.blocks import Block


def _table(seed: int, cuts: int, *, symmetric: bool = True) -> np.ndarray:
    values = np.random.default_rng(seed).random((cuts, cuts))
    if symmetric:
        values = (values + values.T) / 2
    np.fill_diagonal(values, 1.0)
    return values


def _cuts(networks):
    return sum(len(u) + 1 for u in networks.values())


def _similarity(networks, table):
    offset = dict(zip(networks, np.cumsum([0] + [len(u) + 1 for u in networks.values()]), strict=False))

    def of(a: Block, b: Block) -> float:
        p, q = offset[a.network], offset[b.network]
        return table[p + a.start, q + b.start] + table[p + a.stop, q + b.stop]

    return of


def _all_cuts(name, units, k, eps):
    bound = (1 + eps) * sum(units) / k + 1e-9
    for inner in itertools.combinations(range(1, len(units)), k - 1):
        edges = [0, *inner, len(units)]
        blocks = [Block(name, a, b) for a, b in itertools.pairwise(edges)]
        if all(sum(units[b.start : b.stop]) <= bound for b in blocks):
            yield blocks


def _brute_force(networks, table, k, eps):
    of = _similarity(networks, table)
    best = -np.inf
    for cut in itertools.product(*[list(_all_cuts(n, u, k, eps)) for n, u in networks.items()]):
        blocks = [b for line in cut for b in line]
        for medoids in itertools.combinations(blocks, k):
            total = sum(of(b, b) if b in medoids else max(of(b, m) for m in medoids) for b in blocks)
            best = max(best, total)
    return best


@st.composite
def zoos(draw, most_networks=4, most_units=7):
    k = draw(st.integers(1, 3))
    number = draw(st.integers(1, most_networks))
    weighted = draw(st.booleans())
    networks = {}
    for i in range(number):
        length = draw(st.integers(k, most_units))
        unit = st.floats(0.1, 5.0) if weighted else st.just(1)
        networks[f"n{i}"] = draw(st.lists(unit, min_size=length, max_size=length))
    slack = draw(st.sampled_from([0.0, 0.3, 2.0]))
    return networks, k, slack


def _opened(zoo):
    """Networks, k and a feasible eps."""
    networks, k, slack = zoo
    return networks, k, max(smallest_eps(networks, k).values()) + slack


@settings(max_examples=60, deadline=None)
@given(zoos(), st.integers(0, 10**6), st.booleans())
def test_what_comes_back_is_a_partition_within_its_bounds_and_never_fell(zoo, seed, symmetric):
    networks, k, eps = _opened(zoo)
    table = _table(seed, _cuts(networks), symmetric=symmetric)
    found = partition(networks, table, k, eps=eps, restarts=6, seed=seed)
    of = _similarity(networks, table)

    assert [line[0].network for line in found.blocks] == list(networks)
    for (name, units), line in zip(networks.items(), found.blocks, strict=True):
        assert len(line) == k
        assert [b.start for b in line] == [0, *[b.stop for b in line[:-1]]]
        assert line[-1].stop == len(units)
        assert all(b.network == name for b in line)
        bound = (1 + eps) * sum(units) / k
        assert all(sum(units[b.start : b.stop]) <= bound * (1 + 1e-8) for b in line)
    blocks = [b for line in found.blocks for b in line]
    assert set(found.assignment) == set(blocks)
    assert len(found.medoids) == len(set(found.medoids)) == found.k == k
    assert [found.assignment[m] for m in found.medoids] == list(range(k))
    assert found.objective == pytest.approx(sum(of(b, found.medoids[found.assignment[b]]) for b in blocks))

    # the last cut and the last medoids are exact, given the other
    for b in blocks:
        if b not in found.medoids:
            assert of(b, found.medoids[found.assignment[b]]) >= max(of(b, m) for m in found.medoids) - 1e-9
    for medoid, members in zip(found.medoids, found.sets, strict=True):
        totals = {m: sum(of(b, m) for b in members) for m in members}
        assert totals[medoid] >= max(totals.values()) - 1e-9

    steps = np.diff(found.trace)
    assert (steps >= -1e-9 * (1 + abs(found.objective))).all()
    assert found.trace[-1] == pytest.approx(found.objective)


@settings(max_examples=40, deadline=None)
@given(zoos(most_networks=3, most_units=6), st.integers(0, 10**6))
def test_no_restart_ever_falls(zoo, seed):
    networks, k, eps = _opened(zoo)
    table = _table(seed, _cuts(networks), symmetric=False)
    first = np.concatenate([[0], np.cumsum([len(u) + 1 for u in networks.values()])])
    sizes = {n: np.asarray(u, float) for n, u in networks.items()}
    cutter = Cutter(table, first, _candidates(sizes, first, k, eps), k)
    rng = np.random.default_rng(seed)
    chosen, _ = cutter.cut(rng.random((len(cutter.start), 5)))
    state, traces = climb(cutter, chosen[rng.permutation(len(chosen))[:k]])
    assert len(traces) == 5
    for trace, end in zip(traces, state.objective, strict=True):
        assert (np.diff(trace) >= -1e-9 * (1 + abs(end))).all()
        assert trace[-1] == end


@settings(max_examples=60, deadline=None)
@given(zoos(), st.integers(0, 10**6))
def test_given_scores_the_cut_is_the_best_of_all_cuts(zoo, seed):
    networks, k, eps = _opened(zoo)
    first = np.concatenate([[0], np.cumsum([len(u) + 1 for u in networks.values()])])
    sizes = {n: np.asarray(u, float) for n, u in networks.items()}
    cutter = Cutter(_table(seed, first[-1]), first, _candidates(sizes, first, k, eps), k)
    score = np.random.default_rng(seed).normal(size=(len(cutter.start), 3))
    chosen, totals = cutter.cut(score)
    row = {(int(a), int(b)): q for q, (a, b) in enumerate(zip(cutter.start, cutter.stop, strict=True))}
    for r in range(3):
        for n, (name, units) in enumerate(networks.items()):
            each = [
                sum(score[row[first[n] + b.start, first[n] + b.stop], r] for b in line)
                for line in _all_cuts(name, units, k, eps)
            ]
            assert totals[n, r] == pytest.approx(max(each))
            assert score[chosen[n * k : (n + 1) * k, r], r].sum() == pytest.approx(max(each))


def _small_case(seed):
    rng = np.random.default_rng(seed)
    k = 2 if seed % 2 else 3
    networks = {f"n{i}": [1.0] * int(rng.integers(k + 1, 6)) for i in range(3)}
    return networks, k, max(smallest_eps(networks, k).values()) + 0.3


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("symmetric", [True, False])
def test_brute_force_over_all_cuts_and_medoids_finds_nothing_better(seed, symmetric):
    networks, k, eps = _small_case(seed)
    table = _table(seed + 100, _cuts(networks), symmetric=symmetric)
    found = partition(networks, table, k, eps=eps, restarts=30, seed=seed)
    assert found.optimal
    assert found.objective == pytest.approx(_brute_force(networks, table, k, eps))


@pytest.mark.parametrize("seed", range(10))
def test_the_alternation_alone_finds_the_optimum_of_small_cases(seed, monkeypatch):
    monkeypatch.setattr("netsmith.reassembly.medoids._ALL_WORK", 0)
    networks, k, eps = _small_case(seed)
    features = np.random.default_rng(seed).normal(size=(_cuts(networks), 4))  # a positive semidefinite table, as CKA's
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    table = features @ features.T
    found = partition(networks, table, k, eps=eps, restarts=60, seed=seed)
    assert not found.optimal
    assert found.objective == pytest.approx(_brute_force(networks, table, k, eps))


def test_equal_networks_are_cut_alike_and_grouped_by_depth():
    features = np.repeat(np.eye(3), [2, 2, 3], axis=0)  # cuts 0-1, 2-3, 4-6 do the same
    one = features @ features.T
    table = np.tile(one, (3, 3))
    networks = {name: [1] * 6 for name in ("a", "b", "c")}
    found = partition(networks, table, 3, eps=0.5, restarts=20)
    assert found.objective == 2.0 * 9
    for line in found.blocks:
        assert [found.assignment[b] for b in line] == [0, 1, 2]


def test_blocks_of_one_network_may_share_a_set():
    """The assignment is free: a network that repeats itself gives two blocks to one set."""
    table = np.full((10, 10), 0.1)
    table[:5, :5] = 1.0  # network a: all cuts alike
    table[5:, 5:] = np.eye(5) * 0.9 + 0.1
    found = partition({"a": [1] * 4, "b": [1] * 4}, table, 2, eps=0.0, restarts=20)
    assert found.objective == pytest.approx(4 + 2 + 0.2)
    assert found.assignment[Block("a", 0, 2)] == found.assignment[Block("a", 2, 4)]


def test_the_row_of_an_asymmetric_table_is_the_blocks():
    table = np.eye(4)
    table[:2, 2:] = 0.9  # a predicts b, b does not predict a
    found = partition({"a": [1], "b": [1]}, table, 1, eps=0.0)
    assert found.medoids == (Block("b", 0, 1),)
    assert found.objective == pytest.approx(2 + 1.8)


def test_the_size_is_what_the_numbers_measure():
    networks = {"a": [10, 1, 1, 1, 1, 1, 1, 1, 1, 2]}  # params: half of them in the first unit
    found = partition(networks, np.ones((11, 11)), 2, eps=0.0)
    assert found.blocks == ((Block("a", 0, 1), Block("a", 1, 10)),)


def test_the_same_seed_gives_the_same_partition():
    networks = {f"n{i}": [1] * 8 for i in range(5)}
    table = _table(3, 45)
    first = partition(networks, table, 4, restarts=12, seed=5)
    assert partition(networks, table, 4, restarts=12, seed=5) == first


def test_json_reads_back():
    found = partition({"a": [1] * 5, "b[x]": [1] * 4}, _table(0, 11), 2, restarts=3)
    assert Partition.from_json(found.to_json()) == found
    assert Partition.from_json(found.to_json()).to_json() == found.to_json()


def test_text_that_is_no_partition_is_refused():
    with pytest.raises(PartitionError, match="does not parse"):
        Partition.from_json("{}")
    with pytest.raises(PartitionError, match="does not parse"):
        Partition.from_json("not json")
    found = partition({"a": [1] * 4, "b": [1] * 4}, _table(0, 10), 2, restarts=3)
    with pytest.raises(PartitionError, match="other blocks than it lists"):
        Partition.from_json(found.to_json().replace('"a[0:', '"c[0:', 1))


def test_k_above_the_shortest_network_names_it():
    networks = {"resnet20": [1] * 9, "lenet": [1] * 3, "tiny": [1] * 4}
    with pytest.raises(PartitionError, match=r"K = 5 .*'lenet' has 3, 'tiny' has 4\. Take K = 3 at most"):
        partition(networks, np.ones((19, 19)), 5)


def test_an_infeasible_bound_names_the_networks_and_the_least_eps_that_works():
    networks = {"good": [1] * 8, "resnet20": [1] * 9, "other": [1] * 6}
    with pytest.raises(PartitionError, match=r"'resnet20' needs 0\.3334, 'other' needs 0\.3334") as caught:
        partition(networks, np.ones((26, 26)), 4, eps=0.2)
    assert "'good'" not in str(caught.value)
    assert "smallest eps that works for all is 0.3334" in str(caught.value)
    partition(networks, np.ones((26, 26)), 4, eps=0.3334, restarts=2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=8), st.integers(1, 4))
def test_the_smallest_eps_is_exact(units, k):
    if len(units) < k:
        with pytest.raises(PartitionError):
            smallest_eps({"a": units}, k)
        return
    (eps,) = smallest_eps({"a": units}, k).values()
    largest = [
        max(sum(units[a:b]) for a, b in itertools.pairwise([0, *inner, len(units)]))
        for inner in itertools.combinations(range(1, len(units)), k - 1)
    ]
    assert eps == pytest.approx(min(largest) * k / sum(units) - 1, abs=1e-9)
    partition({"a": units}, np.ones((len(units) + 1,) * 2), k, eps=eps, restarts=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"networks": {}}, "at least one network"),
        ({"k": 0}, "k and restarts of at least 1"),
        ({"restarts": 0}, "k and restarts of at least 1"),
        ({"eps": -0.1}, "eps of 0 or more"),
        ({"eps": float("nan")}, "eps of 0 or more"),
        ({"table": np.ones((4, 4))}, "5 x 5 .*got 4 x 4"),
        ({"table": np.where(np.eye(5) > 0, 1.0, np.nan)}, "nan at cuts 0, 1.*constant or not finite"),
        ({"networks": {"a": [1.0, -1.0, 2.0, 1.0]}}, "unit sizes of 'a'"),
        ({"networks": {"a": [0.0] * 4}}, "unit sizes of 'a'"),
    ],
)
def test_bad_input_gets_one_clear_message(change, message):
    given = {"networks": {"a": [1.0] * 4}, "table": np.ones((5, 5)), "k": 2, "eps": 0.2, "restarts": 1} | change
    with pytest.raises(PartitionError, match=message):
        partition(given["networks"], given["table"], given["k"], eps=given["eps"], restarts=given["restarts"])


def test_more_candidates_than_swaps_may_score(monkeypatch):
    monkeypatch.setattr("netsmith.reassembly.medoids._ALL_WORK", 0)
    monkeypatch.setattr("netsmith.reassembly.medoids._SWAP_WORK", 50)
    monkeypatch.setattr("netsmith.reassembly.medoids._CHUNK", 40)
    networks = {f"n{i}": [1] * 8 for i in range(3)}
    found = partition(networks, _table(1, 27), 2, restarts=5)
    assert (np.diff(found.trace) >= -1e-9).all()
