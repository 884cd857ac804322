from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsmith.errors import BudgetError
from netsmith.search.blocks import Block
from netsmith.search.infeasible import _extreme, _Side, readable
from netsmith.search.k_best import PEAKS, TOTALS, Catalogue, Choice, k_best

PAIR_NAMES = ("params", "weight_bytes", "peak_bytes")


def _instance(seed, widths, *, networks=3, groups=None, whole=True):
    """Random stages and pairs; whole numbers make ties and bounds exact, and common."""
    rng = np.random.default_rng(seed)

    def number(high, shape=None):
        return rng.integers(0, high, shape).astype(float) if whole else rng.random(shape) * high

    stages = []
    for s, width in enumerate(widths):
        stage = []
        for i in range(width):
            resources = {n: float(number(10)) for n in ("params", "latency_ms", "weight_bytes", "peak_bytes")}
            group = s if groups is None else int(rng.integers(groups))
            stage.append(Choice(Block(f"n{rng.integers(networks)}", s, s + 1 + i), group, float(number(6)), resources))
        stages.append(stage)
    shapes = list(itertools.pairwise(widths))
    costs = [number(6, shape) for shape in shapes]
    pairs = {name: [number(8, shape) for shape in shapes] for name in PAIR_NAMES}
    return stages, costs, pairs


def _value(stages, pairs, path, name):
    own = [stages[s][i].resources[name] for s, i in enumerate(path)]
    steps = [a[path[s], path[s + 1]] for s, a in enumerate(pairs.get(name, []))]
    return max(own + steps) if name == "peak_bytes" else sum(own + steps)


def _resources(stages, pairs, path):
    values = {n: _value(stages, pairs, path, n) for n in stages[0][0].resources}
    return values | {"memory_bytes": values["weight_bytes"] + values["peak_bytes"]}


def _brute_force(stages, costs, pairs, budget, *, distinct, mix):
    """All assemblies within the budget as (cost, choices), best first, ties by choices."""
    found = []
    for path in itertools.product(*[range(len(s)) for s in stages]):
        taken = [stages[s][i] for s, i in enumerate(path)]
        if distinct and len({c.group for c in taken}) < len(taken):
            continue
        if mix and len({c.block.network for c in taken}) < 2:
            continue
        values = _resources(stages, pairs, path)
        if any(
            (low is not None and values[n] < low) or (high is not None and values[n] > high)
            for n, (low, high) in budget.items()
        ):
            continue
        cost = sum(c.cost for c in taken) + sum(a[path[s], path[s + 1]] for s, a in enumerate(costs))
        found.append((cost, path))
    return sorted(found)


@st.composite
def problems(draw):
    seed = draw(st.integers(0, 10**6))
    widths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    whole = draw(st.booleans())
    distinct = draw(st.booleans())
    groups = draw(st.sampled_from([None, 3, 6]))
    budget = {}
    for name in draw(st.lists(st.sampled_from(["params", "latency_ms", "peak_bytes", "memory_bytes"]), unique=True)):
        low = draw(st.none() | st.integers(0, 30))
        high = draw(st.none() | st.integers(low or 0, 60))
        budget[name] = (None if low is None else float(low), None if high is None else float(high))
    k = draw(st.integers(1, 12))
    return (seed, widths, groups, whole), budget, k, distinct, draw(st.booleans())


def _check(problem):
    (seed, widths, groups, whole), budget, k, distinct, mix = problem
    stages, costs, pairs = _instance(seed, widths, groups=groups, whole=whole)
    expected = _brute_force(stages, costs, pairs, budget, distinct=distinct, mix=mix)
    options = {"distinct_groups": distinct, "mix": mix}
    if not expected:
        with pytest.raises(BudgetError, match="no assembly"):
            k_best(stages, costs, pairs, budget, k, **options)
        return
    found = k_best(stages, costs, pairs, budget, k, **options)
    assert found.optimal
    assert found.gap == 0.0
    assert [a.cost for a in found.assemblies] == pytest.approx([c for c, _ in expected[:k]])
    assert len({a.choices for a in found.assemblies}) == len(found.assemblies) == min(k, len(expected))
    assert [a.choices for a in found.assemblies] == [p for _, p in expected[:k]]
    for a in found.assemblies:
        assert a.blocks == tuple(stages[s][i].block for s, i in enumerate(a.choices))
        assert a.resources == pytest.approx(_resources(stages, pairs, a.choices))
        for name, (low, high) in budget.items():
            assert (-math.inf if low is None else low) <= a.resources[name] <= (math.inf if high is None else high)
        assert not distinct or len({stages[s][i].group for s, i in enumerate(a.choices)}) == len(widths)
        assert not mix or len({b.network for b in a.blocks}) > 1


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([0, 10**9]))
def test_the_k_best_are_those_of_full_enumeration(problem, few):
    with pytest.MonkeyPatch.context() as patch:  # with multipliers and without
        patch.setattr("netsmith.search.bounds._FEW_PATHS", few)
        _check(problem)


def test_ties_come_in_the_order_of_their_choices_even_when_everything_ties():
    stages = [[Choice(Block(f"n{i}", s, s + 1), s) for i in range(50)] for s in range(8)]
    costs = [np.zeros((50, 50)) for _ in range(7)]
    found = k_best(stages, costs, k=60)
    assert [a.choices for a in found.assemblies] == [(0,) * 6 + divmod(i, 50) for i in range(60)]
    assert found.explored < 100_000


def test_more_families_of_sets_than_can_be_told_apart(monkeypatch):
    monkeypatch.setattr("netsmith.search.bounds._STATE_WORK", 10)
    for seed in range(3):
        _check(((seed, [4, 4, 4, 4], 6, True), {"params": (None, 35.0)}, 10, True, True))


def test_small_batches_and_many_dives_change_nothing(monkeypatch):
    monkeypatch.setattr("netsmith.search.branch_and_bound._BATCH", 8)
    monkeypatch.setattr("netsmith.search.branch_and_bound._DIVE", 2)
    for seed in range(3):
        _check(((seed, [5, 5, 5, 5], None, False), {"params": (20.0, 35.0)}, 15, True, False))


def test_a_search_that_is_cut_short_bounds_what_it_missed():
    stages, costs, pairs = _instance(1, [10] * 6, networks=10, whole=False)
    budget = {"params": (30.0, 31.0), "latency_ms": (25.0, 26.0)}
    best = k_best(stages, costs, pairs, budget, 5)
    assert best.optimal
    assert math.isinf(best.bound)
    for limit in (1, 2_000, 10_000, 20_000):
        short = k_best(stages, costs, pairs, budget, 5, most_explored=limit)
        if short.optimal:
            continue
        if len(short.assemblies) < 5:
            assert math.isinf(short.gap)
        else:
            assert short.gap == pytest.approx(short.assemblies[-1].cost - short.bound)
        missed = [a.cost for a in best.assemblies if a.choices not in {s.choices for s in short.assemblies}]
        assert all(cost >= short.bound - 1e-9 for cost in missed)
    assert not k_best(stages, costs, pairs, budget, 5, most_explored=1).optimal
    assert not k_best(stages, costs, pairs, budget, 5, seconds=0.0).optimal


def _two_stages():
    def choice(network, stage, params, macs):
        return Choice(Block(network, stage, stage + 1), stage, 0.0, {"params": params, "macs": macs})

    stages = [
        [choice("a", 0, 100_000, 4e9), choice("b", 0, 300_000, 1e9)],
        [choice("a", 1, 150_000, 5e9), choice("b", 1, 400_000, 2e9)],
    ]
    return stages, [np.zeros((2, 2))], {"params": [np.array([[0, 20_000], [19_720, 0]])]}


def test_an_infeasible_bound_is_named_with_the_nearest_feasible_value():
    stages, costs, pairs = _two_stages()
    with pytest.raises(BudgetError, match=r"no assembly has params of at most 200k\. .* params of at most 250k\.$"):
        k_best(stages, costs, pairs, {"params": (None, 2e5)})
    with pytest.raises(BudgetError, match=r"params of at least 1M\. .* params of at least 700k\.$"):
        k_best(stages, costs, pairs, {"params": (1e6, None)})
    with pytest.raises(BudgetError, match=r"at most 500k, macs of at most 4G\. .*700k or to macs of at most 6G\.$"):
        k_best(stages, costs, pairs, {"params": (None, 5e5), "macs": (None, 4e9)})
    # the nearest value is one that can be typed: rounded to the side that is feasible
    with pytest.raises(BudgetError, match=r"params of at most 469\.72k\.$"):
        k_best(stages, costs, pairs, {"params": (400_000, 4.5e5)}, mix=True)
    assert k_best(stages, costs, pairs, {"params": (400_000, 469_720)}, mix=True).assemblies[0].choices == (1, 0)


@pytest.mark.parametrize(
    ("name", "value", "up", "text"),
    [
        ("params", 269_722, None, "269.72k"),
        ("params", 269_722, True, "269.73k"),
        ("params", 269_722, False, "269.72k"),
        ("macs", 1_253_700_001, True, "1.26G"),
        ("macs", 1_253_700_001, False, "1.25G"),
        ("latency_ms", 12.34567, True, "12.35 ms"),
        ("memory_bytes", 3_210_999, False, "3.21 MB"),
        ("memory_bytes", 3_210_999, True, "3.211 MB"),
        ("params", 0, True, "0"),
        ("params", 12, True, "12"),
    ],
)
def test_the_nearest_value_is_printed_on_the_side_that_is_feasible(name, value, up, text):
    assert readable(name, float(value), up=up) == text


def test_bounds_that_fail_together_or_each_alone_are_told_apart():
    stages, costs, pairs = _two_stages()
    with pytest.raises(BudgetError, match=r"by themselves out of reach are .*at least 2M.*700k.*at most 1G.*3G"):
        k_best(stages, costs, pairs, {"params": (2e6, None), "macs": (None, 1e9)})
    one = [[Choice(Block(n, 0, 1), 0, 0.0, {"x": x, "y": y, "z": z}) for n, x, y, z in (
        ("a", 0, 1, 1), ("b", 1, 0, 1), ("c", 1, 1, 0))]]  # fmt: skip
    with pytest.raises(BudgetError, match="each can be met by itself, but not together"):
        k_best(one, [], {}, {"x": (None, 0), "y": (None, 0), "z": (None, 0)})


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from(["params", "peak_bytes", "memory_bytes"]), st.booleans())
def test_the_nearest_value_is_exact(problem, name, upper):
    """Nothing within the other bounds lies between the bound asked for and the value that the message gives."""
    (seed, widths, groups, whole), budget, _, distinct, mix = problem
    stages, costs, pairs = _instance(seed, widths, groups=groups, whole=whole)
    budget.pop(name, None)
    catalogue = Catalogue(stages, costs, pairs, PEAKS, TOTALS)
    space = catalogue.space(budget, distinct=distinct, mix=mix)
    others = [_Side(x, up) for x in space.limits for up in (True, False)]
    found = _extreme(space, _Side(catalogue.quantity(name, 0.0, 0.0), upper), others, 10**7)
    expected = [
        _resources(stages, pairs, p)[name]
        for _, p in _brute_force(stages, costs, pairs, budget, distinct=distinct, mix=mix)
    ]
    if expected:
        assert found == pytest.approx(min(expected) if upper else max(expected))
    else:
        assert found is None


def test_sets_that_cannot_be_distinct_are_explained():
    stages = [[Choice(Block("a", s, s + 1), 7), Choice(Block("b", s, s + 1), 7)] for s in range(2)]
    costs = [np.zeros((2, 2))]
    with pytest.raises(BudgetError, match=r"different equivalence sets: stage 0 offers .*distinct sets off"):
        k_best(stages, costs)
    assert k_best(stages, costs, distinct_groups=False).optimal


def test_more_shared_sets_than_the_search_can_hold():
    stages = [[Choice(Block("a", s, s + 1), g) for g in range(63)] for s in range(2)]
    with pytest.raises(BudgetError, match="at most 62 equivalence sets that several stages offer, got 63"):
        k_best(stages, [np.zeros((63, 63))])
    assert k_best(
        [stages[0][:40], [Choice(Block("b", 1, 2), g) for g in range(100, 140)]], [np.zeros((40, 40))]
    ).optimal


def test_a_mix_needs_two_networks():
    stages = [[Choice(Block("a", s, s + 1), s)] for s in range(2)]
    with pytest.raises(BudgetError, match="no assembly mixes blocks of two networks"):
        k_best(stages, [np.zeros((1, 1))], mix=True)
    with pytest.raises(BudgetError, match="no assembly mixes"):
        k_best([[Choice(Block("a", 0, 1), 0), Choice(Block("b", 0, 1), 0)]], [], mix=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k of at least 1"),
        ({"budget": {"parms": (None, 1.0)}}, "bounds 'parms'.*Did you mean 'params'"),
        ({"budget": {"params": (2.0, 1.0)}}, "params with min <= max"),
        ({"costs": []}, r"pair_costs of shapes \[\(2, 2\)\]"),
        ({"pairs": {"params": [np.zeros((2, 3))]}}, r"params of shapes \[\(2, 2\)\].*\(2, 3\)"),
        ({"pairs": {"latency_ms": [np.zeros((2, 2))]}}, "has no 'latency_ms'"),
        ({"stages": []}, "at least one block"),
        ({"stages": [[Choice(Block("a", 0, 1), 0)], []]}, r"none for stages \[1\]"),
    ],
)
def test_bad_input_gets_one_clear_message(change, message):
    stages, costs, pairs = _two_stages()
    given = {"stages": stages, "costs": costs, "pairs": pairs, "budget": {}, "k": 1} | change
    with pytest.raises(BudgetError, match=message):
        k_best(given["stages"], given["costs"], given["pairs"], given["budget"], given["k"])
