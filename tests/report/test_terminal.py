from __future__ import annotations

import io

from rich.console import Console
from samples import comparison

from netsmith.report import (
    terminal_baselines,
    terminal_candidates,
    terminal_comparison,
    terminal_dissection,
    terminal_rivals,
    terminal_space,
    terminal_widths,
    terminal_zoo,
)


def printed(renderable) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def line(text: str, word: str) -> list[str]:
    return next(row for row in text.splitlines() if word in row).split()


def test_the_zoo(small):
    text = printed(terminal_zoo(small[1]["networks"]))
    assert line(text, "resnet20")[-5:] == ["9", "269.72k", "40.81M", "89.2%", "88.1%"]
    assert "CC-BY-NC-4.0 (non-commercial)" in text


def test_a_zoo_without_accuracies():
    assert line(printed(terminal_zoo([{"name": "a[b]", "params": 10}])), "a[b]") == [
        "a[b]",
        "–",
        "not",
        "stated",
        "–",
        "10",
        "–",
    ]


def test_candidates_with_the_chosen_one_always_shown(small):
    candidates = small[1]["candidates"]
    candidates[0]["chosen"], candidates[20]["chosen"] = False, True
    text = printed(terminal_candidates(candidates, most=5))
    assert "6 of 40 candidates" in text
    assert " → ".join(candidates[20]["blocks"]) in text
    assert line(text, "21 ←")[:2] == ["21", "←"]
    assert "stitched validation" in text


def test_no_candidates():
    assert "blocks" in printed(terminal_candidates([]))


def test_a_dissection(small):
    network = small[1]["networks"][0]
    network["units"][0]["layout"] = {"kind": "NCHW", "channels": 16}
    text = printed(terminal_dissection(network))
    assert line(text, "layer1.0") == ["0", "layer1.0", "NCHW", "16×32×32", "→", "16×32×32", "28.77k", "4.40M"]
    assert line(text, "whole network")[-2:] == ["269.72k", "40.81M"]
    assert "(stem)" in text


def test_baselines(small):
    assert line(printed(terminal_baselines(small[1]["baselines"])), "random adapters")[-1] == "86.0%"


def test_a_comparison():
    text = printed(terminal_comparison(comparison(9, 15), most=4))
    assert line(text, "layer1.0") == ["layer1.0", "layer2.0", "1"]
    assert "5 more cuts" in text
    nothing = {**comparison(1, 1), "values": [[None]]}
    assert line(printed(terminal_comparison(nothing)), "layer1.0") == ["layer1.0", "–", "–"]


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


def test_rivals(morphed):
    text = printed(terminal_rivals(morphed[1]["rivals"], morphed[1]["task"]))
    assert line(text, "Torch-Pruning L1")[-6:-2] == ["1,000", "0.75", "203.10k", "30.76M"]
    assert line(text, "Torch-Pruning L1")[-1] == "86.6%"
    assert len(text.splitlines()) == 13
    assert "[x]" in printed(terminal_rivals([{"name": "[x]", "points": [{}]}]))


def test_the_morph_space(morphed):
    text = printed(terminal_space(morphed[1]["space"]))
    assert line(text, "layer3.2.conv1") == ["layer3.2.conv1", "inner", "64", "16", "64"]
    assert "padded shortcut: the output differs by 0.31" in text
    assert "refused" not in printed(terminal_space({"groups": [{"name": "a", "width": 4}]}))
