"""Images are prepared as the network was trained to see them, or not at all: by its source, or by mean and std."""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch
from torch import nn

import netsmith
from netsmith.cli.main import main
from netsmith.data.splits import open_data
from netsmith.errors import SourceError
from netsmith.networks.network import Preprocess, load_source
from netsmith.networks.smp import smp_build
from netsmith.networks.sources import Facts, parse_source
from netsmith.networks.zoo import ZooEntry
from netsmith.training.engine import TrainSettings
from netsmith.training.entry import train_entry
from netsmith.training.tasks import Classification

TASK = Classification(10)
UNKNOWN = r"meets images, and nothing tells how it wants them\. Give the mean.*mean= and std= \(--mean and --std.*timm:"
OWN = """
from torch import nn

def build():
    def block(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())

    return nn.Sequential(block(1, 4), block(4, 6), block(6, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return f"py:{tmp_path / 'own.py'}:build"


def bare(source="netsmith:plain_cnn"):
    """A network, and its module as somebody else would have built it."""
    options = {"widths": [4, 6], "depth": 1} if source == "netsmith:plain_cnn" else {}
    network = load_source(
        source, num_classes=10, input_size=(1, 8, 8), mean=(0.3,), std=(0.35,), seed=1, options=options
    )
    del network.model.pretrained_cfg
    return network, network.model


@pytest.mark.parametrize("source", ["netsmith:plain_cnn", "netsmith:lenet"])
def test_a_bare_module_meets_no_image_without_its_preprocessing(digits, source):
    network, module = bare(source)
    with pytest.raises(SourceError, match=f"'{type(module).__name__}' {UNKNOWN}"):
        netsmith.evaluate(module, digits.validation, TASK, device="cpu")
    expected = netsmith.evaluate(module, digits.validation, TASK, preprocess=network.preprocess, device="cpu")
    named = netsmith.evaluate(module, digits.validation, TASK, mean=(0.3,), std=(0.35,), device="cpu")
    assert named == expected
    with pytest.raises(SourceError, match="preprocess=, or mean= and std=, but not both"):
        netsmith.evaluate(module, digits.validation, TASK, preprocess=network.preprocess, mean=(0.3,))


def test_every_way_to_images_refuses_it(digits, own, tmp_path):
    networks = [load_source(own, name=name, num_classes=10, input_size=(1, 8, 8)) for name in ("one", "two")]
    training = TrainSettings(epochs=1)
    ways = (
        lambda: netsmith.evaluate(networks[0].model, digits.validation, TASK, preprocess=networks[0].preprocess),
        lambda: netsmith.train(networks[0].model, digits, TASK, training),
        lambda: netsmith.reassemble(networks, digits),
        lambda: netsmith.morph(networks[0], digits, training=None),
        lambda: train_entry(ZooEntry(source=own, input_size=(1, 8, 8)), digits, training, tmp_path, pretrained=True),
        lambda: netsmith.represent(netsmith.dissect(networks[0].model, torch.rand(2, 1, 8, 8)),
                                   networks[0].preprocess(digits.train.images([0, 1]))),
    )  # fmt: skip
    for way in ways:
        with pytest.raises(SourceError, match=UNKNOWN):
            way()


def test_shapes_need_none(own, tmp_path):
    network = load_source(own, input_size=(1, 8, 8))
    assert network.preprocess == Preprocess(None, None, (1, 8, 8))
    example = torch.rand(2, 1, 8, 8)
    assert len(netsmith.dissect(network.model, example)) == 2
    assert len(netsmith.width_groups(network.model, example).accepted) == 3
    assert netsmith.count_macs(network.model, (1, 8, 8)) > 0
    for given, facts in (({}, None), ({"mean": (0.5,), "std": (0.25,)}, [0.5])):
        made = netsmith.export(network, tmp_path / "own.safetensors", overwrite=True, **given)
        assert made.facts.get("mean") == facts
    mean_only = load_source(own, input_size=(1, 8, 8), mean=(0.5,))
    with pytest.raises(SourceError, match=UNKNOWN):
        mean_only.preprocess(example)


def test_timms_networks_tell_it_themselves(digits):
    model = timm.create_model("test_resnet.r160_in1k", pretrained=False, num_classes=10).eval()
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    network = load_source(model)
    assert network.preprocess == Preprocess((0.5,) * 3, (0.5,) * 3, (3, 160, 160), network.preprocess.interpolation)
    grey = timm.create_model("resnet18", pretrained=False, num_classes=10, in_chans=1)
    assert load_source(grey, input_size=(1, 32, 32)).preprocess.mean == pytest.approx((0.449,))


def test_user_code_that_builds_a_network_of_timm(tmp_path):
    (tmp_path / "own.py").write_text("import timm\n\n\ndef build():\n    return timm.create_model('test_resnet')\n")
    assert load_source(f"py:{tmp_path / 'own.py'}:build").preprocess.mean == (0.5, 0.5, 0.5)


def test_modules_that_netsmith_built_remember_it(digits, tmp_path):
    network = load_source("netsmith:plain_cnn", num_classes=10, input_size=(1, 8, 8), mean=(0.3,), std=(0.35,))
    expected = netsmith.evaluate(network.model, digits.validation, TASK, preprocess=network.preprocess, device="cpu")
    assert netsmith.evaluate(network.model, digits.validation, TASK, device="cpu") == expected
    assert load_source(network.model, name="again").preprocess == network.preprocess
    _, module = bare()
    module = load_source(module, num_classes=10, input_size=(1, 8, 8), mean=(0.3,), std=(0.35,), name="mine")
    morphed = netsmith.morph(module, digits, training=None, ratios=(1.0,))
    netsmith.save_morphed(morphed, tmp_path / "any")
    for size in (morphed.model, morphed.model.at(0.5), netsmith.load_morphed(tmp_path / "any", base=bare()[1]).at(0.5)):
        assert load_source(size, num_classes=10).preprocess == module.preprocess


def test_an_artifact_passed_as_a_module_is_as_good_as_its_folder(digits, tmp_path):
    entry = ZooEntry(source="netsmith:plain_cnn", mean=(0.2,), std=(0.4,), options={"widths": [4, 6], "depth": 1})
    summary = train_entry(entry, digits, TrainSettings(epochs=1, batch_size=256), tmp_path, device="cpu")
    module = netsmith.load(tmp_path / "artifact")
    assert netsmith.evaluate(module, digits.test, TASK, device="cpu") == pytest.approx(summary["metrics"]["test"])


@pytest.mark.parametrize(("high", "mean"), [(1, 0.5), (255, 0.5 / 255)])
def test_encoders_bring_theirs(monkeypatch, high, mean):
    smp = pytest.importorskip("segmentation_models_pytorch")
    told = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_range": [0, high]}
    monkeypatch.setattr(smp.encoders, "get_preprocessing_params", lambda name, pretrained: told)
    source = parse_source("smp:Unet/resnet18")
    monkeypatch.setattr(smp.Unet, "__init__", lambda self, **_: nn.Module.__init__(self))
    model = smp_build(source, Facts(input_size=(3, 64, 64)), True, {})
    assert model.pretrained_cfg["mean"] == pytest.approx([mean] * 3)
    unknown = smp_build(source, Facts(input_size=(3, 64, 64)), False, {})
    assert not hasattr(unknown, "pretrained_cfg")


def test_the_command_line_says_the_two_ways_out(own, tmp_path, capsys):
    size = ["--input-size", "1x8x8", "--quiet"]
    for verb in (["evaluate", own, "--data", "digits"], ["compare", own, own, "--out", str(tmp_path / "cmp")]):
        assert main([*verb, *size]) == 2
        assert re.search(f"'build' {UNKNOWN}", capsys.readouterr().err)
    assert not (tmp_path / "cmp").exists()
    assert main(["dissect", own, *size]) == 0
    given = ["--mean", "0.3", "--std", "0.35"]
    capsys.readouterr()
    assert main(["evaluate", own, "--data", "digits", *size, *given, "--json", "--device", "cpu"]) == 0
    loss = json.loads(capsys.readouterr().out)["metrics"]["loss"]
    network = load_source(own, input_size=(1, 8, 8), mean=(0.3,), std=(0.35,))
    found = netsmith.evaluate(network.model, open_data("digits").test, TASK, mean=(0.3,), std=(0.35,), device="cpu")
    assert loss == pytest.approx(found["loss"])
    assert main(["compare", own, "netsmith:plain_cnn", *size, *given, "--images", "64", "--device", "cpu"]) == 0
    assert main(["evaluate", own, "--data", "digits", *size, "--mean", "0.3", "much"]) == 2
    assert "a number was expected, 'much' came" in capsys.readouterr().err


def test_zoo_files_and_configs(own, tmp_path, capsys):
    entry = f'{{source: "{own}", name: NAME, input_size: [1, 8, 8]MORE}}'
    zoo = tmp_path / "zoo.yaml"

    def check(more):
        names = [entry.replace("NAME", name).replace("MORE", more) for name in ("one", "two")]
        zoo.write_text("networks:\n" + "\n".join(f"  - {text}" for text in names))
        return main(["zoo", "check", str(zoo), "--quiet"])

    assert check("") == 2
    assert len(re.findall(UNKNOWN, capsys.readouterr().err)) == 2
    assert check(", mean: [0.3], std: [0.35]") == 0
    config = tmp_path / "zoo_run.yaml"
    config.write_text("zoo: zoo.yaml\ndata: digits\npartition: {k: 2}\nbudget: {params: 1M}\n")
    check("")
    capsys.readouterr()
    assert main(["reassemble", str(config), "--out", str(tmp_path / "out"), "--quiet", "--device", "cpu"]) == 2
    assert re.search(UNKNOWN, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("size", "said"), [((40, 60), True), ((60, 60), False), ((32, 32), False)])
def test_a_squeeze_of_images_is_said_once(size, said, caplog):
    prepare = Preprocess((0.5,), (0.5,), (1, 32, 32), name=f"net{size}")
    with caplog.at_level("INFO", logger="netsmith"):
        for _ in range(2):
            prepare(torch.rand(2, 1, *size))
    texts = [r.getMessage() for r in caplog.records]
    wanted = f"images of 40x60 (height x width) are squeezed to the 32x32 of 'net{size}'. A size of 32x32 cuts"
    assert [t.startswith(wanted) for t in texts] == [True] * said


def test_a_mean_of_other_values_is_refused():
    with pytest.raises(SourceError, match="If it is of values from 0 to 255, divide it by 255, and std too"):
        load_source(
            nn.Flatten(), input_size=(3, 8, 8), num_classes=192, mean=(123.0, 116.0, 103.0), std=(58.0, 57.0, 57.0)
        )
