from __future__ import annotations

import copy

import morph_samples
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


@pytest.fixture
def morphed():
    """`(summary, details)` of a morphed ResNet20, free to be changed."""
    return morph_samples.classification()


@pytest.fixture
def autoencoder():
    """`(summary, details)` of a morphed autoencoder, whose metric is negative and no percentage."""
    return morph_samples.generation()
