"""`netsmith shrink`: from a source and a folder of pictures to a network that every verb takes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import netsmith
from netsmith.cli.main import main

SOURCE = ["netsmith:plain_cnn", "--input-size", "1x8x8"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Sixty pictures of different sizes, without labels."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for i in range(60):
        pixels = torch.randint(0, 256, (9 + i % 3, 10), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    return folder


def test_a_folder_of_pictures_is_enough(pictures, tmp_path, capsys):
    out = tmp_path / "half"
    assert main(["shrink", *SOURCE, "--images", str(pictures), "--width", "0.5", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "agreement" in text
    assert "16 of    32" in text
    assert netsmith.count_params(netsmith.load(out)) < 0.3 * 204_780
    assert main(["evaluate", str(out), "--data", "digits", "--json"]) == 0


def test_a_budget_and_a_file(tmp_path, capsys):
    out = tmp_path / "small.onnx"
    assert main(["shrink", *SOURCE, "--images", "digits", "--macs", "60%", "--uniform", "--out", str(out)]) == 0
    assert out.exists()
    assert "in onnxruntime" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say how small"),
        (["--params", "0%"], "above 0"),
        (["--params", "150%"], "up to 100%"),
        (["--params", "10"], "with one channel in each of 6 groups"),
        (["--params", "1G"], "keeps that budget as it is"),
        (["--params", "half"], "expected a number"),
        (["--width", "0.5", "--macs", "50%"], "not both"),
        (["--latency-ms", "0.000001"], "with one channel in each of 6 groups"),
        (["--params", "50%", "--images", "no-such-folder"], "no-such-folder"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(words, message, tmp_path, capsys):
    out = tmp_path / "out"
    given = [] if "--images" in words else ["--images", "digits"]
    assert main(["shrink", *SOURCE, *given, *words, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_is_there_is_kept(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert main(["shrink", *SOURCE, "--images", "digits", "--width", "0.5", "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "mine"
