from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge

from netsmith.closed_form.ridge import Moments, fit_ridge, r_squared, solve_ridge, solve_shifted
from netsmith.errors import RecipeError


def moments_of(x: torch.Tensor, y: torch.Tensor, batch: int = 7) -> Moments:
    found = Moments(x.shape[1], x.shape[2], y.shape[2])
    for start in range(0, len(x), batch):
        found.add(x[start : start + batch], y[start : start + batch])
    return found


def data(seed: int, n: int = 40, p: int = 3, q: int = 5, d: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, q, generator=generator) + 3
    y = x @ torch.randn(q, d, generator=generator) + torch.randn(n, p, d, generator=generator)
    return x, y


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-4, 10))
def test_streamed_ridge_is_that_of_scikit_learn(seed: int, ridge: float):
    x, y = data(seed)
    weight, bias = solve_ridge(moments_of(x, y), [ridge])[0]
    flat_x, flat_y = x.flatten(0, 1).double().numpy(), y.flatten(0, 1).double().numpy()
    scale = ((flat_x - flat_x.mean(0)) ** 2).sum(0).mean()
    expected = SklearnRidge(alpha=ridge * scale).fit(flat_x, flat_y)
    np.testing.assert_allclose(weight.T.numpy(), expected.coef_, atol=1e-8)
    np.testing.assert_allclose(bias[0].numpy(), expected.intercept_, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_r_squared_from_sums_is_that_of_the_rows(seed: int, by_place: bool):
    x, y = data(seed)
    weight, bias = solve_ridge(moments_of(x, y), [0.1], by_place=by_place)[0]
    other_x, other_y = data(seed + 1)
    error = (other_y.double() - other_x.double() @ weight - bias).square().sum()
    total = (other_y.double() - other_y.double().mean((0, 1))).square().sum()
    assert r_squared(moments_of(other_x, other_y), weight, bias) == pytest.approx(float(1 - error / total), abs=1e-9)


def test_an_intercept_a_place_recovers_places_exactly():
    x, _ = data(0)
    weight, places = torch.randn(5, 2), torch.randn(3, 2)
    found, bias = solve_ridge(moments_of(x, x @ weight + places), [1e-9], by_place=True)[0]
    assert torch.allclose(found.float(), weight, atol=1e-4)
    assert torch.allclose(bias.float(), places, atol=1e-3)


def test_scaling_the_inputs_changes_no_prediction():
    x, y = data(3)
    a = solve_ridge(moments_of(x, y), [0.3])[0]
    b = solve_ridge(moments_of(1000 * x, y), [0.3])[0]
    assert torch.allclose(x.double() @ a[0] + a[1], 1000 * x.double() @ b[0] + b[1], atol=1e-5)


def test_the_ridge_with_the_best_held_out_r2_is_taken_and_refitted_on_all():
    x, y = data(4, n=8, p=1, q=20)
    held_x, held_y = data(4, n=30, p=1, q=20)
    ridges = [1e-6, 1e-2, 1.0]
    fit, held = moments_of(x, y), moments_of(held_x, held_y)
    scores = [r_squared(held, w, b) for w, b in solve_ridge(fit, ridges)]
    found = fit_ridge(fit, held, ridges)
    assert found.ridge == ridges[int(np.argmax(scores))]
    assert found.r2 == max(scores)
    both = solve_ridge(fit + held, [found.ridge])[0]
    assert torch.equal(found.weight, both[0])


def test_without_held_out_rows_the_first_ridge_is_used():
    x, y = data(5)
    assert fit_ridge(moments_of(x, y), None, [0.5, 0.1]).ridge == 0.5
    assert fit_ridge(moments_of(x, y), Moments(3, 5, 2), [0.5, 0.1]).ridge == 0.5


def test_singular_inputs_get_the_least_norm_solution():
    matrix = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64))
    right = torch.tensor([[4.0], [0.0]], dtype=torch.float64)
    assert torch.allclose(solve_shifted(matrix, 0.0, right), torch.tensor([[2.0], [0.0]], dtype=torch.float64))


def test_constant_inputs_predict_the_mean():
    y = torch.randn(10, 2, 3)
    weight, bias = solve_ridge(moments_of(torch.ones(10, 2, 4), y), [1e-3])[0]
    assert torch.allclose((torch.ones(1, 4).double() @ weight + bias)[0].float(), y.mean((0, 1)), atol=1e-6)


def test_nan_is_refused():
    x, y = data(6)
    x[0, 0, 0] = float("nan")
    with pytest.raises(RecipeError, match="NaN or infinity, so no adapter can be fitted"):
        solve_ridge(moments_of(x, y), [0.1])
