"""A reassembled network used as a network of timm: its classifier replaced, its features read, its card and facts."""

from __future__ import annotations

import json

import pytest
import timm.data
import torch
from timm.models._features import FeatureGetterNet
from tiny import INPUT, SIDE, chains, references
from torch import nn

import netsmith
from netsmith.artifacts.artifact import read_manifest
from netsmith.errors import RecipeError
from netsmith.reassembly.adapters import resize_map
from netsmith.reassembly.recipe import NetworkRef
from netsmith.reassembly.stitch import Assembled, assemble, plan_recipe
from netsmith.search.blocks import Block
from netsmith.trace.chain import dissect
from netsmith.trace.cost import count_macs, count_params

CHAINS = chains()
BLOCKS = [Block("small", 0, 2), Block("tokens", 1, 2), Block("deep", 3, 6)]
X = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))

SOURCES = {
    "residual": ("netsmith:cifar_resnet20", {"widths": [4, 6, 8]}),
    "tokens": ("netsmith:small_vit", {"dim": 12, "depth": 3, "heads": 2, "patch": 4, "pool": "token"}),
}


def build(blocks=BLOCKS, **how) -> Assembled:
    return assemble(plan_recipe(blocks, CHAINS, references(), **how), CHAINS)


def rebuildable() -> Assembled:
    """Of sources, so that an artifact of it can be loaded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        networks = {
            name: netsmith.load_source(source, name=name, num_classes=4, input_size=INPUT.input_size, options=options)
            for name, (source, options) in SOURCES.items()
        }
    made = {name: dissect(n.model, X, name=name) for name, n in networks.items()}
    refs = {
        name: NetworkRef(name, source, "ab" * 32, 4, INPUT, {"image_size": SIDE, **options})
        for name, (source, options) in SOURCES.items()
    }
    return assemble(plan_recipe([Block("residual", 0, 4), Block("tokens", 1, 3)], made, refs), made)


@pytest.fixture
def net():
    return build()


# --- features ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_features_and_head_make_the_network(net):
    features = net.forward_features(X)
    assert torch.equal(net.forward_head(features), net(X))
    seen = net.forward_head(features, pre_logits=True)
    assert seen.shape == (2, net.num_features)
    assert torch.allclose(net.get_classifier()(seen), net(X), atol=1e-6)


@torch.no_grad()
def test_intermediate_features_have_the_shapes_that_the_recipe_says(net):
    final, features = net.forward_intermediates(X)
    assert torch.equal(final, net.forward_features(X))
    info = net.feature_info
    assert [tuple(f.shape[1:]) for f in features] == [row["shape"] for row in info]
    assert [row["module"] for row in info] == ["stem", "blocks.0", "blocks.1", "blocks.2"]
    for spec, row in zip(net.recipe.adapters, info, strict=True):
        assert row["num_chs"] == spec.source.channels
        assert row["shape"][1:] == spec.source_grid
        assert row["reduction"] == SIDE / row["shape"][1]
    stem = net.stem(X)
    assert torch.equal(features[0], stem)
    assert torch.equal(features[1], net.blocks[0](net.adapters[0](stem)))
    tokens = net.blocks[1](net.adapters[1](features[1]))
    prefix = net.recipe.adapters[2].source.prefix
    assert prefix == 1
    assert torch.equal(features[2].flatten(2).transpose(1, 2), tokens[:, prefix:])


@torch.no_grad()
def test_features_are_chosen_by_index(net):
    every = net.features(X)
    for indices, expected in ((2, [2, 3]), ([0, -1], [0, 3]), ([-2], [2]), ([3, 0], [3, 0])):
        found = net.features(X, indices)
        assert len(found) == len(expected)
        assert all(torch.equal(f, every[i]) for f, i in zip(found, expected, strict=True))
    with pytest.raises(RecipeError, match="no feature 4: 0 is the stem's, 1 to 3 those of the blocks"):
        net.features(X, [0, 4])
    with pytest.raises(RecipeError, match="no feature -5"):
        net.features(X, [-5])
    with pytest.raises(RecipeError, match="as NCHW, not 'NLC'"):
        net.forward_intermediates(X, output_fmt="NLC")


@torch.no_grad()
def test_stopping_early_runs_no_further(net):
    net.blocks[2] = nn.Identity()  # would give another shape, were it run
    net.adapters[3] = None
    last, features = net.forward_intermediates(X, [1], stop_early=True)
    assert torch.equal(last, features[0])
    last, features = net.forward_intermediates(X, [], stop_early=True)
    assert features == []


@torch.no_grad()
def test_the_feature_extractor_of_timm_takes_it(net):
    getter = FeatureGetterNet(net, out_indices=(0, 1, 3))
    features = getter(X)
    assert [f.shape[1] for f in features] == getter.feature_info.channels()


def test_timm_reads_its_preprocessing(net):
    found = timm.data.resolve_model_data_config(net)
    assert (found["input_size"], found["mean"], found["std"]) == (INPUT.input_size, INPUT.mean, INPUT.std)


class Resized(nn.Module):
    """What an adapter does to a grid."""

    def __init__(self, grid, mode) -> None:
        super().__init__()
        self.conv, self.grid, self.mode = nn.Conv2d(3, 4, 1), grid, mode

    def forward(self, x):
        return resize_map(self.conv(x), self.grid, self.mode)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "grid", "mode"),
    [
        ((14, 14), (8, 8), "pool"),
        ((7, 7), (16, 16), "bilinear"),
        ((7, 14), (9, 6), "mixed"),
        ((7, 7), (4, 5), "sequence"),
        ((4, 4), (7, 7), "sequence"),
    ],
)
def test_every_way_to_match_a_grid_exists_in_onnx(size, grid, mode, tmp_path):
    """Averages over windows that do not divide the map have no operator there."""
    pytest.importorskip("onnxruntime")
    made = netsmith.export(Resized(grid, mode), tmp_path / "r.onnx", input_shape=(3, *size))
    assert made.output_shape == (4, *grid)
    assert made.difference < 1e-5


# --- the classifier ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["small", "tokens"])
def test_a_new_classifier_trains_and_leaves_the_rest(last):
    net = build([BLOCKS[0], Block(last, 2, 3)] if last == "tokens" else [Block("tokens", 0, 1), Block("small", 1, 3)])
    before = net.forward_features(X)
    net.reset_classifier(7)
    assert net.num_classes == net.recipe.num_classes == net.recipe.head.classes == 7
    assert torch.equal(net.forward_features(X), before)
    net.freeze()
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    target = torch.tensor([6, 5])
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(net(X), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@torch.no_grad()
def test_without_a_classifier_it_gives_what_the_classifier_saw(net):
    seen = net.forward_head(net.forward_features(X), pre_logits=True)
    params = count_params(net)
    lost = count_params(net.get_classifier())
    net.reset_classifier(0)
    assert net.num_classes == 0
    assert torch.equal(net(X), seen)
    assert torch.equal(net.forward_head(net.forward_features(X), pre_logits=True), seen)
    assert isinstance(net.get_classifier(), nn.Identity)
    assert count_params(net) == params - lost
    net.reset_classifier(4)
    assert net(X).shape == (2, 4)


def test_a_convolution_is_replaced_by_a_convolution():
    layers = [nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()) for _ in range(1)]
    layers += [nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()) for _ in range(3)]
    end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1), nn.Flatten())
    chain = dissect(nn.Sequential(*layers, end).eval(), X, name="net")
    refs = {"net": NetworkRef("net", "test:net", None, 4, INPUT)}
    net = assemble(plan_recipe([Block("net", 0, len(chain))], {"net": chain}, refs), {"net": chain})
    for classes in (5, 0, 3):
        net.reset_classifier(classes)
        assert net(X).shape == (2, classes or 6)
    assert isinstance(net.get_classifier(), nn.Conv2d)


def test_a_new_classifier_is_the_same_each_time_and_draws_from_no_common_stream(net):
    state = torch.get_rng_state()
    net.reset_classifier(7)
    first = net.get_classifier().weight.clone()
    assert torch.equal(torch.get_rng_state(), state)
    net.reset_classifier(7)
    assert torch.equal(net.get_classifier().weight, first)
    net.reset_classifier(7, seed=5)
    assert not torch.equal(net.get_classifier().weight, first)
    with pytest.raises(RecipeError, match="at least 0, not -1"):
        net.reset_classifier(-1)


# --- kept as an artifact ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_network_assembled_by_hand_is_saved_with_its_sources(tmp_path):
    net = rebuildable()
    net.save_pretrained(tmp_path / "a")
    again = Assembled.from_pretrained(tmp_path / "a")
    assert torch.equal(again(X), net(X))
    manifest = read_manifest(tmp_path / "a")
    assert [(row["source"], row["sha256"]) for row in manifest["provenance"]] == [
        (source, "ab" * 32) for source, _ in SOURCES.values()
    ]
    assert manifest["params"] == count_params(net)
    assert manifest["macs"] == count_macs(net, INPUT.input_size)
    card = (tmp_path / "a" / "README.md").read_text()
    for text in (
        "- accuracy: not measured with these weights",
        "- budget: none",
        f"- `netsmith:small_vit`, sha256 `{'ab' * 32}`, licence not stated",
        "- input: images in [0, 1], resized to 3x16x16 (bilinear), minus [0.5, 0.5, 0.5], over [0.25, 0.25, 0.25]",
        str(net.recipe),
        'netsmith.load("THIS_FOLDER")',
    ):
        assert text in card, text


@torch.no_grad()
@pytest.mark.parametrize("classes", [7, 0])
def test_a_new_classifier_is_saved_and_loaded(classes, tmp_path):
    net = rebuildable()
    net.reset_classifier(classes)
    net.save_pretrained(tmp_path / "a")
    again = netsmith.from_pretrained(tmp_path / "a")
    assert again.num_classes == classes
    assert torch.equal(again(X), net(X))
    assert netsmith.load_source(str(tmp_path / "a")).num_classes == classes


@torch.no_grad()
def test_an_assembled_network_of_other_widths_is_saved_and_loaded(tmp_path):
    net = rebuildable()
    half = netsmith.resize(net, netsmith.width_groups(net, X).accepted, 0.5)
    assert isinstance(half, Assembled)
    half.save_pretrained(tmp_path / "a")
    again = netsmith.load(tmp_path / "a")
    assert torch.equal(again(X), half(X))
    manifest = read_manifest(tmp_path / "a")
    assert manifest["params"] == count_params(half) < count_params(net)
    assert [row["source"] for row in manifest["provenance"]] == [source for source, _ in SOURCES.values()]


def test_a_non_commercial_source_binds_the_whole(tmp_path):
    net = rebuildable()
    net.recipe = netsmith.Recipe.from_json(
        net.recipe.to_json().replace("netsmith:small_vit", "timm:convnextv2_atto.fcmae_ft_in1k")
    )
    net.save_pretrained(tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["commercial"] is False
    assert manifest["licence"] == "not stated AND cc-by-nc-4.0"
    card = (tmp_path / "a" / "README.md").read_text()
    assert "- **non-commercial**: a source forbids commercial use" in card
    assert "licence cc-by-nc-4.0 (**non-commercial**), https://huggingface.co/timm/convnextv2_atto" in card
    assert net.pretrained_cfg["commercial"] is False
    exported = netsmith.export(net, tmp_path / "net.safetensors")
    assert exported.facts["commercial"] is False
    assert [row["source"] for row in exported.facts["sources"]] == [
        "netsmith:cifar_resnet20",
        "timm:convnextv2_atto.fcmae_ft_in1k",
    ]


def test_sources_that_are_gone_do_not_hinder_saving(net, tmp_path):
    net.save_pretrained(tmp_path / "a")
    rows = read_manifest(tmp_path / "a")["provenance"]
    assert [row["source"] for row in rows] == ["test:deep", "test:small", "test:tokens"]
    with pytest.raises(RecipeError, match="'deep' of the recipe has the source 'test:deep', expected an architecture"):
        netsmith.load(tmp_path / "a")
