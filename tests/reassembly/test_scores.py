from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from tiny import build, chains, images, preprocess, probe, references
from torch import Tensor, nn

from netsmith.errors import ConfigError, RecipeError
from netsmith.reassembly import scores
from netsmith.reassembly.scores import ScoreContext, get_score, log_maximum_evidence, score, score_names
from netsmith.reassembly.stitch import assemble, fit, plan_recipe
from netsmith.search.blocks import Block

NAMES = (
    "fisher",
    "grad_norm",
    "jacov",
    "knn",
    "logme",
    "naswot",
    "params",
    "snip",
    "stitch",
    "synflow",
)
NETWORKS = build()


def context(model: nn.Module, count: int = 12) -> ScoreContext:
    found, labels = images(count)
    return ScoreContext(model, preprocess(found), labels)


class Plain(nn.Module):
    """Convolution, norm, an activation, pooling, a linear layer."""

    def __init__(self, activation: Any = F.relu) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5), nn.Linear(5, 4)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.activation(self.norm(self.conv(x))).mean((2, 3)))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a score could leave behind."""
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "pointers": [p.data_ptr() for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "flags": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "kinds": [type(m) for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "hooks": [[len(v) for k, v in sorted(m.__dict__.items()) if k.endswith("hooks")] for m in model.modules()],
        "tensor hooks": [len(p._backward_hooks or ()) for p in model.parameters()],
        "random": torch.random.get_rng_state(),
    }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_the_scores_of_the_paper_and_ours_are_there():
    assert set(NAMES) <= set(score_names())
    with pytest.raises(ConfigError, match=r"unknown score 'naswto'. Did you mean 'naswot'"):
        get_score("naswto")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["small", "tokens", "assembled"])
def test_a_score_leaves_the_network_as_it_found_it(name: str, which: str):
    if which == "assembled":
        parts = chains()
        made = plan_recipe([Block("small", 0, 1), Block("tokens", 1, 6)], parts, references())
        model: nn.Module = assemble(made, parts)
        model.freeze()  # type: ignore[operator]
    else:
        model = copy.deepcopy(NETWORKS[which])
    model.train()
    ctx = context(model)
    F.cross_entropy(model(ctx.images), ctx.labels).backward()  # gradients that have to survive
    next(model.parameters()).requires_grad_(False)
    before, pixels = snapshot(model), ctx.images.clone()
    first = get_score(name)(ctx)
    assert equal(before, snapshot(model))
    assert torch.equal(ctx.images, pixels)
    assert math.isfinite(first)
    assert get_score(name)(ctx) == first


@pytest.mark.parametrize(
    "activation", [F.relu, F.gelu, F.silu, F.hardswish, F.relu6, nn.ReLU(inplace=True), nn.PReLU()]
)
def test_naswot_is_the_log_determinant_of_agreements(activation: Any):
    model = Plain(activation).eval()
    ctx = context(model, 8)
    with torch.no_grad():
        codes = (model.norm(model.conv(ctx.images)).flatten(1) > 0).numpy()
    kernel = np.array([[sum(x == y for x, y in zip(a, b, strict=True)) for b in codes] for a in codes], dtype=float)
    assert get_score("naswot")(ctx) == pytest.approx(np.linalg.slogdet(kernel)[1], rel=1e-9)


def test_naswot_of_equal_images_is_minus_infinity_and_needs_activations():
    ctx = context(Plain())
    same = ScoreContext(ctx.model, ctx.images[:1].expand(3, -1, -1, -1), ctx.labels[:3])
    assert get_score("naswot")(same) == -math.inf
    with pytest.raises(RecipeError, match="signs of ReLU-like activations, and the network has none"):
        get_score("naswot")(context(Plain(torch.tanh)))


def manual_gradients(model: nn.Module, ctx: ScoreContext) -> list[tuple[Tensor, Tensor]]:
    own = copy.deepcopy(model).eval()
    F.cross_entropy(own(ctx.images), ctx.labels).backward()
    return [(p.detach(), p.grad) for p in own.parameters() if p.ndim > 1 and p.grad is not None]


@pytest.mark.parametrize("which", ["small", "tokens"])
def test_snip_and_grad_norm_are_those_of_a_backward_pass(which: str):
    ctx = context(NETWORKS[which])
    pairs = manual_gradients(NETWORKS[which], ctx)
    assert get_score("snip")(ctx) == pytest.approx(sum(float((w * g).abs().sum()) for w, g in pairs), rel=1e-5)
    assert get_score("grad_norm")(ctx) == pytest.approx(sum(float(g.norm()) for _, g in pairs), rel=1e-5)


def test_frozen_weights_count_too():
    model = copy.deepcopy(NETWORKS["small"])
    expected = get_score("snip")(context(model))
    model.requires_grad_(False)
    assert get_score("snip")(context(model)) == expected


def test_fisher_is_the_sum_over_channels_of_each_images_own_gradient():
    model = Plain().eval()
    ctx = context(model, 6)
    total = 0.0
    for x, y in zip(ctx.images, ctx.labels, strict=True):
        conv = model.conv(x[None])
        out = model.linear(F.relu(model.norm(conv)).mean((2, 3)))
        grads = torch.autograd.grad(F.cross_entropy(out, y[None]), [conv, out])
        total += float(((conv * grads[0]).sum((0, 2, 3)).square().sum() + (out * grads[1]).square().sum()).detach())
    assert get_score("fisher")(ctx) == pytest.approx(total / (2 * 6), rel=1e-4)


def test_synflow_is_the_flow_through_the_linearised_network():
    model = Plain().eval()
    ctx = context(model)
    conv, linear = copy.deepcopy(model.conv).double(), copy.deepcopy(model.linear).double()
    own = [*conv.parameters(), *linear.parameters()]
    with torch.no_grad():
        for p in own:
            p.abs_()
    linear(F.relu(conv(torch.ones(1, 3, 16, 16).double())).mean((2, 3))).sum().backward()
    flow = sum(float((p.detach() * p.grad).abs().sum()) for p in own if p.grad is not None)
    assert get_score("synflow")(ctx) == pytest.approx(math.log(flow), rel=1e-9)


def test_synflow_of_a_deep_network_does_not_overflow():
    deep = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(60)), nn.Flatten())
    with torch.no_grad():
        for p in deep.parameters():
            p.fill_(3.0)
    assert 88 < get_score("synflow")(context(deep)) < math.inf  # exp(88) is the end of float32


def test_jacov_is_that_of_the_correlations_of_jacobians():
    model = NETWORKS["small"]
    ctx = context(model, 6)
    rows = []
    for x in ctx.images:
        leaf = x[None].clone().requires_grad_()
        rows.append(torch.autograd.grad(model(leaf).sum(), leaf)[0].flatten().double().numpy())
    values = np.linalg.eigvalsh(np.corrcoef(np.stack(rows)))
    expected = -np.sum(np.log(values + 1e-5) + 1 / (values + 1e-5))
    assert get_score("jacov")(ctx) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("which", ["small", "tokens"])
def test_knn_is_that_of_scikit_learn(which: str):
    model = NETWORKS[which]
    ctx = context(model, 60)
    seen: list[Tensor] = []
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(ctx.images)
    handle.remove()
    features = F.normalize(seen[0].double()).numpy()
    labels = ctx.labels.numpy()
    predicted = cross_val_predict(KNeighborsClassifier(10, algorithm="brute"), features, labels, cv=LeaveOneOut())
    assert get_score("knn")(ctx) == pytest.approx((predicted == labels).mean())


def evidence(features: np.ndarray, y: np.ndarray, alpha: float, beta: float) -> float:
    """Log density of y under the Gaussian that the model implies: no formula of the paper is used."""
    n = len(y)
    covariance = features @ features.T / alpha + np.eye(n) / beta
    value = y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(covariance)[1] + n * np.log(2 * np.pi)
    return float(-0.5 * value)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (10, 30)])
def test_logme_is_the_maximum_of_the_evidence(n: int, d: int):
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(n, d)), np.arange(n) % 3
    features[:, 0] += labels
    grid = np.exp(np.linspace(-6, 8, 57))
    best = [
        max(evidence(features, (labels == k).astype(float), a, b) for a in grid for b in grid) / n for k in range(3)
    ]
    found = log_maximum_evidence(torch.from_numpy(features), torch.from_numpy(labels))
    if d < n:
        assert found == pytest.approx(np.mean(best), abs=2e-3)
        assert found >= np.mean(best) - 1e-6
    else:
        assert math.isfinite(found)


def test_logme_prefers_features_that_tell_the_classes_apart():
    labels = torch.arange(60) % 3
    noise = torch.randn(60, 8)
    good = noise + 3 * F.one_hot(labels, 8)
    assert log_maximum_evidence(good, labels) > log_maximum_evidence(noise, labels)


def test_stitch_is_the_accuracy_of_the_fitted_network():
    parts = chains()
    made = plan_recipe([Block("small", 0, 1), Block("deep", 2, 6)], parts, references())
    net = assemble(made, parts)
    x, y = images(300, seed=21)
    ctx = ScoreContext(net, preprocess(x), y)
    before = get_score("stitch")(ctx)
    fit(net, parts, probe(100))
    with torch.no_grad():
        right = float((net(preprocess(x)).argmax(1) == y).double().mean())
    assert get_score("stitch")(ctx) == pytest.approx(right)
    assert right > before


def test_params_counts_each_parameter_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    x = torch.randn(2, 1, 1, 4)
    assert get_score("params")(ScoreContext(model, x, torch.zeros(2, dtype=torch.long))) == 24


def test_users_register_their_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scores, "_SCORES", dict(scores._SCORES))

    @score("half")
    def half(ctx: ScoreContext) -> float:
        assert not ctx.model.training
        return 0.5

    model = Plain()
    assert get_score("half")(context(model)) == 0.5
    assert model.training
    with pytest.raises(ConfigError, match="'half' is registered already"):
        score("half")(half)
