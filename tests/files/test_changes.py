from __future__ import annotations

from netsmith.files.changes import changes


def test_each_key_that_differs_in_the_order_of_the_keys():
    old = {"seed": 0, "training": {"lr": 0.03, "ema": None}, "ratios": [1.0, 0.5], "gone": 1}
    new = {"seed": 0, "training": {"lr": 0.05, "ema": 0.9}, "ratios": [1.0], "order": {"by": ["l1"]}}
    assert changes(old, new) == [
        "training.lr: 0.03 -> 0.05",
        "training.ema: null -> 0.9",
        "ratios: [1.0, 0.5] -> [1.0]",
        "gone: 1 -> nothing",
        'order: nothing -> {"by": ["l1"]}',
    ]


def test_equal_values_and_those_of_another_type():
    assert changes({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) == []
    assert changes({"a": 1}, {"a": 1.0}) == []
    assert changes({"a": 1}, {"a": True}) == ["a: 1 -> true"]
    assert changes({"a": {"b": 1}}, {"a": None}) == ['a: {"b": 1} -> null']


def test_long_values_are_cut():
    (text,) = changes({"a": "x" * 100}, {"a": "y"})
    assert text == f"a: {'x' * 57}... -> y"
