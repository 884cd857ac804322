"""Width groups over many architectures: what is accepted can be reordered and resized, trains and saves."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load, save
from torch import nn

from netsmith.models import BUILDERS
from netsmith.networks.weights import load_state
from netsmith.widths.folding import fold_batch_norms
from netsmith.widths.groups import WidthGroups, permute, relocate, resize, width_groups

from .architectures import TIMM, TORCHVISION

# How many groups are accepted, at least. Networks that take long are left to benchmarks/widths.py.
LEAST: dict[str, int] = {
    "convit_tiny": 12,
    "convnext_atto": 16,
    "convnextv2_atto": 16,
    "cpubone_nano": 12,
    "cs3darknet_focus_s": 22,
    "cspnext_tiny": 26,
    "deit_tiny_distilled_patch16_224": 25,
    "deit_tiny_patch16_224": 25,
    "dla34": 25,
    "edgenext_xx_small": 13,
    "efficientvit_b0": 21,
    "ese_vovnet19b_slim_dw": 22,
    "fasternet_t0": 34,
    "gernet_s": 28,
    "hardcorenas_b": 30,
    "hgnetv2_b0": 30,
    "hiera_tiny_224": 27,
    "iformer_t": 27,
    "lcnetv2_small": 20,
    "legacy_seresnet18": 20,
    "levit_128": 34,
    "lowformer_b0": 32,
    "mambaout_femto": 42,
    "mixer_s32_224": 17,
    "mnasnet_small": 31,
    "mobilenetv2_050": 25,
    "mobilenetv3_large_075": 30,
    "mobilenetv3_small_050": 26,
    "mobilevit_xxs": 43,
    "nf_seresnet26": 8,  # weights standardised over their inputs: doubled channels change the output
    "pit_xs_224": 25,
    "poolformer_s12": 16,
    "pvt_v2_b0": 8,
    "regnetx_002": 18,
    "regnety_002": 31,
    "repghostnet_050": 31,
    "resmlp_12_224": 13,
    "resnest14d": 11,
    "resnet18": 12,
    "resnet26": 21,
    "resnetv2_18": 12,
    "starnet_s050": 11,
    "swiftformer_xs": 25,  # queries are normalised over their channels
    "swin_tiny_patch4_window7_224": 28,
    "test_vit_relpos": 18,
    "tf_mobilenetv3_small_minimal_100": 18,
    "visformer_tiny": 27,
    "vit_tiny_patch16_224": 25,
    "vit_tiny_r_s16_p8_224": 26,
    "xception41p": 33,
}
TORCHVISION_LEAST = {
    "convnext_tiny": 22,
    "efficientnet_b0": 40,
    "googlenet": 57,
    "mnasnet0_5": 25,
    "mobilenet_v2": 25,
    "mobilenet_v3_small": 27,
    "regnet_y_400mf": 37,
    "resnet18": 12,
    "shufflenet_v2_x0_5": 18,
    "squeezenet1_1": 25,
}
NETSMITH_LEAST = {"cifar_resnet20": 9, "lenet": 4, "plain_cnn": 6, "separable_cnn": 7, "small_vit": 15}
FAST = ("mobilenetv3_small_050", "starnet_s050")


def shaken(model: nn.Module) -> nn.Module:
    """No weight is zero and no norm is an identity, so that no channel is without effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim < 2 or float(p.std()) < 1e-3:
                p.copy_((torch.rand(p.shape, generator=generator) + 0.5) * (0.1 if name.endswith("bias") else 1))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
            elif name.endswith("running_var"):
                b.copy_(torch.rand(b.shape, generator=generator) + 0.5)
    return model.eval()


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def check(model: nn.Module, *shape: int) -> WidthGroups:
    """The contract of the width groups of one network."""
    torch.manual_seed(0)
    model = shaken(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(2, *shape)
    groups = width_groups(model, x[:1])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    check_order(model, groups, x)
    check_sizes(model, groups, x)
    return groups


def check_order(model: nn.Module, groups: WidthGroups, x: torch.Tensor) -> None:
    """All groups in random orders at once leave the output as it is."""
    twin = resize(model, groups.accepted, {}).double()
    with torch.no_grad():
        expected = twin(x.double())
        for group in groups:
            permute(twin, group, torch.randperm(group.width).tolist())
        out = twin(x.double())
    assert difference(out, expected) < 1e-5
    assert not torch.equal(out, expected)


def check_sizes(model: nn.Module, groups: WidthGroups, x: torch.Tensor) -> None:
    """All groups resized at once: the network runs wider; narrower it trains, is saved, loaded and widened again."""
    small = {g.name: max(1, g.width // 2) for g in groups}
    large = {g.name: g.width + max(1, g.width // 4) for g in groups}
    with torch.no_grad():
        expected = model(x)
        assert resize(model, groups.accepted, large).eval()(x).shape == expected.shape
    trained = resize(model, groups.accepted, small)
    assert sum(p.numel() for p in trained.parameters()) < sum(p.numel() for p in model.parameters())
    check_training(trained, x)
    loaded = resize(model, groups.accepted, small)
    assert any(not torch.equal(v, loaded.state_dict()[k]) for k, v in trained.named_parameters())
    load_state(loaded, load(save(trained.state_dict())), "a file")
    back = resize(loaded, relocate(groups.accepted, small), {g.name: g.width for g in groups})
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), trained.eval()(x))
        assert back.eval()(x).shape == expected.shape
    assert {k: v.shape for k, v in back.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def check_training(model: nn.Module, x: torch.Tensor) -> None:
    """Gradients reach every parameter; one step is taken."""
    out = model.train()(x)
    (out * torch.randn_like(out)).mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, f"no gradient reaches {name}"
        assert bool(p.grad.isfinite().all()), f"the gradient of {name} is not finite"
    assert float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)) > 0
    torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION_LEAST)
def test_torchvision(name: str) -> None:
    size, options = TORCHVISION[name]
    groups = check(torchvision.models.get_model(name, weights=None, **options), 3, size, size)
    assert len(groups) >= TORCHVISION_LEAST[name]


@pytest.mark.parametrize("name", NETSMITH_LEAST)
def test_networks_of_the_package(name: str) -> None:
    model = BUILDERS[name](num_classes=10)
    groups = check(model, *model.input_size)  # type: ignore[misc]
    assert len(groups) >= NETSMITH_LEAST[name]


def test_a_plain_sequential_cnn() -> None:
    layers: list[nn.Module] = []
    for a, b in [(3, 8), (8, 16), (16, 16), (16, 32)]:
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 2 * 2, 24), nn.ReLU(), nn.Linear(24, 10))
    groups = check(model, 3, 32, 32)
    assert [(g.name, g.width) for g in groups] == [("0", 8), ("4", 16), ("8", 16), ("12", 32), ("17", 24)]
    assert [(r.name, r.reason) for r in groups.refused] == [("19", "these are the network's own outputs")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "regnety_002", "vit_tiny_patch16_224"])
def test_folded_networks_have_the_same_groups(name: str) -> None:
    size, options = TIMM[name]
    model = shaken(timm.create_model(name, **options))
    x = torch.randn(1, 3, size, size)
    folded = fold_batch_norms(model, x)
    assert [(g.name, g.width) for g in width_groups(folded, x)] == [(g.name, g.width) for g in width_groups(model, x)]


def test_the_table_is_as_wide_as_promised() -> None:
    families = {timm.models._registry._model_to_module[n.split(".")[0]] for n in LEAST}
    assert len(LEAST) >= 50
    assert len(families) >= 40
    assert len(TORCHVISION_LEAST) >= 10


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in LEAST])
def test_timm(name: str) -> None:
    size, options = TIMM[name]
    groups = check(timm.create_model(name, **options), 3, size, size)
    assert len(groups) >= LEAST[name]
    assert all("not followed" not in r.reason for r in groups.refused)
