from __future__ import annotations

import sys

import numpy as np
import pytest
from pages import Page
from PIL import Image
from samples import comparison

from netsmith.errors import ArtifactError, MissingDependencyError, OutputError
from netsmith.report import write_comparison


@pytest.mark.parametrize("size", [(1, 1), (9, 15), (60, 34), (4, 120)])
def test_a_page_of_any_size(tmp_path, size):
    path = write_comparison(tmp_path, comparison(*size))
    assert path == tmp_path / "comparison.html"
    page = Page(path.read_text())
    assert "resnet20 against resnet32" in page.text
    assert "512 images" in page.text
    assert f"{size[0]} cut" in page.text


def test_small_ones_show_their_values(tmp_path):
    data = comparison(3, 4)
    page = Page(write_comparison(tmp_path / "c.html", data).read_text())
    for value in np.ravel(data["values"]):
        assert f"{value:.2f}" in page.text
    assert "Most alike: layer1.0 of resnet20 and layer2.0 of resnet32, cka 1." in page.text


def test_arrays_and_missing_values_are_fine(tmp_path):
    data = comparison(3, 4)
    values = np.array(data["values"])
    values[1] = np.nan
    page = Page(write_comparison(tmp_path / "c.html", {**data, "values": values}).read_text())
    assert "nan" not in page.text.lower()


def test_names_are_escaped(tmp_path):
    data = comparison(3, 4)
    data["rows"]["name"] = "<script>alert(1)</script>"
    page = Page(write_comparison(tmp_path / "c.html", data).read_text())
    assert sum(tag == "script" for tag, _ in page.tags) == 2


def test_a_png_through_matplotlib(tmp_path):
    data = comparison(9, 15)
    data["rows"]["cuts"][0] = "$broken{math"
    path = write_comparison(tmp_path / "c.png", data)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400


def test_a_png_without_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'netsmith\[plot\]'"):
        write_comparison(tmp_path / "c.png", comparison(3, 4))
    write_comparison(tmp_path / "c.html", comparison(3, 4))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d["values"].pop(), "values of the comparison: expected 3 rows of 4 numbers, came the shape"),
        (lambda d: d.pop("metric"), "metric: Field required"),
        (lambda d: d["rows"].update(cuts=[]), "needs at least one cut"),
        (lambda d: d.update(values="x"), "expected 3 rows of 4 numbers, came 'x'"),
    ],
)
def test_malformed_data(tmp_path, change, match):
    data = comparison(3, 4)
    change(data)
    with pytest.raises(ArtifactError, match=match):
        write_comparison(tmp_path / "c.html", data)


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"written as \.html or \.png, came '\.pdf'"):
        write_comparison(tmp_path / "c.pdf", comparison(3, 4))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a file is in the way"):
        write_comparison(tmp_path / "file" / "c.html", comparison(3, 4))


def test_units_of_one_name_and_answers(tmp_path):
    data = comparison(3, 4) | {
        "same": [{"unit": "layer1.0", "similarity": 0.875}, {"unit": "layer1.1", "similarity": -0.01}],
        "outputs": {
            "kl": {"first_second": 0.0625, "second_first": 0.125},
            "unit": "nats",
            "agreement": 0.9375,
            "per": "pixel",
            "images": 512,
        },
    }
    text = write_comparison(tmp_path / "c.html", data).read_text()
    page = Page(text)
    assert {"same", "outputs", "about"} <= set(page.ids)
    assert "0.875" in page.text
    assert 'style="width:87.5%"' in text
    assert 'style="width:0%"' in text
    for said in ("KL(resnet20 ‖ resnet32)", "0.0625 nats", "KL(resnet32 ‖ resnet20)", "0.125 nats", "93.8% of pixels"):
        assert said in page.text
    other = Page(write_comparison(tmp_path / "c.html", {**data, "outputs": {"missing": "<other> classes"}}).read_text())
    assert "The answers were not compared: <other> classes." in other.text
    bare = Page(write_comparison(tmp_path / "c.html", {**comparison(3, 4), "facts": {}}).read_text())
    assert not {"same", "outputs", "about"} & set(bare.ids)


def test_malformed_answers(tmp_path):
    data = comparison(3, 4) | {"same": [{"similarity": 1.0}], "outputs": {"kl": 3}}
    with pytest.raises(ArtifactError, match=r"same\[0\].unit: Field required\n.*outputs.kl: "):
        write_comparison(tmp_path / "c.html", data)
