"""What the local page shows, and the page itself over HTTP."""

from __future__ import annotations

import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from morph_pages import saved, saved_autoencoder

from netsmith.cli.main import main
from netsmith.errors import ArtifactError, BudgetError, DataError, MorphError, OutputError
from netsmith.training.tasks import Generation
from netsmith.ui.explorer import Explorer
from netsmith.ui.page import described, free_port


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("explorer") / "artifact")


@pytest.fixture
def explorer(folder: Path) -> Explorer:
    return Explorer(folder)


GREY = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)


def test_an_answer_is_that_of_the_plain_network(explorer):
    shape = explorer.resize(0.5)
    assert shape.ratio == pytest.approx(0.5)
    assert shape.fitted
    found = explorer.answer(GREY)
    x = explorer.preprocess(torch.from_numpy(GREY)[None, None].float() / 255)
    with torch.no_grad():
        expected = explorer.model.at(0.5)(x)[0].softmax(0)
    assert sum(found.confidence.values()) == pytest.approx(1.0, abs=1e-5)
    assert list(found.confidence.values()) == sorted(found.confidence.values(), reverse=True)
    assert found.confidence[explorer.classes[int(expected.argmax())]] == pytest.approx(float(expected.max()))
    assert found.milliseconds > 0


def test_sizes_stay_within_what_is_sensible_and_say_when_they_were_not_fitted(explorer):
    assert explorer.resize(5.0).ratio == pytest.approx(explorer.highest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = explorer.resize(0.0)
    assert small.ratio == pytest.approx(explorer.lowest)
    assert not small.fitted
    assert "expect a loss of accuracy" in described(explorer, small, None)


def test_the_slider_begins_at_a_hundredth(explorer, monkeypatch):
    monkeypatch.setattr(type(explorer.model.morphable.space), "ratios", (1 / 3, 1.0))
    assert explorer._ends() == (0.16, 1.0)


def test_the_artifacts_own_accuracies_are_shown(explorer):
    explorer.measured = {"accuracy@0.5": 0.9, "accuracy@1": 0.981}
    assert "Accuracy measured on test images: 98.1% at 1, 90.0% at 0.5." in described(explorer, explorer.shape(), None)
    explorer.measured = {}
    assert "Its accuracy was not measured." in described(explorer, explorer.shape(), None)
    assert " ms" not in described(explorer, explorer.shape(), None), "no image, no time"


def test_a_time_that_no_size_meets_is_refused_with_what_can_be_had(explorer):
    with pytest.raises(BudgetError, match=r"latency_ms of 1e-09 ms is below the smallest .* reaches from .* ms"):
        explorer.within(1e-9)
    assert explorer.within(1e6).ratio == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (20, 13, 3), (5, 9, 4), (8, 8, 2)])
def test_images_of_any_size_and_colour_are_taken(explorer, shape):
    image = np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)
    assert explorer.pixels(image).shape[:2] == (1, 1)
    assert len(explorer.answer(image).confidence) == 10


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (GREY.astype(np.float32), "an image of bytes was expected"),
        (np.zeros((8,), np.uint8), r"not \(8,\)"),
        (np.zeros((8, 8, 7), np.uint8), r"not \(8, 8, 7\)"),
        (np.zeros((0, 8, 3), np.uint8), r"not \(0, 8, 3\)"),
    ],
)
def test_other_arrays_are_refused(explorer, image, message):
    with pytest.raises(DataError, match=message):
        explorer.answer(image)


def test_a_folder_that_is_no_artifact_is_refused(tmp_path, capsys):
    with pytest.raises(ArtifactError):
        Explorer(tmp_path)
    assert main(["explore", str(tmp_path), "--port", "0"]) == 2
    assert "manifest.json" in capsys.readouterr().err


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Explorer:
    return Explorer(saved_autoencoder(tmp_path_factory.mktemp("generation") / "artifact"))


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_an_autoencoder_shows_its_reconstruction_and_what_it_draws(autoencoder, ratio):
    shape = autoencoder.resize(ratio)
    found, drawn = autoencoder.rebuild(GREY), autoencoder.draws()
    x, half = torch.from_numpy(GREY)[None, None].float() / 255, autoencoder.model.at(ratio)
    with torch.no_grad():
        rebuilt = Generation((1, 8, 8)).images(half(autoencoder.preprocess(x)))
        images = half.decode(torch.randn(8, 2, generator=torch.Generator().manual_seed(0))).sigmoid()
    assert np.array_equal(found.pixels[:8], GREY)
    assert np.abs(found.pixels[8:] - 255 * rebuilt[0, 0].numpy()).max() <= 1
    assert found.error == pytest.approx(float((rebuilt - x).square().mean()))
    assert found.milliseconds > 0
    assert np.abs(drawn - 255 * torch.cat(list(images[:, 0]), dim=1).numpy()).max() <= 1
    text = described(autoencoder, shape, found)
    assert f"<b>{found.error:.4g}</b> mean squared error" in text
    assert "ELBO measured on test images (nats a number of the image): -0." in text
    assert "accuracy" not in text


def test_an_autoencoder_takes_images_of_any_size_and_colour(autoencoder):
    image = np.random.default_rng(1).integers(0, 255, (20, 13, 3), dtype=np.uint8)
    assert autoencoder.rebuild(image).pixels.shape == (16, 8)
    with pytest.raises(DataError, match="an image of bytes was expected"):
        autoencoder.rebuild(GREY.astype(np.float32))


def test_another_task_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("netsmith.ui.explorer.read_manifest", lambda *_: {"task": "segmentation"})
    with pytest.raises(MorphError, match=r"is for segmentation: .* a classifier says, or an autoencoder draws"):
        Explorer(folder)


def test_a_port_in_use_is_refused_before_anything_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OutputError, match=f"port {port} of 127.0.0.1 cannot be used"):
            free_port(port)
        assert main(["explore", "nowhere", "--port", str(port)]) == 2
        assert "--port 0 for any that is free" in capsys.readouterr().err


def test_a_port_that_is_none_is_refused(capsys):
    assert main(["explore", "nowhere", "--port", "70000"]) == 2
    assert "a port is a number from 0 to 65535, not 70000" in capsys.readouterr().err
