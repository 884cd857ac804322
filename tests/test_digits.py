"""Numbers for readers have as many digits as they are worth."""

from __future__ import annotations

import pytest

from netsmith.formats import decimals, metric_text


@pytest.mark.parametrize(
    ("name", "value", "images", "text"),
    [
        ("accuracy", 0.95, 20, "95%"),
        ("accuracy", 0.94722, 360, "94.7%"),
        ("accuracy", 0.94722, 2_500, "94.7%"),
        ("accuracy", 0.94722, 10_000, "94.72%"),
        ("accuracy", 0.94722, None, "94.72%"),
        ("accuracy", 1, 360, "100.0%"),
        ("miou", 0.61254, 101, "61.3%"),
        ("iou/car", 0.61254, 101, "61.3%"),
        ("elbo", -0.243567, 10_000, "-0.2436"),
        ("reconstruction", 0.0123456, None, "0.01235"),
        ("loss", 1.5, 360, "1.5"),
    ],
)
def test_a_metric_has_as_many_digits_as_its_images_are_worth(name, value, images, text):
    assert metric_text(name, value, images) == text


def test_the_last_decimal_is_the_second_digit_of_the_standard_error():
    for images in (1, 7, 24, 26, 99, 1_000, 2_499, 2_501, 50_000, 300_000):
        error = 50 / images**0.5  # points
        last = 10.0 ** -decimals(images)
        assert last <= max(1, error / 10 * 1.0001)
        assert error < 100 * last or last == 1
    assert decimals(None) == decimals(0) == 2
    assert decimals(None, unknown=1) == 1
