from __future__ import annotations

import copy

import pytest
import samples


@pytest.fixture(scope="session")
def _samples():
    return {n: samples.sample(n) for n in (4, 24)}


@pytest.fixture
def small(_samples):
    """`(summary, details)` of a run over four networks, free to be changed."""
    return copy.deepcopy(_samples[4])


@pytest.fixture
def large(_samples):
    """`(summary, details)` of a run over 24 networks."""
    return _samples[24]
