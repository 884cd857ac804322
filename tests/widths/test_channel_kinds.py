"""Width groups of small networks, one for each way in which channels can be tied."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netsmith.errors import ChannelError
from netsmith.widths.groups import relocate, resize, width_groups
from netsmith.widths.proof import Proof
from netsmith.widths.types import Axis, Setting, WidthGroup


class Act(nn.Module):
    """A network given as a function of its layers."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def same_function(a: nn.Module, b: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        return bool(torch.allclose(a.eval()(x), b.eval()(x), atol=1e-5))


def settings(group: WidthGroup) -> set[tuple[str, str, int, int]]:
    return {(s.module, s.attribute, s.per_channel, s.fixed) for s in group.settings}


IMAGE = torch.randn(1, 3, 8, 8)


def test_grouped_convolutions_move_by_whole_groups():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 3, groups=4), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1))
    group = width_groups(model, IMAGE)["0"]
    assert group.width == 4
    assert set(group.axes) == {
        Axis("0.weight", 0, repeat=4),
        Axis("0.bias", 0, repeat=4),
        Axis("1.weight", 0, repeat=2),
        Axis("1.bias", 0, repeat=2),
        *(Axis(f"2.{t}", 0, repeat=2) for t in ("weight", "bias", "running_mean", "running_var")),
        Axis("3.weight", 1, repeat=2, fan_in=True),
    }
    assert settings(group) >= {("1", "groups", 1, 0), ("1", "in_channels", 4, 0), ("1", "out_channels", 2, 0)}
    small = resize(model, [group], {"0": 3})
    assert (small[1].groups, small[1].in_channels, small[1].out_channels) == (3, 12, 6)
    assert same_function(resize(model, [group], {"0": 6}), model, torch.randn(2, 3, 8, 8))


def test_depthwise_convolutions_follow_the_width():
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 5, 1))
    group = width_groups(model, IMAGE)["0"]
    assert group.width == 6
    assert Axis("1.weight", 0, repeat=2) in group.axes
    assert Axis("2.weight", 1, repeat=2, fan_in=True) in group.axes
    assert settings(group) >= {("1", "groups", 1, 0), ("1", "in_channels", 1, 0), ("1", "out_channels", 2, 0)}
    assert same_function(resize(model, [group], {"0": 9}), model, torch.randn(2, 3, 8, 8))


def test_transposed_convolutions():
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 6, 2), nn.ConvTranspose2d(6, 6, 3, groups=3), nn.ConvTranspose2d(6, 2, 1)
    )
    groups = width_groups(model, IMAGE)
    assert [(g.name, g.width) for g in groups] == [("0", 3)]
    assert Axis("0.weight", 1, repeat=2) in groups["0"].axes
    assert Axis("2.weight", 0, repeat=2, fan_in=True) in groups["0"].axes
    assert same_function(resize(model, groups.accepted, {"0": 5}), model, torch.randn(2, 3, 8, 8))


def test_concatenated_branches_are_groups_of_their_own():
    model = Act(
        lambda m, x: m.last(torch.cat([m.a(x), m.b(x)], dim=1)),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(3, 6, 1),
        last=nn.Conv2d(10, 2, 1),
    )
    groups = width_groups(model, IMAGE)
    assert [(g.name, g.width) for g in groups] == [("a", 4), ("b", 6)]
    assert Axis("last.weight", 1, start=4, fan_in=True) in groups["b"].axes
    assert ("last", "in_channels", 1, 6) in settings(groups["a"])
    assert ("last", "in_channels", 1, 4) in settings(groups["b"])
    both = resize(model, groups.accepted, {"a": 3, "b": 9})
    assert both.last.in_channels == 12
    assert torch.equal(both.last.weight[:, :3], model.last.weight[:, :3])
    assert torch.allclose(both.last.weight[:, 3], model.last.weight[:, 4] / 2)
    there = {g.name: g for g in relocate(groups.accepted, {"a": 3, "b": 9})}
    assert Axis("last.weight", 1, start=3, fan_in=True) in there["b"].axes
    back = resize(both, list(there.values()), {"a": 6, "b": 10})
    assert same_function(back, both, torch.randn(2, 3, 8, 8))


def test_flattened_maps_repeat_or_tile():
    for order, axis in [
        ((0, 1, 2, 3), Axis("last.weight", 1, repeat=16, fan_in=True)),
        ((0, 2, 3, 1), Axis("last.weight", 1, tiles=16, fan_in=True)),
    ]:
        model = Act(
            lambda m, x, order=order: m.last(m.first(x).permute(order).flatten(1)),
            first=nn.Conv2d(3, 5, 2, stride=2),
            last=nn.Linear(80, 4),
        )
        group = width_groups(model, IMAGE)["first"]
        assert axis in group.axes
        assert same_function(resize(model, [group], {"first": 7}), model, torch.randn(2, 3, 8, 8))


class Attention(nn.Module):
    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scale = 3, 4, 0.5
        self.qkv = nn.Linear(10, 36)
        self.proj = nn.Linear(12, 10)
        self.table = nn.Parameter(torch.randn(7, 3)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * self.scale
        if self.table is not None:
            scores = scores + self.table[:n].permute(1, 0).unsqueeze(1)
        x = scores.softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim))


@pytest.mark.parametrize("bias", [False, True])
def test_heads_of_attention(bias):
    model = nn.Sequential(nn.Linear(6, 10), Attention(bias=bias), nn.Linear(10, 4))
    groups = width_groups(model, torch.randn(1, 5, 6))
    heads = groups["1.qkv"]
    assert (heads.width, heads.kind) == (3, "heads")
    assert set(heads.axes) == {
        Axis("1.qkv.weight", 0, repeat=4, tiles=3),
        Axis("1.qkv.bias", 0, repeat=4, tiles=3),
        Axis("1.proj.weight", 1, repeat=4, fan_in=True),
        *([Axis("1.table", 1)] if bias else []),
    }
    assert settings(heads) == {
        ("1.qkv", "out_features", 12, 0),
        ("1.proj", "in_features", 4, 0),
        ("1", "num_heads", 1, 0),
    }
    new = resize(model, groups.accepted, {"1.qkv": 5})
    assert (new[1].num_heads, new[1].head_dim, new[1].scale) == (5, 4, 0.5)
    assert same_function(new, model, torch.randn(2, 5, 6))


def test_gated_hidden_widths_tile():
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a, b = m.up(x).chunk(2, dim=-1)
        return m.down(F.silu(a) * b)

    model = Act(forward, up=nn.Linear(6, 20), down=nn.Linear(10, 4))
    group = width_groups(model, torch.randn(1, 5, 6))["up"]
    assert (group.width, group.kind) == (10, "mlp")
    assert Axis("up.weight", 0, tiles=2) in group.axes
    assert same_function(resize(model, [group], {"up": 13}), model, torch.randn(2, 5, 6))


def test_halves_of_a_chunk_are_resized_together():
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a, b = m.first(x).chunk(2, dim=1)
        return m.left(a) + m.right(b)

    model = Act(forward, first=nn.Conv2d(3, 24, 1), left=nn.Conv2d(12, 6, 1, groups=3), right=nn.Conv2d(12, 6, 1))
    whole = nn.Sequential(model, nn.Conv2d(6, 2, 1))
    groups = width_groups(whole, IMAGE)
    assert [(g.name, g.width) for g in groups] == [("0.first", 3)]
    assert set(groups["0.first"].axes) >= {
        Axis("0.first.weight", 0, repeat=4),
        Axis("0.first.weight", 0, start=12, repeat=4),
        Axis("0.right.weight", 1, repeat=4, fan_in=True),
    }
    assert ("0.first", "out_channels", 8, 0) in settings(groups["0.first"])
    assert same_function(resize(whole, groups.accepted, {"0.first": 6}), whole, torch.randn(2, 3, 8, 8))


def test_norms_follow_the_width_with_or_without_weights():
    for norm, attribute in [
        (nn.LayerNorm(8), "normalized_shape"),
        (nn.LayerNorm(8, elementwise_affine=False), "normalized_shape"),
        (nn.GroupNorm(1, 8), "num_channels"),
    ]:
        model = Act(lambda m, x: m.last(m.norm(m.first(x))), first=nn.Linear(6, 8), norm=norm, last=nn.Linear(8, 4))
        group = width_groups(model, torch.randn(1, 6))["first"]
        assert ("norm", attribute, 1, 0) in settings(group)
        doubled = resize(model, [group], {"first": 16})
        assert same_function(doubled, model, torch.randn(3, 6))


def test_groups_of_a_group_norm_move_together():
    model = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 2, 1))
    group = width_groups(model, IMAGE)["0"]
    assert group.width == 4
    assert settings(group) >= {("1", "num_groups", 1, 0), ("1", "num_channels", 3, 0)}
    assert same_function(resize(model, [group], {"0": 6}), model, torch.randn(2, 3, 8, 8))


def test_residual_streams_and_what_lies_inside():
    block = Act(lambda m, x: x + m.b(F.relu(m.a(x))), a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(4, 6, 1))
    other = Act(lambda m, x: x + m.b(F.relu(m.a(x))), a=nn.Conv2d(6, 5, 1), b=nn.Conv2d(5, 6, 1))
    model = nn.Sequential(nn.Conv2d(3, 6, 1), block, other, nn.Conv2d(6, 2, 1))
    groups = width_groups(model, IMAGE)
    assert [(g.name, g.width, g.kind) for g in groups] == [("0", 6, "stream"), ("1.a", 4, "inner"), ("2.a", 5, "inner")]
    assert [g.name for g in groups.inner] == ["1.a", "2.a"]
    new = resize(model, groups.accepted, {"0": 11, "1.a": 3, "2.a": 9})
    assert new(IMAGE).shape == (1, 2, 8, 8)


def test_squeeze_and_excitation_has_a_width_of_its_own():
    model = Act(
        lambda m, x: m.last((y := m.first(x)) * m.up(F.relu(m.down(y.mean((2, 3), keepdim=True)))).sigmoid()),
        first=nn.Conv2d(3, 8, 1),
        down=nn.Conv2d(8, 4, 1),
        up=nn.Conv2d(4, 8, 1),
        last=nn.Conv2d(8, 2, 1),
    )
    groups = width_groups(model, IMAGE)
    assert [(g.name, g.width) for g in groups] == [("first", 8), ("down", 4)]
    assert {a.tensor for a in groups["first"].axes} >= {"up.weight", "down.weight", "last.weight"}


def test_shared_weights_are_resized_once():
    first, shared, last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
    model = nn.Sequential(first, shared, nn.ReLU(), shared, last)
    groups = width_groups(model, torch.randn(1, 6))
    assert [(g.name, g.width) for g in groups] == [("0", 8)]
    new = resize(model, groups.accepted, {"0": 5})
    assert new[1] is new[3]
    assert new[1].weight.shape == (5, 5)


REFUSALS = {
    "padded with zeros": lambda m, x: m.last(F.pad(m.first(x), (0, 0, 0, 0, 2, 2))),
    "picked by its place": lambda m, x: m.last(torch.cat([m.first(x)[:, i : i + 1] for i in range(12)], 1)),
    "a convolution runs along its channels": lambda m, x: m.last(
        m.along(m.first(x).mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).expand(-1, 12, 1, 1)
    ),
    "its channels pass fft_fft, which is not followed": lambda m, x: m.last(torch.fft.fft(m.first(x), dim=1).real),
    "it is of a fixed size in the code": lambda m, x: m.last(m.first(x).reshape(-1, 12, 8, 8)),
    "meet values at fixed places": lambda m, x: m.last(m.first(x) + torch.arange(12.0).view(12, 1, 1)),
    "do not lie side by side in one order": lambda m, x: m.last(m.first(x).roll(1, dims=1)),
    "its channels are written to by index": lambda m, x: m.last(_written(m.first(x))),
}


def _written(x: Tensor) -> Tensor:
    x[:, 3] = 0
    return x


@pytest.mark.parametrize("reason", REFUSALS)
def test_refusals_say_why(reason):
    wide = 8 if "padded" in reason else 12
    model = Act(
        REFUSALS[reason],
        first=nn.Conv2d(3, wide, 1),
        along=nn.Conv1d(1, 1, 3, padding=1),
        last=nn.Conv2d(12, 5, 1),
        own=nn.Conv2d(5, 6, 1),
    )
    whole = nn.Sequential(model, nn.Conv2d(5, 7, 1))
    groups = width_groups(whole, IMAGE)
    assert [g.name for g in groups] == ["0.last"]
    refused = {r.name: r.reason for r in groups.refused}
    assert reason in refused["0.first"]
    assert refused["1"] == "these are the network's own outputs"


def test_a_branch_scaled_by_zero_proves_nothing():
    """Any order of its channels leaves the output as it is; the proof must see through that."""
    model = Act(
        lambda m, x: m.skip(x) + m.gain * m.last(F.relu(m.first(x))),
        skip=nn.Conv2d(3, 5, 1),
        first=nn.Conv2d(3, 6, 1),
        last=nn.Conv2d(6, 5, 1),
    )
    model.gain = nn.Parameter(torch.zeros(5, 1, 1))
    wrong = WidthGroup("first", 6, "inner", (Axis("first.weight", 0),), (Setting("first", "out_channels", 1, 0),))
    right = WidthGroup(
        "first", 6, "inner", (Axis("first.weight", 0), Axis("first.bias", 0), Axis("last.weight", 1, fan_in=True)), ()
    )
    proof = Proof(model, torch.randn(2, 3, 8, 8))
    assert proof.order_free([right])
    assert not proof.order_free([wrong])


def test_the_network_is_left_as_it_was_found():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 2, 1)).train()
    model[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    width_groups(model, IMAGE)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [m.training for m in model] == [True, True, False, True]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_nothing_to_prove_is_an_error_with_the_reasons():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2), nn.Linear(64, 5))
    with pytest.raises(ChannelError, match=r"demo has no width group that can be proved\. Refused: .*own outputs"):
        width_groups(model, IMAGE, name="demo")
    with pytest.raises(ChannelError, match="Nothing in it makes channels"):
        width_groups(nn.ReLU(), IMAGE)
