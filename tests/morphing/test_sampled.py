"""Networks whose widths were changed: saved, and loaded again, whatever they began as."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from morph_networks import tiny
from torch import nn

import netsmith
from netsmith.artifacts.artifact import read_manifest
from netsmith.cli.main import main
from netsmith.data.splits import open_data
from netsmith.errors import ArtifactError, ChannelError
from netsmith.morphing.pipeline import Morphed, morph
from netsmith.morphing.saving import save_morphed
from netsmith.networks.network import load_source
from netsmith.widths.folding import fold_batch_norms
from netsmith.widths.groups import resize, width_groups

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Mine(nn.Module):
    """Somebody's own network."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU())
            self.head = nn.Linear(12, 10)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean(dim=(2, 3)))


def halved(model: nn.Module, widths: float | dict[str, int] = 0.5) -> nn.Module:
    return resize(model, width_groups(model, X).accepted, widths)


def changed(model: nn.Module) -> nn.Module:
    """As after a training: every number is another."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.25).add_(0.01)
    return model


@torch.no_grad()
def same(one: nn.Module, other: nn.Module) -> bool:
    return torch.equal(one.eval()(X), other.eval()(X))


@pytest.mark.parametrize(
    "make",
    [
        halved,
        lambda m: halved(m, {"body.0": 3}),
        lambda m: fold_batch_norms(m, X),
        lambda m: halved(fold_batch_norms(m, X)),
        lambda m: halved(halved(m), {"body.3": 24}),
        lambda m: halved(fold_batch_norms(halved(m), X)),
        lambda m: changed(halved(m)),
        lambda m: copy.deepcopy(halved(m)),
        lambda m: pickle.loads(pickle.dumps(halved(m))),
    ],
)
def test_a_network_of_a_class_of_ones_own_is_loaded_into_one(make, tmp_path):
    made = make(Mine())
    netsmith.save_pretrained(made, tmp_path / "a")
    other = Mine(seed=5)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    for load in (netsmith.load, netsmith.from_pretrained):
        assert same(load(tmp_path / "a", into=other), made)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    with pytest.raises(
        ArtifactError, match=r"as a module \(Mine\) that no source string .* netsmith.load\('.*a', into=m"
    ):
        netsmith.load(tmp_path / "a")
    assert "into=module" in (tmp_path / "a/README.md").read_text()
    assert main(["evaluate", str(tmp_path / "a"), "--data", "digits"]) == 2


def test_another_class_is_refused(tmp_path):
    netsmith.save_pretrained(halved(Mine()), tmp_path / "a")
    with pytest.raises(ChannelError, match="this network has no such tensor"):
        netsmith.load(tmp_path / "a", into=tiny().model)
    made = halved(Mine())
    made.head = nn.Linear(made.head.in_features, 4)
    netsmith.save_pretrained(made, tmp_path / "b")
    with pytest.raises(netsmith.NetsmithError, match=r"head.weight"):
        netsmith.load(tmp_path / "b", into=Mine())


def test_a_network_of_a_source_builds_itself(tmp_path):
    network = tiny()
    made = changed(halved(halved(network.model)))
    netsmith.save_pretrained(made, tmp_path / "a")
    assert same(netsmith.load(tmp_path / "a"), made)
    again = load_source(str(tmp_path / "a"))
    assert same(again.model, made)
    assert again.preprocess == network.preprocess
    assert main(["evaluate", str(tmp_path / "a"), "--data", "digits", "--quiet"]) == 0
    manifest = read_manifest(tmp_path / "a")
    assert manifest["params"] == netsmith.count_params(made)
    assert manifest["macs"] == netsmith.count_macs(made, (1, 8, 8))
    assert f"{manifest['params']:,} parameters, {manifest['macs']:,} MACs" in (tmp_path / "a/README.md").read_text()
    # what was loaded is changed once more, and is a base for others
    third = halved(netsmith.load(tmp_path / "a"), 2.0)
    netsmith.save_pretrained(third, tmp_path / "b")
    assert same(netsmith.load(tmp_path / "b"), third)
    with pytest.raises(ArtifactError, match="kind 'network', which is not loaded into a module: leave 'into' out"):
        netsmith.load(_trained(tmp_path), into=Mine())


def _trained(folder):
    from netsmith.networks.trained import save_network

    return save_network(folder / "trained", tiny(), counts={"params": 1, "macs": 1}, metrics={}, config={})


def test_networks_of_other_libraries_and_artifacts(tmp_path):
    x = torch.randn(1, 3, 64, 64)
    vit = load_source(
        "timm:test_vit", pretrained=False, num_classes=4, input_size=(3, 64, 64), options={"img_size": 64}
    )
    half = resize(vit.model, width_groups(vit.model, x).accepted, 0.5)
    netsmith.save_pretrained(half, tmp_path / "vit")
    with torch.no_grad():
        assert torch.equal(netsmith.load(tmp_path / "vit")(x), half.eval()(x))
    half = halved(netsmith.load(_trained(tmp_path)))
    netsmith.save_pretrained(half, tmp_path / "half")
    assert same(netsmith.load(tmp_path / "half"), half)


def morphed(network) -> Morphed:
    return morph(network, open_data("digits"), training=None, ratios=(0.5,), generator="nested")


@pytest.mark.parametrize("own", [False, True])
def test_what_at_gives_is_saved_from_python(own, tmp_path):
    base = load_source(Mine(), input_size=(1, 8, 8), num_classes=10, mean=[0.0], std=[1.0]) if own else tiny()
    result = morphed(base)
    save_morphed(result, tmp_path / "any")
    into = {"into": Mine(seed=3)} if own else {}
    loaded = netsmith.load(tmp_path / "any", **into)
    for model in (result.model, loaded):
        made = changed(model.at(0.5))
        netsmith.save_pretrained(made, tmp_path / "half", overwrite=True)
        assert same(netsmith.load(tmp_path / "half", **into), made)
        manifest = read_manifest(tmp_path / "half")
        assert (manifest["from"]["name"], manifest["fitted"]) == (f"{base.name}_morph", True)
        assert manifest["classes"] == [str(k) for k in range(10)]
    smaller = halved(loaded.at({result.space.names[0]: 0.5, result.space.names[1]: 6}) if own else loaded.at(0.5))
    netsmith.save_pretrained(smaller, tmp_path / "smaller")
    assert same(netsmith.load(tmp_path / "smaller", **into), smaller)
    # a network that was sampled is morphed in its turn
    again = morphed(
        load_source(netsmith.load(tmp_path / "half", **into), input_size=(1, 8, 8))
        if own
        else load_source(str(tmp_path / "half"))
    )
    save_morphed(again, tmp_path / "again")
    assert same(netsmith.load(tmp_path / "again", **into).at(0.5), again.model.at(0.5))


def test_what_was_made_in_another_way_is_not_called_sampled(tmp_path):
    with pytest.raises(ArtifactError, match="This Mine was never saved"):
        netsmith.save_pretrained(Mine(), tmp_path / "a")


def _eps(model: nn.Module) -> None:
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eps = 0.5


def _activation(model: nn.Module) -> None:
    name = next(n for n, m in model.named_modules() if isinstance(m, nn.ReLU))
    model.set_submodule(name, nn.Tanh())


def _head(model: nn.Module) -> None:
    name, old = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    model.set_submodule(name, nn.Linear(old.in_features, 5))


@pytest.mark.parametrize("change", [_eps, _activation, _head])
def test_a_network_changed_after_it_was_resized_is_not_saved(change, tmp_path):
    network = load_source("netsmith:plain_cnn", num_classes=10, input_size=(1, 8, 8), options={"widths": [8, 8]})
    half = halved(network.model)
    netsmith.save_pretrained(half, tmp_path / "as it is")
    change(half)
    with pytest.raises(ArtifactError, match=r"changed after it was resized: layers or their settings differ"):
        netsmith.save_pretrained(half, tmp_path / "changed")
    assert not (tmp_path / "changed").exists()


def test_a_module_of_other_layers_or_without_values_takes_no_weights(tmp_path):
    netsmith.save_pretrained(halved(Mine()), tmp_path / "half")
    other = Mine()
    _activation(other)
    with pytest.raises(ArtifactError, match="was saved of another network than is built here"):
        netsmith.load(tmp_path / "half", into=other)
    with pytest.raises(ArtifactError, match="on the meta device and has no values"):
        netsmith.load(tmp_path / "half", into=Mine().to("meta"))


def test_what_is_under_a_wrapper_is_saved(tmp_path):
    half = halved(Mine())
    netsmith.save_pretrained(nn.DataParallel(half), tmp_path / "half")
    with torch.no_grad():
        assert torch.equal(netsmith.load(tmp_path / "half", into=Mine())(X), half(X))
