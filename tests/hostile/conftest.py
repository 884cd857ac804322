"""Sound artifacts of every kind, made once: what the hostile tests spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def specimens(tmp_path_factory: pytest.TempPathFactory):
    """One small, sound input of everything that is read (`specimens.py`)."""
    from specimens import make_specimens

    return make_specimens(tmp_path_factory.mktemp("specimens"))


@pytest.fixture
def copied(specimens, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the artifact of a kind, to be spoilt."""

    def copy(kind: str) -> Path:
        return Path(shutil.copytree(specimens.artifacts[kind], tmp_path / "somebody" / kind))

    return copy
