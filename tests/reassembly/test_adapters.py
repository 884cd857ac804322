from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netsmith.errors import RecipeError
from netsmith.reassembly.adapters import (
    Adapter,
    adapter_cost,
    adapter_spec,
    build_adapter,
    from_map,
    patches,
    resize_map,
    to_map,
)
from netsmith.trace.chain import Cut, Layout
from netsmith.trace.cost import count_macs, count_params


def cut(kind: str, channels: int, grid: tuple[int, int] | None, prefix: int = 0, length: int = 0) -> Cut:
    h, w = grid or (length, 1)
    shape = {"NCHW": (channels, h, w), "NHWC": (h, w, channels), "NLC": (prefix + h * w, channels), "NC": (channels,)}
    shape |= {"NCL": (channels, length), "NCDHW": (channels, length, h, w)}
    return Cut(0, "cut", Layout(kind, channels, grid, prefix), shape[kind])  # type: ignore[arg-type]


CUTS = [
    cut("NCHW", 5, (8, 8)),
    cut("NCHW", 7, (6, 10)),
    cut("NHWC", 6, (4, 4)),
    cut("NLC", 8, (4, 4), prefix=1),
    cut("NLC", 9, (3, 3), prefix=2),
    cut("NLC", 6, (8, 8)),
    cut("NLC", 6, None, length=10),
    cut("NC", 11, None),
    cut("NCL", 7, None, length=9),
]


@pytest.mark.parametrize("style", ["auto", "linear", "conv3", "dery"])
@pytest.mark.parametrize(("before", "after"), list(itertools.product(CUTS, CUTS)))
def test_every_pair_of_layouts_gives_the_target_shape_at_the_stated_cost(before: Cut, after: Cut, style: str):
    spec = adapter_spec(before, after, style)
    adapter = build_adapter(spec).eval()
    assert isinstance(adapter, Adapter)
    adapter.reset(torch.Generator().manual_seed(0))
    out = adapter(torch.randn(3, *before.shape))
    assert out.shape == (3, *after.shape)
    assert torch.isfinite(out).all()
    assert adapter_cost(before, after, style) == (count_params(adapter), count_macs(adapter, before.shape))


def test_identity_costs_nothing_and_changes_nothing():
    spec = adapter_spec(CUTS[0], CUTS[0], "identity")
    assert isinstance(build_adapter(spec), nn.Identity)
    assert adapter_cost(CUTS[0], CUTS[0], "identity") == (0, 0)
    assert str(spec) == "identity"


def test_volumes_have_no_adapter_yet():
    volume = cut("NCDHW", 4, (3, 3), length=2)
    assert isinstance(build_adapter(adapter_spec(volume, volume, "identity")), nn.Identity)
    with pytest.raises(RecipeError, match=r"no adapter joins volumes .*not NCDHW 4x2x3x3 -> NCHW"):
        adapter_spec(volume, CUTS[0])


@pytest.mark.parametrize("at", [*CUTS[:6], CUTS[-1]])
def test_maps_are_read_back_from_every_layout(at: Cut):
    x = torch.randn(2, *at.shape)
    features, prefix = to_map(x, at.layout)
    assert torch.equal(from_map(features, prefix, at.layout), x)


def test_places_of_tokens_are_row_major():
    at = CUTS[3]
    x = torch.zeros(1, *at.shape)
    x[0, 1 + 4 * 2 + 3, 5] = 1.0  # behind one prefix token: row 2, column 3
    features, _ = to_map(x, at.layout)
    assert features[0, 5, 2, 3] == 1
    assert features.sum() == 1


def test_grids_shrink_by_averages_and_grow_by_bilinear_interpolation():
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(resize_map(x, (4, 4), "pool"), F.avg_pool2d(x, 2))
    assert torch.equal(resize_map(x, (16, 16), "bilinear"), F.interpolate(x, (16, 16), mode="bilinear"))
    mixed = F.interpolate(F.adaptive_avg_pool2d(x, (4, 8)), (4, 12), mode="bilinear")
    assert torch.equal(resize_map(x, (4, 12), "mixed"), mixed)
    line = x.flatten(2)[:, :, :60].reshape(2, 3, 60, 1)
    assert torch.equal(resize_map(line, (10, 1), "sequence")[..., 0], F.adaptive_avg_pool1d(line[..., 0], 10))


@pytest.mark.parametrize(
    ("source", "target", "mode"),
    [((8, 8), (4, 4), "pool"), ((4, 4), (8, 8), "bilinear"), ((4, 8), (8, 4), "mixed"), ((4, 4), (4, 4), "none")],
)
def test_the_way_of_resizing_follows_from_the_grids(source: tuple[int, int], target: tuple[int, int], mode: str):
    assert adapter_spec(cut("NCHW", 3, source), cut("NHWC", 3, target)).resize == mode


def test_auto_takes_3x3_where_it_is_cheap_and_1x1_elsewhere():
    assert adapter_spec(cut("NCHW", 64, (8, 8)), cut("NCHW", 64, (8, 8))).style == "conv3"
    assert adapter_spec(cut("NCHW", 128, (8, 8)), cut("NCHW", 128, (8, 8))).style == "linear"
    assert adapter_spec(cut("NCHW", 8, (8, 8)), cut("NLC", 8, None, length=9)).style == "linear"


def test_patches_are_what_a_convolution_sees():
    x, weight = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 3)
    places = torch.tensor([0, 5, 13, 29])
    seen = patches(x, places, 3) @ weight.flatten(1).T
    expected = F.conv2d(x, weight, padding=1).flatten(2)[:, :, places].transpose(1, 2)
    assert torch.allclose(seen, expected, atol=1e-5)


def test_prefix_tokens_come_from_the_sources_own_or_from_the_mean():
    same = build_adapter(adapter_spec(cut("NLC", 4, (2, 2), 1), cut("NLC", 4, (2, 2), 1), "linear"))
    assert isinstance(same, Adapter)
    same.set_prefix(0, torch.eye(4), torch.zeros(4))
    x = torch.randn(2, 5, 4)
    assert torch.allclose(same(x)[:, 0], x[:, 0])
    mean = build_adapter(adapter_spec(cut("NCHW", 4, (3, 3)), cut("NLC", 4, (2, 2), 2), "linear"))
    assert isinstance(mean, Adapter)
    mean.set_prefix(1, 2 * torch.eye(4), torch.ones(4))
    x = torch.randn(2, 4, 3, 3)
    out = mean(x)
    assert torch.allclose(out[:, 1], 2 * x.mean((2, 3)) + 1, atol=1e-6)
    assert (out[:, 0] == 0).all()


def test_the_papers_adapter_is_norm_convolution_leaky_relu():
    adapter = build_adapter(adapter_spec(CUTS[0], CUTS[0], "dery")).eval()
    assert isinstance(adapter, Adapter)
    adapter.reset(torch.Generator().manual_seed(0))
    adapter.set_norm(torch.arange(5.0), torch.full((5,), 4.0))
    x = torch.randn(2, *CUTS[0].shape)
    normed = (x - torch.arange(5.0)[:, None, None]) / (4 + 1e-5) ** 0.5
    assert torch.allclose(adapter(x), F.leaky_relu(adapter.conv(normed), 0.01), atol=1e-5)


def test_random_adapters_follow_their_generator_alone():
    spec = adapter_spec(CUTS[0], CUTS[3])
    weights = []
    for seed in (0, 0, 1):
        adapter = build_adapter(spec)
        assert isinstance(adapter, Adapter)
        torch.rand(seed + 1)
        adapter.reset(torch.Generator().manual_seed(seed))
        weights.append(torch.cat([p.flatten() for p in adapter.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_unknown_style_names_the_nearest():
    with pytest.raises(RecipeError, match=r"not 'liner'\. Did you mean 'linear'"):
        adapter_spec(CUTS[0], CUTS[1], "liner")
