"""Progress without a terminal: a line for each step and epoch, at once, and the same in the log."""

from __future__ import annotations

import pytest

from netsmith.cli.console import Bars, Console


@pytest.fixture
def lines(monkeypatch):
    monkeypatch.setattr(Bars, "DELAY", 0.0)
    return []


def test_what_is_new_is_a_line_and_the_rest_is_not(lines):
    bars = Bars(None, lines.append)
    for step in range(1, 5):
        bars("training", step, 8, "")
    bars("training", 4, 8, "epoch 1: accuracy 0.5000")
    bars("training", 5, 8, "epoch 1: accuracy 0.5000")
    bars("training", 8, 8, "epoch 2: accuracy 0.7500")
    bars("evaluation", 1797, 1797)
    bars("reading", 3, None)
    assert lines == [
        "training: 1 of 8",
        "training: 4 of 8 (epoch 1: accuracy 0.5000)",
        "training: 8 of 8 (epoch 2: accuracy 0.7500)",
        "evaluation: 1797 of 1797",
        "reading: 3",
    ]


def test_a_long_silence_is_broken(lines, monkeypatch):
    monkeypatch.setattr(Bars, "SILENCE", 0.0)
    bars = Bars(None, lines.append)
    for step in (1, 2, 3):
        bars("training", step, 8, "")
    assert lines == ["training: 1 of 8", "training: 2 of 8", "training: 3 of 8"]


def test_short_work_says_nothing():
    said: list[str] = []
    Bars(None, said.append)("training", 8, 8, "epoch 1: accuracy 0.5000")
    assert said == []


@pytest.mark.parametrize(("quiet", "shown"), [(False, "training: 1 of 8\n"), (True, "")])
def test_lines_go_to_standard_error_unless_quiet_and_always_to_the_log(lines, caplog, capsys, quiet, shown):
    with caplog.at_level("INFO"), Console(quiet=quiet).progress() as bars:
        bars("training", 1, 8)
    assert capsys.readouterr().err == shown
    assert caplog.messages == ["training: 1 of 8"]
