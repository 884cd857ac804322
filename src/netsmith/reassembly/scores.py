"""Scores that rank networks without training them. Higher is better, for every score.

A score leaves the network as it found it: parameters, gradients, statistics, modes, hooks and random state. All run in
eval mode, so that a pretrained network is judged as it is, and the same network always gets the same number.
Activations are read by intercepting torch's functions, not by hooks: `F.relu` counts as much as an `nn.ReLU`.

The training-free scores are those that DeRy ranks with (Yang et al., NeurIPS 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from netsmith.data.images import no_labels
from netsmith.errors import ConfigError, RecipeError, did_you_mean
from netsmith.reassembly.intercept import Outputs, PenultimateFeatures, SignCodes, WithoutNorms
from netsmith.reassembly.names import SCORES
from netsmith.trace.cost import images_at_once


@dataclass(frozen=True)
class ScoreContext:
    """What a score may look at.

    Attributes:
        model: the network; given back as it was.
        images: preprocessed, never test images. For `stitch`, `knn` and `logme` some hundreds, held out of any fit;
            for the others a batch of 16 to 128.
        labels: their classes.
        loss: from logits `(n, k)` and labels `(n,)` to the mean loss.

    Examples:
        >>> context = netsmith.ScoreContext(zoo[1].model, torch.rand(16, 1, 8, 8), torch.arange(16) % 10)
        >>> netsmith.get_score("params")(context)
        51706.0
    """

    model: nn.Module
    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy


Score = Callable[[ScoreContext], float]
_SCORES: dict[str, Score] = {}
_OF_LABELS = ("stitch", "knn", "logme", "snip", "grad_norm", "fisher")


def score(name: str) -> Callable[[Score], Score]:
    """Register a function from a `ScoreContext` to a number (higher is better) under a name.

    The function runs in eval mode; modes and random state are put back after it.

    Raises:
        ConfigError: the name is taken.

    Examples:
        >>> @netsmith.score("confidence")
        ... def confidence(context):
        ...     return float(context.model(context.images).softmax(1).amax(1).mean())
        >>> "confidence" in netsmith.score_names()
        True
    """

    def register(function: Score) -> Score:
        if name in _SCORES:
            raise ConfigError(f"a score named '{name}' is registered already; choose another name")

        @wraps(function)
        def guarded(ctx: ScoreContext) -> float:
            if name in _OF_LABELS and int(ctx.labels.max()) < 0:
                raise RecipeError(no_labels(f"score '{name}'"))
            with _as_found(ctx.model):
                return float(function(ctx))

        _SCORES[name] = guarded
        if name not in SCORES:
            SCORES.append(name)
        return guarded

    return register


def score_names() -> tuple[str, ...]:
    """Names of all registered scores, sorted.

    Examples:
        >>> "naswot" in netsmith.score_names()
        True
    """
    return tuple(sorted(_SCORES))


def get_score(name: str) -> Score:
    """The score of that name.

    Raises:
        ConfigError: there is none; the nearest names are given.

    Examples:
        >>> netsmith.get_score("naswot").__name__
        'naswot'
    """
    if name not in _SCORES:
        raise ConfigError(f"unknown score '{name}'. {did_you_mean(name, score_names())}")
    return _SCORES[name]


@score("stitch")
def stitch(ctx: ScoreContext) -> float:
    """Accuracy of the network as it is, 0..1: of an assembled one, after its closed-form fit.

    The images must not be those of the fit; `FitReport.accuracy` is the same number on the fit's own held-out images.
    """
    right = sum(int((out.argmax(1) == labels).sum()) for out, labels in _outputs(ctx))
    return right / len(ctx.labels)


@score("knn")
def knn(ctx: ScoreContext) -> float:
    """Leave-one-out accuracy of ten nearest neighbours on penultimate features of unit length, 0..1.

    A tie between classes goes to the smaller class.
    """
    features = F.normalize(_features(ctx))
    count = len(features)
    if count < 2:
        raise RecipeError(f"score 'knn' needs at least 2 images, got {count}")
    classes = int(ctx.labels.max()) + 1
    likeness = (features @ features.T).fill_diagonal_(-math.inf)
    nearest = ctx.labels[likeness.topk(min(10, count - 1), dim=1).indices]
    votes = F.one_hot(nearest, classes).sum(1)
    return float((votes.argmax(1) == ctx.labels).double().mean())


@score("logme")
def logme(ctx: ScoreContext) -> float:
    """Log of maximum evidence a sample of a Bayesian linear regression from penultimate features to each class.

    You et al., "LogME: Practical Assessment of Pre-trained Models for Transfer Learning" (ICML 2021), algorithm 1.
    """
    return log_maximum_evidence(_features(ctx), ctx.labels)


def log_maximum_evidence(features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> float:
    """LogME of features: the mean over classes of the evidence at its best precisions, divided by n."""
    features = features.double()
    targets = F.one_hot(labels).double()
    left, singular, _ = torch.linalg.svd(features, full_matrices=False)
    n, d = features.shape
    total = sum(_evidence(singular.square(), left.T @ y, float(y.square().sum()), n, d) for y in targets.T)
    return float(total) / (targets.shape[1] * n)


def _evidence(squares: Tensor, projected: Tensor, norm: float, n: int, d: int) -> float:
    """The evidence of one target at its fixed point of weight precision alpha and noise precision beta."""
    alpha = beta = 1.0
    for _ in range(100):
        gamma = float((beta * squares / (alpha + beta * squares)).sum())
        weight, error = _posterior(squares, projected, norm, alpha, beta)
        new_alpha, new_beta = gamma / max(weight, 1e-12), (n - gamma) / max(error, 1e-12)
        done = abs(new_alpha / new_beta - alpha / beta) <= 1e-8 * alpha / beta
        alpha, beta = new_alpha, new_beta
        if done or alpha <= 0 or beta <= 0:
            break
    alpha, beta = max(alpha, 1e-12), max(beta, 1e-12)
    weight, error = _posterior(squares, projected, norm, alpha, beta)
    determinant = float((alpha + beta * squares).log().sum()) + (d - len(squares)) * math.log(alpha)
    fit = n * math.log(beta) + d * math.log(alpha) - n * math.log(2 * math.pi)
    return 0.5 * (fit - beta * error - alpha * weight - determinant)


def _posterior(squares: Tensor, projected: Tensor, norm: float, alpha: float, beta: float) -> tuple[float, float]:
    """Squared length of the mean weights, and squared error of their prediction."""
    share = beta * squares / (alpha + beta * squares)
    weight = float((beta**2 * squares * projected.square() / (alpha + beta * squares).square()).sum())
    outside = norm - float(projected.square().sum())
    return weight, outside + float(((1 - share) * projected).square().sum())


@score("params")
def params(ctx: ScoreContext) -> float:
    """How many parameters the network has: the baseline that every score must beat."""
    return float(sum(p.numel() for p in ctx.model.parameters()))


@score("naswot")
def naswot(ctx: ScoreContext) -> float:
    """Log determinant of the Hamming kernel of binary activation codes.

    Mellor et al., "Neural Architecture Search without Training" (ICML 2021): bit j of an image's code says whether the
    input of activation j is positive; `K[a, b]` counts the bits in which images a and b agree. For GELU, SiLU,
    Hardswish and their like the bit is the same, the sign of the input: the side of the bend on which the unit works.
    Minus infinity when two images have the same code.

    Raises:
        RecipeError: the network has no such activation.
    """
    kernel = torch.zeros(len(ctx.images), len(ctx.images), dtype=torch.float64, device=ctx.images.device)
    with torch.no_grad(), SignCodes(kernel) as codes:
        ctx.model(ctx.images)
    if not codes.bits:
        raise RecipeError("score 'naswot' counts the signs of ReLU-like activations, and the network has none")
    sign, value = torch.linalg.slogdet(kernel)
    return float(value) if sign > 0 else -math.inf


@score("synflow")
def synflow(ctx: ScoreContext) -> float:
    """Log of the synaptic flow: the sum over parameters of `|theta * dR / dtheta|`.

    R is the sum of outputs for an input of ones. Tanaka et al., "Pruning neural networks without any data by
    iteratively conserving synaptic flow" (NeurIPS 2020): all parameters by absolute value, norms left out, float64
    against overflow. The logarithm changes no ranking.
    """
    weights = {n: p.detach().double().abs().requires_grad_() for n, p in ctx.model.named_parameters()}
    buffers = {n: b.double() if b.is_floating_point() else b for n, b in ctx.model.named_buffers()}
    ones = torch.ones(1, *ctx.images.shape[1:], dtype=torch.float64, device=ctx.images.device)
    with torch.enable_grad(), WithoutNorms():
        total = functional_call(ctx.model, {**weights, **buffers}, (ones,)).sum()
    grads = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    flow = sum(
        float((w.detach() * g).abs().sum()) for w, g in zip(weights.values(), grads, strict=True) if g is not None
    )
    return math.log(flow) if flow > 0 else -math.inf


@score("snip")
def snip(ctx: ScoreContext) -> float:
    """Sum over weights of `|w * dL / dw|`: Lee et al., "SNIP" (ICLR 2019). Biases and norms are left out."""
    return sum(float((w * g).abs().sum()) for w, g in _gradients(ctx))


@score("grad_norm")
def grad_norm(ctx: ScoreContext) -> float:
    """Sum over weight tensors of the Euclidean norm of `dL / dw`, biases and norms left out.

    Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS" (ICLR 2021).
    """
    return sum(float(g.norm()) for _, g in _gradients(ctx))


@score("fisher")
def fisher(ctx: ScoreContext) -> float:
    """Fisher information in the channels of all convolutions and linear layers.

    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning" (2018), summed as in Turner et al.,
    "BlockSwap" (ICLR 2020): for a channel with activation a and gradient g of an image's own loss,
    `1 / (2 n) * sum over images of (sum over places of a * g) ** 2`.
    """
    count = len(ctx.images)
    with torch.enable_grad(), Outputs() as seen:
        leaf = ctx.images.detach().clone().requires_grad_()
        loss = ctx.loss(ctx.model(leaf.clone()), ctx.labels)
    tensors = [out for out, _ in seen.outputs]
    grads = torch.autograd.grad(loss, tensors, allow_unused=True)
    total = 0.0
    for (out, channel), grad in zip(seen.outputs, grads, strict=True):
        if grad is None or out.shape[0] != count:
            continue
        product = (
            (out.detach() * grad * count).movedim(channel, 1).flatten(2).sum(2) if out.ndim > 2 else out * grad * count
        )
        total += float(product.detach().square().sum()) / (2 * count)
    return total


@score("jacov")
def jacov(ctx: ScoreContext) -> float:
    """Minus the divergence from independence of the images' Jacobians.

    Mellor et al., "Neural Architecture Search without Training" (2020, first version): with v the eigenvalues of the
    correlation matrix of `d (sum of outputs) / d image`, `-sum(log(v + k) + 1 / (v + k))`, `k = 1e-5`.
    """
    with torch.enable_grad():
        leaf = ctx.images.detach().clone().requires_grad_()
        total = ctx.model(leaf.clone()).sum()
    (jacobian,) = torch.autograd.grad(total, [leaf])
    values = torch.linalg.eigvalsh(torch.nan_to_num(torch.corrcoef(jacobian.flatten(1).double()))).clamp_min(0) + 1e-5
    return -float((values.log() + 1 / values).sum())


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; modes and the random state (CPU and the network's device) are put back after."""
    modes = {m: m.training for m in model.modules()}
    cuda = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=cuda):
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _gradients(ctx: ScoreContext) -> list[tuple[Tensor, Tensor]]:
    """Weight tensors (two or more dimensions) that the loss depends on, and its gradients. Frozen ones count too."""
    weights = {n: p.detach().requires_grad_() for n, p in ctx.model.named_parameters()}
    with torch.enable_grad():
        loss = ctx.loss(functional_call(ctx.model, weights, (ctx.images,)), ctx.labels)
    chosen = [w for w in weights.values() if w.ndim > 1]
    grads = torch.autograd.grad(loss, chosen, allow_unused=True)
    return [(w.detach(), g) for w, g in zip(chosen, grads, strict=True) if g is not None]


def _outputs(ctx: ScoreContext) -> Iterator[tuple[Tensor, Tensor]]:
    size = images_at_once(ctx.model, ctx.images)
    for images, labels in zip(ctx.images.split(size), ctx.labels.split(size), strict=True):
        with torch.no_grad():
            out = ctx.model(images)
        yield out, labels


def _features(ctx: ScoreContext) -> Float[Tensor, "n d"]:
    """What enters the last linear layer or convolution, averaged over places, in float64."""
    found = []
    for images in ctx.images.split(images_at_once(ctx.model, ctx.images)):
        with torch.no_grad(), PenultimateFeatures() as seen:
            ctx.model(images)
        if seen.features is None:
            raise RecipeError("this score reads the features before the last linear layer, and the network has none")
        found.append(seen.features.double())
    return torch.cat(found)
