"""The examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "three_checkpoints.py": "reassembled.onnx and reassembled.pt2",
    "half_without_retraining.py": "wrote half.onnx",
    "phone_and_server.py": "while the size changed 20 times",
    "same_layers.py": "is most like resnet",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of results: the zoo that the first example trains serves the others."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, name, str(folder)],
        cwd=EXAMPLES,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout


def test_every_example_is_run_or_imported() -> None:
    helpers = {"shapes.py", "zoo.py", "my_net.py"}
    assert {p.name for p in EXAMPLES.glob("*.py")} == set(SAYS) | helpers
