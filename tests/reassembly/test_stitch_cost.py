from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from netsmith.errors import DataError, DissectionError, NetsmithError
from netsmith.models.vit import SmallViT
from netsmith.reassembly.representation import on_grid
from netsmith.reassembly.stitch_cost import _held_out, stitch_costs
from netsmith.trace.chain import Chain, dissect


def group(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


def chain_of(*widths: int, seed: int = 0, name: str = "net") -> Chain:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        groups = [group(a, b, 2 if i == 2 else 1) for i, (a, b) in enumerate(zip((3, *widths), widths, strict=False))]
        model = nn.Sequential(
            *groups, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 4))
        ).eval()
        return dissect(model, torch.rand(2, 3, 8, 8), name=name)


def transformer() -> Chain:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = SmallViT(4, image_size=8, dim=8, depth=2, heads=2, pool="token").eval()
    return dissect(model, torch.rand(2, 3, 8, 8), name="v")


CHAINS = {"a": chain_of(4, 6, 8, name="a"), "b": chain_of(5, 7, 9, seed=1, name="b"), "v": transformer()}
IMAGES = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(5))
ALL = dict.fromkeys(CHAINS, IMAGES)
CUTS = [(name, cut.index) for name, chain in CHAINS.items() for cut in chain.cuts]


def rows(name: str, cut: int, grid: int = 4) -> np.ndarray:
    """(images, places, channels)"""
    with torch.no_grad():
        x = CHAINS[name].stem(IMAGES)
        for unit in CHAINS[name].units[:cut]:
            x = unit.module(x)
    return on_grid(x, CHAINS[name].cuts[cut].layout, grid).double().numpy()


def by_scikit(x: np.ndarray, y: np.ndarray, ridge: float) -> float:
    held = _held_out(24, 0.25, 0).numpy()
    fit_x, fit_y = (z[~held].reshape(-1, z.shape[-1]) for z in (x, y))
    test_x, test_y = (z[held].reshape(-1, z.shape[-1]) for z in (x, y))
    size = ((fit_x - fit_x.mean(axis=0)) ** 2).sum() / fit_x.shape[1]
    rest = test_y - Ridge(alpha=ridge * size).fit(fit_x, fit_y).predict(test_x).reshape(test_y.shape)
    return (rest**2).sum() / ((test_y - test_y.mean(axis=0)) ** 2).sum()


@pytest.mark.parametrize(("grid", "ridge"), [(4, 1e-3), (1, 1e-1), (2, 1.0)])
def test_costs_are_those_of_scikit_ridge_on_held_out_images(grid, ridge):
    costs = stitch_costs(CHAINS, ALL, CUTS, CUTS, grid=grid, ridge=ridge, batch_size=7)
    for s, source in enumerate(CUTS):
        for t, target in enumerate(CUTS):
            if source == target:
                assert costs.values[s, t] == 0.0
            else:
                expected = by_scikit(rows(*source, grid), rows(*target, grid), ridge)
                assert costs.values[s, t] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_small_memory_limit_changes_nothing_but_the_passes():
    seen: list[tuple[int, int]] = []
    whole = stitch_costs(CHAINS, ALL, CUTS, CUTS[::-1], batch_size=10)
    parts = stitch_costs(
        CHAINS, ALL, CUTS, CUTS[::-1], batch_size=10, memory_limit=1, progress=lambda *x: seen.append(x)
    )
    assert np.allclose(whole.values, parts.values, atol=1e-7)
    assert seen[-1] == (24 * len(CUTS), 24 * len(CUTS))
    assert len(seen) == 3 * len(CUTS)


def test_only_what_is_asked_for_in_the_order_asked():
    sources, targets = [("b", 1), ("a", 0), ("b", 1)], [("a", 2), ("b", 1), ("a", 2), ("b", 0)]
    costs = stitch_costs(CHAINS, ALL, sources, targets)
    assert costs.values.shape == (3, 4)
    assert np.array_equal(costs.values[0], costs.values[2])
    assert np.array_equal(costs.values[:, 0], costs.values[:, 2])
    assert costs.values[0, 1] == costs.values[2, 1] == 0.0
    assert costs.cost(("a", 0), ("b", 0)) == costs.values[1, 3]
    with pytest.raises(NetsmithError, match=re.escape("no stitch cost from ('a', 1)")):
        costs.cost(("a", 1), ("b", 0))


def test_a_wide_source_is_not_rewarded_for_remembering():
    """Far more channels than fitted samples: least squares fits anything there, and nothing on other images."""
    chains = {"wide": chain_of(300, 300, name="wide"), "b": chain_of(5, 7, seed=3, name="b")}
    images = {"wide": IMAGES, "b": torch.rand(24, 3, 8, 8)}  # unrelated images: nothing can be learned
    costs = stitch_costs(chains, images, [("wide", 1)], [("b", 1)], grid=1, ridge=1e-6)
    assert costs.values[0, 0] > 0.9


def test_an_affine_image_costs_nothing_and_a_constant_too():
    model = nn.Sequential(group(3, 6), group(6, 6), nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 2))).eval()
    moved = nn.Sequential(group(3, 6), group(6, 6), nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 2))).eval()
    moved.load_state_dict(model.state_dict())
    with torch.no_grad():
        state = moved.state_dict()
        for key in ("0.1.weight", "0.1.bias"):
            state[key].mul_(3.0)
        state["1.1.weight"].zero_()
        state["1.1.bias"].fill_(0.7)
    example = torch.rand(2, 3, 8, 8)
    chains = {"model": dissect(model, example, name="model"), "moved": dissect(moved, example, name="moved")}
    first, last = len(chains["model"].cuts) - 2, len(chains["model"].cuts) - 1
    images = {"model": IMAGES, "moved": IMAGES}
    targets = [("moved", first), ("moved", last)]
    costs = stitch_costs(chains, images, [("model", first), ("moved", last)], targets, ridge=1e-8)
    assert costs.values[0, 0] == pytest.approx(0, abs=1e-5)
    assert costs.values[0, 1] == 0
    assert costs.values[1, 0] == pytest.approx(1, abs=0.1)


def test_the_draw_is_seeded_and_the_split_whole():
    assert torch.equal(_held_out(40, 0.25, 3), _held_out(40, 0.25, 3))
    assert not torch.equal(_held_out(40, 0.25, 3), _held_out(40, 0.25, 4))
    assert int(_held_out(40, 0.25, 3).sum()) == 10


def test_bad_input_is_named():
    with pytest.raises(NetsmithError, match="no network 'c' in the zoo"):
        stitch_costs(CHAINS, ALL, [("c", 0)], CUTS)
    with pytest.raises(NetsmithError, match=r"'a' has cuts 0 to \d, got 9"):
        stitch_costs(CHAINS, ALL, CUTS, [("a", 9)])
    with pytest.raises(DataError, match="no probe images for 'b'"):
        stitch_costs(CHAINS, {"a": IMAGES, "v": IMAGES}, CUTS, CUTS)
    with pytest.raises(DataError, match=re.escape("{'a': 24, 'b': 3, 'v': 24}")):
        stitch_costs(CHAINS, {**ALL, "b": IMAGES[:3]}, CUTS, CUTS)
    with pytest.raises(DataError, match="'a' takes images of shape"):
        stitch_costs(CHAINS, {**ALL, "a": IMAGES[..., :4]}, CUTS, CUTS)
    with pytest.raises(DataError, match=re.escape("3 images with holdout=0.9 leave 0 and 3")):
        stitch_costs(CHAINS, dict.fromkeys(ALL, IMAGES[:3]), CUTS, CUTS, holdout=0.9)
    broken = IMAGES.clone()
    broken[13] = float("inf")
    with pytest.raises(DissectionError, match=r"'b' gives NaN or infinity at cut 0 .* probe image 13"):
        stitch_costs(CHAINS, {**ALL, "b": broken}, CUTS, CUTS, batch_size=5)
