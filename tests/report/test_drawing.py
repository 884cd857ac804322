"""Axes, labels, colours, pictures: the parts that drawings are made of."""

from __future__ import annotations

import base64
import io
import re
from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from netsmith.report import colour, heatmap, labels, png, scale
from netsmith.report.bars import letter


def test_a_palette_png_is_read_back_by_another_library():
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
    picture = Image.open(io.BytesIO(png.palette_png(indices, colour.VIRIDIS)))
    assert picture.size == (4, 3)
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), indices)
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB"))[2, 3], colour.VIRIDIS[11])


def test_viridis_is_the_published_one():
    assert len(colour.VIRIDIS) == 256
    assert colour.VIRIDIS[0] == (68, 1, 84)
    assert colour.VIRIDIS[-1] == (253, 231, 37)


def test_heatmap_colours_follow_the_values():
    values = np.array([[0.0, 1.0], [np.nan, -0.2]])
    data = heatmap.heatmap_data(values, ["a", "b"], ["c", "d"], [("n", 0)], [("m", 0)], "cka")
    raw = base64.b64decode(data.picture.partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
    assert tuple(pixels[0, 0]) == colour.VIRIDIS[0]
    assert tuple(pixels[0, 1]) == colour.VIRIDIS[254]
    assert tuple(pixels[1, 0]) == (128, 128, 128)
    assert tuple(pixels[1, 1]) == colour.VIRIDIS[0]
    assert data.clipped == 1


def test_a_diverging_scale_has_one_colour_for_zero_and_grows_darker_both_ways():
    scale_ = [colour.hexadecimal(c) for c in colour.diverging(9)]
    light = [colour.luminance(c) for c in scale_]
    assert light[:5] == sorted(light[:5])
    assert light[4:] == sorted(light[4:], reverse=True)
    assert len(set(scale_)) == 9
    assert colour.diverging(1) == ((244, 244, 244),)


@pytest.mark.parametrize("names", [3, 24])
def test_every_fill_stands_out_and_bears_its_ink(names):
    networks = [f"n{i}" for i in range(names)]
    fills = set(colour.network_colours(networks, networks[:3]).values())
    for fill in fills:
        assert min(colour.contrast(fill, "#ffffff"), colour.contrast(fill, "#171b21")) >= 3
    for fill in (*fills, *colour.ramp(7), *(colour.hexadecimal(c) for c in colour.VIRIDIS)):
        assert colour.contrast(fill, colour.ink(fill)) >= 4.5


def test_networks_in_use_get_colours_of_their_own():
    networks = [f"n{i}" for i in range(24)]
    colours = colour.network_colours(networks, ["n20", "n3", "n20", "n7"])
    assert len({colours["n20"], colours["n3"], colours["n7"], colours["n0"]}) == 4
    assert colours["n0"] == colours["n1"]
    assert colours == colour.network_colours(networks, ["n20", "n3", "n20", "n7"])


def _tokens(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6})", block))


def test_text_has_enough_contrast_in_both_modes():
    style = files("netsmith.report").joinpath("templates/style.css.j2").read_text()
    dark = _tokens(style.partition("{% set dark %}")[2].partition("{% endset %}")[0])
    light = _tokens(style.partition(":root{color-scheme:light")[2].partition("}")[0])
    assert set(dark) == set(light)
    for mode in (light, dark):
        for text in ("ink", "soft", "faint", "accent", "good", "bad"):
            for ground in ("bg", "card", "sunk"):
                assert colour.contrast(mode[text], mode[ground]) >= 4.5, (text, ground)
        assert colour.contrast(mode["warn"], mode["warn-bg"]) >= 4.5


@pytest.mark.parametrize(
    ("low", "high", "log", "texts"),
    [
        (0.0, 1.0, False, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (0.642, 0.926, False, ["0.65", "0.7", "0.75", "0.8", "0.85", "0.9"]),
        (3e6, 3.2e8, True, ["5e+06", "1e+07", "2e+07", "5e+07", "1e+08", "2e+08"]),
    ],
)
def test_ticks_are_round_and_few(low, high, log, texts):
    ticks = scale.Axis(low, high, 0.0, 100.0, log).ticks(lambda v: f"{v:g}", most=6)
    assert [t.text for t in ticks] == texts
    assert all(0 <= t.at <= 100 for t in ticks)


@given(st.lists(st.floats(1e-3, 1e12), min_size=1, max_size=20), st.booleans())
def test_an_axis_holds_all_its_values_in_order(values, log):
    at = scale.axis(values, 10.0, 500.0, log=log)
    places = [at(v) for v in sorted(values)]
    assert all(10 <= p <= 500 for p in places)
    assert places == sorted(places)
    assert len(at.ticks(str, most=6)) <= 13


@given(st.lists(st.floats(0, 300), min_size=1, max_size=20))
def test_spread_labels_keep_their_distance_and_order(wanted):
    wanted = sorted(wanted)
    places = labels.spread(wanted, 12.0, 0.0, 300.0)
    assert all(b - a >= 12 - 1e-6 for a, b in pairwise(places))
    assert places[0] >= -1e-6
    assert places[-1] <= 300 + 1e-6


def test_spread_leaves_alone_what_has_room():
    assert labels.spread([10.0, 50.0, 90.0], 12.0, 0.0, 100.0) == [10.0, 50.0, 90.0]


@given(st.lists(st.tuples(st.floats(0, 300), st.floats(0, 200), st.text("abc", min_size=1, max_size=20)), max_size=15))
def test_placed_labels_never_overlap_and_stay_inside(points):
    placed = [label for label in labels.place(points, [], (0.0, 0.0, 300.0, 200.0), size=12.0) if label is not None]
    boxes = []
    for label in placed:
        width = labels.text_width(label.text, 12.0)
        left = label.x - {"start": 0, "middle": width / 2, "end": width}[label.anchor]
        boxes.append((left, label.y - 9.6, left + width, label.y + 3))
    for i, a in enumerate(boxes):
        assert a[0] >= 0
        assert a[2] <= 300
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in boxes[:i])


def test_shortened_names_keep_both_ends():
    short = labels.shorten("swin_base_patch4_window7_224", 80.0, 12.0)
    assert short.startswith("swin")
    assert short.endswith("224")
    assert labels.text_width(short, 12.0) <= 80
    assert labels.shorten("vit", 80.0, 12.0) == "vit"


def test_letters_go_on_after_z():
    assert [letter(i) for i in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]
