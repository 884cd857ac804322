"""The page over HTTP: a server of its own, asked as a browser asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from morph_pages import saved, saved_autoencoder, served

pytestmark = pytest.mark.slow
gradio_client = pytest.importorskip("gradio_client", reason="the extra `ui` is not installed")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(saved(tmp_path_factory.mktemp("page") / "artifact")) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> object:
    return gradio_client.Client(address, verbose=False)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> object:
    from PIL import Image

    path = tmp_path_factory.mktemp("image") / "grey.png"
    Image.new("L", (20, 30), 90).save(path)
    return gradio_client.handle_file(path)


def test_the_slider_changes_the_answer_and_the_numbers(client, image):
    full, half = (client.predict(image, ratio, api_name="/at_ratio") for ratio in (1.0, 0.5))
    assert len(full[0]["confidences"]) == 5
    assert "ratio 1.00" in full[1]
    assert "ratio 0.50" in half[1]
    assert "ms</b> an image" in half[1]


def test_a_time_gives_the_size_and_moves_the_slider(client, image):
    assert client.predict(image, 1e6, api_name="/at_latency")[2] == pytest.approx(1.0)
    with pytest.raises(gradio_client.exceptions.AppError, match="below the smallest network of this artifact"):
        client.predict(image, 1e-9, api_name="/at_latency")


def test_what_is_no_image_is_refused(client, tmp_path: Path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    with pytest.raises(gradio_client.exceptions.AppError):
        client.predict(gradio_client.handle_file(broken), 1.0, api_name="/at_ratio")


def test_an_autoencoder_is_shown_by_pictures(image, tmp_path: Path):
    from PIL import Image

    def pixels(path: str) -> Image.Image:
        with Image.open(path) as picture:
            return picture.copy()

    with served(saved_autoencoder(tmp_path / "artifact")) as address:
        client = gradio_client.Client(address, verbose=False)
        full, half = (client.predict(image, ratio, api_name="/at_ratio") for ratio in (1.0, 0.5))
        alone = client.predict(None, 0.5, api_name="/at_ratio")
        assert alone[0] is None, "no image, nothing to give back"
        assert "mean squared error" in half[2]
        assert [pixels(path).size for path in half[:2]] == [(8, 16), (64, 8)]
        assert pixels(full[1]).tobytes() != pixels(half[1]).tobytes() == pixels(alone[1]).tobytes()
        assert client.predict(image, 1e6, api_name="/at_latency")[3] == pytest.approx(1.0)
