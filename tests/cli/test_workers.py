"""Workers help a run through its cache: started by hand or as jobs, at any time; the result is that of one process."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from netsmith.cli import jobs
from netsmith.cli.console import Console, RunLog
from netsmith.cli.main import build_parser, main
from netsmith.cli.reassemble import _worker_words
from netsmith.cli.session import Session

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


def test_what_was_said_of_the_users_code_holds_for_the_jobs_too():
    words = ["reassemble", "zoo.yaml", "--out", "o", "--seed", "1", "--set", "probe.images=64"]
    with_code = _worker_words(build_parser().parse_args([*words, "--run-code"]), Path("c"))
    without = _worker_words(build_parser().parse_args(words), Path("c"))
    assert [word for word in with_code if word not in without] == ["--run-code"]
    assert build_parser().parse_args(with_code).run_code


@dataclass
class Job:
    """A job as submitit's, that ends after so many looks."""

    job_id: str
    looks: int = 0
    error: Exception | None = None
    cancelled: bool = False

    def done(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def exception(self) -> Exception | None:
        return self.error

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def paths(self) -> SimpleNamespace:
        return SimpleNamespace(stderr=Path("jobs") / f"{self.job_id}_log.err")


def test_of_a_job_that_fails_its_log_is_named(tmp_path, monkeypatch, capsys):
    made = [Job("good"), Job("bad", error=RuntimeError("no")), Job("late", looks=2, error=RuntimeError("no"))]
    made.append(Job("waiting", looks=1000))
    monkeypatch.setattr(jobs, "_submitted", lambda *_: made)
    monkeypatch.setattr(jobs, "_LOOK", 0.01)
    console = Console()
    with jobs.helpers(["presets"], 4, "local", {}, tmp_path, Session(console, RunLog(), ())):
        end = time.monotonic() + 30
        while made[2].looks >= 0 and time.monotonic() < end:
            time.sleep(0.01)
    text = capsys.readouterr().err
    told = [line for line in text.splitlines() if line.startswith("warning: ")]
    assert told == [
        f"warning: job {name} failed and helps no more; why is in {Path('jobs') / f'{name}_log.err'}"
        for name in ("bad", "late")
    ]
    assert [job.cancelled for job in made] == [False, False, False, True]


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
