"""The README's Python runs as it stands, and its commands are the command line's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from netsmith.cli.main import main

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a minute on a machine of its own
def test_the_python_of_the_readme_runs(tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'stitched'" in done.stdout
    assert (tmp_path / "reassembled" / "manifest.json").exists()
    assert (tmp_path / "any_width" / "manifest.json").exists()


def test_the_verbs_of_the_readme_exist(capsys):
    verbs = set(re.findall(r"^netsmith (\w+)", README.read_text(), re.MULTILINE))
    assert len(verbs) >= 6
    for verb in verbs:
        with pytest.raises(SystemExit) as stop:
            raise SystemExit(main([verb, "--help"]))
        assert stop.value.code == 0
        assert f"netsmith {verb}" in capsys.readouterr().out


def test_pictures_and_links_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
