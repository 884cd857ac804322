from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from tiny import SIDE, chains
from torch import Tensor, nn

from netsmith.errors import RecipeError
from netsmith.reassembly.heads import (
    build_head,
    classifier_of,
    classifier_weights,
    fit_classifier,
    head_cost,
    head_features,
    lda_classifiers,
    plan_head,
    set_classifier,
)
from netsmith.trace.chain import dissect
from netsmith.trace.cost import count_macs, count_params

CHAINS = chains()
NONE_HELD = torch.zeros(60, dtype=torch.bool)


def body() -> list[nn.Module]:
    return [nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()) for _ in range(1)] + [
        nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()) for _ in range(2)
    ]


class TwoHeads(nn.Module):
    """Averages two classifiers, as distilled transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return (self.a(x) + self.b(x)) / 2


def dissected(*tail: nn.Module):
    return dissect(nn.Sequential(*body(), *tail).eval(), torch.rand(2, 3, 8, 8), name="net")


CONVOLUTIONAL = dissected(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1), nn.Flatten()))
WITHOUT_BIAS = dissected(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4, bias=False)))
ENDS_OTHERWISE = {
    "two classifiers": dissected(TwoHeads()),
    "relu behind": dissected(nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())),
}


@pytest.mark.parametrize(("name", "path", "features"), [("small", "linear", 8), ("tokens", "head", 12)])
def test_the_classifier_is_found(name: str, path: str, features: int):
    spec = plan_head(CHAINS[name])
    assert (spec.kind, spec.path, spec.features, spec.classes, spec.fresh) == ("classifier", path, features, 4, False)


def test_a_1x1_convolution_is_a_classifier_too():
    spec = plan_head(CONVOLUTIONAL)
    assert (spec.kind, spec.features, spec.fresh) == ("classifier", 6, False)
    assert plan_head(WITHOUT_BIAS).fresh


@pytest.mark.parametrize("how", list(ENDS_OTHERWISE))
def test_a_head_that_does_not_end_in_its_classifier_is_pooled(how: str):
    spec = plan_head(ENDS_OTHERWISE[how])
    assert (spec.kind, spec.features, spec.classes, spec.fresh) == (
        "pooled",
        ENDS_OTHERWISE[how].cuts[-1].layout.channels,
        4,
        True,
    )


@pytest.mark.parametrize("classes", [None, 4, 9])
@pytest.mark.parametrize(
    "chain", [*CHAINS.values(), CONVOLUTIONAL, WITHOUT_BIAS, *ENDS_OTHERWISE.values()], ids=lambda c: c.name
)
def test_cost_is_that_of_what_is_built(chain, classes: int | None):
    spec = plan_head(chain, classes)
    head = build_head(chain, spec, torch.Generator().manual_seed(0)).eval()
    shape = chain.cuts[-1].shape
    x = torch.randn(2, *shape)
    assert head(x).shape == (2, classes or 4)
    assert head_cost(chain, spec) == (count_params(head), count_macs(head, shape))
    weight, bias = classifier_weights(head, spec)
    logits = head_features(head, spec, x).double() @ weight.T + bias
    assert torch.allclose(logits.float(), head(x), atol=1e-5)
    assert not classifier_of(head, spec)._forward_pre_hooks


def test_a_kept_head_is_an_independent_copy():
    chain = CHAINS["small"]
    spec = plan_head(chain)
    head = build_head(chain, spec, torch.Generator())
    x = torch.randn(2, *chain.cuts[-1].shape)
    before = chain.head(x)
    assert torch.equal(head(x), before)
    set_classifier(head, spec, (torch.zeros(4, 8), torch.arange(4.0)))
    assert torch.equal(head(x), torch.arange(4.0).expand(2, 4))
    assert torch.equal(chain.head(x), before)


def clusters(seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 3
    return centres[labels] + spread * torch.randn(60, 5, generator=generator), labels


def test_lda_is_that_of_scikit_learn():
    features, labels = clusters(1)
    weight, bias = lda_classifiers(features.double(), labels, 3, [0.2])[0]
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.2).fit(features.double().numpy(), labels.numpy())
    ours = (features.double() @ weight.T + bias).softmax(1)
    # scikit-learn standardises before it shrinks; without shrinkage both are the same
    weight, bias = lda_classifiers(features.double(), labels, 3, [0.0])[0]
    exact = LinearDiscriminantAnalysis(solver="lsqr").fit(features.double().numpy(), labels.numpy())
    assert torch.allclose(
        (features.double() @ weight.T + bias).softmax(1), torch.from_numpy(exact.predict_proba(features)), atol=1e-6
    )
    assert (ours.argmax(1).numpy() == expected.predict(features)).mean() > 0.95


def test_the_best_method_on_held_out_rows_is_taken():
    features, labels = clusters(2)
    held = torch.arange(60) % 4 == 0
    perfect = (torch.zeros(3, 5), torch.zeros(3))
    weights, found = fit_classifier(features, labels, held, 3, keep=perfect)
    assert set(found.tried) == {"keep", "ridge", "lda"}
    assert found.accuracy == max(found.tried.values()) > 0.8
    assert found.method != "keep"
    right = ((features.double() @ weights[0].T + weights[1]).argmax(1) == labels).double().mean()
    assert right > 0.8


def test_a_good_pretrained_classifier_is_kept_to_the_bit():
    features, labels = clusters(3, spread=0.01)
    centres = torch.stack([features[labels == k].mean(0) for k in range(3)]).double()
    keep = (centres, -0.5 * centres.square().sum(1))
    weights, found = fit_classifier(features, labels, NONE_HELD, 3, keep=keep)
    assert found.method == "keep"
    assert torch.equal(weights[0], keep[0])


def test_the_pretrained_classifier_is_left_only_for_one_that_is_clearly_better():
    features = torch.cat([torch.eye(3).repeat(33, 1), torch.eye(3)[:1]])  # 100 rows; the last is of a wrong class
    labels = torch.cat([torch.arange(3).repeat(33), torch.tensor([1])])
    held = torch.zeros(100, dtype=torch.bool)
    nearly = (torch.eye(3), torch.zeros(3))
    _, found = fit_classifier(features, labels, held, 3, keep=nearly)
    assert found.method == "keep"
    _, found = fit_classifier(features, labels, held, 3, keep=(torch.zeros(3, 3), torch.zeros(3)))
    assert (found.method, found.accuracy) == ("ridge", 0.99)


@pytest.mark.parametrize("method", ["ridge", "lda"])
def test_scaling_the_logits_lowers_the_loss_and_changes_no_decision(method):
    features, labels = clusters(4, spread=3.0)
    (weight, bias), found = fit_classifier(features, labels, NONE_HELD, 3, method=method)
    assert list(found.tried) == [method]
    logits = features.double() @ weight.T + bias
    losses = [float(F.cross_entropy(logits * s, labels)) for s in (0.5, 1.0, 2.0)]
    assert losses[1] == min(losses)


def test_a_class_without_images_is_never_chosen():
    features, labels = clusters(5)
    for method in ("ridge", "lda"):
        (weight, bias), _ = fit_classifier(features, labels, NONE_HELD, 4, method=method)
        assert torch.isfinite(weight).all()
        assert ((features.double() @ weight.T + bias).argmax(1) < 3).all()


def test_bad_input_is_refused():
    features, labels = clusters(6)
    with pytest.raises(RecipeError, match=r"labels must lie in 0\.\.1, got 0\.\.2"):
        fit_classifier(features, labels, NONE_HELD, 2)
    with pytest.raises(RecipeError, match="head='keep' needs a pretrained classifier for 3 classes"):
        fit_classifier(features, labels, NONE_HELD, 3, method="keep")
    with pytest.raises(RecipeError, match="hold NaN or infinity"):
        fit_classifier(features / 0, labels, NONE_HELD, 3)
    with pytest.raises(RecipeError, match="num_classes must be at least 1, not 0"):
        plan_head(CHAINS["small"], 0)
    with pytest.raises(RecipeError, match=r"outputs of shape .* not logits; give num_classes"):
        plan_head(dissected(nn.Conv2d(6, 6, 1)))


def test_finding_the_classifier_leaves_the_network_as_it_was():
    chain = CHAINS["tokens"]
    chain.model.train()
    try:
        plan_head(chain)
        assert all(m.training for m in chain.model.modules())
        assert not any(m._forward_hooks for m in chain.model.modules())
    finally:
        chain.model.eval()
    assert chain.input_shape == (3, SIDE, SIDE)
