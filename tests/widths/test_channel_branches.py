"""What a trial run did not see is not taken for absent: groups, smoothing and folding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from netsmith.errors import ChannelError
from netsmith.morphing.smooth import smooth
from netsmith.widths.folding import fold_batch_norms
from netsmith.widths.groups import permute, resize, width_groups


class Branching(nn.Module):
    """Two stages, then one of two ways to the head: by a value, by the mode, by the size of the input, by a number."""

    def __init__(self, choose: Callable[[nn.Module, Tensor], bool]) -> None:
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.a, self.b = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 3)
        self.choose = choose
        self.mode = "a"

    def forward(self, x: Tensor) -> Tensor:
        h = self.front(x)
        h = self.a(h) if self.choose(self, x) else self.b(h)
        return self.head(h.mean((2, 3)))


WAYS: dict[str, Callable[[nn.Module, Tensor], bool]] = {
    "a value": lambda m, x: bool(x.mean() < 100),
    "a size": lambda m, x: x.shape[-1] < 32,
    "a number of its own": lambda m, x: m.mode == "a",
}
IMAGE = torch.randn(2, 3, 12, 12)


@pytest.mark.parametrize("way", WAYS)
def test_what_reaches_a_branch_not_taken_is_refused_by_name(way):
    groups = width_groups(Branching(WAYS[way]).eval(), IMAGE)
    assert [g.name for g in groups] == ["front.0"]
    refused = {r.name: r.reason for r in groups.refused}
    for name in ("front.2", "a"):  # what b reads, and what it would stand in for
        assert "the code around b, which the trial run did not reach" in refused[name]
        assert "torch.nn.Identity()" in refused[name]


def test_smoothing_holds_on_inputs_that_take_the_other_way():
    model = Branching(WAYS["a value"]).eval()
    smoothed = smooth(model, IMAGE)
    other = IMAGE + 200
    assert not torch.equal(model.a.weight, model.b.weight)
    with torch.no_grad():
        expected = model(other)
        assert (smoothed.model.eval()(other) - expected).abs().max() < 1e-4 * expected.abs().max()


class Helped(nn.Module):
    """A second head in train mode, as in torchvision's inception_v3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Linear(6, 8), nn.Linear(8, 10)
        self.aux, self.head = nn.Linear(8, 4), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = F.relu(self.stem(x))
        out = self.head(F.relu(self.body(h)))
        return (out, self.aux(h)) if self.training else out


def test_the_way_of_train_mode_is_followed():
    model = Helped()
    groups = width_groups(model, torch.randn(2, 6))
    assert [g.name for g in groups] == ["stem", "body"]
    assert "aux.weight" in {a.tensor for a in groups["stem"].axes}
    twin = resize(model, groups.accepted, {})
    permute(twin, groups["stem"], torch.randperm(8).tolist())
    x = torch.randn(3, 6)
    for a, b in zip(twin.train()(x), model.train()(x), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    wide = resize(model, groups.accepted, {"stem": 16}).train()
    assert torch.allclose(wide(x)[1], model(x)[1], atol=1e-6)


@pytest.mark.slow
def test_helping_heads_of_torchvision():
    model = torchvision.models.googlenet(weights=None, init_weights=False)
    groups = width_groups(model, torch.randn(1, 3, 64, 64))
    assert len(groups) >= 57
    assert any(a.tensor.startswith("aux1.") for g in groups for a in g.axes)


class Needy(Helped):
    """What does not run in train mode without targets."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.training:
            raise ValueError("in train mode, targets should not be none")
        return super().forward(x)


def test_a_network_that_does_not_run_in_train_mode():
    with pytest.raises(ChannelError, match="stem, body: they pass the code around aux, which the trial run did not"):
        width_groups(Needy(), torch.randn(2, 6))
    net = Needy()
    net.aux = nn.Identity()  # as the reason advises
    assert [g.name for g in width_groups(net, torch.randn(2, 6))] == ["stem", "body"]


class Experts(nn.Module):
    """A mixture of experts; no token goes to the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.router = nn.Linear(6, 8), nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 8)) for _ in range(3))
        self.last = nn.Linear(8, 2)
        nn.init.constant_(self.router.bias, 0)
        with torch.no_grad():
            self.router.bias[2] = -1e4

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        choice = self.router(h).argmax(-1)
        out = h
        for i, expert in enumerate(self.experts):
            mask = choice == i
            if mask.any():
                out = torch.where(mask[..., None], expert(h), out)
        return self.last(out)


def test_experts_without_tokens():
    groups = width_groups(Experts(), torch.randn(2, 40, 6))
    assert [g.name for g in groups] == ["experts.0.0", "experts.1.0"]
    assert "the code around experts.2" in {r.name: r.reason for r in groups.refused}["first"]


class TwoNorms(nn.Module):
    """A norm for each domain: which one is used depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.body(self.a(h) if x.mean() < 100 else self.b(h))


class TrainHead(nn.Module):
    """What a layer gives is read before its norm in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.aux = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.conv(x)
        return (self.norm(h), self.aux(h)) if self.training else self.norm(h)


def test_norms_beside_a_branch_not_taken_are_not_folded():
    model = TwoNorms().eval()
    for norm in (model.a, model.b, model.body[1]):
        norm.running_mean.normal_()
    folded = fold_batch_norms(model, IMAGE)
    assert isinstance(folded.a, nn.BatchNorm2d)
    assert isinstance(folded.body[1], nn.Identity)
    with torch.no_grad():
        assert torch.allclose(folded(IMAGE + 200), model(IMAGE + 200), atol=1e-4)
    assert isinstance(fold_batch_norms(TrainHead(), IMAGE).norm, nn.BatchNorm2d)


class Spare(nn.Module):
    """A backbone whose classifier is left in place and never used."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.conv, self.backbone.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.backbone.conv(x)))


def test_parts_that_no_code_can_reach_pin_nothing():
    assert [g.name for g in width_groups(Spare(), IMAGE)] == ["backbone.conv"]


class Noisy(nn.Module):
    """Noise in train mode, drawn for each entry, and a dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.training:
            h = h + torch.randn_like(h) * 0.1
            h = h * torch.empty_like(h).bernoulli_(0.5)
        return self.b(h)


def test_noise_of_train_mode_pins_nothing():
    assert [g.name for g in width_groups(Noisy(), torch.randn(2, 6))] == ["a"]


class Indirect(nn.Module):
    """A branch that is reached by a method of a parent class, by a list, by a computed name."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.side = way, False
        self.a, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.more = nn.ModuleList([nn.Linear(8, 8)])

    def extra(self, h: Tensor) -> Tensor:
        return self.more[0](h) if self.side else h

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.way == "method":
            h = self.extra(h)
        elif self.side:
            h = getattr(self, "mo" + "re")[0](h)
        return self.last(h)


class Below(Indirect):
    """The same, by super()."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("build", [Indirect, Below])
@pytest.mark.parametrize("way", ["method", "name"])
def test_branches_are_found_however_they_are_named(build, way):
    with pytest.raises(ChannelError, match="the code around more, which the trial run did not reach"):
        width_groups(build(way), torch.randn(2, 6))


class Hidden(nn.Module):
    """A layer, then a `way` to go on, which a large mean changes."""

    def __init__(self, way: Callable[..., Tensor], **parts: object) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        for name, part in parts.items():
            setattr(self, name, part)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.way(self, torch.relu(self.a(x)), x.mean() > 100))


class Router:
    def __init__(self, *ways: nn.Module) -> None:
        self.ways = ways


def _registered() -> nn.Module:
    model = Hidden(lambda m, h, large: m.ways[int(large)](h), one=nn.Linear(8, 8), two=nn.Linear(8, 8))
    model.ways = [model.one, model.two]
    return model


def _routed() -> nn.Module:
    model = Hidden(lambda m, h, large: m.router.ways[int(large)](h), one=nn.Linear(8, 8), two=nn.Linear(8, 8))
    model.router = Router(model.one, model.two)
    return model


HIDDEN: dict[str, Callable[[], nn.Module]] = {
    "a list of parameters": lambda: Hidden(
        lambda m, h, large: h @ m.ways[int(large)], ways=nn.ParameterList([torch.randn(8, 8), torch.randn(8, 8)])
    ),
    "a list that holds registered modules": _registered,
    "an object that holds registered modules": _routed,
    "a part of buffers": lambda: Hidden(
        lambda m, h, large: m.norm(h) if large else h, norm=nn.BatchNorm1d(8, affine=False)
    ),
    "a way without weights": lambda: Hidden(lambda m, h, large: h.flip(1) if large else h),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_ways_that_have_no_name_of_their_own_are_refused(name):
    torch.manual_seed(0)
    x, model = torch.randn(2, 6), HIDDEN[name]().eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    try:
        groups = width_groups(model, x)
    except ChannelError:
        return
    other = x + 300
    for group in groups:
        moved = resize(model, [group], {group.name: 2 * group.width})
        with torch.no_grad():
            expected = model(other)
            assert (moved(other) - expected).abs().max() < 1e-4 * expected.abs().max(), group.name
    assert "a" not in [g.name for g in groups]


def test_a_list_of_parameters_by_size_is_refused_by_name():
    model = Hidden(lambda m, h, _: h @ m.ways[len(h) // 50], ways=nn.ParameterList([torch.randn(8, 8) for _ in "ab"]))
    with pytest.raises(ChannelError, match=r"the code around ways\.1, which the trial run did not reach"):
        width_groups(model.eval(), torch.randn(2, 6))


def test_a_norm_that_only_some_values_meet_is_not_folded():
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.bn, self.o = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.c(x)
            return self.o(self.bn(h) if x.mean() < 50 else h)

    model = Sometimes().eval()
    model.bn.running_mean.uniform_(-1, 1)
    folded = fold_batch_norms(model, IMAGE)
    with torch.no_grad():
        for x in (IMAGE, IMAGE + 90):
            assert torch.allclose(folded(x), model(x), atol=1e-4, rtol=1e-4)
