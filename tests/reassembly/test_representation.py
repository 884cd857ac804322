from __future__ import annotations

import re
import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from netsmith.errors import ArtifactError, DataError, DissectionError
from netsmith.models.vit import SmallViT
from netsmith.reassembly.representation import (
    Representations,
    gram,
    on_grid,
    pooled,
    prefers_channels_last,
    represent,
    represent_all,
)
from netsmith.trace.chain import Chain, Layout, dissect


def group(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def network(*widths: int, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        groups = [group(a, b, 2 if i == 2 else 1) for i, (a, b) in enumerate(zip((3, *widths), widths, strict=False))]
        return nn.Sequential(*groups, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 4)))


def chain_of(model: nn.Module, name: str = "net") -> Chain:
    return dissect(model.eval(), torch.rand(2, 3, 8, 8), name=name)


def rows_by_hand(chain: Chain, images: torch.Tensor, grid: int | None = None) -> list[torch.Tensor]:
    found = []
    with torch.no_grad():
        x = chain.stem(images)
        for cut, unit in zip(chain.cuts, (*chain.units, None), strict=True):
            found.append(pooled(x, cut.layout, grid).clone())
            if unit is not None:
                x = unit.module(x)
    return found


def centred_gram(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.double() - rows.double().mean(dim=0)
    return rows @ rows.T


@pytest.mark.parametrize("grid", [None, 2])
def test_grams_are_those_of_the_centred_pooled_rows(grid):
    chain = chain_of(network(4, 6, 8, 8))
    images = torch.rand(11, 3, 8, 8)
    reps = represent(chain, images, grid=grid, batch_size=4, keep_features=True)
    assert reps.network == "net"
    assert reps.cuts == tuple(cut.name for cut in chain.cuts)
    assert reps.samples == 11
    assert len(reps) == len(chain.cuts) >= 3
    assert reps.features is not None
    for rows, kept, found in zip(rows_by_hand(chain, images, grid), reps.features, reps.grams, strict=True):
        torch.testing.assert_close(kept, rows)
        expected = centred_gram(rows)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_the_batch_size_does_not_matter():
    chain = chain_of(network(4, 6, 8))
    images = torch.rand(10, 3, 8, 8)
    one, many = (represent(chain, images, batch_size=b).grams for b in (10, 3))
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-6)


def test_rows_in_a_file_are_the_same_and_the_file_goes_away(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    chain = chain_of(network(4, 6, 8))
    images = torch.rand(9, 3, 8, 8)
    seen = []
    spilled = represent(
        chain, images, memory_limit=0, batch_size=4, progress=lambda *_: seen.append(len(list(tmp_path.iterdir())))
    )
    assert max(seen) == len(chain.cuts)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(spilled.grams, represent(chain, images, batch_size=4).grams)


def test_the_network_is_left_as_it_was():
    model = network(4, 6, 8)
    chain = chain_of(model)
    chain.stem.train()
    for unit in chain.units:
        unit.module.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    represent(chain, torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert chain.stem.training
    assert all(module.training for unit in chain.units for module in unit.module.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_features_with_a_large_common_mean_keep_their_differences():
    rows = torch.randn(20, 5)
    torch.testing.assert_close(gram(rows + 1000), gram(rows), rtol=1e-2, atol=1e-2)
    # the reason for centring first: float32 cannot tell these apart once they are multiplied
    raw = (rows + 1000) @ (rows + 1000).T
    h = torch.eye(20) - 1 / 20
    assert (h @ raw @ h - centred_gram(rows).float()).abs().max() > 0.1


def test_a_constant_representation_has_a_gram_of_zeros():
    assert not gram(torch.full((6, 3), 0.1) + 1e-8 * torch.randn(6, 3)).any()
    assert gram(torch.full((6, 3), 0.1) + 1e-3 * torch.randn(6, 3)).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(1, 9000), st.integers(0, 99))
def test_gram_matches_float64_for_any_width(n, d, seed):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    expected = centred_gram(rows)
    assert (gram(rows).double() - expected).abs().max() <= 1e-5 * expected.abs().max()


MAPS = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)
CORNERS = MAPS.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean(dim=(3, 5)).flatten(2).transpose(1, 2)
TOKENS = MAPS.flatten(2).transpose(1, 2)
CLASS = torch.full((2, 1, 3), 1e6)


@pytest.mark.parametrize(
    ("x", "layout"),
    [
        (MAPS, Layout("NCHW", 3, (4, 4))),
        (MAPS.permute(0, 2, 3, 1), Layout("NHWC", 3, (4, 4))),
        (TOKENS, Layout("NLC", 3, (4, 4))),
        (torch.cat([CLASS, TOKENS], dim=1), Layout("NLC", 3, (4, 4), 1)),
    ],
    ids=["NCHW", "NHWC", "NLC", "NLC with a class token"],
)
def test_every_layout_says_the_same(x, layout):
    torch.testing.assert_close(pooled(x, layout), MAPS.mean(dim=(2, 3)))
    torch.testing.assert_close(on_grid(x, layout, 2), CORNERS)
    torch.testing.assert_close(pooled(x, layout, grid=2), CORNERS.flatten(1))
    torch.testing.assert_close(on_grid(x, layout, 4), TOKENS)
    assert on_grid(x, layout, 8).shape == (2, 64, 3)


def test_flat_vectors_and_tokens_without_a_grid():
    flat = torch.rand(2, 3)
    assert torch.equal(pooled(flat, Layout("NC", 3, None)), flat)
    assert torch.equal(on_grid(flat, Layout("NC", 3, None), 2), flat[:, None].expand(2, 4, 3))
    odd = torch.arange(2 * 8 * 3.0).view(2, 8, 3)
    torch.testing.assert_close(on_grid(odd, Layout("NLC", 3, None), 2), odd.unflatten(1, (4, 2)).mean(dim=2))


def test_prefix_tokens_can_be_appended():
    x, layout = torch.cat([CLASS, TOKENS], dim=1), Layout("NLC", 3, (4, 4), 1)
    assert torch.equal(pooled(x, layout, prefix="append"), torch.cat([pooled(x, layout), CLASS[:, 0]], dim=1))
    assert pooled(x, layout, 2, prefix="append").shape == (2, 4 * 3 + 3)
    assert torch.equal(pooled(MAPS, Layout("NCHW", 3, (4, 4)), prefix="append"), MAPS.mean(dim=(2, 3)))


def test_a_transformer_with_a_class_token_is_read_by_its_patches():
    model = SmallViT(4, image_size=8, dim=12, depth=2, heads=2, pool="token").eval()
    chain = chain_of(model, "vit")
    images = torch.rand(7, 3, 8, 8)
    last = chain.cuts[-1].layout
    assert (last.kind, last.grid, last.prefix) == ("NLC", (4, 4), 1)
    reps = represent(chain, images, keep_features=True)
    with torch.no_grad():
        tokens = model.blocks(model.embed(images))
    assert reps.features is not None
    torch.testing.assert_close(reps.features[-1], tokens[:, 1:].mean(dim=1))
    appended = represent(chain, images, keep_features=True, prefix="append").features
    assert appended is not None
    torch.testing.assert_close(appended[-1][:, 12:], tokens[:, 0])


def test_half_precision_is_pooled_in_float32():
    x = torch.full((2, 3, 64, 64), 100.0, dtype=torch.float16)
    assert torch.equal(pooled(x, Layout("NCHW", 3, (64, 64))), torch.full((2, 3), 100.0))


def test_nan_names_network_cut_and_image():
    model = network(4, 6, 8)
    chain = chain_of(model, "broken")
    images = torch.rand(6, 3, 8, 8)
    images[4] = float("nan")
    name = chain.cuts[0].name
    with pytest.raises(DissectionError, match=re.escape(f"'broken' gives NaN or infinity at cut 0 ('{name}')")) as err:
        represent(chain, images, batch_size=4)
    assert "probe image 4" in str(err.value)
    assert not any(module.training for module in chain.stem.modules())


def test_images_of_another_shape_are_refused():
    chain = chain_of(network(4, 6, 8), "small")
    message = (
        "'small' takes images of shape (n, 3, 8, 8), got (2, 1, 8, 8); apply the network's own preprocessing first"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        represent(chain, torch.rand(2, 1, 8, 8))
    with pytest.raises(DataError, match=r"got \(0, 3, 8, 8\)"):
        represent(chain, torch.rand(0, 3, 8, 8))


class ViewsItsInput(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x.view(x.shape[0], -1).view(x.shape))


def test_code_that_cannot_take_channels_last_is_given_contiguous_batches():
    head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 2))
    chain = chain_of(nn.Sequential(group(3, 4), nn.Sequential(ViewsItsInput(), group(4, 5)), group(5, 6), head))
    images = torch.rand(6, 3, 8, 8)
    assert not prefers_channels_last(chain, images)
    assert prefers_channels_last(chain_of(network(4, 6, 8)), images)
    represent(chain, images)


def test_a_zoo_is_represented_on_the_same_images():
    chains = {name: chain_of(network(4, 6, 8, seed=i), name) for i, name in enumerate("ab")}
    images = torch.rand(5, 3, 8, 8)
    reps = represent_all(chains, {"a": images, "b": images}, batch_size=5)
    assert [rep.network for rep in reps] == ["a", "b"]
    with pytest.raises(DataError, match="no probe images for 'b'"):
        represent_all(chains, {"a": images})
    with pytest.raises(DataError, match=re.escape("{'a': 5, 'b': 4}")):
        represent_all(chains, {"a": images, "b": images[:4]})


@pytest.mark.parametrize("keep", [False, True])
def test_tensors_and_back(keep):
    reps = represent(chain_of(network(4, 6, 8)), torch.rand(5, 3, 8, 8), keep_features=keep)
    tensors, meta = reps.to_tensors()
    again = Representations.from_tensors(tensors, meta)
    assert (again.network, again.cuts) == (reps.network, reps.cuts)
    assert torch.equal(again.grams, reps.grams)
    assert (again.features is not None) is keep
    with pytest.raises(ArtifactError, match="lack 'grams'"):
        Representations.from_tensors({}, {**meta, "features": False})
    with pytest.raises(ArtifactError, match="expected Gram matrices of shape"):
        Representations.from_tensors({**tensors, "grams": reps.grams[:1]}, meta)
