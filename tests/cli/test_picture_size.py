"""Pictures of different sizes: a size in every verb that reads them, of any proportions, and the crop is said."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from PIL import Image

from netsmith.cli.main import main
from netsmith.config import load_train_config
from netsmith.data.splits import open_data
from netsmith.errors import ConfigError, DataError

VERBS = ("compare", "evaluate", "export", "sample", "train", "morph", "reassemble")


@pytest.fixture
def photos(tmp_path):
    """Two classes of pictures, 20x30 and 30x20 pixels, with a line in the first column."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.full((20, 30, 3) if i % 2 else (30, 20, 3), 40, np.uint8)
            pixels[:, 0] = 255
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return f"folder:{tmp_path / 'photos'}"


def test_the_message_asks_for_what_the_verb_has(photos, capsys):
    source = "netsmith:plain_cnn"
    for argv in (["compare", source, source], ["evaluate", source]):
        assert main([*argv, "--data", photos, "--quiet"]) == 2
        message = capsys.readouterr().err.replace("\n", " ")
        assert re.search(r"differ in size.*--size 20 for a square, --size (20x30|30x20) for height x width", message)
    with pytest.raises(DataError, match=r"size= in Python, data\.size in a config"):
        open_data(photos)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_reads_pictures_has_a_size(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert "--size" in capsys.readouterr().out


@pytest.mark.parametrize(("size", "shape"), [("16", (3, 16, 16)), ("12x16", (3, 12, 16))])
def test_compare_with_a_size(photos, size, shape, capsys):
    argv = ["compare", *2 * ["netsmith:plain_cnn"], "--data", photos, "--images", "8", "--device", "cpu"]
    assert main([*argv, "--size", size]) == 0
    out = capsys.readouterr()
    assert f"images are cut to their middle, {shape[1]}x{shape[2]}" in (out.out + out.err).replace("\n", " ")
    assert main([*argv, "--size", "12x"]) == 2
    assert "a size such as 224, or 224x320 (height x width), was expected" in capsys.readouterr().err


def test_proportions_are_kept_and_the_crop_is_said(tmp_path, caplog):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(8):
            pixels = np.zeros((20, 30, 3), np.uint8)
            pixels[:, :6] = 255
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    caplog.set_level(logging.INFO, "netsmith.data")
    whole = open_data(f"folder:{tmp_path}", size=(10, 15))
    assert (whole.shape, caplog.text) == ((3, 10, 15), "")
    assert torch.equal(whole.train.images([0])[0, 0, :, :2], torch.ones(10, 2)), "nothing is left out"
    assert open_data(f"folder:{tmp_path}", size=10).shape == (3, 10, 10)
    assert "middle, 10x10 (height x width): one of 20x30 loses 33%" in caplog.text


@pytest.mark.parametrize(("text", "size"), [("28", 28), ("[20, 30]", (20, 30)), ("20x30", (20, 30))])
def test_sizes_in_a_config(text, size):
    config = load_train_config({"network": "netsmith:lenet", "data": "digits"}, [f"data.size={text}"])
    assert config.data.size == size
    assert open_data("digits", size=size).shape == (1, *((size, size) if isinstance(size, int) else size))


def test_sizes_that_are_none():
    for text in ("3", "20x", "[20]", "20x30x40"):
        with pytest.raises(ConfigError, match=r"data\.size"):
            load_train_config({"network": "netsmith:lenet", "data": "digits"}, [f"data.size={text}"])
    with pytest.raises(DataError, match="at least 1"):
        open_data("digits", size=(8, 0))
