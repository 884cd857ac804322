"""Numbers recorded before the code was laid out anew: the methods still give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from record import GOLDENS, methods

import netsmith

RECORDED = json.loads(GOLDENS.read_text())


def _close(now: Any, before: Any, within: float = 1e-6) -> None:
    if isinstance(before, dict):
        assert sorted(now) == sorted(before)
        for key in before:
            _close(now[key], before[key], within)
    elif isinstance(before, list):
        assert len(now) == len(before)
        for a, b in zip(now, before, strict=True):
            _close(a, b, within)
    elif isinstance(before, float):
        assert now == pytest.approx(before, abs=within, rel=within)
    else:
        assert now == before


def test_the_methods_give_the_recorded_numbers():
    now, before = methods(), RECORDED["methods"]
    # answers of fitted adapters are of single precision: they differ by up to 2e-4 from one processor to another
    _close(now.pop("adapters"), before.pop("adapters"), 1e-3)
    _close(now, before)


def test_every_public_name_is_still_there():
    assert set(RECORDED["names"]) <= set(netsmith.__all__)


@pytest.mark.parametrize("kind", ["network", "reassembled", "morph"])
def test_artifacts_written_by_0_1_still_give_their_answers(kind):
    folder = Path(__file__).parent / "artifacts_0_1"
    network = netsmith.load(folder / kind)
    pictures = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        answers = (network.at(0.5) if kind == "morph" else network)(pictures)
    assert torch.allclose(answers, torch.tensor(json.loads((folder / "answers.json").read_text())[kind]), atol=1e-5)
