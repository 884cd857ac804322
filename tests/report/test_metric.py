from __future__ import annotations

import pytest

from netsmith.report.family import close_up, curve_at
from netsmith.report.metric import Metric
from netsmith.report.morph_results import WidthRecord
from netsmith.report.morph_verdict import said
from netsmith.report.series import SHAPES, Dot, Plot, Series, draw_lines, mark_path


@pytest.mark.parametrize(
    ("metric", "value", "text", "sentence"),
    [
        (Metric(), 0.8812, "88.1%", "88.1%"),
        (Metric("miou"), 0.612, "61.2%", "mean IoU 61.2%"),
        (Metric("elbo"), -0.42134, "−0.4213", "ELBO −0.4213"),
        (Metric("top_9_hits"), 0.5, "0.5", "top 9 hits 0.5"),
        (Metric(images=10_000), 0.8812, "88.12%", "88.12%"),
        (Metric("miou", images=12), 0.612, "61%", "mean IoU 61%"),
        (Metric(), None, "–", "–"),
    ],
)
def test_a_value_is_written_as_its_metric_wants(metric, value, text, sentence):
    assert metric.text(value) == text
    assert metric.said(value) == sentence


@pytest.mark.parametrize(
    ("metric", "difference", "text", "judged"),
    [
        (Metric(), 0.0124, "+1.2", "good"),
        (Metric(), -0.0124, "−1.2", "bad"),
        (Metric(), 0.0001, "±0.0", ""),
        (Metric(images=10_000), 0.0001, "+0.01", "good"),
        (Metric(images=10_000), 0.00001, "±0.00", ""),
        (Metric(images=12), 0.0124, "+1", "good"),
        (Metric("elbo"), -0.00312, "−0.00312", "bad"),
        (Metric("elbo"), 0.0, "±0", ""),
        (Metric("perplexity", False), -1.5, "−1.5", "good"),
        (Metric("perplexity", False), None, "–", ""),
    ],
)
def test_a_difference_is_signed_and_judged(metric, difference, text, judged):
    assert metric.gap(difference) == text
    assert metric.judged(difference) == judged
    if difference is not None and judged:
        assert metric.judged(difference, noise=abs(difference)) == ""
        assert metric.judged(difference, noise=0.9 * abs(difference)) == judged


def test_a_ratio_in_words():
    assert [said(r, first=True) for r in (1.0, 0.5, 0.3, 2.0)] == [
        "full width",
        "half width",
        "0.3× the width",
        "double width",
    ]
    assert [said(r, first=False) for r in (0.75, 0.5, 0.25, 0.3)] == ["three quarters", "half", "a quarter", "0.3×"]


def widths(*points: tuple[float, float], fitted: bool = True) -> list[WidthRecord]:
    return [WidthRecord.model_validate({"params": p, "accuracy": a, "fitted": fitted}) for p, a in points]


def test_between_two_widths_the_curve_is_straight_over_the_logarithm_of_params():
    found = widths((100, 0.5), (10_000, 0.9))
    assert curve_at(found, "test", 1_000) == pytest.approx(0.7)
    assert curve_at(found, "test", 100) == pytest.approx(0.5)
    assert curve_at(found, "test", 10_050) == pytest.approx(0.9)  # within one part in a hundred
    assert curve_at(found, "test", 90) is None
    assert curve_at(found, "test", 11_000) is None
    assert curve_at(found, "test", None) is None
    assert curve_at(found, "validation", 1_000) is None
    assert curve_at([], "test", 1_000) is None
    assert curve_at(widths((1_000, 0.6)), "test", 1_000) == pytest.approx(0.6)


def test_a_width_outside_the_fitted_range_is_no_part_of_the_curve():
    found = [*widths((100, 0.1), fitted=False), *widths((1_000, 0.7), (10_000, 0.9))]
    assert curve_at(found, "test", 500) is None


def plot(*values: float, levels: tuple[tuple[float, str], ...] = ()) -> Plot:
    dots = tuple(Dot(float(i + 1), v) for i, v in enumerate(values))
    return Plot((Series("a", "#000000", "circle", dots),), levels, "x", "y", str, str)


def test_a_close_up_comes_only_where_values_are_squeezed():
    even = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert close_up(plot(*even), higher_is_better=True) is None
    window = close_up(plot(0.1, 0.8, 0.85, 0.86, 0.87, 0.88, 0.89, 0.9), higher_is_better=True)
    assert window is not None
    assert 0.8 < window[0] < 0.82
    assert window[1] == 0.9
    low = close_up(plot(9.0, 1.3, 1.2, 1.15, 1.12, 1.1, 1.05, 1.0), higher_is_better=False)
    assert low is not None
    assert low[0] == 1.0
    assert low[1] < 1.4
    assert close_up(plot(0.1, 0.9), higher_is_better=True) is None
    assert close_up(plot(*[0.5] * 8), higher_is_better=True) is None


@pytest.mark.parametrize("values", [(0.5,), (0.5, 0.5), (-3.0, 7.0, 2.0), (0.0, 1e-12)])
def test_a_drawing_holds_all_its_marks(values):
    drawn = draw_lines(plot(*values, levels=((0.4, "floor"),)), 340.0, 240.0)
    assert len(drawn.marks) == len(values)
    for reference in drawn.references:
        assert drawn.top <= reference.y <= drawn.bottom
    assert "floor" in drawn.summary


def test_hollow_dots_make_the_line_towards_them_dashed():
    dots = tuple(Dot(float(i), float(i), hollow=i in (1, 5)) for i in range(1, 6))
    drawn = draw_lines(Plot((Series("a", "#000000", "circle", dots),), (), "x", "y", str, str), 340.0, 240.0)
    assert [t.away for t in drawn.traces] == [True, False, True]


def test_epochs_have_no_ticks_between_them():
    drawn = draw_lines(Plot(plot(*[0.1] * 10).series, (), "epoch", "y", str, str, log=False, whole=True), 470.0, 280.0)
    assert [t.text for t in drawn.x_ticks]
    assert not [t.text for t in drawn.x_ticks if float(t.text) % 1]


@pytest.mark.parametrize("shape", ["circle", "diamond", *SHAPES])
def test_marks_are_closed_shapes_so_that_they_can_be_filled(shape):
    assert mark_path(shape, 9.0, 9.0).endswith("z")


def test_shapes_differ():
    assert len({mark_path(s, 9.0, 9.0) for s in ("circle", "diamond", *SHAPES)}) == len(SHAPES) + 2
