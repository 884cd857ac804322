"""The package's index: every public name is there, and importing the package loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import netsmith


@pytest.mark.parametrize("name", netsmith.__all__)
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(netsmith, name)
    assert value.__doc__, name


def test_the_index_lists_what_it_resolves():
    assert set(netsmith.__all__) <= set(dir(netsmith))
    assert netsmith.make_morphable is netsmith.morph


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="attribute reasemble"):
        _ = netsmith.reasemble


def test_importing_the_package_loads_no_library():
    code = "import sys, netsmith; print([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
