"""Every public name has an example in its docstring, and it runs as it stands."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import netsmith

REFERENCE = Path(__file__).parent.parent / "docs" / "reference.md"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def preamble() -> str:
    """The lines at the head of the reference that say what `data`, `zoo` and `result` are."""
    block = re.search(r"```python\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
    assert block is not None
    return block[1]


@pytest.fixture(scope="module")
def results(preamble: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(preamble, names)
    return {name: names[name] for name in ("result", "morphed")}


@pytest.mark.parametrize("name", netsmith.__all__)
def test_the_example_of_a_public_name_runs(name, preamble, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(preamble.partition("result = ")[0], names)  # networks that no other example has changed
    text = inspect.getdoc(getattr(netsmith, name)) or ""
    example = doctest.DocTestParser().get_doctest(text, names | results, name, None, 0)
    assert example.examples, f"netsmith.{name} has no example"
    said: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=said.append)
    assert not said, "".join(said)
