from __future__ import annotations

import pytest

from netsmith.report import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0, "0"),
        (950, "950"),
        (269_722, "269.72k"),
        (999_996, "1.00M"),
        (1_253_700_000, "1.25G"),
        (2e12, "2.00T"),
    ],
)
def test_count(value, text):
    assert formats.count(value) == text


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: formats.percent(0.8843), "88.4%"),
        (lambda: formats.percent(None), "–"),
        (lambda: formats.points(0.0121), "+1.2"),
        (lambda: formats.points(-0.0121), "−1.2"),
        (lambda: formats.points(0.0001), "±0.0"),
        (lambda: formats.duration(0.061), "0.06 s"),
        (lambda: formats.duration(59.9), "59.9 s"),
        (lambda: formats.duration(245), "4 min 05 s"),
        (lambda: formats.duration(7620), "2 h 07 min"),
        (lambda: formats.exact(269_722.0), "269,722"),
        (lambda: formats.raw(466_220.0), "466220"),
        (lambda: formats.raw(0.8843), "0.8843"),
        (lambda: formats.raw(None), ""),
        (lambda: formats.shape((16, 32, 32)), "16×32×32"),
        (lambda: formats.short("500.00k"), "500k"),
        (lambda: formats.short("1.20M"), "1.2M"),
        (lambda: formats.short("80.0%"), "80%"),
        (lambda: formats.short("100"), "100"),
        (lambda: formats.listing(["a", "b", "c"]), "a, b and c"),
        (lambda: formats.listing([]), ""),
        (lambda: formats.plural(1, "block"), "1 block"),
        (lambda: formats.plural(4, "block"), "4 blocks"),
        (lambda: formats.resource("latency_ms", 3.214), "3.21 ms"),
        (lambda: formats.resource("memory_mb", 12.5), "12.5 MB"),
        (lambda: formats.rounded(3.04), "3"),
        (lambda: formats.amount(110.63), "110.6"),
        (lambda: formats.amount(28_513.2), "28.51k"),
        (lambda: formats.amount(None), "–"),
        (lambda: formats.size_bytes(812), "812 B"),
        (lambda: formats.size_bytes(1_089_000), "1.09 MB"),
        (lambda: formats.size_bytes(999_960), "1 MB"),
        (lambda: formats.size_bytes(2.5e9), "2.5 GB"),
        (lambda: formats.size_bytes(None), "–"),
    ],
)
def test_texts(call, text):
    assert call() == text
