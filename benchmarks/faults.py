"""Kill -9 at random moments of `netsmith reassemble` and `netsmith morph`: every resume must end as if nothing was.

    python benchmarks/faults.py --json benchmarks/results/faults.json [--kills 30] [--seconds 1200] [--verbs morph]

A run on a tiny zoo (digits) is killed, gone on with, perhaps killed again, and led to its end; then its recipe,
artifact, tables and accuracies must be those of an undisturbed run, to the byte but for the fields named in `TIMES`.
Half of the kills come at a random time, half at a random operation on files (a rename, a removal, a flush), where
half-written things are made. After each kill nothing that is there may be damaged: artifacts verify, JSON parses.

The runs are forked from this process, which has loaded everything, so that a kill costs what the run costs and no more.
`ratio` in the JSON is the share of killed runs that ended as the undisturbed one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe, write

from netsmith.artifacts.artifact import is_artifact, verify
from netsmith.cli import execution, morphing
from netsmith.cli.main import main as netsmith
from netsmith.files.output import LOCK

ZOO = """
zoo:
  - {source: "netsmith:cifar_resnet20", name: residual, num_classes: 10, input_size: [1, 8, 8],
     options: {widths: [4, 8, 16]}}
  - {source: "netsmith:plain_cnn", name: plain, num_classes: 10, input_size: [1, 8, 8]}
pretrained: false
data: digits
device: cpu
probe: {images: 64}
partition: {k: 2, eps: 0.5, restarts: 5}
search: {candidates: 4, distinct_sets: false}
stitch: {images: 100}
score: {images: 200, finalists: 2}
finetune: {epochs: 2, batch_size: 128, lr: 0.01, warmup_epochs: 0}
"""
MEMBER = """{source: "netsmith:plain_cnn", name: tiny, num_classes: 10, input_size: [1, 8, 8],
          options: {widths: [8, 12], depth: 1}}"""
MORPH = """
network: MEMBER
weights: WEIGHTS
data: digits
device: cpu
training: {epochs: 3, batch_size: 128, lr: 0.02, augment: true, ema: 0.9}
ratios: [1.0, 0.5, 0.25]
"""
LOADED = (execution, morphing)
"""Imported here, once, for all runs that are forked."""

TIMES = {"seconds", "latency_ms", "created", "machine", "images_per_second"}
"""Fields that hold times of day or durations, and so differ from run to run."""


def run(words: list[str], log: Path, operation: int | None = None) -> int:
    """Fork a process that runs a command line; its number. With `operation`, it kills itself at that file operation.

    It writes how many operations on files it did, if it comes to its end.
    """
    child = os.fork()
    if child:
        return child
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        operations = 0

        def seen() -> None:
            nonlocal operations
            operations += 1
            if operations == operation:
                os.kill(os.getpid(), signal.SIGKILL)

        watch(seen)
        code = netsmith([*words, "--quiet"])
        log.with_suffix(".count").write_text(str(operations))
        os._exit(code)
    finally:
        os._exit(70)


def watch(seen: Callable[[], None]) -> None:
    """Call `seen` before every rename, removal, new folder and opening for writing of this process."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
            seen()

    sys.addaudithook(hook)


def outcome(out: Path) -> dict[str, Any]:
    """All that a run leaves for its user, without what differs from run to run."""
    found: dict[str, Any] = {}
    for file in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(file.relative_to(out))
        if name.split("/")[0] in ("cache", "checkpoints", "log.txt", "report.html", ".netsmith"):
            continue
        if file.suffix == ".json":
            found[name] = timeless(json.loads(file.read_text()))
        else:
            found[name] = file.read_bytes()
    return found


def timeless(value: Any) -> Any:
    """JSON without the fields in TIMES, and without the hashes that cover them."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def unharmed(out: Path) -> list[str]:
    """What is damaged in the folder of a run that was killed; nothing may be."""
    broken = []
    for folder in [out, *out.glob("*/")]:
        if is_artifact(folder):
            try:
                verify(folder)
            except Exception as error:
                broken.append(f"{folder.name}: {error}")
    for file in (p for p in out.glob("*.json") if not p.name.startswith(".")):
        try:
            json.loads(file.read_text())
        except ValueError as error:
            broken.append(f"{file.name}: {error}")
    return broken


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of the files in which two outcomes differ."""
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def harass(words: list[str], folder: Path, kills: int, seconds: float, rng: random.Random) -> dict[str, Any]:
    """Kill runs of one command line until there were so many kills, or the time is over."""
    log = folder / "log"
    began = time.perf_counter()
    status = os.waitpid(run([*words, "--out", str(folder / "whole")], log), 0)[1]
    assert status == 0, log.read_text()
    took, operations = time.perf_counter() - began, int(log.with_suffix(".count").read_text())
    wanted = outcome(folder / "whole")
    assert not unharmed(folder / "whole")
    end = time.monotonic() + seconds
    row: dict[str, Any] = {"kills": 0, "at_times": 0, "at_operations": 0, "runs": 0, "same": 0, "faults": []}
    while row["kills"] < kills and time.monotonic() < end:
        out = folder / f"run{row['runs']}"
        while row["kills"] < kills:
            by_time = rng.random() < 0.5
            child = run([*words, "--out", str(out)], log, None if by_time else rng.randint(1, operations))
            if by_time:
                time.sleep(rng.uniform(0, 0.8 * took))  # what is gone on with takes less
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if not os.WIFSIGNALED(status):
                if os.waitstatus_to_exitcode(status):
                    row["faults"].append({"run": row["runs"], "exit": status, "log": log.read_text()[-2000:]})
                break  # it came to its end before
            row["kills"] += 1
            row["at_times" if by_time else "at_operations"] += 1
            row["faults"] += [{"run": row["runs"], "damaged": text} for text in unharmed(out)]
            if rng.random() < 0.4:
                break
        if not (out / "summary.json").exists() or (out / LOCK).exists():
            status = os.waitpid(run([*words, "--out", str(out)], log), 0)[1]
            if status:
                row["faults"].append({"run": row["runs"], "exit": status, "log": log.read_text()[-2000:]})
        row["runs"] += 1
        differ = differing(wanted, outcome(out)) + [p.name for p in out.rglob(".*.tmp")]
        if differ:
            row["faults"].append({"run": row["runs"] - 1, "differs": differ})
        else:
            row["same"] += 1
            shutil.rmtree(out)
    row |= {"undisturbed_seconds": round(took, 2), "operations": operations}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=30, help="of each verb")
    parser.add_argument("--seconds", type=float, default=1200.0, help="at most, for each verb")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="*", default=["reassemble", "morph"])
    parser.add_argument("--work", type=Path, help="where runs are made and, if they went wrong, kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(dir=arguments.work))
    (work / "zoo.yaml").write_text(ZOO)
    (work / "base.yaml").write_text(
        f"network: {MEMBER}\ndata: digits\ndevice: cpu\ntraining: {{epochs: 1, batch_size: 128, lr: 0.1}}\n"
    )
    weights = work / "base/artifact/weights.safetensors"
    (work / "morph.yaml").write_text(MORPH.replace("MEMBER", MEMBER).replace("WEIGHTS", str(weights)))
    rows = []
    for verb in arguments.verbs:
        folder = work / verb
        folder.mkdir()
        if verb == "morph":
            base = run(["train", str(work / "base.yaml"), "--out", str(work / "base")], folder / "log")
            assert os.waitpid(base, 0)[1] == 0, (folder / "log").read_text()
        words = [verb, str(work / ("zoo.yaml" if verb == "reassemble" else "morph.yaml"))]
        row = harass(words, folder, arguments.kills, arguments.seconds, random.Random(arguments.seed))
        rows.append({"verb": verb, **row})
        print(json.dumps(rows[-1]), flush=True)
    ratio = sum(r["same"] for r in rows) / max(1, sum(r["runs"] for r in rows))
    write(arguments.json, {"rows": rows, "ratio": ratio, "peer": "the same run, undisturbed", **describe()})
    if not any(r["faults"] for r in rows):
        shutil.rmtree(work)
    return int(any(r["faults"] for r in rows))


if __name__ == "__main__":
    sys.exit(main())
