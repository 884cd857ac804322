"""Pictures without labels, where they serve and where they are refused; sets too small to be split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import netsmith
from netsmith.cli.main import main
from netsmith.config import load_train_config
from netsmith.data import files as data_files
from netsmith.data.splits import open_data, probe_set
from netsmith.errors import DataError, RecipeError, TrainingError
from netsmith.morphing.pipeline import morph
from netsmith.networks.network import load_source
from netsmith.networks.zoo import ZooEntry
from netsmith.reassembly.heads import fit_classifier
from netsmith.reassembly.pipeline import reassemble
from netsmith.reassembly.scores import ScoreContext, get_score
from netsmith.training.engine import TrainSettings, evaluate
from netsmith.training.entry import train_entry
from netsmith.training.tasks import Classification


def write(folder, count, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        Image.fromarray(np.full((8, 8), 5 * i, np.uint8)).save(folder / f"{i:03}.png")


def values(part):
    return part.images(range(len(part)))[:, 0, 0, 0].mul(51).round().int().tolist()


@pytest.fixture
def photos(tmp_path):
    write(tmp_path / "photos", 12)
    write(tmp_path / "photos" / "2024" / "june", 8, 12)
    return tmp_path / "photos"


def test_flat_and_nested_folders_are_split_without_labels(photos):
    splits = open_data(f"images:{photos}")
    parts = (splits.train, splits.validation, splits.test)
    assert (splits.classes, splits.shape) == ((), (1, 8, 8))
    assert sorted(value for part in parts for value in values(part)) == list(range(20))
    assert [len(part) for part in parts] == [14, 2, 4]
    assert splits.train.labels.unique().tolist() == [-1]
    images, labels = probe_set(splits, 6, seed=1)
    assert images.shape == (6, 1, 8, 8)
    assert labels.tolist() == [-1] * 6
    assert open_data(f"images:{photos}").fingerprint == splits.fingerprint


def test_a_train_folder_makes_parts(tmp_path):
    write(tmp_path / "train", 2)
    write(tmp_path / "test" / "cats", 1, 5)
    splits = open_data(f"images:{tmp_path}")
    assert (len(splits.train), len(splits.validation), values(splits.test)) == (1, 1, [5])
    (tmp_path / "train" / "000.png").unlink()
    with pytest.raises(DataError, match=r"has 1 image, too few to split off validation: 2 are needed. Add images"):
        open_data(f"images:{tmp_path}")


def test_folders_without_pictures(tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        open_data(f"images:{tmp_path}")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file; a folder of images was expected"):
        open_data(f"images:{tmp_path}/file")
    write(tmp_path / "flat", 3)
    with pytest.raises(DataError, match=r"no labels: .* Where no labels are needed give images:.*flat"):
        open_data(f"folder:{tmp_path}/flat")


def test_paths_start_from_the_config(tmp_path):
    (tmp_path / "train.yaml").write_text("network: netsmith:conv_vae\ndata: images:photos\ntask: generation\n")
    assert load_train_config(tmp_path / "train.yaml").data.source == f"images:{tmp_path}/photos"


def test_compare_takes_them(photos, capsys):
    words = ["compare", "netsmith:cifar_resnet20", "netsmith:cifar_resnet20", "--input-size", "1x8x8"]
    words += ["--random-weights", "--images", "8", "--device", "cpu", "--quiet"]
    assert main([*words, "--data", f"images:{photos}"]) == 0
    assert "same first class: 100.00% of images" in capsys.readouterr().out


def test_generation_is_trained_on_them(photos, tmp_path):
    splits = open_data(f"images:{photos}")
    entry = ZooEntry(source="netsmith:conv_vae", options={"latent": 2, "width": 2})
    summary = train_entry(
        entry, splits, TrainSettings(epochs=1, batch_size=8), tmp_path, task="generation", device="cpu"
    )
    assert summary["metrics"]["test"]["elbo"] < 0


class Tiny(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 3))


def test_what_needs_labels_says_so(photos, tmp_path, capsys):
    splits = open_data(f"images:{photos}")
    network = load_source(Tiny(), input_size=(1, 8, 8), mean=(0.0,), std=(1.0,))
    with pytest.raises(DataError, match=r"no labels, and training for classification needs them: give folder:PATH"):
        train_entry(ZooEntry(source="netsmith:lenet"), splits, TrainSettings(epochs=1), tmp_path, device="cpu")
    with pytest.raises(TrainingError, match="no labels, and measuring or training this network needs them"):
        evaluate(network.model, splits.test, Classification(3), preprocess=network.preprocess, device="cpu")
    with pytest.raises(DataError, match="no labels, and reassembly needs them"):
        reassemble([network, network], splits)
    with pytest.raises(DataError, match="no labels, and morphing needs them"):
        morph(network, splits)
    images, labels = probe_set(splits, 4)
    with pytest.raises(RecipeError, match="no labels, and score 'stitch' needs them"):
        get_score("stitch")(ScoreContext(network.model, images, labels))
    assert get_score("params")(ScoreContext(network.model, images, labels)) == 195
    with pytest.raises(RecipeError, match="no labels, and the fit of a head needs them"):
        fit_classifier(images.flatten(1), labels, torch.zeros(4, dtype=torch.bool), 3)
    assert main(["evaluate", "netsmith:cifar_resnet20", "--random-weights", "--input-size", "1x8x8",
                 "--data", f"images:{photos}", "--device", "cpu"]) == 2  # fmt: skip
    assert "the images have no labels, and evaluation needs them" in capsys.readouterr().err


# --- sets that cannot be split ----------------------------------------------------------------------------------------


def test_one_picture_a_class_is_refused_before_any_is_decoded(tmp_path, monkeypatch):
    for name in ("cat", "dog", "emu"):
        write(tmp_path / name, 1)

    def decoded(*arguments, **more):
        raise AssertionError("decoded")

    monkeypatch.setattr(data_files, "decode_set", decoded)
    with pytest.raises(DataError) as refusal:
        open_data(f"folder:{tmp_path}")
    message = str(refusal.value)
    assert f"no class of '{tmp_path}' has more than 1 image, too few to split off validation and test" in message
    assert f"'{tmp_path}/train/CLASS', '{tmp_path}/val/CLASS' and '{tmp_path}/test/CLASS'" in message
    assert "(a class without an image has an empty folder below train)" in message
    assert f"images:{tmp_path}" in message
    for name in ("cat", "dog"):
        write(tmp_path / name, 1, 1)
    with pytest.raises(DataError, match="has more than 2 images, too few to split off validation and test: 3 of one"):
        open_data(f"folder:{tmp_path}")


def test_the_ways_out_work(tmp_path):
    for part in ("train", "val", "test"):
        write(tmp_path / part / "dog", 1)
    (tmp_path / "train" / "cat").mkdir()
    splits = open_data(f"folder:{tmp_path}")
    assert splits.classes == ("cat", "dog")
    assert [part.labels.tolist() for part in (splits.train, splits.validation, splits.test)] == [[1]] * 3
    write(tmp_path / "few" / "cat", 3)
    write(tmp_path / "few" / "dog", 1)
    assert len(open_data(f"folder:{tmp_path}/few").test) == 1
    netsmith.open_data(f"images:{tmp_path}/few")


def test_parts_without_train_are_not_classes(tmp_path):
    write(tmp_path / "val" / "cat", 4)
    write(tmp_path / "test" / "cat", 4)
    with pytest.raises(DataError, match="has test, validation but no train part: its classes are read from there"):
        open_data(f"folder:{tmp_path}")
