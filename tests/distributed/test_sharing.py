"""Pieces of work among processes: each done once, none lost when a process is killed, half files cleaned up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from netsmith.distributed import stopping
from netsmith.distributed.sharing import Piece, claim, share
from netsmith.errors import OutputError
from netsmith.files.cache import Cache

SCRIPT = """
import os, sys, time
from pathlib import Path
import torch
from netsmith.files.cache import Cache
from netsmith.distributed.sharing import Piece, share

root, count, slow = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

def piece(i):
    def compute():
        with open(root / "done.txt", "a") as file:
            file.write(f"{i} {os.getpid()}\\n")
        time.sleep(slow)
        return {"x": torch.full((3,), float(i))}, {"number": i}
    return Piece(f"piece-{i}", str(i), compute)

entries = share([piece(i) for i in range(count)], Cache(root / "cache"))
assert [e.meta["number"] for e in entries] == list(range(count))
assert all(float(e["x"][0]) == i for i, e in enumerate(entries))
"""


def start(root: Path, count: int, slow: float, rank: int = 0, world: int = 1) -> subprocess.Popen[str]:
    script = root / "share.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "WORLD_SIZE": str(world)}
    words = [sys.executable, str(script), str(root), str(count), str(slow)]
    return subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)


def done(root: Path) -> list[tuple[int, int]]:
    lines = (root / "done.txt").read_text().splitlines() if (root / "done.txt").exists() else []
    return [(int(number), int(pid)) for number, pid in (line.split() for line in lines)]


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def constant(key, value, calls):
    def compute():
        calls.append(key)
        return {"x": torch.tensor([value])}, {"value": value}

    return Piece(key, key, compute)


def test_results_come_in_order_and_are_computed_once(tmp_path):
    calls, told = [], []
    pieces = [constant(f"p{i}", float(i), calls) for i in range(4)]
    first = share(pieces, Cache(tmp_path), lambda *how: told.append(how))
    assert [e.meta["value"] for e in first] == [0.0, 1.0, 2.0, 3.0]
    again = share(pieces, Cache(tmp_path))
    assert [float(e["x"]) for e in again] == [0.0, 1.0, 2.0, 3.0]
    assert calls == ["p0", "p1", "p2", "p3"]
    assert told == [(0, 4, "p0"), (1, 4, "p1"), (2, 4, "p2"), (3, 4, "p3"), (4, 4, "")]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_without_a_cache_all_is_computed_here():
    calls = []
    entries = share([constant("a", 1.0, calls), constant("b", 2.0, calls)], None)
    assert [e.meta["value"] for e in entries] == [1.0, 2.0]
    assert calls == ["a", "b"]


@pytest.mark.slow
def test_three_processes_do_each_piece_once(tmp_path):
    running = [start(tmp_path, 24, 0.1, rank, 3) for rank in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    numbers = [number for number, _ in done(tmp_path)]
    assert sorted(numbers) == list(range(24))
    assert len({pid for _, pid in done(tmp_path)}) > 1
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")]


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_taken_over(tmp_path):
    """The killed one had claimed a piece; nobody waits for it for ever, and only that piece is begun twice."""
    first = start(tmp_path, 4, 600.0)
    wait_for(lambda: len(done(tmp_path)) == 1)
    second = start(tmp_path, 4, 0.05)
    wait_for(lambda: len(done(tmp_path)) == 4)  # all but the claimed one
    assert second.poll() is None
    first.send_signal(signal.SIGKILL)
    first.communicate()
    _, errors = second.communicate(timeout=100)
    assert second.returncode == 0, errors
    numbers = sorted(number for number, _ in done(tmp_path))
    assert numbers == [0, 0, 1, 2, 3]


def test_a_claim_is_exclusive_and_free_afterwards(tmp_path):
    cache = Cache(tmp_path)
    with claim(cache, "key") as ours:
        assert ours
        with claim(cache, "key") as other:
            assert not other
        with claim(cache, "another") as another:
            assert another
    with claim(cache, "key") as ours:
        assert ours


def test_a_failed_claim_is_free_again(tmp_path):
    def fail():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        share([Piece("key", "key", fail)], Cache(tmp_path))
    assert share([constant("key", 1.0, [])], Cache(tmp_path))[0].meta == {"value": 1.0}


def test_half_files_of_a_killed_process_are_removed(tmp_path):
    half, other = tmp_path / ".key.safetensors.0123abcd.tmp", tmp_path / ".other.json.0123abcd.tmp"
    half.write_bytes(b"half")
    other.write_bytes(b"of a process at work")
    (tmp_path / ".key.lock").touch()  # stale: nobody holds it
    assert share([constant("key", 1.0, [])], Cache(tmp_path))[0].meta == {"value": 1.0}
    assert not half.exists()
    assert other.exists()
    assert not (tmp_path / ".key.lock").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_one_altered_byte_is_noticed_and_the_piece_computed_again(tmp_path, suffix, caplog):
    calls = []
    share([constant("key", 1.0, calls)], Cache(tmp_path))
    file = tmp_path / f"key{suffix}"
    whole = file.read_bytes()
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 0x10
        file.write_bytes(altered)
        assert share([constant("key", 1.0, calls)], Cache(tmp_path))[0].meta == {"value": 1.0}
        assert file.read_bytes() == whole
    assert len(calls) == 1 + len(whole)
    assert "computing it again" in caplog.text


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file is in the way"):
        share([constant("key", 1.0, [])], Cache(tmp_path / "file"))


def test_a_signal_stops_between_two_pieces(tmp_path):
    def asked():
        os.kill(os.getpid(), signal.SIGTERM)
        return {}, {"value": 1.0}

    calls = []
    with stopping.graceful(lambda text: None), pytest.raises(stopping.Stopped):
        share([Piece("a", "a", asked), constant("b", 2.0, calls)], Cache(tmp_path))
    assert Cache(tmp_path).load("a") is not None
    assert calls == []
