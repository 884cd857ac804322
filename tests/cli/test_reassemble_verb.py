"""The end of `netsmith reassemble` on the screen: what was made, and what its licence forbids."""

from __future__ import annotations

import pytest

from netsmith.cli.console import Console, RunLog
from netsmith.cli.reassemble import show
from netsmith.cli.session import Session
from netsmith.records.reassembly import Summary

SUMMARY = {
    "kind": "reassembly",
    "schema": 1,
    "budget": {},
    "blocks": ["a[0:2]", "b[2:4]"],
    "params": 10,
    "macs": 20,
    "accuracy": {"stitched": 0.5, "finetuned": None, "split": "test"},
    "zoo": [],
    "seconds": {},
}


@pytest.mark.parametrize(
    ("licence", "commercial", "last"),
    [
        ("apache-2.0", True, ["licence of its sources: apache-2.0"]),
        (None, None, ["licence of its sources: none, or not stated"]),
        (
            "apache-2.0 AND cc-by-nc-4.0",
            False,
            [
                "licence of its sources: apache-2.0 AND cc-by-nc-4.0",
                "NON-COMMERCIAL: a source forbids commercial use, and so the result must not be used so",
            ],
        ),
    ],
)
def test_a_source_that_forbids_commercial_use_is_spoken_of(licence, commercial, last, capsys):
    summary = Summary.from_dict({**SUMMARY, "licence": licence, "commercial": commercial})
    show(summary, Session(Console(), RunLog(), ()))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1 - len(last) :] == ["blocks: a[0:2] -> b[2:4]", *last]


def test_a_summary_of_before_can_be_shown(capsys):
    show(Summary.from_dict(SUMMARY), Session(Console(), RunLog(), ()))
    assert "licence of its sources: none, or not stated" in capsys.readouterr().out


@pytest.mark.parametrize(("within", "accuracy", "said"), [(True, 0.9, True), (True, 0.4, False), (False, 0.9, False)])
def test_a_better_member_within_the_budget_is_named(within, accuracy, said, capsys):
    member = {"name": "small", "params": 5 if within else 50, "macs": 10, "accuracy": accuracy}
    show(
        Summary.from_dict({**SUMMARY, "budget": {"params": {"min": None, "max": 20}}, "zoo": [member]}),
        Session(Console(), RunLog(), ()),
    )
    text = "small of the zoo keeps the budget's params and MACs and is better: 90.00% beside 50.00% of what was made"
    assert (text in " ".join(capsys.readouterr().out.split())) == said
