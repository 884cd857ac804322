from __future__ import annotations

import io

from rich.console import Console

from netsmith.report import terminal_widths


def printed(renderable) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def line(text: str, word: str) -> list[str]:
    return next(row for row in text.splitlines() if word in row).split()


def test_the_widths_of_a_morph_from_details(morphed):
    text = printed(terminal_widths(morphed[1], title="a morph"))
    head = line(text, "ratio")
    assert head == ["ratio", "params", "MACs", "accuracy,", "validation", "accuracy,", "test", "latency"]
    assert line(text, "0.5 ")[:3] == ["0.5", "136.48k", "20.71M"]
    assert line(text, "0.5 ")[-3:] == ["86.9%", "3.7", "ms"]
    assert "0.125 (outside the fitted range)" in text
    assert line(text, "base: resnet20")[2:4] == ["269.72k", "40.81M"]
    assert line(text, "skip-only floor")[-3:] == ["10.0%", "10.2%", "–"]


def test_the_widths_of_a_morph_from_the_summary(morphed, autoencoder):
    text = printed(terminal_widths(morphed[0]))
    assert line(text, "ratio") == ["ratio", "params", "MACs", "accuracy"]
    assert line(text, "base") == ["base", "269.72k", "40.81M", "88.4%"]
    assert line(text, "skip-only floor")[-1] == "10.2%"
    text = printed(terminal_widths({**autoencoder[0], "metric": "elbo"}))
    assert line(text, "ratio")[-1] == "ELBO"
    assert line(text, "0.25")[-1] == "−0.4901"
    assert "%" not in text
    assert "skip-only" not in text


def test_a_morph_without_widths():
    assert "ratio" in printed(terminal_widths({"widths": None, "base": None}))
