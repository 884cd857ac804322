from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from morph_samples import GROUPS, WIDTHS, write_morph
from pages import Page

from netsmith.report import write_report
from netsmith.report.morph_results import MorphDetails, MorphResults, MorphSummary, read_morph
from netsmith.report.slider import Slider, draw_slider
from netsmith.report.tips import Tips


def slider_of(folder: Path, sample) -> Slider:
    found = draw_slider(read_morph(write_morph(folder, *sample)), Tips())
    assert found is not None
    return found


def stop_at(slider: Slider, ratio: float):
    return min(slider.stops, key=lambda s: abs(s.ratio - ratio))


def test_every_measured_width_is_a_stop_with_its_own_numbers(tmp_path, morphed):
    slider = slider_of(tmp_path, morphed)
    assert [s.ratio for _, _, s in slider.marks] == sorted(WIDTHS, reverse=True)
    half = stop_at(slider, 0.5)
    assert half.measured
    assert half.texts == {
        "ratio": "0.5×",
        "state": "measured",
        "metric": "86.9%",
        "gap": "−1.5 points to the base",
        "params": "136.48k",
        "params-share": "51% of the base",
        "macs": "20.71M",
        "macs-share": "51% of the base",
        "latency_ms": "3.7 ms",
        "latency_ms-share": "70% of the largest",
    }
    assert half.widths == tuple(width // 2 for _, width in GROUPS)
    assert half.shares["params"] == pytest.approx(136_482 / 269_722)
    assert half.said == "0.5 times the width, measured"


def test_between_two_measured_widths_everything_is_marked_as_such(tmp_path, morphed):
    stop = stop_at(slider_of(tmp_path, morphed), 0.55)
    assert stop.ratio == pytest.approx(0.55)
    assert not stop.measured
    assert stop.texts["state"] == "not measured: between 0.5× and 0.625×"
    assert stop.said == "0.55 times the width, not measured: between 0.5× and 0.625×"
    for key in ("metric", "params", "macs", "latency_ms"):
        assert stop.texts[key].startswith("about ")
    assert stop.texts["params"] == "about 150k"
    assert stop.texts["metric"] == "about 87.1%"
    assert stop.widths == tuple(round(0.55 * width) for _, width in GROUPS)


def test_params_between_two_widths_follow_a_power_of_the_width(tmp_path, morphed):
    details = morphed[1]
    details["widths"] = [w for w in details["widths"] if w["ratio"] in (0.5, 1.0)]
    for w in details["widths"]:
        w["params"] = int(1e6 * w["ratio"] ** 2)
    slider = slider_of(tmp_path, morphed)
    assert stop_at(slider, 0.7).texts["params"] == "about 490k"


def test_what_was_not_fitted_says_so(tmp_path, morphed):
    slider = slider_of(tmp_path, morphed)
    assert slider.stops[0].texts["state"] == "measured, outside the fitted range"
    assert slider.stops[0].state == "measured outside"
    assert stop_at(slider, 0.2).state == "between outside"
    assert stop_at(slider, 0.3).state == "between"
    assert slider.fitted == (0.25, 1.0)
    assert slider.share(0.25) == pytest.approx(1 / 7)
    assert slider.now.ratio == 0.5


def test_the_grid_is_the_coarsest_that_holds_all_measured_widths(tmp_path, morphed):
    assert slider_of(tmp_path / "a", morphed).step == 0.025
    details = morphed[1]
    details["widths"] = details["widths"][:3]
    for w, ratio in zip(details["widths"], (1.3, 1.0, 1 / 3), strict=True):
        w["ratio"] = ratio
    slider = slider_of(tmp_path / "b", morphed)
    assert [s.ratio for _, _, s in slider.marks] == [1.3, 1.0, 1 / 3]
    assert slider.stops[0].texts["ratio"] == "0.3333×"


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(1, 2000), min_size=2, max_size=12))
def test_any_measured_ratios_keep_their_order_and_their_values(thousandths):
    ratios = sorted(n / 500 for n in thousandths)
    widths = [{"ratio": r, "params": 1000 * r, "accuracy": {"test": r / 5}} for r in ratios]
    groups = [{"name": "a", "width": 16}, {"name": "b"}]
    details = {"schema": 1, "base": {}, "widths": widths, "space": {"groups": groups}}
    summary = MorphSummary.model_validate({"kind": "morph", "schema": 1})
    results = MorphResults(Path(), summary, MorphDetails.model_validate(details), None, None, {})
    slider = draw_slider(results, Tips())
    assert slider is not None
    found = [s.ratio for s in slider.stops]
    assert found == sorted(found)
    measured = [s.ratio for s in slider.stops if s.measured]
    assert set(measured) <= set(ratios)
    assert len(measured) >= 2
    if len(measured) == len(ratios):
        assert measured == ratios
    assert 2 <= len(slider.stops) <= 402
    for stop in slider.stops:
        assert 0.0 <= stop.shares["params"] <= 1.0
        assert all(w is None or w >= 1 for w in stop.widths)


def test_what_was_not_measured_is_a_dash_on_both_sides(tmp_path, morphed):
    widths = morphed[1]["widths"]
    widths[4].update(params=None, accuracy=None, widths={}, latency_ms=None)
    slider = slider_of(tmp_path, morphed)
    half = stop_at(slider, 0.5)
    assert (half.texts["params"], half.texts["metric"], half.texts["gap"]) == ("–", "–", "")
    assert half.widths == tuple(width // 2 for _, width in GROUPS)  # what the ratio makes of the base's
    assert half.cursor[1] is None
    near = stop_at(slider, 0.45)
    assert (near.texts["params"], near.texts["metric"]) == ("–", "–")
    assert near.texts["macs"] == "about 18.7M"


def test_one_width_makes_no_slider(tmp_path, morphed):
    summary, details = morphed
    details["widths"] = details["widths"][:1]
    page = Page(write_report(write_morph(tmp_path, summary, details)).read_text())
    assert "A slider needs two measured widths" in page.text
    assert not any(attrs.get("type") == "range" for _, attrs in page.tags)
    assert json.loads(page.scripts[0])["slider"] is None


def test_the_page_holds_the_slider_its_names_and_its_first_place(tmp_path, morphed):
    page = Page(write_report(write_morph(tmp_path, *morphed)).read_text())
    attrs = next(a for t, a in page.tags if t == "input" and a.get("type") == "range")
    assert (attrs["min"], attrs["max"], attrs["value"], attrs["step"]) == ("5", "40", "20", "1")
    assert attrs["aria-valuetext"] == "0.5 times the width, measured"
    assert ("label", {"for": "width"}) in page.tags
    live = next(a for _, a in page.tags if a.get("aria-live") == "polite")
    assert (live["id"], live["aria-atomic"]) == (attrs["aria-controls"], "true")
    dial = next(a for t, a in page.tags if a.get("class") == "dial")
    assert "hidden" in dial  # until the script is there
    data = json.loads(page.scripts[0])["slider"]
    assert len(data["stops"]) == 36
    assert "layer1.0.conv1 8 of 16" in page.text
    assert "The slider needs JavaScript" in page.text


def test_many_groups_are_a_silhouette_with_words_for_it(tmp_path, morphed):
    summary, details = morphed
    names = [f"block{i}.conv" for i in range(160)]
    details["space"]["groups"] = [{"name": n, "width": 16 + 4 * i} for i, n in enumerate(names)]
    for w in details["widths"]:
        w["widths"] = {n: max(1, round(w["ratio"] * (16 + 4 * i))) for i, n in enumerate(names)}
    path = write_report(write_morph(tmp_path, summary, details))
    assert path.stat().st_size < 400_000
    page = Page(path.read_text())
    shape = next(a for _, a in page.tags if a.get("class") == "shape")
    assert shape["role"] == "img"
    assert shape["aria-label"] == "The shape of the network at 0.5× its width: 160 groups, 8 to 326 wide."
    tips = json.loads(page.scripts[0])["tips"]
    assert "block7.conv\n44 channels in the base network" in tips


def test_heads_have_a_scale_of_their_own(tmp_path, morphed):
    morphed[1]["space"]["groups"][1].update(name="attn.qkv", width=3, kind="heads")
    slider = slider_of(tmp_path, morphed)
    assert slider.lanes[1].unit == "heads"
    assert slider.lanes[1].share(3) == pytest.approx(0.5)
    assert slider.lanes[8].share(64) == 1.0
    assert stop_at(slider, 0.5).widths[1] == 2
    page = Page(write_report(tmp_path).read_text())
    assert "attn.qkv 2 of 3 heads" in page.text
    assert "Attention heads have a scale of their own." in page.text


def test_a_measured_width_that_was_fitted_belongs_to_the_fitted_range(tmp_path, morphed):
    # a group of three channels has one of them at 0.25 and at 1/3 of its width
    morphed[1]["space"]["fitted"] = [1 / 3, 1.0]
    slider = slider_of(tmp_path, morphed)
    assert slider.fitted == (0.25, 1.0)
    assert stop_at(slider, 0.3).fitted
    assert not stop_at(slider, 0.2).fitted
    page = Page(write_report(tmp_path).read_text())
    assert "resnet20 at any width from 0.25× to 1×" in page.text


def test_without_a_morph_space_the_recorded_widths_are_the_lanes(tmp_path, morphed):
    del morphed[1]["space"]
    slider = slider_of(tmp_path, morphed)
    assert [(lane.name, lane.base) for lane in slider.lanes] == list(GROUPS)
    for w in morphed[1]["widths"]:
        del w["widths"]
    assert slider_of(tmp_path, morphed).lanes == ()


def test_a_group_that_keeps_its_width_is_not_drawn(tmp_path, morphed):
    name, full = GROUPS[1]
    for width in morphed[1]["widths"]:
        width["widths"][name] = full
    slider = slider_of(tmp_path, morphed)
    assert [lane.name for lane in slider.lanes] == [n for n, _ in GROUPS if n != name]
    assert all(len(s.widths) == len(GROUPS) - 1 for s in slider.stops)
