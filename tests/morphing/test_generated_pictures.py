"""What a generation makes of images, as pictures in its results and in its report."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import netsmith
from netsmith.data.splits import Splits, open_data
from netsmith.morphing.pictures import COUNT, generated, png, row
from netsmith.morphing.pipeline import Morphed, morph
from netsmith.morphing.saving import write_results
from netsmith.networks.network import load_source
from netsmith.report import terminal_widths, write_report
from netsmith.training.settings import TrainSettings
from netsmith.training.tasks import Generation


@pytest.fixture(scope="module")
def data() -> Splits:
    return open_data("digits")


@pytest.fixture(scope="module")
def morphed(data: Splits) -> Morphed:
    network = load_source("netsmith:conv_vae", input_size=(1, 8, 8), options={"width": 4, "latent": 2, "image_size": 8})
    training = TrainSettings(epochs=1, batch_size=256, lr=0.01, seed=0, precision="no")
    return morph(network, data, generator="nested", training=training, ratios=(1.0, 0.5), seed=3)


@pytest.fixture(scope="module")
def folder(morphed: Morphed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generation")
    write_results(morphed, folder)
    write_report(folder)
    return folder


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def beside(images: torch.Tensor) -> np.ndarray:
    return np.concatenate([(255 * image[0].double()).round().numpy() for image in images], axis=1)


def test_results_hold_what_each_size_makes_of_the_same_images(morphed, data, folder):
    details = json.loads((folder / "details.json").read_text())
    base, widths = details["base"]["pictures"], details["widths"]
    shown = decoded(base["originals"])
    assert shown.shape == (8, 8 * COUNT)
    rows = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(3))[:COUNT]
    images = data.test.images(rows)
    assert np.array_equal(shown, beside(images))
    networks = {"base": morphed.network.model.eval(), **{w["ratio"]: morphed.model.at(w["ratio"]) for w in widths}}
    pictures = {"base": base, **{w["ratio"]: w["pictures"] for w in widths}}
    codes = torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(3))
    for name, network in networks.items():
        with torch.no_grad():
            rebuilt = Generation((1, 8, 8)).images(network(morphed.network.preprocess(images)))
            drawn = network.decode(codes).sigmoid()
        assert np.abs(decoded(pictures[name]["reconstructions"]) - beside(rebuilt)).max() <= 1, name
        assert np.abs(decoded(pictures[name]["draws"]) - beside(drawn)).max() <= 1, name
    assert pictures[1.0]["draws"] != pictures[0.5]["draws"], "another network, other images"
    assert "originals" not in pictures[0.5], "they are kept once"


def test_the_report_shows_them_and_the_error_beside_the_bound(morphed, folder):
    page = (folder / "report.html").read_text()
    details, summary = (json.loads((folder / f"{name}.json").read_text()) for name in ("details", "summary"))
    for sized in (details["base"], *details["widths"]):
        for name, picture in sized["pictures"].items():
            assert f'src="data:image/png;base64,{picture}"' in page, name
    assert [w["reconstruction"] for w in summary["widths"]] == [
        p.metrics["test"]["reconstruction"] for p in morphed.points
    ]
    assert summary["base"]["reconstruction"] == morphed.base["test"]["reconstruction"]
    error = f"{morphed.points[1].metrics['test']['reconstruction']:.4g}"
    assert f">{error}</td>" in page
    assert "mean squared error of values in 0..1" in page
    console = Console(width=240)
    for written in (details, summary):
        with console.capture() as shown:
            console.print(terminal_widths(written))
        assert error in shown.get()
        assert "nats a number of the image" in shown.get()


def test_a_report_without_pictures_is_drawn_and_one_with_something_else_is_refused(folder, tmp_path):
    details = json.loads((folder / "details.json").read_text())
    (tmp_path / "summary.json").write_text((folder / "summary.json").read_text())
    for sized in (details["base"], *details["widths"]):
        del sized["pictures"]
    (tmp_path / "details.json").write_text(json.dumps(details))
    write_report(tmp_path)
    assert 'id="pictures"' not in (tmp_path / "report.html").read_text()
    details["base"]["pictures"] = {"draws": '"><script>'}
    (tmp_path / "details.json").write_text(json.dumps(details))
    with pytest.raises(netsmith.NetsmithError, match=r"base\.pictures\.draws"):
        write_report(tmp_path)


class Coder(torch.nn.Module):
    """Gives an image back with a code of two numbers; its `decode` means something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.flatten(1), x.new_zeros(len(x), 4)], dim=1)

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        return code


def test_a_network_that_cannot_decode_codes_draws_nothing():
    task, images = Generation((3, 4, 6)), torch.rand(2, 3, 4, 6)
    model = Coder().train()
    rebuilt, drawn = generated(model, task, images)
    assert drawn is None
    assert torch.equal(rebuilt, images.sigmoid())
    assert model.training, "put back as it was"


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB")])
def test_large_images_of_any_channels_become_small_pictures(channels, mode):
    images = torch.full((5, channels, 100, 200), 0.4)
    picture = Image.open(io.BytesIO(base64.b64decode(png(images))))
    assert (picture.mode, picture.size) == (mode, (5 * 64, 32))
    assert np.asarray(picture).min() == np.asarray(picture).max() == 102
    assert row(images).shape[:2] == (100, 1000)
