"""The model that serves live: sizes, switches under load, the cache."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings

import pytest
import torch
from morph_networks import morphable

from netsmith.errors import BudgetError, MorphError
from netsmith.morphing.generator import Nested
from netsmith.morphing.grid import Grid
from netsmith.morphing.live import MorphableModel, Sampling
from netsmith.trace.cost import count_params

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> MorphableModel:
    made = morphable(Nested)
    return MorphableModel(made, (1, 8, 8))


@torch.no_grad()
def test_it_serves_the_base_at_first_and_then_the_size_that_was_set(model):
    assert torch.allclose(model(X), model.morphable.base(X), atol=1e-6)
    full = model.size
    assert model.set_size(0.5) == model.widths_for(0.5) == model.size.widths
    size = model.size
    assert size.ratio == pytest.approx(0.5)
    assert size.params == count_params(model.at(0.5)) < full.params
    assert size.macs < full.macs
    assert torch.equal(model(X), model.at(0.5)(X))
    model.set_size(ratio=1.0)
    assert model.size == full


@torch.no_grad()
def test_requests_by_name_and_by_type_are_the_same(model):
    assert model.widths_for(0.5) == model.widths_for(ratio=0.5)
    widths = {"features.0.0": 3}
    assert model.widths_for(widths) == model.widths_for(widths=widths)
    params = model.sizes(model.widths_for(0.5))[0]
    model.set_size(params=params)
    assert model.size.params == params
    with pytest.raises(MorphError, match=r"ask for one of ratio, widths, params, macs, .* not ratio and params"):
        model.at(ratio=0.5, params=1000)
    with pytest.raises(MorphError, match="not none"):
        model.set_size()


def test_what_at_gives_is_a_network_of_its_own(model):
    model.set_size(0.5)
    first, second = model.at(0.5), model.at(0.5)
    assert all(p.requires_grad for p in first.parameters())
    with torch.no_grad():
        for p in first.parameters():
            p.zero_()
        assert torch.equal(model(X), second(X))
    assert first(X).abs().sum() == 0
    assert model(X).abs().sum() > 0


def test_serving_needs_no_gradients(model):
    model.set_size(0.75)
    assert not model(X).requires_grad


def test_the_cache_holds_what_fits(model):
    model.set_size(1.0)
    one = model.cached_bytes()
    model.cache_mb = 2.1 * one / 2**20
    for ratio in (0.9, 0.75, 0.5, 0.75, 0.25):
        model.set_size(ratio)
        assert model.cached_bytes() <= model.cache_mb * 2**20
    assert len(model._cache) > 1
    kept = model._served
    model.set_size(0.75)
    model.set_size(0.25)
    assert model._served is kept
    model.cache_mb = 0
    model.set_size(0.5)
    assert list(model._cache.values()) == [model._served]  # what is served is always held


def test_latency_is_measured_once_and_met_or_refused(model, monkeypatch):
    calls = []

    def measured(module, x):
        calls.append(tuple(x.shape))
        return count_params(module) / 1000

    monkeypatch.setattr("netsmith.morphing.live.measure_latency", measured)
    most, least = model.latency(model.widths_for(1.0), 4), model.latency(model.narrowest(), 4)
    target = (most + least) / 2
    found = model.widths_for(latency_ms=target, batch=4)
    assert count_params(model.at(found)) / 1000 <= target
    assert set(calls) == {(4, 1, 8, 8)}
    before = len(calls)
    assert model.widths_for(latency_ms=target, batch=4) == found
    assert len(calls) == before
    assert model.widths_for(latency_ms=1e6, batch=4) == model.morphable.space.full
    with pytest.raises(BudgetError, match=rf"is below the smallest .* from {least:.3g} ms .* to {most:.3g} ms"):
        model.at(latency_ms=least / 2, batch=4)
    with pytest.raises(MorphError, match="at least one input, not 0"):
        model.at(latency_ms=1.0, batch=0)


@torch.no_grad()
def test_copies_and_pickles_serve_alike(model):
    model.set_size(0.5)
    expected = model.at(0.5)(X)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.set_size(0.5)
        assert torch.equal(twin(X), expected)
        assert twin._lock is not model._lock


@torch.no_grad()
def test_casting_the_model_casts_what_it_serves(model):
    model.set_size(0.5)
    model.double()
    assert model.size.ratio == pytest.approx(0.5)
    assert model(X.double()).dtype == torch.float64


@torch.no_grad()
def test_noisy_reads_are_served_as_asked():
    made = MorphableModel(morphable(Grid, keyframes=(1.0, 0.5), coarse=0.5), (1, 8, 8))
    how = Sampling(reads=4, noise=0.5, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.set_size(0.3, how=how)
        assert torch.equal(made(X), made.at(0.3, how=how)(X))
        assert not torch.equal(made(X), made.at(0.3)(X))


@torch.no_grad()
def test_threads_see_whole_sizes_only(model):
    ratios = (1.0, 0.75, 0.5, 0.25)
    right = [model.at(r)(X) for r in ratios]
    model.cache_mb = 0  # every switch reads anew
    stop, wrong, served = threading.Event(), [], [0] * 4

    def infer(k: int) -> None:
        with torch.no_grad():
            while not stop.is_set():
                found = model(X)
                served[k] += 1
                if not any(torch.equal(found, r) for r in right):
                    wrong.append(found)

    threads = [threading.Thread(target=infer, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for k in range(40):
        model.set_size(ratios[k % 4])
        model.at(ratios[(k + 1) % 4])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(served)
