"""Batch norms folded into the layers before them, and estimated anew."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
from torch import nn

from netsmith.errors import ChannelError
from netsmith.networks.network import load_source
from netsmith.widths.folding import FoldedNormAct, fold_batch_norms, recalibrate


def shaken(model: nn.Module) -> nn.Module:
    """With statistics and gains that are no identity."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            if m.running_mean is not None:
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 2)
            if m.affine:
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias, 0, 0.3)
    return model.eval()


def difference(a: nn.Module, b: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        out, expected = a(x), b(x)
    return float((out - expected).abs().max() / expected.abs().max())


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


LAYERS = {
    "plain": (nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8)),
    "with a bias": (nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12)),
    "dilated": (nn.Conv2d(6, 8, 3, dilation=2, padding=2), nn.BatchNorm2d(8)),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, stride=2), nn.BatchNorm2d(8)),
    "transposed, grouped": (nn.ConvTranspose2d(6, 8, 3, groups=2), nn.BatchNorm2d(8)),
    "reflecting": (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8)),
    "without gains": (nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8, affine=False)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_each_kind_of_convolution(kind):
    model = shaken(nn.Sequential(*LAYERS[kind]))
    x = torch.randn(3, 6, 9, 9)
    folded = fold_batch_norms(model, x)
    assert difference(folded, model, x) < 1e-5
    assert isinstance(folded[1], nn.Identity)
    assert isinstance(model[1], nn.BatchNorm2d)
    for setting in ("groups", "dilation", "stride", "padding"):
        assert getattr(folded[0], setting) == getattr(model[0], setting)


def test_one_and_three_dimensions_and_linear():
    for layers, shape in [
        ((nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (2, 4, 9)),
        ((nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)), (2, 2, 5, 5, 5)),
        ((nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7)), (4, 5)),
    ]:
        model = shaken(nn.Sequential(*layers))
        x = torch.randn(*shape)
        folded = fold_batch_norms(model, x)
        assert norms(folded) == 0
        assert difference(folded, model, x) < 1e-5


def test_a_trained_resnet20_loses_all_its_norms(shared_zoo):
    model = load_source(f"netsmith:cifar_resnet20#{shared_zoo / 'resnet20_cifar10_jpeg.safetensors'}").model
    x = torch.randn(4, 3, 32, 32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folded = fold_batch_norms(model, x)
    assert norms(model) == 19
    assert norms(folded) == 0
    assert difference(folded, model, x) < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet18", 0),
        ("mobilenetv3_small_050", 0),
        ("regnety_002", 0),
        ("repvit_m1", 2),  # norms of the two heads
        ("densenet121", 62),  # norms before the convolutions
    ],
)
def test_networks_of_timm(name, left):
    model = shaken(timm.create_model(name)).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    folded = fold_batch_norms(model, x)
    assert difference(folded, model, x) < 1e-9
    assert norms(folded) == left


def test_activations_of_norms_stay():
    model = shaken(timm.create_model("mobilenetv3_small_050"))
    folded = fold_batch_norms(model, torch.randn(1, 3, 64, 64))
    assert isinstance(folded.bn1, FoldedNormAct)
    assert isinstance(folded.bn1.act, nn.Hardswish)


class Twice(nn.Module):
    """A convolution whose output is read by a norm and by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.bn(x) + x


class Shared(nn.Module):
    """A convolution that is used twice, with a norm each time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.first = nn.BatchNorm2d(3)
        self.second = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.conv(self.first(self.conv(x))))


@pytest.mark.parametrize("kind", [Twice, Shared])
def test_what_cannot_be_folded_stays(kind):
    model = shaken(kind())
    folded = fold_batch_norms(model, torch.randn(1, 3, 9, 9))
    assert norms(folded) == norms(model)
    assert torch.equal(folded(torch.ones(1, 3, 9, 9)), model(torch.ones(1, 3, 9, 9)))


class Peeking(nn.Module):
    """Reads the convolution's weight beside using it, which no look at the data flow of its output shows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 1)
        self.other_bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other_bn(self.other(self.bn(self.conv(x)))) + self.conv.weight.mean()


def test_a_norm_that_changes_the_output_is_put_back_and_named():
    model = shaken(Peeking())
    with pytest.warns(UserWarning, match="Peeking: folding bn changes the output, so it is kept"):
        folded = fold_batch_norms(model, torch.randn(1, 3, 9, 9))
    assert isinstance(folded.bn, nn.BatchNorm2d)
    assert isinstance(folded.other_bn, nn.Identity)
    x = torch.randn(2, 3, 9, 9)
    assert difference(folded, model, x) < 1e-5


def test_recalibration_averages_over_the_batches():
    model = shaken(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)))
    model[1].momentum = 0.3
    batches = [torch.randn(8, 3, 5, 5) * s for s in (1, 2, 3)]
    gains = model[1].weight.clone()
    recalibrate(model, [(b, torch.zeros(8)) for b in batches])
    outputs = [model[0](b) for b in batches]
    mean = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    var = torch.stack([o.var((0, 2, 3)) for o in outputs]).mean(0)
    assert torch.allclose(model[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(model[1].running_var, var, atol=1e-5)
    assert torch.equal(model[1].weight, gains)
    assert model[1].momentum == 0.3
    assert not any(m.training for m in model.modules())


def test_recalibration_without_data_leaves_the_statistics():
    model = shaken(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    before = model[1].running_mean.clone()
    with pytest.raises(ChannelError, match="expected at least one batch"):
        recalibrate(model, [])
    assert torch.equal(model[1].running_mean, before)
    with pytest.raises(ChannelError, match="too small to estimate statistics from"):
        recalibrate(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), [torch.randn(1, 3)])
    assert recalibrate(nn.Linear(3, 4), []) == 0  # no norms, nothing to do


def test_norms_that_are_not_run_keep_their_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.add_module("spare", nn.BatchNorm2d(4))
    model.spare.running_mean.fill_(3.0)
    model.spare.num_batches_tracked.fill_(7)
    model.forward = lambda x: model[1](model[0](x))
    assert recalibrate(model, [torch.randn(8, 3, 2, 2)]) == 1
    assert torch.equal(model.spare.running_mean, torch.full((4,), 3.0))
    assert model.spare.num_batches_tracked == 7
    assert model[1].num_batches_tracked == 1


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older function is on its way out
        return torch.nn.utils.weight_norm(layer)


PARAMETRISED = {
    "weight norm": (nn.Conv2d(3, 4, 3), torch.nn.utils.parametrizations.weight_norm),
    "weight norm, linear": (nn.Linear(9, 4), torch.nn.utils.parametrizations.weight_norm),
    "weight norm, transposed": (nn.ConvTranspose2d(3, 4, 3), torch.nn.utils.parametrizations.weight_norm),
    "spectral norm": (nn.Conv2d(3, 4, 3), torch.nn.utils.parametrizations.spectral_norm),
    "old weight norm": (nn.Conv2d(3, 4, 3), old_weight_norm),
    "old spectral norm": (nn.Conv2d(3, 4, 3), torch.nn.utils.spectral_norm),
    "a bias": (
        nn.Conv2d(3, 4, 3),
        lambda m: torch.nn.utils.parametrize.register_parametrization(m, "bias", nn.Softplus()) or m,
    ),
}


@pytest.mark.parametrize("kind", PARAMETRISED)
def test_layers_whose_weights_are_computed_stay_unfolded_and_others_fold(kind):
    layer, change = PARAMETRISED[kind]
    layer = copy.deepcopy(layer)
    image = not isinstance(layer, nn.Linear)
    norm, other = (nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)) if image else (nn.BatchNorm1d(4), nn.Linear(4, 4))
    model = shaken(nn.Sequential(change(layer), norm, nn.ReLU(), other, copy.deepcopy(norm)))
    x = torch.randn(3, 3, 9, 9) if image else torch.randn(3, 9)
    for _ in range(5):  # what a parametrization computes may get the place of another tensor in memory
        folded = fold_batch_norms(model, x)
        assert isinstance(folded[1], nn.modules.batchnorm._BatchNorm)
        assert isinstance(folded[4], nn.Identity)
        assert difference(folded, model, x) < 1e-5


def test_norms_whose_gains_are_computed_stay():
    norm = torch.nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(4), dim=0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm).eval()
    assert isinstance(fold_batch_norms(model, torch.randn(2, 3, 9, 9))[1], nn.BatchNorm2d)


def test_attention_beside_a_norm():
    """The projection of nn.MultiheadAttention is a linear layer that its own code never calls."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.layer, self.norm = nn.MultiheadAttention(8, 2), nn.Linear(8, 4), nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.layer(self.attn(x, x, x)[0]))

    model = shaken(Net())
    x = torch.randn(3, 8)
    folded = fold_batch_norms(model, x)
    assert difference(folded, model, x) < 1e-5
    assert norms(folded) == 0
