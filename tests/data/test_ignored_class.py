"""A class of masks that is left out: in data, loss, metrics, artifacts and the command line; and the IoU of each."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from netsmith.cli.main import main
from netsmith.config import load_train_config
from netsmith.data import decoding
from netsmith.data import mask_files as data_masks
from netsmith.data.images import IGNORED
from netsmith.data.splits import open_data
from netsmith.errors import ConfigError, DataError
from netsmith.formats import decimals
from netsmith.training.tasks import Segmentation, make_task
from shapes import draw, write_masks

NET = """
from torch import nn


def build(num_classes=3):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 1)
    )
"""


@pytest.fixture
def scans(tmp_path):
    """Pictures whose masks hold 3 where nothing is known: the upper rim."""
    write_masks(tmp_path / "scans", {"train": 8, "val": 4, "test": 4}, names=False)
    for file in (tmp_path / "scans").glob("*/masks/*.png"):
        mask = np.asarray(Image.open(file))
        Image.fromarray(np.where(mask == IGNORED, 3, mask).astype(np.uint8)).save(file)
    return tmp_path / "scans"


def test_an_ignored_class_is_unknown_in_the_masks(scans, monkeypatch):
    plain, without = open_data(f"masks:{scans}"), open_data(f"masks:{scans}", ignore=3)
    assert (plain.classes, plain.ignore) == (("0", "1", "2", "3"), None)
    assert (without.classes, without.ignore) == (("0", "1", "2"), 3)
    assert torch.equal(without.train.targets([4])[0], torch.from_numpy(draw(4)[1]).long())
    assert torch.equal(without.train.subset([4]).targets([0]), without.train.targets([4]))
    assert without.train.subset([4]).ignore == 3
    assert plain.fingerprint != without.fingerprint
    resized = open_data(f"masks:{scans}", ignore=3, size=64).train.targets(range(8))
    assert set(resized.unique().tolist()) == {0, 1, 2, IGNORED}
    monkeypatch.setattr(
        data_masks, "decode_masks", lambda *a, **k: decoding.decode_masks(*a, **{**k, "memory_limit": 1})
    )
    assert torch.equal(open_data(f"masks:{scans}", ignore=3).train.targets([4]), without.train.targets([4]))


def test_names_decide_whether_it_keeps_its_place(scans):
    (scans / "classes.txt").write_text("background\nsquare\ndisc\nvoid\n")
    assert open_data(f"masks:{scans}", ignore=3).classes == ("background", "square", "disc", "void")
    middle = open_data(f"masks:{scans}", ignore=0)
    assert set(middle.train.targets(range(8)).unique().tolist()) <= {1, 2, 3, IGNORED}
    (scans / "classes.txt").write_text("background\nsquare\ndisc\n")
    assert open_data(f"masks:{scans}", ignore=3).classes == ("background", "square", "disc")
    with pytest.raises(DataError, match="holds class 3, the data set has 3 classes"):
        open_data(f"masks:{scans}")


def test_only_masks_have_a_class_to_ignore(tmp_path):
    with pytest.raises(DataError, match=r"'digits' has no masks, and ignore \(3\) is a class of masks: leave it out"):
        open_data("digits", ignore=3)
    text = "network: netsmith:lenet\ntask: segmentation\ndata: {source: masks:scans, ignore: %s}\n"
    assert load_train_config(text % 11).data.ignore == 11
    with pytest.raises(ConfigError, match=r"data\.ignore"):
        load_train_config(text % 300)


@pytest.mark.parametrize(("ignored", "rest"), [(0, (1, 2, 3)), (2, (0, 1, 3)), (3, (0, 1, 2))])
def test_loss_and_metrics_leave_it_out(ignored, rest):
    draws = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 4, 6, 5, generator=draws)
    masks = torch.randint(0, 4, (2, 6, 5), generator=draws)
    masks[:, 0] = IGNORED
    task = make_task("segmentation", 4, classes=("a", "b", "c", "d"), ignore=ignored)
    task.check(("a", "b", "c", "d"), outputs, masks)
    known = (masks != IGNORED) & (masks != ignored)
    loss = F.cross_entropy(outputs.permute(0, 2, 3, 1)[known], masks[known]).item()
    guesses = outputs.argmax(1)
    iou, f1 = [], []
    for k in rest:
        both = ((guesses == k) & (masks == k) & known).sum().item()
        either = (((guesses == k) | (masks == k)) & known).sum().item()
        iou.append(both / either)
        f1.append(2 * both / (either + both))
    found = task.summary(task.metrics(outputs, masks))
    assert task.loss(outputs, masks).item() == pytest.approx(loss, rel=1e-5)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["accuracy"] == pytest.approx((guesses == masks)[known].double().mean().item())
    assert (found["miou"], found["f1"]) == pytest.approx((sum(iou) / 3, sum(f1) / 3))
    assert {k: v for k, v in found.items() if "/" in k} == pytest.approx(
        {f"iou/{'abcd'[k]}": value for k, value in zip(rest, iou, strict=True)}
    )
    replaced = torch.where(masks == ignored, IGNORED, masks)
    assert task.summary(task.metrics(outputs, replaced)) == found


def test_classes_that_do_not_occur_have_no_iou_and_equal_names_become_numbers():
    masks = torch.zeros(1, 2, 2, dtype=torch.int64)
    outputs = F.one_hot(masks, 3).permute(0, 3, 1, 2).float()
    for classes, name in ((("a", "b", "c"), "a"), (("a", "a", "c"), "0"), ((), "0")):
        task = Segmentation(3, classes=classes)
        found = task.summary(task.metrics(outputs, masks))
        assert {k: v for k, v in found.items() if "/" in k} == {f"iou/{name}": 1.0}


def test_training_remembers_what_it_ignored(scans, tmp_path, capsys):
    (tmp_path / "net.py").write_text(NET)
    (scans / "classes.txt").write_text("background\nsquare\ndisc\nvoid\n")
    (tmp_path / "train.yaml").write_text(
        f"network: {{source: 'py:net.py:build', input_size: [3, 32, 32], mean: [0.5, 0.5, 0.5], std: [0.3, 0.3, 0.3], "
        f"options: {{num_classes: 4}}}}\ntask: segmentation\ndata: {{source: 'masks:{scans}', ignore: 3}}\n"
        f"training: {{epochs: 2, batch_size: 4, optimizer: adamw, lr: 0.02}}\n"
    )
    out = tmp_path / "out"
    assert main(["train", str(tmp_path / "train.yaml"), "--out", str(out), "--device", "cpu", "--quiet"]) == 0
    shown = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    fewest = min(summary["images"].values())
    test = summary["metrics"]["test"]
    classes = {name for name in test if name.startswith("iou/")}
    assert classes <= {"iou/background", "iou/square", "iou/disc"}
    assert test["miou"] == pytest.approx(sum(test[name] for name in classes) / len(classes))
    assert f"background {100 * summary['metrics']['validation']['iou/background']:.{decimals(fewest)}f}%" in " ".join(
        shown.split()
    )
    assert not any("/" in key for entry in summary["history"] for key in entry)
    words = ["evaluate", str(out / "artifact"), "--data", f"masks:{scans}", "--batch", "2", "--device", "cpu"]
    assert main([*words, "--run-code", "--json"]) == 0
    heard = capsys.readouterr()
    assert "ignore 3" in heard.err
    assert json.loads(heard.out)["metrics"] == pytest.approx(test, rel=1e-5)
    assert main([*words, "--run-code", "--ignore", "0"]) == 0
    table = capsys.readouterr().out
    assert "IoU, test" in table
    assert "background" not in table
    assert "void" in table


# --- a hint where a class may mean that there is none -----------------------------------------------------------------


def hints(caplog, source, **options):
    caplog.clear()
    with caplog.at_level(logging.WARNING, "netsmith.data"):
        open_data(source, **options)
    return [record.getMessage() for record in caplog.records]


def test_names_of_nothing_are_pointed_out(scans, caplog):
    (scans / "classes.txt").write_text("background\nVoid\ndisc\nsquare\n")
    (hint,) = hints(caplog, f"masks:{scans}")
    assert "class 1 (Void) may mark pixels that have no class. If it does" in hint
    assert "ignore: 1 in a config, --ignore 1, ignore=1 in Python" in hint
    assert not hints(caplog, f"masks:{scans}", ignore=1)


def test_outlines_are_pointed_out(tmp_path, caplog):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    rows, columns = np.mgrid[:96, :96]
    for i in range(6):
        distance = np.hypot(rows - 40 - 3 * i, columns - 48)
        mask = np.select([distance < 25, distance < 28], [1, 2], 0).astype(np.uint8)
        Image.fromarray(mask * 100).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    (hint,) = hints(caplog, f"masks:{tmp_path}")
    assert "class 2 (2) may mark pixels that have no class: it runs along the borders of the others" in hint
    assert not hints(caplog, f"masks:{tmp_path}", ignore=2)
    (tmp_path / "classes.txt").write_text("ground\nball\nrim\n")
    assert not hints(caplog, f"masks:{tmp_path}")


def test_ordinary_classes_are_not(tmp_path, caplog):
    write_masks(tmp_path, {"train": 4, "test": 2, "val": 2}, size=96, names=False)
    assert not hints(caplog, f"masks:{tmp_path}")
