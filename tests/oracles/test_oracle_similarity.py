"""Every similarity against the papers' formulas in float64, on plain and on awkward representations."""

from __future__ import annotations

from collections.abc import Callable

import formulas
import numpy as np
import pytest
import torch
from formulas import Array

from netsmith.reassembly.representation import Representations, gram
from netsmith.reassembly.similarity import metric_names, similarity


def _cka(x: Array, y: Array, biased: bool) -> float:
    return formulas.alignment(x, y, formulas.linear_kernel, biased=biased)


def _rbf(x: Array, y: Array, biased: bool) -> float:
    return formulas.alignment(x, y, formulas.gaussian_kernel, biased=biased)


ORACLES: dict[str, Callable[[Array, Array, bool], float]] = {
    "cka": _cka,
    "rbf_cka": _rbf,
    "lr": lambda x, y, biased: formulas.r_squared(x, y),
}
ROWS = formulas.awkward()
# What a float32 Gram matrix leaves of the digits. Distances are differences of its entries: where one image is 10^4
# times as far away as the others are from each other, those keep three digits. Projections have its eigenvectors.
NEAR = {"cka": 1e-5, "rbf_cka": 1e-5, "lr": 1e-4}
OUTLIER = {"rbf_cka": 1e-3}


def near(metric: str, *names: str) -> float:
    return OUTLIER.get(metric, NEAR[metric]) if "one row stands out" in names else NEAR[metric]


def test_every_registered_similarity_has_an_oracle():
    assert set(metric_names()) == set(ORACLES), "a similarity without a formula here is not known to be right"


def table(rows: list[np.ndarray], metric: str, biased: bool) -> np.ndarray:
    grams = torch.stack([gram(torch.from_numpy(x)) for x in rows])
    return similarity([Representations("net", tuple(map(str, range(len(rows)))), grams)], metric, biased).values


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("metric", ORACLES)
def test_all_pairs_of_awkward_representations(metric, biased):
    names = list(ROWS)
    found = table(list(ROWS.values()), metric, biased)
    exact = [rows.astype(np.float64) for rows in ROWS.values()]
    for i, x in enumerate(exact):
        for j, y in enumerate(exact):
            expected = ORACLES[metric](x, y, biased)
            within = near(metric, names[i], names[j])
            assert found[i, j] == pytest.approx(expected, abs=within), (metric, biased, names[i], names[j])


@pytest.mark.parametrize("n", [4, 5, 64])
@pytest.mark.parametrize("metric", ORACLES)
def test_few_and_more_images(metric, n):
    rows = [formulas.awkward(n, d, seed=d)["random"] for d in (2, 3)]
    found = table(rows, metric, False)
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            expected = ORACLES[metric](x.astype(np.float64), y.astype(np.float64), False)
            assert found[i, j] == pytest.approx(expected, abs=NEAR[metric])
