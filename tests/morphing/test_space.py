from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from morph_networks import tiny

from netsmith.errors import MorphError
from netsmith.morphing.preparing import prepare
from netsmith.morphing.space import MorphSpace, morph_space
from netsmith.trace.chain import dissect
from netsmith.widths.groups import WidthGroup


@pytest.fixture(scope="module")
def prepared():
    return prepare(tiny())


def test_all_inner_widths(prepared):
    space = morph_space(prepared.groups, "all", (0.25, 1.0))
    assert space.full == {g.name: g.width for g in prepared.groups.inner}
    assert space.at(0.5) == {name: width // 2 for name, width in space.full.items()}
    assert space.at(0.01) == dict.fromkeys(space.full, 1)
    assert space.ratios == (0.25, 1.0)
    assert space.fitted(space.at(0.25))
    assert not space.fitted(space.at(0.2))
    assert space.ratio(space.at(0.5)) == pytest.approx(0.5)


def test_unequal_ratios_are_fitted_only_where_they_were_drawn(prepared):
    space = morph_space(prepared.groups, "all", (0.5, 1.0))
    each = replace(space, drawn="each")
    first = space.names[0]
    assert all(space.fitted(space.at(k / 64)) for k in range(32, 65))
    for widths in ({first: 4}, {**space.at(0.5), first: 8}, {first: 6}):
        assert not space.fitted(widths)
        assert each.fitted(widths)
    assert not each.fitted({first: 3})
    assert "unequal ratios (0.5 to 1) were never fitted together" in space.unfitted({first: 4})


def test_channel_counts_of_unequal_groups_are_fitted_where_they_were_drawn(prepared):
    space = morph_space(prepared.groups, "all", (4, 8))  # groups of 8, 8, 12, 12
    drawn = replace(space, drawn="range")
    assert all(space.fitted(space.clamped(k / 24)) for k in range(8, 25))
    assert not space.fitted(dict.fromkeys(space.names, 6))
    assert drawn.fitted(dict.fromkeys(space.names, 6))
    assert not drawn.fitted({**dict.fromkeys(space.names, 8), space.names[0]: 4})


def test_heads_that_cannot_follow_a_ratio_are_rounded():
    heads, mlp = (WidthGroup(name, width, "inner", (), ()) for name, width in (("heads", 3), ("mlp", 48)))
    space = MorphSpace("all", (heads, mlp), {"heads": 1, "mlp": 12}, {"heads": 3, "mlp": 48})
    assert all(space.fitted(space.at(k / 48)) for k in range(12, 49))
    assert not space.fitted({"heads": 2})
    assert not space.fitted({"mlp": 12})


def test_the_last_block_is_that_of_the_last_unit(prepared):
    chain = dissect(prepared.model, torch.randn(2, 1, 8, 8))
    space = morph_space(prepared.groups, "last_block", (0.5, 1.0), chain=chain)
    names = list(dict.fromkeys(g.name for g in prepared.groups.inner))
    assert set(space.names) <= set(names)
    assert names[-1] in space.names
    assert len(space.names) < len(names)


def test_named_blocks_and_counts(prepared):
    name = prepared.groups.inner[1].name
    space = morph_space(prepared.groups, [name], (2, 16))
    assert space.names == (name,)
    assert (space.low[name], space.high[name]) == (2, 16)


def test_mistakes_are_named(prepared):
    name = prepared.groups.inner[0].name
    with pytest.raises(MorphError, match=rf"no block '{name}x'\. Did you mean '{name}'"):
        morph_space(prepared.groups, [name + "x"])
    with pytest.raises(MorphError, match="the range is empty"):
        morph_space(prepared.groups, "all", (1.0, 0.5))
    with pytest.raises(MorphError, match="must be above 0"):
        morph_space(prepared.groups, "all", (0.0, 1.0))
    with pytest.raises(MorphError, match=r"8\.5 to 16.0 are ratios.* for channel counts give two whole numbers"):
        morph_space(prepared.groups, "all", (8.5, 16.0))
    with pytest.raises(MorphError, match="must be above 0, got 0"):
        morph_space(prepared.groups, "all", (0, 4))
    space = morph_space(prepared.groups, "all")
    with pytest.raises(MorphError, match="above 0"):
        space.at(0.0)
    with pytest.raises(MorphError, match="an integer of at least 1, or a ratio as a float above 0 and up to 8, not 0"):
        space.of({name: 0})
    with pytest.raises(MorphError, match=r"a ratio as a float above 0 and up to 8, not 8\.5"):
        space.of({name: 8.5})
    assert space.of({name: 0.5})[name] == space.full[name] // 2
    with pytest.raises(MorphError, match="no group of the morph space is called 'nope'"):
        space.of({"nope": 2})
