"""A small, seeded share of `benchmarks/fuzz.py`: some thousand changed inputs, and none ends but as it should."""

from __future__ import annotations

import random
import warnings

import pytest

COUNTS = {
    "config": 500, "config text": 400, "overrides": 250, "made config": 200, "zoo file": 100, "manifest": 25,
    "recipe": 500, "safetensors": 300, "checkpoint": 200, "image": 60, "parquet": 60, "report": 6, "command line": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def every(specimens, tmp_path_factory):
    from fuzz_targets import targets

    return targets(specimens, tmp_path_factory.mktemp("fuzz") / "work")


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.timeout(200)
def test_what_is_changed_is_accepted_or_refused(every, kind, monkeypatch):
    from fuzz import Tally, attempt

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found: list[str] = []

    def keep(name: str, made: object, text: str) -> None:
        found.append(f"{name}: {made!r:.300}\n{text}")

    tally, rng = Tally(), random.Random(f"suite/{kind}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(COUNTS[kind]):
            attempt(every[kind], rng, tally, 60, keep)
    assert not found, found[0]
    assert tally.inputs == COUNTS[kind]
    assert tally.refused > 0


def test_every_kind_of_input_is_in_the_suite(every):
    assert set(every) == set(COUNTS)
