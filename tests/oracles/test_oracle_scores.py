"""Every score against its paper's formula: a network of two layers, whose derivatives are written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import formulas
import numpy as np
import pytest
import torch
from formulas import Array
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from netsmith.reassembly.scores import ScoreContext, get_score, log_maximum_evidence, score_names

CLASSES, HIDDEN, INPUTS = 3, 6, 8


class Two(nn.Module):
    """`y = B relu(A x + a) + b`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x.flatten(1))))


@dataclass(frozen=True)
class Known:
    """The network's numbers on a batch, in numpy: inputs, both layers, what flows through them and back."""

    x: Array
    labels: NDArray[np.int64]
    a: Array
    a0: Array
    b: Array
    b0: Array

    @property
    def z(self) -> Array:
        return self.x @ self.a.T + self.a0

    @property
    def h(self) -> Array:
        return np.maximum(self.z, 0)

    @property
    def y(self) -> Array:
        return self.h @ self.b.T + self.b0

    @property
    def dy(self) -> Array:
        """Of the mean cross-entropy."""
        return (np.exp(formulas.log_softmax(self.y)) - formulas.one_hot(self.labels, CLASSES)) / len(self.x)

    @property
    def dz(self) -> Array:
        return (self.dy @ self.b) * (self.z > 0)

    @property
    def gradients(self) -> list[tuple[Array, Array]]:
        """Weights and their gradients."""
        return [(self.a, self.dz.T @ self.x), (self.b, self.dy.T @ self.h)]


def _naswot(k: Known) -> float:
    """Mellor et al. (ICML 2021), section 3: `log |K_H|`, `K_H` the agreeing bits of every two codes."""
    codes = k.z > 0
    agree = (codes[:, None, :] == codes[None, :, :]).sum(axis=2).astype(float)
    sign, value = np.linalg.slogdet(agree)
    return float(value) if sign > 0 else -math.inf


def _synflow(k: Known) -> float:
    """Tanaka et al. (NeurIPS 2020), eq. 2, with `R = 1^T |B| (|A| 1 + |a|) + |b|`."""
    a, a0, b, b0 = (np.abs(v) for v in (k.a, k.a0, k.b, k.b0))
    back = b.sum(axis=0)  # dR / dh
    flow = (b * (a.sum(axis=1) + a0)).sum() + b0.sum() + (back[:, None] * a).sum() + (back * a0).sum()
    return float(np.log(flow)) if flow > 0 else -math.inf


def _snip(k: Known) -> float:
    """Lee et al. (ICLR 2019), eq. 6, before its normalisation: `sum |w dL/dw|`."""
    return float(sum(np.abs(w * g).sum() for w, g in k.gradients))


def _grad_norm(k: Known) -> float:
    """Abdelfattah et al. (ICLR 2021), section 3.1: the norms of all weights' gradients, summed."""
    return float(sum(np.sqrt((g**2).sum()) for _, g in k.gradients))


def _fisher(k: Known) -> float:
    """Theis et al. (2018), eq. 7: `1 / (2 n) sum_n g_n^2` of every channel, `g_n` of an image's own loss."""
    n = len(k.x)
    return float(sum(((out * grad * n) ** 2).sum() / (2 * n) for out, grad in ((k.z, k.dz), (k.y, k.dy))))


def _jacov(k: Known) -> float:
    """Mellor et al. (2020, version 1), eq. 2: `-sum (log(v + k) + 1 / (v + k))`."""
    jacobians = ((np.ones(CLASSES) @ k.b) * (k.z > 0)) @ k.a
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.nan_to_num(np.corrcoef(jacobians))
    values = np.maximum(np.linalg.eigvalsh(correlations), 0) + 1e-5
    return -float((np.log(values) + 1 / values).sum())


def _knn(k: Known) -> float:
    """Leave one out: the class of most of the ten images of the greatest cosine; the smaller class of a tie."""
    unit = k.h / np.maximum(np.sqrt((k.h**2).sum(axis=1, keepdims=True)), 1e-12)
    right = 0
    for i, row in enumerate(unit):
        others = [j for j in range(len(unit)) if j != i]
        nearest = sorted(others, key=lambda j: -float(row @ unit[j]))[:10]
        votes = np.bincount(k.labels[nearest], minlength=CLASSES)
        right += int(np.argmax(votes)) == k.labels[i]
    return right / len(unit)


def _evidence(features: Array, target: Array) -> float:
    """You et al. (ICML 2021), eq. 2, maximised over both precisions by a general method, a sample."""
    n, d = features.shape

    def lost(precisions: Array) -> float:
        alpha, beta = np.exp(np.clip(precisions, -30, 30))
        inner = alpha * np.eye(d) + beta * features.T @ features
        mean = beta * np.linalg.solve(inner, features.T @ target)
        error, size = ((features @ mean - target) ** 2).sum(), (mean**2).sum()
        fit = n * np.log(beta) + d * np.log(alpha) - n * np.log(2 * np.pi)
        return -0.5 * (fit - beta * error - alpha * size - np.linalg.slogdet(inner)[1])

    starts = [(0.0, 0.0), (3.0, 0.0), (0.0, 3.0), (6.0, 2.0), (-3.0, 3.0)]
    found = [minimize(lost, start, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}) for start in starts]
    return -min(float(f.fun) for f in found) / n


def _logme(k: Known) -> float:
    targets = formulas.one_hot(k.labels, int(k.labels.max()) + 1)
    return float(np.mean([_evidence(k.h, y) for y in targets.T]))


ORACLES: dict[str, Callable[[Known], float]] = {
    "naswot": _naswot,
    "synflow": _synflow,
    "snip": _snip,
    "grad_norm": _grad_norm,
    "fisher": _fisher,
    "jacov": _jacov,
    "knn": _knn,
    "logme": _logme,
    "stitch": lambda k: formulas.accuracy(k.y, k.labels),
    "params": lambda k: float(k.a.size + k.a0.size + k.b.size + k.b0.size),
}


def test_every_registered_score_has_an_oracle():
    assert set(score_names()) == set(ORACLES), "a score without a formula here is not known to be right"


def _inputs(kind: str, n: int) -> Array:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n, INPUTS))
    return {
        "random": x,
        "constant": np.ones_like(x),
        "duplicates": np.concatenate([x[: n // 2], x[: n // 2]]),
        "one constant column": np.where(np.arange(INPUTS) == 1, 2.0, x),
        "tiny": 1e-7 * x,
        "huge": 1e6 * x,
        "one image is nothing": np.where(np.arange(n)[:, None] == 1, 0.0, x),
    }[kind]


KINDS = ("random", "constant", "duplicates", "one constant column", "tiny", "huge", "one image is nothing")


def context(kind: str, n: int, bias: float = 0.0) -> tuple[ScoreContext, Known]:
    torch.manual_seed(1)
    net = Two().double().eval()
    with torch.no_grad():
        net.first.bias += bias
    x = _inputs(kind, n)
    labels = np.random.default_rng(4).integers(0, CLASSES, n)
    labels[:CLASSES] = range(CLASSES)
    weights = [p.detach().numpy() for p in net.parameters()]
    images = torch.from_numpy(x).reshape(n, 1, 2, INPUTS // 2)
    return ScoreContext(net, images, torch.from_numpy(labels)), Known(x, labels, *weights)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(set(ORACLES) - {"logme", "knn"}))
@pytest.mark.parametrize("n", [4, 10])
def test_a_score_is_its_formula(name, kind, n):
    ctx, known = context(kind, n)
    # the eigenvalues of images that are alike are 0 but for rounding, which 1 / (v + 1e-5) magnifies
    within = 1e-6 if name == "jacov" else 1e-9
    assert get_score(name)(ctx) == pytest.approx(ORACLES[name](known), rel=within, abs=1e-12)


@pytest.mark.parametrize("kind", ["random", "one constant column", "one image is nothing"])
@pytest.mark.parametrize("n", [9, 40])
def test_neighbours(kind, n):
    """No unit is off, so that no two neighbours are as near as each other: of such any may be taken."""
    ctx, known = context(kind, n, bias=4.0)
    assert get_score("knn")(ctx) == pytest.approx(_knn(known))


@pytest.mark.parametrize("kind", ["random", "duplicates", "one constant column", "one image is nothing"])
def test_evidence(kind):
    ctx, known = context(kind, 40)
    assert get_score("logme")(ctx) == pytest.approx(_logme(known), abs=1e-5)


def test_evidence_of_features_that_say_nothing():
    """Zeros: the evidence rises towards that of noise alone as the precision of the weights grows without end."""
    labels = np.arange(30) % 3
    found = log_maximum_evidence(torch.zeros(30, 4), torch.from_numpy(labels))
    y = formulas.one_hot(labels, 3)
    noise = [-0.5 * (np.log(2 * np.pi * (col**2).mean()) + 1) for col in y.T]
    assert found == pytest.approx(np.mean(noise), abs=1e-6)


@pytest.mark.parametrize("name", ["synflow", "snip", "grad_norm", "fisher", "naswot"])
def test_single_precision_keeps_the_digits(name):
    ctx, known = context("random", 10)
    single = ScoreContext(ctx.model.float(), ctx.images.float(), ctx.labels)
    assert get_score(name)(single) == pytest.approx(ORACLES[name](known), rel=1e-4)
