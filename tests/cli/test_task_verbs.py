"""`netsmith train` and `evaluate` for every task: the presets of the paper's data sets, on small stand-ins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from netsmith.cli.main import main
from netsmith.config import load_train_config
from netsmith.errors import ConfigError
from shapes import draw, write_masks

QUICK = ("training.epochs=1", "training.batch_size=16", "training.warmup_epochs=0")


def write_pictures(folder, classes, count, size):
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for i in range(count):
            Image.fromarray(draw(100 * label + i, size)[0]).save(folder / f"class{label}" / f"{i}.png")


def train(preset, out, *changes):
    words = [word for change in (*QUICK, *changes) for word in ("--set", change)]
    assert main(["train", preset, "--out", str(out), "--device", "cpu", "--quiet", *words]) == 0
    return json.loads((out / "summary.json").read_text())


def evaluate(out, data, capsys, *more):
    capsys.readouterr()
    words = ["evaluate", str(out / "artifact"), "--data", data, "--batch", "2", "--device", "cpu", *more]
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    return facts, capsys.readouterr().out


@pytest.mark.parametrize("preset", ["train_lenet_mnist", "train_lenet_fashion_mnist"])
def test_lenet_on_digits_of_28_pixels(preset, tmp_path, capsys):
    summary = train(preset, tmp_path / "out", "data=digits", "data.size=28")
    assert summary["params"] == 61_706
    assert summary["accuracy"]["test"] > 0.5
    facts, table = evaluate(tmp_path / "out", "digits", capsys, "--size", "28")
    assert facts["accuracy"] == facts["metrics"]["accuracy"] == summary["accuracy"]["test"]
    assert f"{100 * facts['accuracy']:.1f}%" in table, "of 359 images"


def test_resnet20_on_a_folder_of_pictures(tmp_path):
    write_pictures(tmp_path / "pictures", 4, 8, 32)
    data = f"data=folder:{tmp_path}/pictures"
    summary = train("train_resnet20_cifar100", tmp_path / "out", data, "network.options={widths: [4, 4, 8]}")
    assert summary["task"] == "classification"
    assert set(summary["metrics"]["test"]) == {"accuracy", "loss"}
    again = load_train_config(tmp_path / "out" / "config.yaml").data.source
    assert Path(again.removeprefix("folder:")).resolve() == (tmp_path / "pictures").resolve()


@pytest.mark.slow
def test_unet_on_shapes(tmp_path, capsys):
    write_masks(tmp_path / "shapes", {"train": 8, "val": 2, "test": 2})
    data = f"masks:{tmp_path}/shapes"
    small = "network.options={encoder_depth: 3, decoder_channels: [16, 8, 8]}"
    changes = (f"data={data}", "data.size=32", "pretrained=false", "training.precision=no", small)
    summary = train("train_unet_voc", tmp_path / "out", *changes)
    assert (summary["task"], summary["primary"]) == ("segmentation", "miou")
    assert set(summary["metrics"]["validation"]) >= {"miou", "f1", "accuracy", "loss", "iou/background"}
    facts, table = evaluate(tmp_path / "out", data, capsys, "--size", "32")
    assert facts["metrics"] == pytest.approx(summary["metrics"]["test"], rel=1e-5)
    assert (facts["task"], facts["primary"]) == ("segmentation", "miou")
    assert f"{100 * facts['metrics']['miou']:.0f}%" in table, "of two images"
    assert main(["evaluate", str(tmp_path / "out/artifact"), "--data", "digits"]) == 2
    assert "takes images of 3 channels" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "out/artifact"), "--data", data, "--task", "generation"]) == 2
    assert "Take a variational autoencoder" in capsys.readouterr().err


def test_vae_on_pictures_of_no_class(tmp_path, capsys):
    write_pictures(tmp_path / "pictures", 1, 24, 16)
    data = f"folder:{tmp_path}/pictures"
    changes = (f"data={data}", "data.size=16", "network.options={latent: 4, width: 4}")
    summary = train("train_vae_celeba", tmp_path / "out", *changes)
    assert (summary["task"], summary["primary"]) == ("generation", "elbo")
    assert summary["metrics"]["test"]["loss"] == -summary["metrics"]["test"]["elbo"]
    facts, table = evaluate(tmp_path / "out", data, capsys, "--size", "16")
    assert facts["metrics"] == pytest.approx(summary["metrics"]["test"], rel=1e-5)
    assert "accuracy" not in facts
    assert facts["elbo"] == facts["metrics"]["elbo"]
    assert f"{facts['metrics']['elbo']:.4g}" in table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task: detection", r"task: expected 'classification', 'segmentation' or 'generation', got 'detec"),
        ("task: segmentation\ntraining: {mixup: 0.2}", "mixup and training.cutmix mix labels .* leave them 0 for segm"),
        ("task: generation\ntraining: {label_smoothing: 0.1}", "label_smoothing means nothing for generation"),
    ],
)
def test_faults_of_tasks(change, message):
    with pytest.raises(ConfigError, match=message):
        load_train_config(f"network: netsmith:conv_vae\ndata: digits\n{change}\n")


def test_paths_of_masks_start_from_the_config(tmp_path):
    (tmp_path / "train.yaml").write_text("network: netsmith:conv_vae\ndata: masks:scans\ntask: segmentation\n")
    assert load_train_config(tmp_path / "train.yaml").data.source == f"masks:{tmp_path}/scans"
