"""Segmentation and image generation from data to artifact, on pictures drawn by code and on digits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netsmith.artifacts.artifact import load, read_manifest
from netsmith.cli.console import Console, RunLog
from netsmith.cli.session import Session
from netsmith.cli.train import show
from netsmith.data.splits import open_data
from netsmith.errors import DataError, NetsmithError, SourceError, TrainingError
from netsmith.networks.network import load_source
from netsmith.networks.zoo import ZooEntry
from netsmith.training.engine import TrainSettings, evaluate, train
from netsmith.training.entry import train_entry
from netsmith.training.tasks import Generation, Segmentation
from shapes import write_masks


class Dense(nn.Module):
    """Convolutions that keep the size, one class a pixel; or half of it."""

    def __init__(self, num_classes=3, stride=1):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 12, 5, stride, 2), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, num_classes, 1),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


@pytest.fixture
def dense(tmp_path):
    path = tmp_path / "dense.py"
    path.write_text(
        "from test_training_tasks import Dense\n\n\ndef build(num_classes=3, stride=1):\n"
        "    return Dense(num_classes, stride)\n"
    )
    return f"py:{path}:build"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write_masks(folder, {"train": 48, "val": 12, "test": 12})
    return open_data(f"masks:{folder}")


def settings(**changes):
    return TrainSettings(**{"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 0.02, **changes})


def test_segmentation_from_data_to_artifact(dense, shapes, tmp_path):
    entry = ZooEntry(source=dense, input_size=(3, 32, 32))
    summary = train_entry(entry, shapes, settings(epochs=8, augment=True), tmp_path, task="segmentation")
    assert (summary["task"], summary["primary"]) == ("segmentation", "miou")
    assert summary["miou"] == {part: summary["metrics"][part]["miou"] for part in ("validation", "test")}
    assert "accuracy" not in summary, "that of pixels stands among the metrics"
    assert summary["history"][0]["miou"] < summary["metrics"]["validation"]["miou"] > 0.8
    best = max(summary["history"], key=lambda entry: entry["miou"])
    assert best["epoch"] == summary["best_epoch"]
    found = load_source(str(tmp_path / "artifact"))
    assert (found.task, found.num_classes) == ("segmentation", 3)
    again = evaluate(found.model, shapes.test, Segmentation(3, classes=shapes.classes), preprocess=found.preprocess)
    assert again == pytest.approx(summary["metrics"]["test"], rel=1e-6)
    assert again["miou"] < again["f1"] < 1
    manifest = read_manifest(tmp_path / "artifact")
    assert manifest["metrics"]["miou_test"] == summary["metrics"]["test"]["miou"]
    card = (tmp_path / "artifact" / "README.md").read_text()
    assert "for segmentation, 3 classes" in card
    assert manifest["metrics"]["test_images"] == summary["images"]["test"] == 12
    assert f"- miou_test: {100 * summary['miou']['test']:.0f}%" in card, "of 12 images"


def test_generation_from_data_to_artifact(tmp_path):
    splits = open_data("digits")
    entry = ZooEntry(source="netsmith:conv_vae", options={"latent": 8, "width": 8})
    summary = train_entry(entry, splits, settings(epochs=4, batch_size=32, lr=0.01), tmp_path, task="generation")
    assert [h["elbo"] for h in summary["history"]] == sorted(h["elbo"] for h in summary["history"])
    assert "accuracy" not in summary, "it stands under its own name"
    assert summary["elbo"] == {part: summary["metrics"][part]["elbo"] for part in ("validation", "test")}
    assert set(summary["images"]) == {"validation", "test"}
    images = splits.test.images(range(len(splits.test)))
    spread = (images - images.mean(0)).square().mean().item()
    assert summary["metrics"]["test"]["reconstruction"] < 0.75 * spread
    found = load_source(str(tmp_path / "artifact"))
    assert (found.task, found.num_classes, found.model.input_size) == ("generation", 0, (1, 8, 8))
    task = Generation((1, 8, 8))
    again = evaluate(found.model, splits.test, task, preprocess=found.preprocess)
    assert again == pytest.approx(summary["metrics"]["test"], rel=1e-6)
    with torch.no_grad():
        restored = task.images(load(tmp_path / "artifact")(found.preprocess(images)))
    assert (restored - images).square().mean().item() == pytest.approx(again["reconstruction"], rel=1e-4)
    assert "for generation, images of 1x8x8" in (tmp_path / "artifact" / "README.md").read_text()


def test_generation_needs_no_labels_and_learns_the_same_after_a_stop(tmp_path):
    splits = open_data("digits")
    parts = (splits.train.subset(range(128)), splits.validation.subset(range(64)))
    entry = ZooEntry(source="netsmith:conv_vae", options={"latent": 4, "width": 4})
    nets = []
    for stop in (False, True):
        net = load_source(entry.source, input_size=(1, 8, 8), options=entry.options)
        arguments = (net.model, parts, Generation((1, 8, 8)), settings(epochs=2, batch_size=64, augment=True))
        folder = tmp_path / str(stop)

        def interrupt(entry, stop=stop):
            if stop and entry["epoch"] == 1:
                raise KeyboardInterrupt

        if stop:
            with pytest.raises(KeyboardInterrupt):
                train(*arguments, checkpoint_dir=folder, on_epoch=interrupt)
            net = load_source(entry.source, input_size=(1, 8, 8), options=entry.options)
            arguments = (net.model, *arguments[1:])
        train(*arguments, checkpoint_dir=folder)
        nets.append(net.model.state_dict())
    assert all(torch.equal(nets[0][k], nets[1][k]) for k in nets[0])


@pytest.mark.parametrize(
    ("network", "task", "data", "message"),
    [
        ({"source": "netsmith:lenet"}, "segmentation", "digits", r"where \(2, 10, h, w\) was expected: take a segm"),
        (
            {"source": "netsmith:conv_vae"},
            "classification",
            "digits",
            "no classes, 10 were asked for .task: gen",
        ),
        ({"source": "netsmith:lenet"}, "generation", "digits", "Take a variational autoencoder for images of 1x8x8"),
        ({"source": "netsmith:plain_cnn"}, "classification", "shapes", "this data set has masks .task: segmentation"),
        ({"source": "dense"}, "segmentation", "digits", "'build' takes images of 3 channels|tells 3 classes apart"),
        ({"source": "dense", "options": {"num_classes": 4}}, "segmentation", "shapes", "tells 4 classes apart and"),
        ({"source": "dense", "options": {"stride": 2}}, "segmentation", "shapes", "16x16 pixels .* masks of 32x32"),
        ({"source": "netsmith:lenet"}, "detection", "digits", "unknown task 'detection'"),
    ],
)
def test_what_does_not_belong_together(network, task, data, message, dense, shapes, tmp_path):
    if network["source"] == "dense":
        network = {**network, "source": dense, "input_size": (3, 32, 32)}
    splits = shapes if data == "shapes" else open_data("digits")
    with pytest.raises((DataError, SourceError, TrainingError), match=message):
        train_entry(ZooEntry.model_validate(network), splits, settings(), tmp_path, task=task)
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_masks_are_not_mixed(mix, shapes):
    with pytest.raises(NetsmithError, match="mixup and cutmix mix the labels of images: for segmentation leave them 0"):
        train(Dense(), shapes, Segmentation(3), settings(**{mix: 0.2}), mean=(0.5,), std=(0.5,))


@pytest.mark.slow
def test_a_unet_from_data_to_artifact(shapes, tmp_path):
    entry = ZooEntry(source="smp:Unet/resnet18", options={"encoder_depth": 3, "decoder_channels": [32, 16, 16]})
    chosen = settings(epochs=4, lr=0.002, augment=True, schedule="onecycle")
    summary = train_entry(entry, shapes, chosen, tmp_path, task="segmentation")
    assert summary["metrics"]["test"]["miou"] > 0.6
    found = load_source(str(tmp_path / "artifact"))
    again = evaluate(found.model, shapes.test, Segmentation(3, classes=shapes.classes), preprocess=found.preprocess)
    assert again == pytest.approx(summary["metrics"]["test"], rel=1e-6)


def test_training_that_makes_a_trained_network_worse_is_undone(tmp_path, caplog, capsys):
    """What it came with is kept, and no place calls it trained further."""
    digits, options = open_data("digits"), {"widths": [8, 12], "depth": 2}
    first = ZooEntry(source="netsmith:plain_cnn", name="plain", options=options)
    before = train_entry(first, digits, settings(batch_size=64), tmp_path / "first")
    again = ZooEntry(source=str(tmp_path / "first/artifact"), name="again")
    (tmp_path / "again").mkdir()
    after = train_entry(again, digits, settings(batch_size=256, lr=5.0), tmp_path / "again")
    assert after["best_epoch"] == 0
    assert after["metrics"] == before["metrics"]
    assert "training made the network worse on validation" in caplog.text
    show([before, after], Session(Console(), RunLog(), ()))
    lines = capsys.readouterr().out.splitlines()
    assert "1 of 1" in lines[1]
    assert "none: training did not help and was undone" in lines[2]
    spoilt = train_entry(first, digits, settings(batch_size=256, lr=5.0), tmp_path / "first")
    assert spoilt["best_epoch"] == 1, "a network that began with random weights is what its training made of it"
