"""Dissection over many architectures: the parts are the network exactly, and a middle part trains by itself."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from netsmith.models import BUILDERS
from netsmith.trace.chain import Chain, dissect

from .architectures import QUICK, TIMM, TORCHVISION


def check(model: nn.Module, x: torch.Tensor, *, least: int = 4) -> Chain:
    """The contract of `dissect`, on batches that it has not seen."""
    chain = dissect(model.train(), x)
    assert model.training
    model.eval()
    assert len(chain) >= least
    assert len(chain.cuts) == len(chain) + 1
    with torch.no_grad():
        batch = torch.cat([x, torch.randn(3, *x.shape[1:])])
        value = chain.stem(batch)
        for unit in chain.units:
            assert value.shape[1:] == unit.in_shape
            value = unit.module(value)
            assert value.shape[1:] == unit.out_shape
        assert torch.equal(chain.head(value), model(batch))
    for unit in chain.units:
        layout = unit.layout
        axis = {"NCHW": 0, "NHWC": 2, "NLC": 1}[layout.kind]
        assert unit.out_shape[axis] == layout.channels
        if layout.kind == "NLC" and layout.grid:
            assert layout.grid[0] * layout.grid[1] + layout.prefix == unit.out_shape[0]
    assert chain.params == sum(p.numel() for p in model.parameters())
    assert sum(u.macs for u in chain.units) + chain.stem_macs + chain.head_macs == chain.macs > 0
    check_middle(chain)
    return chain


def check_middle(chain: Chain) -> None:
    """A middle part trains alone: gradients reach its input and its parameters, and the network does not notice."""
    middle = len(chain) // 2
    part = copy.deepcopy(chain.part(middle - 1, middle + 1)).train()
    before = {k: v.clone() for k, v in chain.model.state_dict().items()}
    assert set(part.state_dict()) <= set(before)
    x = torch.randn(5, *chain.cuts[middle - 1].shape, requires_grad=True)
    out = part(x)
    assert tuple(out.shape) == (5, *chain.cuts[middle + 1].shape)
    (out * torch.randn_like(out)).mean().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    reached = [p.grad is not None for p in part.parameters() if p.requires_grad]
    assert all(reached), f"{reached.count(False)} of {len(reached)} parameters got no gradient"
    assert all(torch.equal(v, before[k]) for k, v in chain.model.state_dict().items())


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in TIMM])
def test_timm(name: str) -> None:
    size, options = TIMM[name]
    check(timm.create_model(name, **options), torch.randn(1, 3, size, size))


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in TORCHVISION])
def test_torchvision(name: str) -> None:
    size, options = TORCHVISION[name]
    check(torchvision.models.get_model(name, weights=None, **options), torch.randn(1, 3, size, size))


@pytest.mark.parametrize("name", ["cifar_resnet20", "plain_cnn", "separable_cnn", "small_vit"])
def test_networks_of_the_package(name: str) -> None:
    model = BUILDERS[name](num_classes=10)
    check(model, torch.randn(1, *model.input_size))


def test_a_plain_sequential_cnn() -> None:
    layers: list[nn.Module] = []
    for a, b in [(3, 8), (8, 16), (16, 16), (16, 32), (32, 32)]:
        layers += [
            nn.Conv2d(a, b, 3, padding=1),
            nn.BatchNorm2d(b),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, ceil_mode=True),
        ]
    check(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)), torch.randn(1, 3, 32, 32))


def test_the_table_is_as_wide_as_promised() -> None:
    families = {timm.models._registry._model_to_module[n.split(".")[0]] for n in TIMM}
    assert len(TIMM) >= 60
    assert len(families) >= 40
    assert len(TORCHVISION) >= 10
    assert set(QUICK) <= {*TIMM, *TORCHVISION}
