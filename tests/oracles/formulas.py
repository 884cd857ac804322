"""The formulas of the papers in numpy and float64, and inputs on which an implementation may go wrong.

Nothing here knows Netsmith or PyTorch: each function is written from the equation that it names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# --- inputs -----------------------------------------------------------------------------------------------------------


def awkward(n: int = 20, d: int = 7, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Rows `(n, d)` of features by what is awkward about them, in single precision as networks give them."""
    rng = np.random.default_rng(seed)
    plain = rng.standard_normal((n, d)) @ rng.standard_normal((d, d))
    half = plain[: n // 2]
    found = {
        "random": plain,
        "non-negative": np.maximum(plain, 0),
        "constant": np.full((n, d), 3.5),
        "one constant column": np.where(np.arange(d) == 2, 1.0, plain),
        "duplicate rows": np.concatenate([half, half, plain[-1:]])[:n],
        "duplicate columns": np.repeat(plain[:, :1], d, axis=1),
        "fewer rows than columns": rng.standard_normal((n, 3 * n)),
        "one column": plain[:, :1],
        "tiny": 1e-8 * plain,
        "huge": 1e8 * plain,
        "far from zero": plain + 100.0,
        "one row stands out": np.where(np.arange(n)[:, None] == 3, 1e4, plain),
    }
    return {name: rows.astype(np.float32) for name, rows in found.items()}


# --- similarity -------------------------------------------------------------------------------------------------------


def hsic_biased(k: Array, m: Array) -> float:
    """Gretton et al. (2005), as Kornblith et al. (2019), eq. 3: `tr(K H L H) / (n - 1)^2`."""
    n = len(k)
    h = np.eye(n) - 1.0 / n
    return float(np.trace(k @ h @ m @ h) / (n - 1) ** 2)


def hsic_unbiased(k: Array, m: Array) -> float:
    """Song et al. (JMLR 2012), eq. 5, with the diagonals of both kernels set to zero."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    middle = k.sum() * m.sum() / ((n - 1) * (n - 2))
    return float((np.trace(k @ m) + middle - 2 * (k.sum(0) @ m.sum(1)) / (n - 2)) / (n * (n - 3)))


def linear_kernel(x: Array) -> Array:
    """`X X^T` of the rows about their mean, to which CKA is blind."""
    x = x - x.mean(axis=0)
    return x @ x.T


def gaussian_kernel(x: Array) -> Array:
    """`exp(-d^2 / (2 m))` with the median `m` of all squared distances; of those above 0 where that is 0."""
    squares = ((x[:, None, :] - x[None, :, :]) ** 2).sum(axis=2)
    median = float(np.median(squares))
    if median == 0.0:
        median = float(np.median(squares[squares > 0])) if (squares > 0).any() else 1.0
    return np.exp(-squares / (2 * median))


def alignment(x: Array, y: Array, kernel: Callable[[Array], Array], *, biased: bool) -> float:
    """Kornblith et al. (ICML 2019), eq. 2: `HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`; 0 where one does not vary."""
    hsic = hsic_biased if biased else hsic_unbiased
    k, m = (_unit(kernel(rows)) for rows in (x, y))
    own = hsic(k, k) * hsic(m, m)
    if min(_spread(x), _spread(y)) == 0.0 or own <= 0.0:
        return 0.0
    return float(np.clip(hsic(k, m) / math.sqrt(own), 0.0 if biased else -1.0, 1.0))


def _unit(k: Array) -> Array:
    """Scaled so that products neither overflow nor vanish; CKA does not notice."""
    top = float(np.abs(k).max())
    return k / top if top > 0 else k


def _spread(x: Array) -> float:
    return float(np.ptp(x, axis=0).max())


def r_squared(x: Array, y: Array) -> float:
    """Kornblith et al. (2019), table 1: R^2 of least squares with intercept from x to all columns of y together."""
    y = y - y.mean(axis=0)
    total = float((y**2).sum())
    if _spread(y) == 0.0:
        return 1.0
    if _spread(x) == 0.0:
        return 0.0
    x = x - x.mean(axis=0)
    left, singular, _ = np.linalg.svd(x, full_matrices=False)
    basis = left[:, singular > 1e-3 * singular[0]]
    return float((((basis.T @ y) ** 2).sum()) / total)


# --- classification ---------------------------------------------------------------------------------------------------


def log_softmax(logits: Array, axis: int = 1) -> Array:
    """Logarithms of class probabilities."""
    top = logits.max(axis=axis, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=axis, keepdims=True))


def one_hot(labels: NDArray[Any], classes: int) -> Array:
    """Rows of zeros and a one."""
    return np.eye(classes)[labels]


def cross_entropy(logits: Array, targets: Array, smoothing: float = 0.0) -> float:
    """Szegedy et al. (CVPR 2016), section 7: `-sum q' log p` with `q' = (1 - e) q + e / K`, the mean over images."""
    q = (1 - smoothing) * targets + smoothing / logits.shape[1]
    p = log_softmax(logits)
    return float(-np.where(q > 0, q * p, 0.0).sum(axis=1).mean())


def accuracy(logits: Array, labels: NDArray[Any]) -> float:
    """Share of images whose largest logit is the label's, the first of equal ones."""
    return float(np.mean([int(np.argmax(row)) == label for row, label in zip(logits, labels, strict=True)]))


def kullback_leibler(p: Array, q: Array) -> float:
    """`sum p (ln p - ln q)` over classes, from logits `(n, c)`, the mean over rows, in nats."""
    a, b = log_softmax(p), log_softmax(q)
    return float((np.exp(a) * (a - b)).sum(axis=1).mean())


def distillation(student: Array, teacher: Array, temperature: float) -> float:
    """Hinton et al. (2015): `T^2 KL(softmax(teacher / T) || softmax(student / T))`."""
    return temperature**2 * kullback_leibler(teacher / temperature, student / temperature)


# --- segmentation -----------------------------------------------------------------------------------------------------


def per_class(predicted: NDArray[Any], labels: NDArray[Any], classes: int) -> list[tuple[int, int, int]]:
    """True positives, false positives and false negatives of every class that is somewhere."""
    found = []
    for c in range(classes):
        hit = int(((predicted == c) & (labels == c)).sum())
        extra = int(((predicted == c) & (labels != c)).sum())
        missed = int(((predicted != c) & (labels == c)).sum())
        if hit + extra + missed:
            found.append((hit, extra, missed))
    return found


def mean_iou(counts: list[tuple[int, int, int]]) -> float:
    """Everingham et al. (IJCV 2010, VOC): `TP / (TP + FP + FN)`, the mean over classes."""
    return float(np.mean([hit / (hit + extra + missed) for hit, extra, missed in counts]))


def mean_f1(counts: list[tuple[int, int, int]]) -> float:
    """Dice (1945): `2 TP / (2 TP + FP + FN)`, the mean over classes."""
    return float(np.mean([2 * hit / (2 * hit + extra + missed) for hit, extra, missed in counts]))


# --- generation -------------------------------------------------------------------------------------------------------


def bernoulli_entropy(logits: Array, values: Array) -> Array:
    """`-(x log s + (1 - x) log(1 - s))` with `s` the sigmoid of the logits, without overflow."""
    return np.maximum(logits, 0) - logits * values + np.log1p(np.exp(-np.abs(logits)))


def evidence_bound(logits: Array, mean: Array, log_variance: Array, images: Array) -> Array:
    """Kingma and Welling (ICLR 2014), eq. 10 and appendix B: nats for each number of each image `(n,)`."""
    pixels = bernoulli_entropy(logits, images).reshape(len(images), -1)
    divergence = -0.5 * (1 + log_variance - mean**2 - np.exp(log_variance)).sum(axis=1)
    return -(pixels.sum(axis=1) + divergence) / pixels.shape[1]


def sigmoid(x: Array) -> Array:
    """`1 / (1 + e^-x)`."""
    return np.exp(-np.logaddexp(0.0, -x))


def normal_divergence(mean: Array, log_variance: Array, other: Array, other_log: Array) -> Array:
    """KL(N(other) || N(mean)) of diagonal normal distributions, a row each."""
    ratio = np.exp(other_log - log_variance)
    return 0.5 * (log_variance - other_log + ratio + (other - mean) ** 2 / np.exp(log_variance) - 1).sum(axis=1)


def bernoulli_divergence(logits: Array, other: Array) -> Array:
    """KL(Bernoulli(sigmoid(other)) || Bernoulli(sigmoid(logits))), elementwise."""
    s = sigmoid(other)
    return bernoulli_entropy(logits, s) - bernoulli_entropy(other, s)


# --- learning rates ---------------------------------------------------------------------------------------------------


def annealed(start: float, stop: float, way: float) -> float:
    """Loshchilov and Hutter (ICLR 2017), eq. 5: half a cosine."""
    return stop + 0.5 * (start - stop) * (1 + math.cos(math.pi * way))
