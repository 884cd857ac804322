from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from netsmith.errors import RecipeError
from netsmith.reassembly.adapters import adapter_spec
from netsmith.reassembly.recipe import FitSpec, HeadSpec, InputSpec, NetworkRef, Recipe
from netsmith.search.blocks import Block
from netsmith.trace.chain import Cut, Layout

MAP = Cut(3, "layer1", Layout("NCHW", 16, (32, 32)), (16, 32, 32))
TOKENS = Cut(3, "blocks", Layout("NLC", 48, (8, 8), 1), (65, 48))
INPUT = InputSpec((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (3, 32, 32))


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "networks": (
            NetworkRef("r20", "netsmith:cifar_resnet20", "ab" * 32, 10, INPUT, {"shortcut": "A", "widths": [16, 32]}),
            NetworkRef("vit", "netsmith:small_vit", None, 10, INPUT),
        ),
        "stem": "r20",
        "blocks": (Block("r20", 0, 3), Block("vit", 2, 6)),
        "adapters": (
            adapter_spec(MAP, MAP, "identity"),
            adapter_spec(MAP, TOKENS),
            adapter_spec(TOKENS, TOKENS, "identity"),
        ),
        "head": HeadSpec("vit", "classifier", "head", 48, 10, False),
        "num_classes": 10,
        "seed": 4,
    }
    return Recipe(**{**fields, **changes})


def test_json_comes_back_equal_and_to_the_byte():
    text = recipe().to_json()
    again = Recipe.from_json(text)
    assert again == recipe()
    assert again.to_json() == text
    assert Recipe.from_json(text.encode()) == recipe()
    assert hash(again) == hash(recipe())
    assert again.digest == recipe().digest != recipe(seed=5).digest


def test_key_order_and_spacing_do_not_matter():
    raw = json.loads(recipe().to_json())
    assert Recipe.from_json(json.dumps(dict(reversed(raw.items())))).to_json() == recipe().to_json()


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe().seed = 1  # type: ignore[misc]


def test_it_prints_what_runs():
    text = str(recipe())
    lines = [line.split()[0] for line in text.splitlines()]
    assert lines == ["recipe", "input", "stem", "block", "adapter", "block", "head", "from", "from"]
    assert "2 blocks of 2 networks, 10 classes, seed 4" in text
    assert "conv3 NCHW 16x32x32 -> NLC 65x48 (3x3, pool)" in text
    assert "vit[2:6]" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('{"version": NaN}', "expected a recipe of version 1, got version nan"),
        ("[]", r"expected a recipe \(a JSON object\), got list"),
        ("{}", "expected a recipe of version 1, got version None"),
        ('{"version": 7}', "got version 7; install the release"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, message: str):
    with pytest.raises(RecipeError, match=message):
        Recipe.from_json(text)


def edited(**edits: Any) -> str:
    raw = json.loads(recipe().to_json())
    for place, value in edits.items():
        at: Any = raw
        *path, last = place.split("__")
        for part in path:
            at = at[int(part)] if part.isdigit() else at[part]
        if value is None:
            del at[last]
        else:
            at[last] = value
    return json.dumps(raw)


def test_unknown_fields_are_named_with_their_place():
    with pytest.raises(RecipeError, match=r"does not know: blocks\.0\.stride, fit\.steps"):
        Recipe.from_json(edited(blocks__0__stride=1, fit__steps=2))


def test_all_faults_are_named_at_once():
    with pytest.raises(RecipeError) as error:
        Recipe.from_json(edited(blocks__1__start="x", head=None, adapters__1__style="glue", fit__holdout=3))
    message = str(error.value)
    for part in ("blocks.1.start: ", "head: Field required", "adapters.1.style: ", "'holdout' is a share"):
        assert part in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": ()}, "at least one block"),
        ({"stem": "r21"}, "the stem is of network 'r21', which the recipe does not list. Did you mean 'r20'"),
        ({"blocks": (Block("r20", 0, 3), Block("vti", 2, 6))}, "the block is of network 'vti'"),
        ({"adapters": ()}, "2 blocks needs 3 adapters .* got 0"),
        ({"num_classes": 7}, "the head has 10 classes, the recipe 7"),
        ({"networks": (recipe().networks[0],) * 2}, "a name of its own, got r20, r20"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ridges": ()}, "'ridges' must be one or more numbers"),
        ({"ridges": (-1.0,)}, "of at least 0"),
        ({"holdout": 1.0}, "'holdout' is a share"),
        ({"rows": 0}, "'rows' must be at least 1"),
    ],
)
def test_fit_settings_out_of_range_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        FitSpec(**settings)
