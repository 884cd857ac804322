"""`hf:ORG/NAME` wherever a source is taken; the Hub is a stand-in here: a folder, no network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

import netsmith
from netsmith.cli.main import main
from netsmith.config import load_morph_config
from netsmith.errors import HubError, SourceError
from netsmith.networks import hub
from netsmith.networks.sources import parse_source
from netsmith.networks.trained import save_network
from netsmith.networks.zoo import describe_source, load_source


def plain():
    return load_source(
        "netsmith:plain_cnn", input_size=(1, 8, 8), num_classes=10, options={"widths": [4, 6], "depth": 1}
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """What the Hub holds: `you/small`, a network, and `you/any`, a morphable one."""
    home = tmp_path_factory.mktemp("hub")
    save_network(home / "you/small", plain(), counts={"params": 100, "macs": 1000}, metrics={}, config={})
    result = netsmith.morph(plain(), netsmith.open_data("digits"), space={"widths": (0.5, 1.0)}, ratios=(1.0,))
    netsmith.save_morphed(result, home / "you/any")
    (home / "you/empty").mkdir()
    return home


@pytest.fixture
def online(made, monkeypatch):
    """The names that were fetched, in order."""
    fetched = []

    def snapshot_download(repo_id, **named):
        fetched.append(repo_id)
        if not (made / repo_id).is_dir():
            raise type("RepositoryNotFoundError", (Exception,), {})("404")
        return str(made / repo_id)

    monkeypatch.setattr(hub, "unreachable", lambda url: "")
    monkeypatch.setattr(hub, "_brought", {})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return fetched


def test_an_artifact_of_the_hub_is_a_source(online, made):
    network = load_source("hf:you/small")
    assert (network.name, network.source, network.num_classes) == ("small", "hf:you/small", 10)
    assert network.provenance.source == "hf:you/small"
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(network.model(x), load_source(str(made / "you/small")).model(x))
    info = describe_source("hf:you/small")
    assert (info.params, info.source) == (100, "hf:you/small")
    assert online == ["you/small"], "fetched once"


def test_a_size_of_a_morphable_one_is_a_source(online):
    assert str(parse_source("hf:you/any@0.5")) == "hf:you/any@0.5"
    half, full = (netsmith.count_params(load_source(f"hf:you/any{at}").model) for at in ("@0.5", ""))
    assert half < full
    with pytest.raises(SourceError, match=r"'hf:you/small@0.5': only a morphable artifact has sizes"):
        load_source("hf:you/small@0.5")


@pytest.mark.parametrize("verb", ["dissect", "evaluate", "export", "compare", "sample", "train"])
def test_every_verb_that_takes_a_source_takes_it(online, verb, tmp_path, capsys):
    out = tmp_path / "out"
    config = tmp_path / "train.yaml"
    config.write_text("network: hf:you/small\ndata: digits\ntraining: {epochs: 1, batch_size: 512, lr: 0.01}\n")
    arguments = {
        "dissect": ["hf:you/small"],
        "evaluate": ["hf:you/small", "--data", "digits"],
        "export": ["hf:you/small", "--out", f"{out}.safetensors"],
        "compare": ["hf:you/small", "hf:you/any@0.5", "--data", "digits", "--images", "32"],
        "sample": ["hf:you/any", "--ratio", "0.5", "--out", str(out)],
        "train": [str(config), "--out", str(out)],
    }[verb]
    assert main([verb, *arguments]) == 0, capsys.readouterr().err
    if verb == "train":
        manifest = json.loads((out / "artifact" / "manifest.json").read_text())
        assert manifest["source"] == "netsmith:plain_cnn", "what builds it needs no Hub"
        assert manifest["provenance"][0]["source"] == "hf:you/small"


def test_a_config_keeps_the_name_on_the_hub(online, tmp_path):
    config = tmp_path / "morph.yaml"
    config.write_text("network: hf:you/small\ndata: digits\n")
    assert load_morph_config(config).network.source == "hf:you/small"
    assert main(["morph", str(config), "--plan"]) == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "hf:you/unknown",
            "'you/unknown' is neither a folder here nor a repository of the Hugging Face Hub that you may",
        ),
        ("hf:you/empty", "'you/empty' of the Hub holds no artifact of Netsmith"),
        ("hf:small", "'hf:small' must be hf:ORG/NAME, the name of an artifact on the Hugging Face Hub"),
        ("hf:", "'hf:' must be hf:ORG/NAME"),
        ("hf:you/small#w.safetensors", "must be hf:ORG/NAME"),
        ("hf:you/../small", "must be hf:ORG/NAME"),
        ("hf:you/any@much", "behind the @ goes a ratio above 0, such as hf:you/any@0.5"),
        ("hub:you/small", "unknown kind 'hub:'. Known: 'timm', 'torchvision', 'netsmith', 'smp', 'py', 'hf'"),
    ],
)
def test_what_is_no_artifact_there_is_one_message(online, source, message, capsys):
    assert main(["dissect", source]) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert "Traceback" not in said


@pytest.mark.parametrize("verb", ["sample", "explore"])
def test_verbs_of_all_sizes_want_no_size(online, verb, tmp_path, capsys):
    more = ["--ratio", "0.5", "--out", str(tmp_path / "out")] if verb == "sample" else ["--port", "0"]
    assert main([verb, "hf:you/any@0.5", *more]) == 2
    assert "Name it without '@0.5'" in capsys.readouterr().err


def test_offline_is_one_message_and_an_earlier_download_serves(made, monkeypatch, tmp_path, capsys):
    """The Hub's own cache: what `snapshot_download` leaves behind, made by hand."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_brought", {})
    assert main(["dissect", "hf:you/small"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "'you/small' is neither a folder here nor downloaded before" in said
    assert "out of reach (HF_HUB_OFFLINE is set)" in said
    with pytest.raises(HubError):
        load_source("hf:you/small")
    commit = "0" * 40
    place = tmp_path / "cache" / "models--you--small"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(made / "you/small", place / "snapshots" / commit)
    monkeypatch.setattr(hub, "fetch", lambda repo_id: _cached(repo_id, tmp_path / "cache"))
    assert load_source("hf:you/small").num_classes == 10


_fetch = hub.fetch


def _cached(repo_id: str, cache: Path) -> Path:
    return _fetch(repo_id, cache_dir=cache)
