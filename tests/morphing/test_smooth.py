"""Smoothing networks: the same function, less total variation, each group by itself."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from netsmith.errors import ChannelError, DissectionError, MorphError
from netsmith.models.cifar_resnet import CifarResNet
from netsmith.morphing.smooth import smooth, total_variation, weight_picture
from netsmith.widths.groups import Axis, WidthGroup, WidthGroups, permute, width_groups


class Small(nn.Module):
    """Three groups that share tensors: conv1 to conv2, conv2 to a linear layer behind a flatten, that to the last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 14, 3, padding=1)
        self.norm = nn.BatchNorm2d(14)
        self.conv2 = nn.Conv2d(14, 16, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(16 * 4, 20)
        self.last = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv1(x)))
        x = torch.relu(self.conv2(x))
        return self.last(torch.relu(self.hidden(self.pool(x).flatten(1))))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(2)
    model = Small()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2.0)
    return model.eval()


@pytest.fixture(scope="module")
def groups() -> WidthGroups:
    return width_groups(Small(), X)


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(X)


@pytest.mark.parametrize("solver", ["auto", "2opt", "greedy", "random", "fast-tsp"])
def test_a_smoothed_network_computes_the_same(small, groups, solver):
    before = copy.deepcopy(small.state_dict())
    done = smooth(small, X, groups=groups.inner, solver=solver, seconds=0.1)
    assert torch.allclose(output(done.model), output(small), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    assert set(done.orders) == {"conv1", "conv2", "hidden"}
    assert done.solver == solver
    assert done.deterministic == (solver not in ("auto", "fast-tsp"))


def test_total_variations_are_those_of_the_networks(small, groups):
    done = smooth(small, X, groups=groups.inner)
    assert [p.name for p in done.groups] == ["conv1", "conv2", "hidden"]
    for path in done.groups:
        group = groups[path.name]
        assert path.before == pytest.approx(total_variation(small, group), rel=1e-5)
        assert path.after == pytest.approx(total_variation(done.model, group), rel=1e-5)
        assert path.after < path.before
        assert path.width == group.width
    assert done.before == pytest.approx(sum(p.before for p in done.groups))
    assert done.after == pytest.approx(sum(p.after for p in done.groups))


def test_total_variation_is_the_sum_over_neighbours():
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, -1.0], [1.0, 5.0]]))
        model[2].weight.copy_(torch.tensor([[2.0, 2.0, -1.0]]))
    (group,) = width_groups(model, torch.randn(1, 2))
    assert total_variation(model, group) == pytest.approx((1 + 1 + 0) + (0 + 6 + 3))


def test_groups_that_share_a_tensor_are_ordered_independently(small, groups):
    """The order of one group changes neither total variation nor path of another."""
    shuffled = copy.deepcopy(small)
    generator = torch.Generator().manual_seed(0)
    for name in ("conv1", "hidden"):
        permute(shuffled, groups[name], torch.randperm(groups[name].width, generator=generator).tolist())
    assert total_variation(shuffled, groups["conv2"]) == pytest.approx(total_variation(small, groups["conv2"]))
    alone = smooth(small, X, groups=[groups["conv2"]], solver="2opt")
    among_shuffled = smooth(shuffled, X, groups=[groups["conv2"]], solver="2opt")
    together = smooth(small, X, groups=groups.inner, solver="2opt")
    backwards = smooth(small, X, groups=groups.inner[::-1], solver="2opt")
    assert alone.after == pytest.approx(among_shuffled.after, rel=1e-6)
    assert together.orders == backwards.orders
    assert together.orders["conv2"] == alone.orders["conv2"]
    assert together.after == pytest.approx(backwards.after)


def test_orders_say_where_each_channel_came_from(small, groups):
    done = smooth(small, X, groups=groups.inner)
    by_hand = copy.deepcopy(small)
    for name, order in done.orders.items():
        permute(by_hand, groups[name], order)
    for key, value in by_hand.state_dict().items():
        assert torch.equal(value, done.model.state_dict()[key])
    order = list(done.orders["conv1"])
    assert torch.equal(done.model.conv1.bias, small.conv1.bias[order])


def test_same_seed_same_orders(small, groups):
    one, two = (smooth(small, X, groups=groups.inner, solver="random", seed=4) for _ in range(2))
    assert one.orders == two.orders
    assert one.groups == two.groups


def test_a_smooth_network_stays_as_it_is(small, groups):
    once = smooth(small, X, groups=groups.inner)
    twice = smooth(once.model, X, groups=groups.inner)
    assert twice.after <= once.after * (1 + 1e-6)
    assert twice.before == pytest.approx(once.after, rel=1e-6)


def test_default_groups_are_all_but_residual_streams():
    torch.manual_seed(0)
    model = CifarResNet(8, shortcut="B")
    x = torch.randn(1, 3, 32, 32)
    assert any(g.kind == "stream" for g in width_groups(model, x))
    done = smooth(model, x, seconds=0.02)
    assert [p.name for p in done.groups] == [f"layer{s}.0.conv1" for s in (1, 2, 3)]
    assert done.after < done.before
    with torch.no_grad():
        a, b = model.eval()(x), done.model.eval()(x)
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_modes_and_statistics_are_left_as_they_were(small, groups):
    small.train()
    before = copy.deepcopy(small.state_dict())
    done = smooth(small, X, groups=groups.inner, solver="greedy")
    assert small.training
    assert small.norm.training
    assert done.model.training
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    assert int(done.model.norm.num_batches_tracked) == 0


@pytest.mark.slow
def test_a_trained_network_comes_near_the_shortest_paths(shared_zoo):
    from netsmith.networks.network import load_source

    model = load_source(f"netsmith:cifar_resnet20#{shared_zoo / 'resnet20_cifar10_jpeg.safetensors'}").model
    x = torch.randn(2, 3, 32, 32)
    done = smooth(model, x)
    assert done.after / done.before < 0.9
    longer = smooth(model, x, seconds=4)
    assert done.after / longer.after < 1.001


def test_half_a_group_is_refused_by_name(small, groups):
    """A group that forgets who reads its channels changes the function: found, and told which."""
    whole = groups["conv1"]
    half = dataclasses.replace(whole, axes=tuple(a for a in whole.axes if not a.fan_in))
    with pytest.raises(ChannelError, match=r"changes what Small computes, by more than 1e-05 .*: 'conv1'\. Leave"):
        smooth(small, X, groups=[groups["conv2"], half], solver="random")


def test_weights_that_are_not_finite_name_the_group(small, groups):
    with torch.no_grad():
        small.conv1.weight[3, 0, 0, 0] = float("nan")
    with pytest.raises(ChannelError, match=r"width group 'conv1' of Small cannot be ordered: .* channel 3 \(of 14\)"):
        smooth(small, X, groups=groups.inner)


def test_a_group_of_another_network_is_refused(small):
    axes = (Axis("conv3.weight", 0),)
    with pytest.raises(ChannelError, match=r"no tensor 'conv3.weight'\. Did you mean 'conv2.weight'"):
        smooth(small, X, groups=[WidthGroup("conv3", 4, "inner", axes, ())])


def test_no_groups_are_refused(small):
    with pytest.raises(ChannelError, match="expected at least one width group to order, got none"):
        smooth(small, X, groups=[])


def test_unknown_solver_and_wrong_example(small, groups):
    with pytest.raises(MorphError, match="Did you mean 'greedy'"):
        smooth(small, X, groups=groups.inner, solver="gredy")
    with pytest.raises(DissectionError, match="example"):
        smooth(small, torch.randn(1, 4, 8, 8), groups=groups.inner)


def test_a_picture_holds_mean_magnitudes(small, groups):
    picture = weight_picture(small, groups["conv1"])
    assert picture.tensor == "conv1.weight"
    expected = small.conv1.weight.abs().mean(dim=(2, 3))
    assert torch.allclose(torch.tensor(picture.values), expected)


def test_a_picture_moves_with_the_order(small, groups):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)).tolist()
    before = torch.tensor(weight_picture(small, groups["conv2"]).values)
    permute(small, groups["conv2"], order)
    assert torch.allclose(torch.tensor(weight_picture(small, groups["conv2"]).values), before[order])


def test_a_large_picture_is_averaged_down(small, groups):
    picture = torch.tensor(weight_picture(small, groups["conv2"], limit=4).values)
    assert picture.shape == (4, 4)
    full = small.conv2.weight.detach().abs().mean(dim=(2, 3))
    assert picture.mean() == pytest.approx(float(full.mean()), rel=0.1)
    assert picture[0, 0] == pytest.approx(float(full[:4, :4].mean()))
    with pytest.raises(ChannelError, match="a limit of at least 1"):
        weight_picture(small, groups["conv2"], limit=0)


def test_a_picture_of_entries_that_repeat_is_by_channel(small):
    """A group that only a flattened linear layer reads: four entries of each channel are one column."""
    read = WidthGroup("conv2", 16, "inner", (Axis("hidden.weight", 1, repeat=4, fan_in=True),), ())
    picture = torch.tensor(weight_picture(small, read).values)
    assert picture.shape == (20, 16)
    assert torch.allclose(picture, small.hidden.weight.abs().reshape(20, 16, 4).mean(dim=2))


def test_a_group_without_a_matrix_has_no_picture(small):
    group = WidthGroup("norm", 14, "inner", (Axis("norm.weight", 0),), ())
    with pytest.raises(ChannelError, match="'norm' has no tensor of two or more dimensions"):
        weight_picture(small, group)
