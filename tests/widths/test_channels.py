"""Width groups: found, proved, reordered, resized; what is refused says why."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from netsmith.errors import ChannelError
from netsmith.models import BUILDERS
from netsmith.networks.network import load_source
from netsmith.widths.groups import channel_index, entries, permute, relocate, resize, set_widths, width_groups
from netsmith.widths.types import Axis

INNER = [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in (0, 1, 2)]


def difference(a: torch.nn.Module, b: torch.nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        out, expected = a.eval()(x), b.eval()(x)
    return float((out - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    model = BUILDERS["cifar_resnet20"](num_classes=10)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
    return model, width_groups(model, torch.randn(1, 3, 32, 32))


def test_the_inner_widths_of_a_trained_resnet20(shared_zoo):
    source = f"netsmith:cifar_resnet20#{shared_zoo / 'resnet20_cifar10_jpeg.safetensors'}"
    network = load_source(source)
    before = {k: v.clone() for k, v in network.model.state_dict().items()}
    groups = width_groups(network.model, torch.randn(1, 3, 32, 32))
    assert [g.name for g in groups.inner] == INNER
    assert [g.name for g in groups.accepted] == INNER
    assert all(torch.equal(v, before[k]) for k, v in network.model.state_dict().items())
    x = torch.randn(4, 3, 32, 32)
    twin = load_source(source).model
    for group in groups:
        permute(twin, group, torch.randperm(group.width).tolist())
    assert 0 < difference(twin, network.model, x) < 1e-5


def test_a_group_of_the_resnet(resnet):
    _, groups = resnet
    group = groups["layer3.2.conv1"]
    assert (group.width, group.kind) == (64, "inner")
    assert set(group.axes) == {
        Axis("layer3.2.conv1.weight", 0),
        Axis("layer3.2.bn1.weight", 0),
        Axis("layer3.2.bn1.bias", 0),
        Axis("layer3.2.bn1.running_mean", 0),
        Axis("layer3.2.bn1.running_var", 0),
        Axis("layer3.2.conv2.weight", 1, fan_in=True),
    }
    assert {(s.module, s.attribute, s.per_channel, s.fixed) for s in group.settings} == {
        ("layer3.2.conv1", "out_channels", 1, 0),
        ("layer3.2.bn1", "num_features", 1, 0),
        ("layer3.2.conv2", "in_channels", 1, 0),
    }


def test_channel_index_counts_tiles_channels_entries():
    axis = Axis("w", 0, start=5, repeat=2, tiles=2)
    assert channel_index(axis, 4, torch.tensor([2, 0])).tolist() == [9, 10, 5, 6, 17, 18, 13, 14]


def test_entries_are_the_weights_of_each_channel(resnet):
    model, groups = resnet
    group = groups["layer1.0.conv1"]
    rows = entries(model.state_dict(), group)
    assert rows.shape == (16, 16 * 9 + 4 + 16 * 9)
    state = model.state_dict()
    parts = {a.tensor: i for i, a in enumerate(group.axes)}
    assert "layer1.0.conv1.weight" in parts
    expected = torch.cat([state[a.tensor].select(a.dim, 3).flatten() for a in group.axes])
    assert torch.equal(rows[3], expected)


def test_wider_is_the_same_function(resnet):
    model, groups = resnet
    new = resize(model, groups.accepted, {g.name: int(g.width * 1.7) for g in groups})
    assert difference(new, model, torch.randn(3, 3, 32, 32)) < 1e-5
    assert new.layer3[2].conv1.out_channels == new.layer3[2].bn1.num_features == new.layer3[2].conv2.in_channels == 108


def test_smaller_keeps_the_first_or_those_named(resnet):
    model, groups = resnet
    name = "layer2.1.conv1"
    first = resize(model, groups.accepted, {name: 3})
    assert torch.equal(first.layer2[1].conv1.weight, model.layer2[1].conv1.weight[:3])
    kept = resize(model, groups.accepted, {name: 3}, keep={name: [7, 1, 30]})
    assert torch.equal(kept.layer2[1].conv2.weight, model.layer2[1].conv2.weight[:, [7, 1, 30]])
    assert torch.equal(kept.layer2[1].bn1.running_mean, model.layer2[1].bn1.running_mean[[7, 1, 30]])
    whole = resize(model, groups.accepted, {name: 32}, keep={name: list(range(32))[::-1]})
    assert difference(whole, model, torch.randn(2, 3, 32, 32)) < 1e-5


def test_a_resized_network_trains_and_saves(resnet, tmp_path):
    model, groups = resnet
    new = resize(model, groups.accepted, {g.name: 5 for g in groups}).train()
    optimiser = torch.optim.SGD(new.parameters(), lr=0.1)
    new(torch.randn(4, 3, 32, 32)).square().mean().backward()
    assert all(p.grad is not None for p in new.parameters())
    optimiser.step()
    torch.save(new.state_dict(), tmp_path / "w.pt")
    twin = resize(model, groups.accepted, {g.name: 5 for g in groups})
    twin.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    assert difference(twin, new, torch.randn(2, 3, 32, 32)) == 0


def test_settings_alone_let_other_tensors_run(resnet):
    model, groups = resnet
    widths = {g.name: 7 for g in groups}
    small = resize(model, groups.accepted, widths).eval()
    x = torch.randn(2, 3, 32, 32)
    model.eval()
    set_widths(model, groups.accepted, widths)
    assert model.layer1[0].bn1.num_features == 7
    out = torch.func.functional_call(model, small.state_dict(), (x,))
    set_widths(model, groups.accepted, {})
    assert model.layer1[0].bn1.num_features == 16
    assert torch.equal(out, small(x))


def test_groups_follow_a_resized_network(resnet):
    model, groups = resnet
    widths = {g.name: 6 for g in groups}
    small = resize(model, groups.accepted, widths)
    there = relocate(groups.accepted, widths)
    assert {g.width for g in there} == {6}
    back = resize(small, there, {g.name: 12 for g in there})
    assert difference(back, small, torch.randn(2, 3, 32, 32)) < 1e-5


@pytest.mark.parametrize(
    ("order", "fault"),
    [
        (range(15), "not one of 15 entries"),
        ([*range(15), 16], "not one that holds 16"),
        ([*range(15), 3], "not one that holds 3 more than once"),
    ],
)
def test_an_order_that_is_none(resnet, order, fault):
    model, groups = resnet
    with pytest.raises(ChannelError, match=f"each of 0 to 15 once, {fault}"):
        permute(model, groups["layer1.0.conv1"], list(order))


@pytest.mark.parametrize(
    ("widths", "fault"),
    [
        ({"layer1.0.conv1": 0}, "expected a width of at least 1, not 0"),
        ({"layer1.0.conv1": -3}, "expected a width of at least 1, not -3"),
        (
            {"layer1.0.conv1": 8.5},
            "expected a whole number of channels, or a ratio as a float above 0 and up to 8, not 8.5",
        ),
        ({"layer1.0.conv1": 0.0}, "above 0 and up to 8, not 0.0"),
        ({"layer1.0.conv1": True}, "expected a whole number of channels, or .*, not True"),
        ({"layer1.0.conv": 4}, "no width group is called 'layer1.0.conv'. Did you mean 'layer1.0.conv1'"),
    ],
)
def test_widths_that_are_none(resnet, widths, fault):
    model, groups = resnet
    with pytest.raises(ChannelError, match=fault):
        resize(model, groups.accepted, widths)
    with pytest.raises(ChannelError, match=fault):
        set_widths(model, groups.accepted, widths)


@pytest.mark.parametrize("widths", [1, 16, True])
def test_one_number_for_all_groups_is_a_ratio(resnet, widths):
    model, groups = resnet
    with pytest.raises(ChannelError, match=rf"one ratio for all groups \(a float: 0.5\) .*, not {widths!r}"):
        resize(model, groups.accepted, widths)


def test_ratios_are_floats_and_widths_integers(resnet):
    model, groups = resnet
    name = "layer1.0.conv1"
    for widths, expected in ({name: 0.5}, 8), ({name: 1}, 1), ({name: 1.0}, 16), ({name: 0.01}, 1), ({name: 2.0}, 32):
        assert resize(model, groups.accepted, widths).get_submodule(name).out_channels == expected
    half = resize(model, groups.accepted, 0.5)
    by_name = resize(model, groups.accepted, {g.name: g.width // 2 for g in groups})
    assert {k: v.shape for k, v in half.state_dict().items()} == {k: v.shape for k, v in by_name.state_dict().items()}
    assert {g.width for g in relocate(groups.accepted, 0.5)} == {g.width // 2 for g in groups}


def test_a_keep_that_does_not_fit(resnet):
    model, groups = resnet
    with pytest.raises(
        ChannelError, match=r"keep to list 2 different channels of 0 to 15 for a width of 2, not \[1, 1\]"
    ):
        resize(model, groups.accepted, {"layer1.0.conv1": 2}, keep={"layer1.0.conv1": [1, 1]})
    with pytest.raises(ChannelError, match=r"keep names 'layer1.1.conv1', which gets no new width"):
        resize(model, groups.accepted, {"layer1.0.conv1": 2}, keep={"layer1.1.conv1": [1]})


def test_names_are_looked_up(resnet):
    _, groups = resnet
    with pytest.raises(ChannelError, match=r"no width group is called 'layer3.2.conv3'. Did you mean 'layer3.2.conv1'"):
        _ = groups["layer3.2.conv3"]
    with pytest.raises(ChannelError, match="the width group 'conv1' was refused"):
        _ = groups["conv1"]


def test_groups_of_another_network(resnet):
    _, groups = resnet
    with pytest.raises(ChannelError, match="this network has no such tensor; give the network whose groups these are"):
        permute(BUILDERS["lenet"](num_classes=10), groups["layer1.0.conv1"], list(range(16)))


def old(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older function is on its way out
        return torch.nn.utils.weight_norm(module)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (torch.nn.utils.parametrizations.weight_norm, "parametrize.remove_parametrizations(module, 'weight')"),
        (torch.nn.utils.parametrizations.spectral_norm, "parametrize.remove_parametrizations(module, 'weight')"),
        (torch.nn.utils.spectral_norm, "torch.nn.utils.remove_spectral_norm(module)"),
        (old, "torch.nn.utils.remove_weight_norm(module)"),
    ],
)
def test_weights_that_are_computed_are_refused_with_what_to_do(change, remedy):
    model = nn.Sequential(change(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    found = width_groups(model, torch.randn(2, 6))
    assert [g.name for g in found] == ["2"]
    reasons = {r.name: r.reason for r in found.refused}
    assert reasons["0"].startswith("its weight is computed by a ")
    assert reasons["0"].endswith(f"Make it a plain one: {remedy}" if remedy.startswith("torch") else remedy)


@pytest.mark.parametrize("change", [torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.spectral_norm, old])
def test_a_layer_that_reads_with_computed_weights_is_named(change):
    layers = nn.Linear(6, 8), nn.ReLU(), change(nn.Linear(8, 7)), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)
    found = width_groups(nn.Sequential(*layers).eval(), torch.randn(2, 6))
    reasons = {r.name: r.reason for r in found.refused}
    assert "its weight is computed by a" in reasons["0"]
    assert "Make it a plain one: torch.nn.utils." in reasons["0"]


def test_a_network_without_groups():
    with pytest.raises(ChannelError, match="Linear has no width group that can be proved"):
        width_groups(torch.nn.Linear(8, 4), torch.randn(1, 8))
