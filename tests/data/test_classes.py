"""Classes are matched by name: the same names in another order are put right, other names are refused."""

from __future__ import annotations

import json
import re
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import netsmith
from netsmith.cli.main import main
from netsmith.data.classes import by_name, class_lists, order_by_name
from netsmith.data.images import IGNORED
from netsmith.data.splits import MaskedImages, MemoryImages, open_data
from netsmith.errors import DataError
from netsmith.networks.network import load_source
from netsmith.networks.trained import save_network
from netsmith.networks.zoo import ZooEntry
from netsmith.reassembly.members import Parent, judge
from netsmith.training.engine import TrainSettings
from netsmith.training.entry import train_entry
from netsmith.training.tasks import Classification, Segmentation

NAMES = ("cat", "dog", "owl", "pig")
TASK = Classification(4)


class Brightness(nn.Module):
    """Tells images of four levels of grey apart: class k is (k + 1) / 5."""

    def __init__(self, names=NAMES):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Identity())
        self.pretrained_cfg = {"mean": [0.0], "std": [1.0], "input_size": [1, 8, 8], "label_names": names}

    def forward(self, x):
        levels = torch.arange(1, 5).view(1, 4, 1, 1) / 5
        return -100 * (x - levels).abs().mean(dim=(2, 3))


def pictures(classes, levels):
    """Two grey images a class, of the level that `levels` says."""
    labels = torch.arange(len(classes)).repeat(2)
    pixels = torch.tensor([51 * (levels[classes[k]] + 1) for k in labels]).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return MemoryImages(pixels.to(torch.uint8), labels, tuple(classes))


LEVELS = {name: i for i, name in enumerate(NAMES)}


@pytest.mark.parametrize(
    "classes", [NAMES, ("pig", "cat", "owl", "dog"), ("owl", "cat"), ("Pig", "CAT", "Owl"), ("3", "0", "2", "1")]
)
def test_the_same_names_in_any_order_or_a_part_of_them(classes):
    levels = {**LEVELS, **{n.title(): i for n, i in LEVELS.items()}, "CAT": 0, **{str(i): i for i in range(4)}}
    images = pictures(classes, levels)
    assert netsmith.evaluate(Brightness(), images, TASK)["accuracy"] == 1.0
    found = by_name(Brightness(), images, 4)
    assert found.classes == NAMES
    assert torch.equal(found.subset([1, 0]).labels, found.labels[[1, 0]])
    assert (found is images) == (classes == NAMES)


def test_other_names_are_refused_and_both_lists_are_shown():
    names = ("ant", "bee", "fly", "owl")
    images = pictures(names, {name: i for i, name in enumerate(names)})
    message = r"'Brightness' tells 'cat', 'dog', 'owl', 'pig' apart, and the data has 'ant', 'bee', 'fly', 'owl': other"
    with pytest.raises(DataError, match=message):
        netsmith.evaluate(Brightness(), images, TASK)
    many = [f"class {i}" for i in range(40)]
    with pytest.raises(DataError, match=r"'class 7', \.\.\. \(40 in all\) apart"):
        by_name(Brightness(many), images, 40)
    assert by_name(Brightness(None), images, 4) is images, "who tells no names is taken at the word of the order"


def test_folders_named_by_numbers_are_the_networks_numbers():
    names = tuple(sorted(map(str, range(12))))  # 0, 1, 10, 11, 2, ...: as folders are read
    assert order_by_name([], names, 12) == tuple(map(int, names))
    images = MemoryImages(torch.zeros(12, 1, 8, 8, dtype=torch.uint8), torch.arange(12), names)
    assert by_name(nn.Identity(), images, 12).labels.tolist() == list(map(int, names))
    assert by_name(nn.Identity(), images, 20) is images, (
        "a part of the numbers tells nothing of a network without names"
    )


def test_masks_follow_and_what_is_ignored_stays_so():
    masks = torch.tensor([[0, 1], [2, IGNORED]], dtype=torch.uint8).view(1, 1, 2, 2)
    labels = torch.zeros(1, dtype=torch.int64)
    images = MaskedImages(
        MemoryImages(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), labels, ("x",)),
        MemoryImages(masks, labels, ("x",)), ("sky", "road", "car"),
    )  # fmt: skip

    class Dense(nn.Module):
        pretrained_cfg: ClassVar = {
            "mean": [0.0],
            "std": [1.0],
            "input_size": [1, 2, 2],
            "label_names": ["car", "road", "sky"],
        }

        def forward(self, x):
            right = torch.tensor([[2, 1], [0, 0]])
            return 9.0 * nn.functional.one_hot(right, 3).permute(2, 0, 1).float().expand(len(x), -1, -1, -1)

    assert by_name(Dense(), images, 3).targets([0]).tolist() == [[[2, 1], [0, IGNORED]]]
    assert netsmith.evaluate(Dense(), images, Segmentation(3))["miou"] == 1.0


def test_imagenet_goes_by_each_of_its_names():
    model = timm.create_model("test_resnet", pretrained=False)
    for names in (
        ("n01443537", "n01440764"),
        ("goldfish", "tench"),
        ("goldfish, Carassius auratus", "tench, Tinca tinca"),
    ):
        images = MemoryImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), names)
        assert by_name(model, images, 1000).labels.tolist() == [1, 0]
    assert order_by_name(class_lists(model, 1000)[0], ("crane", "tench"), 1000) is None, "there are two cranes"
    assert load_source("timm:test_resnet", pretrained=False).model.pretrained_cfg["label_names"] == []


def write_folders(root, classes, levels):
    for part, count in (("train", 6), ("val", 3), ("test", 4)):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                level = np.full((8, 8), 51 * (levels[name] + 1) - i, np.uint8)
                Image.fromarray(level).save(root / part / name / f"{i}.png")
    return f"folder:{root}"


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """An artifact that tells four levels of grey apart, and its folders."""
    home = tmp_path_factory.mktemp("animals")
    source = write_folders(home / "a", NAMES, LEVELS)
    entry = ZooEntry(source="netsmith:plain_cnn", options={"widths": [8, 12], "depth": 1})
    how = TrainSettings(epochs=30, batch_size=8, lr=0.05)
    train_entry(entry, open_data(source), how, home, device="cpu")
    return home


def evaluated(animals, data, capsys):
    code = main(["evaluate", str(animals / "artifact"), "--data", data, "--json", "--quiet", "--batch", "1"])
    out = capsys.readouterr()
    return json.loads(out.out)["accuracy"] if code == 0 else (code, out.err)


def test_an_artifact_on_folders_of_another_order_or_other_names(animals, tmp_path, capsys):
    expected = evaluated(animals, f"folder:{animals / 'a'}", capsys)
    assert expected == 1.0
    turned = {"CAT": 0, "Pig": 3, "dog": 1, "owl": 2}  # as folders are sorted: another order
    assert evaluated(animals, write_folders(tmp_path / "turned", turned, turned), capsys) == 1.0
    few = {"dog": 1, "pig": 3}
    assert evaluated(animals, write_folders(tmp_path / "few", few, few), capsys) == 1.0
    other = {"ant": 0, "bee": 1, "fly": 2, "gnu": 3}
    code, message = evaluated(animals, write_folders(tmp_path / "other", other, other), capsys)
    assert code == 2
    assert re.search("'cat', 'dog', 'owl', 'pig' apart, and the data has 'ant', 'bee', 'fly', 'gnu'", message)


def test_training_on_and_morphing_keep_the_order_of_the_artifact(animals, tmp_path):
    turned = {"CAT": 0, "Pig": 3, "dog": 1, "owl": 2}
    data = open_data(write_folders(tmp_path / "turned", turned, turned))
    how = TrainSettings(epochs=1, batch_size=8, lr=1e-5)
    summary = train_entry(ZooEntry(source=str(animals / "artifact")), data, how, tmp_path, device="cpu")
    assert summary["accuracy"]["test"] == 1.0
    assert load_source(str(tmp_path / "artifact")).classes == NAMES
    morphed = netsmith.morph(load_source(str(animals / "artifact")), data, training=None, ratios=(1.0,))
    assert morphed.points[0].metrics["test"]["accuracy"] == 1.0
    assert morphed.data.classes == NAMES
    other = {"ant": 0, "bee": 1, "fly": 2, "gnu": 3}
    refused = open_data(write_folders(tmp_path / "other", other, other))
    for way in (
        lambda: train_entry(ZooEntry(source=str(animals / "artifact")), refused, how, tmp_path, device="cpu"),
        lambda: netsmith.train(netsmith.load(animals / "artifact"), refused, TASK, how, device="cpu"),
        lambda: netsmith.morph(load_source(str(animals / "artifact")), refused, training=None),
    ):
        with pytest.raises(DataError, match="other names"):
            way()


def test_a_member_of_a_zoo_is_judged_by_name(animals):
    network = load_source(str(animals / "artifact"))
    member = Parent(network, netsmith.dissect(network.model, torch.rand(2, *network.preprocess.input_size)))
    turned, other = ("pig", "cat", "owl", "dog"), ("ant", "bee", "fly", "gnu")
    assert judge(member, pictures(turned, LEVELS), 4) == 1.0
    assert judge(member, pictures(other, {name: i for i, name in enumerate(other)}), 4) is None


def test_answers_are_compared_by_name(animals, tmp_path, capsys):
    """Two artifacts of the same classes in another order give the same answers."""
    order = ("pig", "cat", "owl", "dog")
    folder = tmp_path / "turned"
    network = load_source(str(animals / "artifact"))
    last = list(network.model.modules())[-1]
    places = [NAMES.index(name) for name in order]
    with torch.no_grad():
        for value in last.parameters():
            value.copy_(value[places].clone())
    network.classes = order
    save_network(folder, network, counts={"params": 1, "macs": 1}, metrics={}, config={})
    sources = [str(animals / "artifact"), str(folder)]
    argv = ["compare", *sources, "--data", f"folder:{animals / 'a'}", "--images", "16", "--quiet", "--device", "cpu"]
    assert main(argv) == 0
    assert "same first class: 100.00% of images" in capsys.readouterr().out
