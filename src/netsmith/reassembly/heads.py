"""Heads: finding a network's classifier, replacing it, and fitting it in closed form (ridge, LDA)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from netsmith.closed_form.ridge import Moments, solve_ridge, solve_shifted
from netsmith.data.images import no_labels
from netsmith.errors import RecipeError
from netsmith.reassembly.adapters import to_map
from netsmith.reassembly.names import HeadMethod
from netsmith.reassembly.recipe import HeadSpec
from netsmith.trace.chain import Chain, Layout
from netsmith.training.measure import standard_error

HEAD_RIDGES: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SHRINKAGES: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 0.6)
_SCALES = tuple(2.0 ** (k / 2) for k in range(-6, 17))

Weights = tuple[Tensor, Tensor]
"""Weight `(k, d)` and bias `(k,)` of a classifier."""


class PooledHead(nn.Module):
    """The mean over all places, and one linear layer: the head where a network's own does not end in a classifier."""

    def __init__(self, layout: Layout, classes: int) -> None:
        super().__init__()
        self.layout = layout
        self.classifier = nn.Linear(layout.channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """From the last cut's layout to logits `(n, k)`."""
        return self.classifier(to_map(x, self.layout)[0].mean((2, 3)))


def plan_head(chain: Chain, num_classes: int | None = None) -> HeadSpec:
    """What the head will be when a recipe ends in this network, for `num_classes` outputs (default: its own).

    The classifier is the linear layer or 1x1 convolution that runs last, if the head's output is its output. With
    another number of classes, or without a bias, it is to be replaced.

    Raises:
        RecipeError: the number of classes is below 1, or not given and the network's output is no vector of logits.
    """
    found = _find_classifier(chain)
    if num_classes is None:
        if len(chain.output_shape) != 1:
            raise RecipeError(
                f"network '{chain.name}' has outputs of shape {chain.output_shape}, not logits; give num_classes"
            )
        num_classes = int(chain.output_shape[0])
    if num_classes < 1:
        raise RecipeError(f"num_classes must be at least 1, not {num_classes}")
    if found is None:
        return HeadSpec(chain.name, "pooled", "", chain.cuts[-1].layout.channels, num_classes, True)
    path, module = found
    features, classes = module.weight.shape[1], module.weight.shape[0]
    fresh = classes != num_classes or module.bias is None
    return HeadSpec(chain.name, "classifier", path, features, num_classes, fresh)


def head_cost(chain: Chain, spec: HeadSpec) -> tuple[int, int]:
    """Parameters and MACs (one image) of the head of a spec, without building it."""
    new = spec.features * spec.classes
    if spec.kind == "pooled":
        return new + spec.classes, new
    if not spec.fresh:
        return chain.head_params, chain.head_macs
    old = _module_at(chain.head, spec.path)
    weight, bias = old.weight, old.bias
    before = weight.numel() + (0 if bias is None else bias.numel())
    return chain.head_params - before + new + spec.classes, chain.head_macs - weight.numel() + new


class NoClassifier(nn.Identity):
    """In the place of a classifier: what would reach it is the output. Remembers whether it was a convolution."""

    def __init__(self, convolution: bool) -> None:
        super().__init__()
        self.convolution = convolution


def build_head(chain: Chain, spec: HeadSpec, generator: torch.Generator) -> nn.Module:
    """The head of a spec: a copy of the chain's own; a new classifier is drawn at random, on the CPU."""
    if spec.kind == "pooled":
        return with_classifier(PooledHead(chain.cuts[-1].layout, max(spec.classes, 1)), spec, generator)
    head = copy.deepcopy(chain.head)
    return with_classifier(head, spec, generator) if spec.fresh else head


def with_classifier(head: nn.Module, spec: HeadSpec, generator: torch.Generator) -> nn.Module:
    """The head with a new classifier of `spec.classes` outputs, drawn at random; 0 leaves the classifier out.

    The head is changed in place, and returned; only where it is nothing but the classifier, another one is.

    Raises:
        RecipeError: the head has no classifier where the spec says.
    """
    path = _path(spec)
    old = _place(head, path)
    convolution = old.convolution if isinstance(old, NoClassifier) else isinstance(old, nn.Conv2d)
    like = next(old.parameters(), next(head.parameters(), torch.zeros(())))
    make = {"device": like.device, "dtype": like.dtype}
    new: nn.Module
    if spec.classes == 0:
        new = NoClassifier(convolution)
    elif convolution:
        new = _draw(nn.Conv2d(spec.features, spec.classes, 1, **make), generator)
    else:
        new = _draw(nn.Linear(spec.features, spec.classes, **make), generator)
    new.train(old.training)
    if not path:
        return new
    parent, _, name = path.rpartition(".")
    setattr(head.get_submodule(parent), name, new)
    return head


def _path(spec: HeadSpec) -> str:
    return "classifier" if spec.kind == "pooled" else spec.path


def classifier_of(head: nn.Module, spec: HeadSpec) -> nn.Linear | nn.Conv2d:
    """The classifier inside a head that `build_head` made."""
    return _module_at(head, _path(spec))


def head_features(head: nn.Module, spec: HeadSpec, x: Tensor) -> Float[Tensor, "n d"]:
    """What reaches the classifier when `x` enters the head. The head is left without hooks."""
    seen: list[Tensor] = []
    handle = _place(head, _path(spec)).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        head(x)
    finally:
        handle.remove()
    return seen[-1].flatten(1)


def classifier_weights(head: nn.Module, spec: HeadSpec) -> Weights:
    """Weight `(k, d)` and bias `(k,)` of a head's classifier, in float64."""
    module = classifier_of(head, spec)
    assert module.bias is not None
    return module.weight.detach().flatten(1).double(), module.bias.detach().double()


def set_classifier(head: nn.Module, spec: HeadSpec, weights: Weights) -> None:
    """Install weight `(k, d)` and bias `(k,)`."""
    module = classifier_of(head, spec)
    assert module.bias is not None
    with torch.no_grad():
        module.weight.copy_(weights[0].reshape(module.weight.shape))
        module.bias.copy_(weights[1])


@dataclass(frozen=True)
class HeadFit:
    """How a classifier was fitted.

    Attributes:
        method: "keep", "ridge" or "lda".
        setting: the ridge or the shrinkage; 0 for "keep".
        accuracy: of the chosen method on the held-out images, in 0..1 (on all images when none were held out).
        loss: its cross-entropy there, at the scale of its logits at which it is smallest.
        tried: that accuracy of every method tried.
    """

    method: str
    setting: float
    accuracy: float
    loss: float
    tried: dict[str, float]


def fit_classifier(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    held: Bool[Tensor, " n"],
    classes: int,
    *,
    method: HeadMethod = "auto",
    keep: Weights | None = None,
) -> tuple[Weights, HeadFit]:
    """The classifier with the best accuracy on the held-out rows, refitted on all of them. No gradient steps.

    A fitted classifier's logits are scaled to the smallest cross-entropy on the held-out rows; no decision changes.

    Args:
        features: what reaches the classifier.
        labels: classes in 0..classes-1.
        held: which rows decide; none: the fitted rows decide.
        classes: number of outputs.
        method: "auto" tries all, and leaves the pretrained classifier for a better one only if that is better by more
            than a standard error; otherwise only that one.
        keep: the pretrained classifier, if it may be kept.

    Raises:
        RecipeError: features are not finite, a label is out of range, or "keep" is asked for without a pretrained
            classifier for these classes.
    """
    features = features.double()
    if not torch.isfinite(features).all():
        raise RecipeError(
            "features that reach the head hold NaN or infinity: check weights and preprocessing of the recipe"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        outside = f"labels must lie in 0..{classes - 1}, got {low}..{high}"
        raise RecipeError(no_labels("the fit of a head") if high < 0 else outside)
    if method == "keep" and keep is None:
        raise RecipeError(
            f"head='keep' needs a pretrained classifier for {classes} classes; use 'auto', 'ridge' or 'lda'"
        )
    judge = held if bool(held.any()) and not bool(held.all()) else torch.ones_like(held)
    fitted = ~held if judge is held else judge
    tried: dict[str, tuple[float, float, float, Weights]] = {}
    if keep is not None and method in ("auto", "keep"):
        keep = (keep[0].double(), keep[1].double())
        loss, _ = _best_scale(keep, features[judge], labels[judge])
        tried["keep"] = (_accuracy(keep, features[judge], labels[judge]), loss, 0.0, keep)
    for name, (solver, settings) in _SOLVERS.items():
        if method not in ("auto", name):
            continue
        found = solver(features[fitted], labels[fitted], classes, settings)
        scores = [_accuracy(w, features[judge], labels[judge]) for w in found]
        best = max(range(len(scores)), key=lambda i: scores[i])
        loss, scale = _best_scale(found[best], features[judge], labels[judge])
        weight, bias = solver(features, labels, classes, [settings[best]])[0]
        tried[name] = (scores[best], loss, settings[best], (weight * scale, bias * scale))
    # Probe images are often those the parents were trained on, where refitted classifiers look better than they are:
    # the pretrained one stays unless it is beaten by more than a standard error.
    accuracies = {name: t[0] for name, t in tried.items()}
    error = standard_error(max(accuracies.values()), int(judge.sum()))
    winner = max(accuracies, key=lambda name: accuracies[name] + (error if name == "keep" else 0))
    accuracy, loss, setting, weights = tried[winner]
    return weights, HeadFit(winner, setting, accuracy, loss, accuracies)


def ridge_classifiers(
    features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], classes: int, ridges: Sequence[float]
) -> list[Weights]:
    """Least squares on one-hot labels, for every ridge (relative to the mean variance of the features)."""
    moments = Moments(1, features.shape[1], classes, features.device)
    moments.add(features[:, None].float(), F.one_hot(labels, classes)[:, None].float())
    return [(weight.T, bias[0]) for weight, bias in solve_ridge(moments, ridges)]


def lda_classifiers(
    features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], classes: int, shrinkages: Sequence[float]
) -> list[Weights]:
    """Linear discriminant analysis with the shared covariance drawn towards a multiple of the identity.

    `S = (1 - a) W + a tr(W) / d I` with `W` the pooled within-class covariance, for every shrinkage `a`; logits are
    log posteriors of Gaussian classes up to a constant. A class without images counts as half an image at the mean.
    """
    one_hot = F.one_hot(labels, classes).double()
    counts = one_hot.sum(0)
    centre = features.mean(0)
    centred = features - centre
    means = (one_hot.T @ centred) / counts.clamp_min(1)[:, None]
    inner = centred - means[labels]
    within = inner.T @ inner / len(features)
    prior = (counts.clamp_min(0.5) / len(features)).log()
    found = []
    for shrinkage in shrinkages:
        weight = solve_shifted((1 - shrinkage) * within, shrinkage / (1 - shrinkage), means.T).T
        bias = prior - 0.5 * (weight * means).sum(1) - weight @ centre
        found.append((weight, bias))
    return found


_Solver = Callable[[Tensor, Tensor, int, Sequence[float]], list[Weights]]
_SOLVERS: dict[str, tuple[_Solver, tuple[float, ...]]] = {
    "ridge": (ridge_classifiers, HEAD_RIDGES),
    "lda": (lda_classifiers, SHRINKAGES),
}


def _accuracy(weights: Weights, features: Tensor, labels: Tensor) -> float:
    return float(((features @ weights[0].T + weights[1]).argmax(1) == labels).double().mean())


def _best_scale(weights: Weights, features: Tensor, labels: Tensor) -> tuple[float, float]:
    """The smallest cross-entropy over the scales of the logits, and its scale."""
    logits = features @ weights[0].T + weights[1]
    losses = [float(F.cross_entropy(logits * scale, labels)) for scale in _SCALES]
    return min(zip(losses, _SCALES, strict=True))


def _find_classifier(chain: Chain) -> tuple[str, nn.Linear | nn.Conv2d] | None:
    """The linear layer or 1x1 convolution that runs last in the head, if the head's output is its output."""
    head, cut = chain.head, chain.cuts[-1]
    runs: list[tuple[str, nn.Linear | nn.Conv2d, Tensor]] = []
    modes = {m: m.training for m in head.modules()}
    handles = [
        module.register_forward_hook(lambda m, _, out, name=name: runs.append((name, m, out)))
        for name, module in head.named_modules()
        if _is_classifier(module)
    ]
    try:
        head.eval()
        like = next(chain.model.parameters(), torch.zeros(()))
        x = torch.randn(2, *cut.shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)
        with torch.no_grad():
            out = head(x)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    if not runs:
        return None
    name, module, seen = runs[-1]
    if seen.shape[0] != 2 or seen[0].numel() != module.weight.shape[0] or seen.flatten(1).shape != out.shape:
        return None
    return (name, module) if torch.equal(seen.flatten(1), out) else None


def _is_classifier(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


def _place(root: nn.Module, path: str) -> nn.Linear | nn.Conv2d | NoClassifier:
    try:
        module = root.get_submodule(path)
    except AttributeError as error:
        raise RecipeError(f"the recipe's classifier '{path}' is not in the head: {error}") from error
    if not isinstance(module, (nn.Linear, nn.Conv2d, NoClassifier)):
        raise RecipeError(
            f"the recipe's classifier '{path}' is a {type(module).__name__}, no linear layer or convolution"
        )
    return module


def _module_at(root: nn.Module, path: str) -> nn.Linear | nn.Conv2d:
    module = _place(root, path)
    if isinstance(module, NoClassifier):
        raise RecipeError("the network's classifier was left out; give it one with reset_classifier(num_classes)")
    return module


def _draw(classifier: nn.Linear | nn.Conv2d, generator: torch.Generator) -> nn.Module:
    bound = 1 / math.sqrt(classifier.weight.shape[1])
    with torch.no_grad():
        for parameter in classifier.parameters():
            fresh = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.copy_(fresh)
    return classifier
