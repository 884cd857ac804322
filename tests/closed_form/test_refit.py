"""The refit of a reader: against least squares in float64, and against every choice of channels."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netsmith.closed_form.refit import ReaderFit, by_importance, surviving
from netsmith.closed_form.ridge import Moments

ROWS = 60


def case(width: int, size: int, others: int, outputs: int, seed: int, ridge: float = 1e-2):
    """A reader of `width` channels of `size` inputs each, and of `others` that are in no group, in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    inputs = width * size + others
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(ROWS, inputs, generator=generator, dtype=torch.float64) @ mix + 0.5
    weight = torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)
    target = x @ weight + torch.randn(ROWS, outputs, generator=generator, dtype=torch.float64)
    blocks = torch.randperm(inputs, generator=generator)[: width * size].view(width, size)
    moments = Moments(1, inputs, outputs)
    for some, wanted in zip(x.split(25), target.split(25), strict=True):
        moments.add(some.unsqueeze(1), wanted.unsqueeze(1))
    return x, target, weight, blocks, ReaderFit(moments, weight, blocks, ridge)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(1, 3), st.integers(0, 2), st.integers(1, 3), st.integers(0, 99))
def test_a_refit_is_ridge_regression_towards_the_old_weights(width, size, others, outputs, seed):
    x, target, weight, blocks, fit = case(width, size, others, outputs, seed)
    kept = torch.arange(0, width, 2)
    result = fit.refit(kept)
    gone = torch.ones(width, dtype=torch.bool)
    gone[kept] = False
    stays = torch.ones(x.shape[1], dtype=torch.bool)
    stays[blocks[gone].flatten()] = False
    centred, wanted = x - x.mean(0), target - target.mean(0)
    shift = 1e-2 * centred.square().mean(0).mean() * ROWS
    # the normal equations of |X W - T|^2 + shift |W - W0|^2 as one least squares problem
    rows = torch.cat([centred[:, stays], shift.sqrt() * torch.eye(int(stays.sum()), dtype=torch.float64)])
    right = torch.cat([wanted, shift.sqrt() * weight[stays]])
    expected = torch.linalg.lstsq(rows, right).solution
    assert torch.allclose(result.weight[stays], expected, atol=1e-8)
    assert (result.weight[~stays] == 0).all()
    error = x @ result.weight + result.bias - target
    assert torch.allclose(error.mean(0), torch.zeros(outputs, dtype=torch.float64), atol=1e-8)
    assert result.loss == pytest.approx(float(error.square().sum() / wanted.square().sum()), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_first_channel_to_go_is_the_one_whose_loss_costs_least(seed):
    x, target, weight, _, fit = case(5, 2, 1, 3, seed)
    shift = 1e-2 * (x - x.mean(0)).square().mean(0).mean()

    def objective(kept) -> float:
        result = fit.refit(torch.tensor(kept))
        error = x @ result.weight + result.bias - target
        return float(error.square().sum() / ROWS + shift * (result.weight - weight).square().sum())

    (kept,) = surviving([fit], [4])
    best = min(itertools.combinations(range(5), 4), key=objective)
    assert tuple(kept.tolist()) == best


def test_channels_go_one_after_the_other():
    *_, fit = case(6, 1, 0, 2, 0)
    many = surviving([fit], [5, 3, 1])
    assert [len(k) for k in many] == [5, 3, 1]
    assert set(many[2].tolist()) < set(many[1].tolist()) < set(many[0].tolist())
    for count, kept in zip([5, 3, 1], many, strict=True):
        assert torch.equal(surviving([fit], [count])[0], kept)


def test_two_readers_decide_together():
    """A channel that one reader ignores stays when the other cannot do without it."""
    x = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64)
    two = torch.tensor([[0.1], [0.0], [1.0]], dtype=torch.float64)
    fits = []
    for weight in (one, two):
        moments = Moments(1, 3, 1)
        moments.add(x.unsqueeze(1), (x @ weight).unsqueeze(1))
        fits.append(ReaderFit(moments, weight, torch.arange(3).view(3, 1), 1e-4))
    assert surviving([fits[0]], [2])[0].tolist() == [0, 1]
    assert 2 in surviving(fits, [2])[0].tolist()


def test_importance_is_the_size_of_what_a_channel_gives():
    x = torch.tensor([[1.0, 0.0, 4.0], [1.0, 2.0, -4.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0], [1.0], [0.1]], dtype=torch.float64)
    moments = Moments(1, 3, 1)
    moments.add(x.unsqueeze(1), (x @ weight).unsqueeze(1))
    fit = ReaderFit(moments, weight, torch.arange(3).view(3, 1), 1e-4)
    # squares: 1 * 1, 1 * 2, 0.01 * 16
    assert by_importance([fit], 2).tolist() == [0, 1]
    assert by_importance([fit], 1).tolist() == [1]
    assert fit.unchanged(torch.tensor([0, 1])).weight.tolist() == [[1.0], [1.0], [0.0]]
