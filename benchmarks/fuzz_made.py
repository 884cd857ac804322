"""Configs that Hypothesis makes from nothing but the keys that there are."""

from __future__ import annotations

import random
from typing import Any

from fuzz_specimens import CONFIGS
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from([10**9, -1, 0, 1e999])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def _section(model: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the keys of a section, each with its own kind of value, or with any."""
    keys = {
        key: st.one_of(VALUES, _section(value)) if isinstance(value, dict) else VALUES | st.just(value)
        for key, value in model.items()
    }
    return st.fixed_dictionaries({}, optional=keys)


STRATEGIES = {kind: _section(CONFIGS[kind]) for kind in ("reassemble", "morph", "train")}


_ready: dict[str, list[dict[str, Any]]] = {kind: [] for kind in STRATEGIES}


def _more(kind: str, rng: random.Random) -> list[dict[str, Any]]:
    """A few hundred of one kind."""
    found: list[dict[str, Any]] = []

    @seed(rng.getrandbits(64))
    @settings(
        max_examples=300, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(STRATEGIES[kind])
    def collect(made: dict[str, Any]) -> None:
        found.append(made)

    collect()
    return found


def made_config(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """One of them; what `rng` gives decides which."""
    kind = rng.choice(list(STRATEGIES))
    if not _ready[kind]:
        _ready[kind] = _more(kind, rng)
    return kind, _ready[kind].pop()
