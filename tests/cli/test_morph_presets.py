"""`netsmith morph` from one end to the other: the presets of the paper's data sets, on small stand-ins."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from netsmith.cli.main import main
from shapes import draw, write_masks

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class StandIn:
    """What a preset's data and network are replaced by: changes of both its configs, of either, and its metric."""

    train: str | None
    metric: str
    both: tuple[str, ...]
    trained: tuple[str, ...] = ()
    morphed: tuple[str, ...] = ()


def _small_resnet(classes: int) -> StandIn:
    both = ("data=folder:{data}", "network.options={widths: [4, 4, 8]}", f"network.num_classes={classes}")
    return StandIn(f"resnet20_cifar{'10' if classes == 4 else '100'}", "accuracy", both)


LENET = ("data=digits", "data.size=28")
UNET = (
    "data=masks:{data}",
    "data.size=32",
    "pretrained=false",
    "training.batch_size=8",
    "network.options={encoder_depth: 3, decoder_channels: [16, 8, 8]}",
    "network.mean=[0.45, 0.45, 0.45]",
    "network.std=[0.2, 0.2, 0.2]",
)
# those of MNIST and CIFAR-100 are Fashion-MNIST's and CIFAR-10's with other data
STAND_INS = {
    "morph_fashion_mnist": StandIn("lenet_fashion_mnist", "accuracy", LENET),
    "morph_cifar10": _small_resnet(4),
    "morph_imagenet": StandIn(
        None,
        "accuracy",
        ("data=folder:{data}", "pretrained=false"),
        morphed=("network={source: timm:resnet10t, num_classes: 4, input_size: [3, 32, 32]}", "data.size=32"),
    ),
    "morph_voc": StandIn(
        "unet_voc",
        "miou",
        UNET,
        trained=("training.lr=0.003", "training.epochs=6"),
        morphed=("network.num_classes=3", "network.input_size=[3,32,32]", "training.epochs=2"),
    ),
    "morph_celeba": StandIn(
        "vae_celeba",
        "elbo",
        ("data=folder:{data}", "data.size=16", "network.options={latent: 4, width: 4}"),
        morphed=("network.input_size=[3,16,16]",),
    ),
}
CLASSES = {"morph_cifar10": 4, "morph_imagenet": 4, "morph_celeba": 1}


def write_data(preset: str, folder: Path) -> None:
    """Pictures in folders of classes, or shapes with their masks."""
    if preset == "morph_voc":
        write_masks(folder, {"train": 16, "val": 4, "test": 4})
    size = 16 if preset == "morph_celeba" else 32
    for label in range(CLASSES.get(preset, 0)):
        (folder / f"class{label}").mkdir(parents=True)
        for i in range(30):
            picture = draw(100 * label + i, size)[0] // (label + 1)
            Image.fromarray(picture).save(folder / f"class{label}" / f"{i}.png")


def run(verb: str, config: str, out: Path, data: Path, changes: tuple[str, ...]) -> dict:
    quick = ("training.epochs=1", "training.warmup_epochs=0", "training.batch_size=64", *changes)
    words = [word for change in quick for word in ("--set", change.replace("{data}", str(data)))]
    assert main([verb, config, "--out", str(out), "--device", "cpu", "--quiet", *words]) == 0
    return json.loads((out / "summary.json").read_text())


@pytest.mark.parametrize("preset", STAND_INS)
def test_a_preset_from_its_base_to_a_network_of_half_the_width(preset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where the preset, by its name, looks for the base
    case, data = STAND_INS[preset], tmp_path / "data"
    write_data(preset, data)
    if case.train is not None:
        base = run("train", f"train_{case.train}", tmp_path / "base", data, (*case.both, *case.trained))
    given = () if case.train != "resnet20_cifar10" else ("weights=base/artifact/weights.safetensors",)
    summary = run("morph", preset, tmp_path / "any", data, (*case.both, *case.morphed, *given))

    assert summary["metric"] == case.metric
    if case.train is not None:
        assert summary["base"][case.metric] == pytest.approx(base["metrics"]["test"][case.metric], abs=0.02)
    widths = {w["ratio"]: w for w in summary["widths"]}
    assert list(widths) == [1.0, 0.75, 0.5, 0.25]
    assert widths[1.0][case.metric] == pytest.approx(summary["base"][case.metric], abs=1e-6), "full width is the base"
    for ratio, below in ((1.0, 0.75), (0.75, 0.5), (0.5, 0.25)):
        assert widths[below]["params"] < widths[ratio]["params"]
        assert widths[below]["macs"] < widths[ratio]["macs"]
    assert "<svg" in (tmp_path / "any/report.html").read_text()

    assert main(["sample", "any/artifact", "--ratio", "0.5", "--out", "half", "--quiet"]) == 0
    capsys.readouterr()
    size = next((change.partition("=")[2] for change in (*case.both, *case.morphed) if "data.size=" in change), None)
    source = "digits" if case.both == LENET else f"{'masks' if preset == 'morph_voc' else 'folder'}:{data}"
    words = ["evaluate", "half", "--data", source, "--json", "--device", "cpu", "--batch", "1"]
    assert main([*words, *(["--size", size] if size else [])]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["primary"], facts["params"]) == (case.metric, widths[0.5]["params"])
    assert facts["metrics"][case.metric] == pytest.approx(widths[0.5][case.metric], abs=1e-6)
