"""Workers help a run through its cache: started by hand or as jobs, at any time; the result is that of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from netsmith.cli.main import main

sys.path.insert(0, str(Path(__file__).parent.parent))
from launching import REASSEMBLE, command, environment, netsmith

CONFIG = REASSEMBLE.replace("BATCH", "64").replace("finalists: 2", "finalists: 1")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    (folder / "zoo.yaml").write_text(CONFIG)
    assert main(["reassemble", str(folder / "zoo.yaml"), "--out", str(folder / "out"), "--quiet"]) == 0
    return folder


def scored(cache: Path) -> set[str]:
    return {p.name for p in cache.iterdir() if p.name.startswith("scores-")}


@pytest.mark.slow
def test_a_worker_started_first_leaves_its_work_to_the_run(alone, tmp_path, capsys):
    words = ["reassemble", str(alone / "zoo.yaml"), "--cache", str(tmp_path / "cache"), "--quiet"]
    assert main([*words, "--worker"]) == 0
    assert f"all 4 candidates are scored; the results are in {tmp_path / 'cache'}" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert scored(tmp_path / "cache") == scored(alone / "out/cache")
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/recipe.json").read_bytes() == (alone / "out/recipe.json").read_bytes()
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert before.items() <= after.items()  # nothing was done again
    assert {name.split("-")[0] for name in after.keys() - before.keys()} == {
        "accuracy"
    }  # the test part, read at the end


@pytest.mark.slow
def test_jobs_help_and_change_nothing(alone, tmp_path):
    done = netsmith(
        "reassemble", alone / "zoo.yaml", "--out", tmp_path / "out", "--jobs", "2", "--cluster", "local",
        "--slurm", "time=5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 jobs of local help" in done.stderr
    assert (tmp_path / "out/recipe.json").read_bytes() == (alone / "out/recipe.json").read_bytes()
    assert scored(tmp_path / "out/cache") == scored(alone / "out/cache")


@pytest.mark.slow
def test_two_runs_share_a_cache_but_not_a_folder(alone, tmp_path):
    words = ["reassemble", alone / "zoo.yaml", "--cache", tmp_path / "cache", "--quiet", "--out"]
    pipes = {"env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command(*words, tmp_path / name), **pipes) for name in ("a", "b")]
    for process in running:
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors
    for name in ("a", "b"):
        assert (tmp_path / name / "recipe.json").read_bytes() == (alone / "out/recipe.json").read_bytes()
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")]


def test_a_worker_needs_a_cache(alone, capsys):
    assert main(["reassemble", str(alone / "zoo.yaml"), "--worker"]) == 2
    assert "--worker needs --cache DIR" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["partition", "=gpu", "a b=c"])
def test_a_parameter_of_the_jobs_is_a_key_and_a_value(alone, text, capsys):
    assert main(["reassemble", str(alone / "zoo.yaml"), "--out", "x", "--jobs", "1", "--slurm", text]) == 2
    assert "KEY=VALUE was expected, such as partition=gpu" in capsys.readouterr().err


def test_without_slurm_here_jobs_are_refused(alone, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main(["reassemble", str(alone / "zoo.yaml"), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 2
    assert "no jobs can be started with --cluster slurm" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
