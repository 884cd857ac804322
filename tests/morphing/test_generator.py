from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morph_networks import morphable, tiny
from torch import nn

from netsmith.errors import MorphError
from netsmith.morphing.frames import from_bytes, in_bytes, shares
from netsmith.morphing.generator import Nested, Noise
from netsmith.morphing.grid import Grid, default_keyframes
from netsmith.morphing.keyframes import own_tensors
from netsmith.morphing.kinds import make_generator
from netsmith.morphing.morphable import Morphable, check_split
from netsmith.morphing.preparing import prepare
from netsmith.morphing.space import morph_space
from netsmith.networks.network import load_source
from netsmith.widths.groups import entries, relocate

KINDS = {"nested": (Nested, {}), "grid": (Grid, {"keyframes": (1.0, 0.5, 0.25), "coarse": 0.125})}


@pytest.fixture(params=KINDS)
def made(request):
    kind, settings = KINDS[request.param]
    return morphable(kind, **settings)


def disturb(generator) -> None:
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


@torch.no_grad()
def test_at_full_width_it_is_the_base_network(made):
    x = torch.randn(3, 1, 8, 8)
    expected = tiny().model(x)
    assert torch.allclose(made(x), expected, atol=1e-5)
    for name, value in made.tensors(made.space.full).items():
        assert torch.equal(value, made.base.state_dict()[name])


@torch.no_grad()
def test_a_fitted_grid_still_is_the_base_at_full_width():
    grid = morphable(Grid, keyframes=(1.0, 0.5), coarse=0.25)
    disturb(grid.generator)
    for name, value in grid.tensors(grid.space.full).items():
        assert torch.equal(value, grid.base.state_dict()[name]), name


@torch.no_grad()
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.4, 0.5, 0.8, 1.0, 1.5])
def test_what_is_generated_runs_as_a_plain_network(made, ratio):
    disturb(made.generator)
    widths = made.space.at(ratio)
    x = torch.randn(3, 1, 8, 8)
    plain = made.module(widths)
    with made.at_widths(widths):
        assert torch.allclose(made(x), plain(x), atol=1e-5)
    assert plain.state_dict()["features.0.0.weight"].shape[0] == widths["features.0.0"]
    assert not set(map(id, plain.parameters())) & set(map(id, made.parameters()))


@torch.no_grad()
def test_wider_than_the_base_it_computes_the_same_before_it_is_fitted(made):
    x = torch.randn(3, 1, 8, 8)
    with made.at_widths(made.space.at(2.0)):
        assert torch.allclose(made(x), tiny().model(x), atol=1e-4)


def test_before_it_is_fitted_a_grid_is_nested():
    nested, grid = morphable(Nested), morphable(Grid, keyframes=(1.0, 0.5, 0.25), coarse=None)
    for ratio in (0.25, 0.4, 0.75):
        a, b = nested.tensors(nested.space.at(ratio)), grid.tensors(grid.space.at(ratio))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_below_the_range_only_the_coarse_set_counts():
    grid = morphable(Grid, keyframes=(1.0, 0.5), coarse=0.25)
    before = grid.tensors(grid.space.at(0.25))
    with torch.no_grad():
        for parameter in grid.generator.deltas.parameters():
            parameter.add_(1.0)
    after = grid.tensors(grid.space.at(0.25))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(grid.tensors(grid.space.at(0.5))["features.0.0.weight"], before["features.0.0.weight"])


@torch.no_grad()
def test_the_coarse_set_begins_in_a_smooth_order_of_whole_channels():
    made = morphable(Grid, keyframes=(1.0, 0.9), coarse=0.75)
    grid, groups = made.generator, relocate(made.space.groups, made.generator.widths_at(0.75))

    def tensors() -> dict[str, torch.Tensor]:
        return {s.name: grid.smooth.get_parameter(s.name.replace(".", "/")).clone() for s in grid.slots}

    before = tensors()
    grid.begin({}, {})
    after = tensors()
    variation = [sum(float(entries(t, g).diff(dim=0).abs().sum()) for g in groups) for t in (before, after)]
    assert variation[1] < 0.99 * variation[0]
    for group in groups:  # the other groups' order changes the entries of a row, not their sum
        old, new = (entries(t, group).double().sum(dim=1).sort().values for t in (before, after))
        assert torch.allclose(old, new, atol=1e-5)


def test_gradients_reach_what_a_width_is_made_of():
    grid = morphable(Grid, keyframes=(1.0, 0.5, 0.25), coarse=0.125)
    x = torch.randn(2, 1, 8, 8)
    with grid.at_widths(grid.space.at(0.5)):
        grid(x).sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in grid.generator.deltas[0].parameters() if p.ndim > 1
    )
    assert all(p.grad is None for p in grid.generator.smooth.parameters())
    assert all(p.grad is None for p in grid.base.parameters())


def test_noise_moves_the_coarse_reads_only():
    grid = morphable(Grid, keyframes=(1.0, 0.5), coarse=0.25)
    noise = Noise(1.0, torch.Generator().manual_seed(0))
    for ratio, moves in ((0.75, False), (0.3, True)):
        widths = grid.space.at(ratio)
        exact, moved = grid.tensors(widths), grid.tensors(widths, noise)
        same = all(torch.equal(exact[name], moved[name]) for name in exact)
        assert same is not moves


def test_shares_are_whole_at_each_keyframe_and_hold_beyond_the_ends():
    knots = (1.0, 0.75, 0.5, 0.25)
    assert [s for s, _ in shares(1.0, knots)] == [0.0, 0.0, 0.0]
    assert [s for s, _ in shares(0.75, knots)] == [1.0, 0.0, 0.0]
    assert [s for s, _ in shares(0.5, knots)] == [1.0, 1.0, 0.0]
    assert [s for s, _ in shares(0.1, knots)] == [1.0, 1.0, 1.0]
    assert [s for s, _ in shares(2.0, knots)] == [0.0, 0.0, 0.0]
    assert [s for s, _ in shares(0.125**0.5, knots)] == pytest.approx([1.0, 1.0, 0.5])
    assert [s for s, _ in shares(0.5**0.5, (1.0, 0.5))] == pytest.approx([0.5])


def test_a_ratio_teaches_the_two_keyframes_that_it_lies_between():
    knots = (1.0, 0.75, 0.5, 0.25)
    assert [m for _, m in shares(0.75, knots)] == [1.0, 0.0, 0.0]
    assert [m for _, m in shares(0.5, knots)] == [0.0, 1.0, 0.0]
    assert [m for _, m in shares(0.1, knots)] == [0.0, 0.0, 1.0]
    assert [m for _, m in shares(0.125**0.5, knots)] == pytest.approx([0.0, 0.5, 0.5])


def test_a_keyframe_is_not_moved_by_the_widths_below_it():
    grid = morphable(Grid, keyframes=(1.0, 0.5, 0.25), coarse=None)
    disturb(grid.generator)
    x = torch.randn(2, 1, 8, 8)
    with grid.at_widths(grid.space.at(0.25)):
        grid(x).sum().backward()
    upper, lower = grid.generator.deltas
    assert all(p.grad is None or not p.grad.any() for p in upper.parameters())
    assert any(p.grad.any() for p in lower.parameters())


def test_a_grid_learns_the_tensors_of_a_keyframe():
    """From the highest keyframe down; what is learned is what is read, and what was learned before stays.

    To within the rounding of one keyframe, half of 1/127 of what it adds, however many there are above it.
    """
    keyframes = (1.0, 0.875, 0.75, 0.625, 0.5)
    made = morphable(Grid, keyframes=keyframes, coarse=None)
    grid = made.generator
    rng = torch.Generator().manual_seed(0)
    wanted = {}
    for ratio, delta in zip(keyframes[1:], grid.deltas, strict=True):
        wanted[ratio] = {n: torch.randn(t.shape, generator=rng) for n, t in grid(grid.widths_at(ratio)).items()}
        grid.learn(ratio, wanted[ratio])
        most = max(float(p.detach().abs().max()) for p in delta.parameters())
        found = grid(grid.widths_at(ratio))
        assert all(torch.allclose(found[name], wanted[ratio][name], atol=0.51 * most / 127) for name in found)
    learned = {ratio: grid(grid.widths_at(ratio)) for ratio in keyframes}
    grid.settle()
    for ratio, tensors in learned.items():
        settled = grid(grid.widths_at(ratio))
        assert all(torch.equal(tensors[name], settled[name]) for name in tensors)
    full = grid(grid.widths_at(1.0))
    assert all(torch.equal(full[name], made.base.state_dict()[name]) for name in full)


def few_channels(widths: list[int]):
    """A network of so few channels that several keyframes have the same width of some of them."""
    network = load_source(
        "netsmith:plain_cnn", input_size=(1, 8, 8), num_classes=10, options={"widths": widths, "depth": 2}
    )
    prepared = prepare(network)
    return prepared, morph_space(prepared.groups, "all", (0.25, 1.0))


def learned(grid: Grid) -> dict[float, dict[str, torch.Tensor]]:
    """A grid's keyframes after each has learned a network of its own: what they should be."""
    torch.manual_seed(0)
    wanted = {}
    for ratio in grid.keyframes[1:]:
        shapes = grid(grid.widths_at(ratio))
        wanted[ratio] = {name: torch.randn(value.shape) for name, value in shapes.items()}
        grid.learn(ratio, wanted[ratio])
    return wanted


@pytest.mark.parametrize("widths", [[3, 12], [4, 2], [10, 20], [1, 7], [10, 32], [16, 5]])
def test_every_keyframe_is_read_as_it_was_learned_however_few_channels_there_are(widths):
    prepared, space = few_channels(widths)
    tensors, own = prepared.model.state_dict(), own_tensors(prepared.model, space.groups, None)
    grid = Grid(tensors, space.groups, **default_keyframes(space), own=own)
    assert grid.widths_at(grid.keyframes[-1]) == space.low
    for ratio, wanted in learned(grid).items():
        found = grid(grid.widths_at(ratio))
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, atol=0.05, rtol=0.02, msg=f"{name} at {ratio}")
    plain = grid(space.full)
    assert all(torch.equal(plain[name], tensors[name]) for name in plain)


def test_a_range_in_channels_ends_at_these_channels():
    prepared, _ = few_channels([8, 32])
    space = morph_space(prepared.groups, "all", (8, 32))
    grid = Grid(prepared.model.state_dict(), space.groups, **default_keyframes(space))
    assert set(grid.widths_at(0.25).values()) == {8}
    assert [set(grid.widths_at(r).values()) for r in grid.keyframes[:2]] == [{8, 32}, {8, 28}]
    for ratio, wanted in learned(grid).items():
        found = grid(grid.widths_at(ratio))
        assert all(torch.allclose(found[name], v, atol=0.05, rtol=0.02) for name, v in wanted.items()), ratio
    assert space.range_text == "8 to 32 channels"
    assert space.ratios == (1.0, 1.0)
    assert space.hull == (0.25, 4.0)
    assert set(space.clamped(0.3).values()) == {8, 10}


def test_ranges_that_no_ratio_is_in_are_told_as_they_are():
    prepared, _ = few_channels([8, 32])
    space = morph_space(prepared.groups, "all", (6, 12))
    assert space.range_text == "6 to 12 channels"
    assert space.ratios == (6 / 32, 1.5)
    assert morph_space(prepared.groups, "all", (0.25, 1.0)).range_text == "ratios 0.25 to 1"


def test_numbers_that_16_bits_do_not_hold_are_kept_whole():
    """Statistics of a first norm behind raw pixels have variances in the millions."""
    made = morphable(Grid)
    network = tiny()
    prepared = prepare(network, fold=False)
    groups = tuple(prepared.groups.inner)
    norm = next(m for m in prepared.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.running_var.mul_(2e6)
    norm.running_mean.mul_(1e-9)
    grid = Grid(prepared.model.state_dict(), groups, keyframes=(1.0, 0.5))
    narrow = grid(grid.widths_at(0.5))
    changed = {name: value * 3 for name, value in narrow.items()}
    grid.learn(0.5, changed)
    grid.settle()
    again = Grid(prepared.model.state_dict(), groups, keyframes=(1.0, 0.5))
    again.restore(grid.saved())
    for name, value in again(again.widths_at(0.5)).items():
        assert value.isfinite().all(), name
        if "running" in name:
            torch.testing.assert_close(value, changed[name])
    assert {v.dtype for v in made.generator.saved().values()} == {torch.int8, torch.float16, torch.float32}


def test_tensors_of_the_keyframes_own_follow_their_layer_or_the_whole_network():
    made = morphable(Grid, keyframes=(1.0, 0.5), coarse=None)
    touched = {s.name for s in made.generator.slots}
    names = [n for n, p in made.base.named_parameters() if n not in touched and n.endswith("bias")]
    assert names
    owner = Grid(made.base.state_dict(), made.space.groups, keyframes=(1.0, 0.5), coarse=None, own=names)
    for parameter in owner.deltas[0].parameters():
        parameter.data.fill_(1.0)
    half, full = (owner(made.space.at(r)) for r in (0.5, 1.0))
    state = made.base.state_dict()
    for name in names:
        assert torch.equal(full[name], state[name])
        assert torch.allclose(half[name], state[name] + 1)
    assert owner.settings()["own"] == names
    for wrong, message in (("nowhere.bias", "which the network lacks"), (next(iter(touched)), "generated already")):
        with pytest.raises(MorphError, match=message):
            Grid(state, made.space.groups, own=[wrong])


@given(st.integers(0, 2**31), st.sampled_from([1e-9, 1e-4, 1.0, 1e3]))
def test_eight_bits_are_within_half_a_step_and_rounding_again_changes_nothing(seed, size):
    value = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(seed)) * size
    value[2] = 0
    steps, scale = in_bytes(value)
    once = from_bytes(steps, scale)
    bound = value.flatten(1).abs().amax(1) * (0.5 / 127 + 2.0**-14)
    assert ((once - value).abs().flatten(1).amax(1) <= bound).all()
    again, same = in_bytes(once)
    assert torch.equal(again, steps)
    assert torch.equal(same, scale)


def test_what_is_saved_comes_back_and_is_small(made):
    disturb(made.generator)
    made.generator.settle()
    saved = made.generator.saved()
    fresh = make_generator(made.generator.kind, made.base.state_dict(), made.space.groups, made.generator.settings())
    fresh.restore({name: value.float() for name, value in saved.items()})
    for ratio in (0.2, 0.5, 0.9):
        widths = made.space.at(ratio)
        a, b = made.generator(widths), fresh(widths)
        assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(MorphError, match="not those of this"):
        fresh.restore({**saved, "more": torch.zeros(1)})


def test_mistakes_are_named():
    prepared = morphable(Nested)
    tensors, groups = prepared.base.state_dict(), prepared.space.groups
    with pytest.raises(MorphError, match=r"unknown generator 'gird'\. Did you mean 'grid'"):
        make_generator("gird", tensors, groups)
    with pytest.raises(MorphError, match=r"the generator 'nested' has no setting 'coarse'. It has none\."):
        make_generator("nested", tensors, groups, {"coarse": 0.5})
    with pytest.raises(MorphError, match=r"'grid' has no setting 'keyframe'. Did you mean 'keyframes'\?"):
        make_generator("grid", tensors, groups, {"keyframe": (1.0, 0.5)})
    with pytest.raises(MorphError, match=r"keyframes of the generator 'grid' must be Sequence\[float\], not 0.5"):
        make_generator("grid", tensors, groups, {"keyframes": 0.5})
    with pytest.raises(MorphError, match=r"coarse of the generator 'grid' must be float \| None, not 'half'"):
        make_generator("grid", tensors, groups, {"coarse": "half"})
    with pytest.raises(MorphError, match="keyframes must fall from 1"):
        make_generator("grid", tensors, groups, {"keyframes": (0.5, 1.0)})
    with pytest.raises(MorphError, match="coarse must be above 0"):
        make_generator("grid", tensors, groups, {"coarse": 2.0})
    with pytest.raises(MorphError, match="at most 64 keyframes, not 70"):
        make_generator("grid", tensors, groups, {"keyframes": tuple(1 - k / 100 for k in range(70))})
    with pytest.raises(MorphError, match=r"the keyframe 0.99 has the widths of the one above it"):
        make_generator("grid", tensors, groups, {"keyframes": (1.0, 0.99, 0.5)})
    with pytest.raises(MorphError, match=r"lowest names the group 'features.0.1', which is not there. Did you mean"):
        make_generator("grid", tensors, groups, {"lowest": {"features.0.1": 2}})
    with pytest.raises(MorphError, match=r"lowest is a width of at least 1, not 0, of 'features.0.0'"):
        make_generator("grid", tensors, groups, {"lowest": {"features.0.0": 0}})
    with pytest.raises(MorphError, match="nothing to generate"):
        make_generator("grid", {}, groups)


def test_the_split_network_is_the_whole_one():
    made = morphable(Nested)
    check_split(made, torch.randn(2, 1, 8, 8))


class _Twice(nn.Module):
    """A block that runs twice under two names, and a layer whose weights are another layer's."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        block = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1))
        other = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1))
        if tied:
            other[0].weight, other[2].weight = block[0].weight, block[2].weight
        self.body = nn.Sequential(block, other if tied else block)
        self.head = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images to classes."""
        return self.head(self.body(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_run_at_other_widths_leaves_shared_weights_as_they_were(tied):
    torch.manual_seed(0)
    prepared = prepare(load_source(_Twice(tied=tied), name="twice", input_size=(1, 8, 8), num_classes=10), fold=False)
    space = morph_space(prepared.groups, "all", (0.25, 1.0), streams=True)
    made = Morphable(prepared.model, space, Nested(prepared.model.state_dict(), space.groups))
    before = {name: value.clone() for name, value in made.base.state_dict().items()}
    x = torch.randn(2, 1, 8, 8)
    with made.at_widths(space.low):
        found = made(x)
    after = made.base.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    torch.testing.assert_close(found, made.module(space.low)(x))
    torch.testing.assert_close(made(x), prepared.model(x))
