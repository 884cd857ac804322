"""Folders under attack: another run at work there, killed runs, a full disk, a disk that cannot be written."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from netsmith.artifacts.artifact import verify
from netsmith.cli import train as train_verb
from netsmith.cli.console import RunLog
from netsmith.cli.main import main
from netsmith.errors import BudgetError, OutputError, TrainingError
from netsmith.files.output import mend, temporary

sys.path.insert(0, str(Path(__file__).parent.parent))
from launching import command, environment

ROOT = Path(__file__).parent.parent.parent
TRAIN = """
network: {source: "netsmith:plain_cnn", name: tiny, num_classes: 10, input_size: [1, 8, 8],
          options: {widths: [8, 12], depth: 1}}
data: digits
device: cpu
training: {epochs: 1, batch_size: 256, lr: 0.1}
"""


def train(config: Path, out: Path, *more: str) -> int:
    return main(["train", str(config), "--out", str(out), "--quiet", *more])


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text(TRAIN)
    return file


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- two runs, one folder ---------------------------------------------------------------------------------------------


def test_of_two_runs_in_a_folder_the_second_is_told(config, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"):
        before = contents(out)
        assert train(config, out) == 2
        assert contents(out) == before
    text = capsys.readouterr().err
    assert f"another run works in {out}. Wait for it, stop it, or choose another folder with --out" in text


def test_a_stale_lock_is_no_hindrance(config, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").touch()
    assert train(config, out) == 0
    assert not (out / ".lock").exists()


def test_a_run_lets_go_of_its_folder_when_it_fails(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(config, out, "--set", "network.num_classes=7") == 2
    capsys.readouterr()
    assert train(config, out) == 0


# --- half-written things ----------------------------------------------------------------------------------------------


def test_half_files_and_folders_are_removed_but_for_those_of_a_shared_cache(tmp_path):
    half = temporary(tmp_path / "summary.json")
    half.write_text("{")
    folder = temporary(tmp_path / "artifact")
    folder.mkdir()
    (folder / "weights.safetensors").write_text("half")
    (tmp_path / "cache").mkdir()
    others = temporary(tmp_path / "cache" / "entry")
    others.write_text("half")
    assert mend(tmp_path) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    assert others.exists()


@pytest.mark.parametrize("successor", [False, True])
def test_a_folder_that_was_being_replaced_is_never_lost(tmp_path, successor):
    """A process killed between two renames leaves the old artifact under a hidden name, or both."""
    old = temporary(tmp_path / "artifact", "old")
    old.mkdir()
    (old / "which").write_text("old")
    if successor:
        (tmp_path / "artifact").mkdir()
        (tmp_path / "artifact/which").write_text("new")
    assert mend(tmp_path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]
    assert (tmp_path / "artifact/which").read_text() == ("new" if successor else "old")


# --- unfinished, or begun and killed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [BudgetError("too small"), TrainingError("NaN"), OutputError("full")])
def test_a_run_that_came_to_nothing_makes_room_and_one_that_kept_something_does_not(
    config, tmp_path, capsys, monkeypatch, failure
):
    out = tmp_path / "out"

    def late(*arguments, **named):
        raise failure

    def later(*arguments, **named):
        (out / "cache").mkdir()
        (out / "cache" / "kept").write_text("dear")
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(train_verb, "train_network", late)
        assert train(config, out) == 2
        patch.setattr(train_verb, "train_network", later)
        assert train(config, out, "--set", "training.lr=0.3") == 2
    mended = ["--set", "training.lr=0.5"]
    capsys.readouterr()
    assert train(config, out, *mended) == 2
    assert "holds an unfinished run of another config" in capsys.readouterr().err
    assert main(["train", str(config), "--out", str(out), *mended, "--overwrite"]) == 0
    text = capsys.readouterr().err
    assert "beginning anew in" in text
    assert "training.lr: " in text
    assert (out / "cache" / "kept").read_text() == "dear"
    assert train(config, out) == 2, "finished results are as safe as ever"
    assert "exists and is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), TrainingError("no more"), ZeroDivisionError()])
def test_a_run_that_stops_after_its_summary_goes_on_by_the_same_command(config, tmp_path, capsys, monkeypatch, stopped):
    out, real = tmp_path / "out", train_verb.train_network

    def late(*arguments, **named):
        real(*arguments, **named)
        raise stopped

    with monkeypatch.context() as patch:
        patch.setattr(train_verb, "train_network", late)
        with contextlib.suppress(ZeroDivisionError):  # a fault of ours keeps its traceback
            train(config, out)
    assert (out / "summary.json").exists()
    capsys.readouterr()
    assert train(config, out, "--set", "training.lr=0.5") == 2
    assert "holds an unfinished run of another config" in capsys.readouterr().err
    assert main(["train", str(config), "--out", str(out)]) == 0
    text = capsys.readouterr().err
    assert "going on with the unfinished run" in text
    assert not (out / ".lock").exists()
    assert train(config, out) == 2
    assert "exists and is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
@pytest.mark.parametrize("begun", [False, True])
def test_a_run_killed_before_its_config_was_there_is_begun_anew(config, tmp_path, begun, more):
    """As `kill -9` leaves it right before anything else, or before the rename of `config.yaml`."""
    out = tmp_path / "out"
    out.mkdir()
    (out / ".lock").touch()
    if begun:
        (out / ".netsmith").touch()
        temporary(out / "config.yaml").write_text("{")
    assert train(config, out, *more) == 0
    assert not list(out.glob(".*.tmp"))
    assert (out / "artifact").is_dir()


def test_what_was_put_aside_by_a_killed_run_is_no_trace(config, tmp_path, capsys):
    old = temporary(tmp_path / "out" / "artifact", "old")
    old.mkdir(parents=True)
    (old / "which").write_text("old")
    assert train(config, tmp_path / "out") == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert old.is_dir()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"- 1\n", b"text", b"a: [\n"])
def test_a_config_that_is_none_cannot_be_gone_on_with(config, tmp_path, capsys, content):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".netsmith").touch()
    (out / "config.yaml").write_bytes(content)
    (out / "kept").write_text("dear")
    assert train(config, out) == 2
    text = capsys.readouterr().err
    assert (
        f"{out / 'config.yaml'} cannot be read as a config, so the unfinished run there cannot be gone on with" in text
    )
    assert "--overwrite to begin anew" in text
    assert (out / "config.yaml").read_bytes() == content
    assert train(config, out, "--overwrite") == 0


@pytest.mark.parametrize("name", ["a" * 300, "a" * 300 + "/b"])
def test_a_name_that_is_too_long_is_said(config, tmp_path, capsys, name):
    assert train(config, tmp_path / name) == 2
    assert "is too long for the file system. Choose a shorter one with --out." in capsys.readouterr().err


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 2 MB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], capture_output=True, check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk but for so many bytes."""
    free = shutil.disk_usage(disk).free
    (disk / "filler").write_bytes(bytes(free - leave))
    return disk / "filler"


def test_a_full_disk_is_said_harms_nothing_and_can_be_gone_on_from(config, small_disk, capsys):
    assert train(config, small_disk / "before") == 0
    before = contents(small_disk / "before")
    filler = fill(small_disk, 16384)
    capsys.readouterr()
    assert train(config, small_disk / "now") == 2
    text = capsys.readouterr().err
    assert "o space left" in text
    assert "Traceback" not in text
    assert contents(small_disk / "before") == before
    verify(small_disk / "before/artifact")
    filler.unlink()
    assert train(config, small_disk / "now") == 0
    now = verify(small_disk / "now/artifact")["files"]["weights.safetensors"]
    assert now == verify(small_disk / "before/artifact")["files"]["weights.safetensors"]
    assert not list(small_disk.rglob(".*.tmp"))


def test_a_disk_that_cannot_be_written_is_said(config, small_disk, capsys):
    assert train(config, small_disk / "before") == 0
    before = contents(small_disk / "before")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    capsys.readouterr()
    for out in (small_disk / "new", small_disk / "before"):
        assert train(config, out, "--overwrite") == 2
        text = capsys.readouterr().err
        assert "No permission to write" in text, text
        assert "with --out" in text
    assert contents(small_disk / "before") == before
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


# --- names and logs that cannot be written ----------------------------------------------------------------------------

NO_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names of files are Unicode there")
def test_a_folder_whose_name_is_no_utf8_is_trained_into(config, tmp_path, capsys):
    """What is shown and logged of the name must not end a run whose training is done."""
    assert main(["train", str(config), "--out", str(tmp_path / NO_UTF8)]) == 0
    assert r"caf\udce9/artifact" in capsys.readouterr().out
    assert r"caf\udce9/artifact" in (tmp_path / NO_UTF8 / "log.txt").read_text()
    verify(tmp_path / NO_UTF8 / "artifact")


def test_the_demo_refuses_such_a_folder_before_its_work(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / NO_UTF8)]) == 2
    assert "is not UTF-8, and the demo's config names files in it. Choose another" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path):
    log = RunLog()
    log.open(tmp_path / "nowhere")
    log.emit(logging.makeLogRecord({"msg": "kept"}))
    log.emit(logging.makeLogRecord({"msg": "%d of %d", "args": ("no number",)}))  # a library's mistake
    log.open(tmp_path)
    log.emit(logging.makeLogRecord({"msg": f"read {NO_UTF8}"}))
    (tmp_path / "log.txt").rename(tmp_path / "old.txt")
    (tmp_path / "log.txt").mkdir()
    log.emit(logging.makeLogRecord({"msg": "lost"}))
    lines = (tmp_path / "old.txt").read_text().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["kept", r"read caf\udce9"]


# --- kill -9 ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", ["reassemble", "morph"])
def test_killed_at_random_moments_every_resume_ends_the_same(tmp_path, verb):
    """`benchmarks/faults.py` with a few kills; its results hold those with 30 of each."""
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "benchmarks/faults.py"), "--json", str(tmp_path / "faults.json"),
            "--verbs", verb, "--kills", "4", "--seconds", "100", "--work", str(tmp_path), "--seed", "1",
        ],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads((tmp_path / "faults.json").read_text())["rows"][0]
    assert row["kills"] > 0
    assert row["runs"] == row["same"] > 0
    assert row["faults"] == []


# --- signals ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def heard():
    """What is started meanwhile hears SIGINT, as from a terminal; in a shell's background it would be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_kindly_and_says_how_to_go_on(config, tmp_path, number):
    out = tmp_path / "out"
    config.write_text(TRAIN.replace("epochs: 1", "epochs: 100000"))
    words = ["train", config, "--out", out]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    with heard():
        running = subprocess.Popen(command(*words), **pipes)
    end = time.monotonic() + 200
    while not list(out.glob("checkpoints/*/last.safetensors")):
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.1)
    running.send_signal(number)
    _, errors = running.communicate(timeout=100)
    assert running.returncode == 128 + number
    assert f"{number.name}: stopping at the next safe point. The same signal again stops at once." in errors
    assert f"interrupted. What was finished is kept in {out}; go on with:\n  netsmith train" in errors
    assert "training stopped in epoch" in errors
    assert "Traceback" not in errors
    assert not list(out.rglob(".*.tmp"))
    assert (out / ".lock").exists()
