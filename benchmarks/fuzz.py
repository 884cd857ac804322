"""Fuzzing everything that Netsmith reads: what it refuses must be a named error, whatever came.

    python benchmarks/fuzz.py --json benchmarks/results/fuzz.json --inputs 110000

Sound specimens are changed by their structure (`fuzz_changes`), and Hypothesis makes some from nothing: configs (as
YAML text and as values), zoo files, `--set` overrides, manifests with the hash that belongs to them, recipes, headers
of safetensors, PyTorch's checkpoints, images, parquet files, results that reports are drawn from, command lines. Every
input ends in one of three ways: accepted, refused with a `NetsmithError` (on the command line: exit code 2 and a
message), or anything else, which is a finding: it is saved beside the result and the run fails. A finding is also what
takes more than `--megabytes` of address space beyond the start, or `--patience` seconds of CPU time. In the JSON,
`ratio` is findings over inputs.

With `--atheris`, where that is installed, the same functions are run under its coverage-guided mutations instead.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import machine
import torch
from fuzz_specimens import make_specimens
from fuzz_targets import Target, targets

from netsmith.errors import NetsmithError

SHARES = {
    "config": 25, "config text": 20, "overrides": 8, "made config": 8, "zoo file": 6, "manifest": 4, "recipe": 12,
    "safetensors": 10, "checkpoint": 6, "image": 6, "parquet": 2, "report": 1, "command line": 1,
}  # fmt: skip
"""Of 109 inputs, how many are of each kind."""


class TooLong(Exception):
    """An input took longer than `--patience`."""


@dataclass
class Tally:
    """What came of the inputs of one kind."""

    accepted: int = 0
    refused: int = 0
    findings: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def inputs(self) -> int:
        """How many there were."""
        return self.accepted + self.refused + self.findings


@contextlib.contextmanager
def patience(seconds: int) -> Iterator[None]:
    """Raises TooLong in what takes longer, in CPU time."""

    def ring(*_: Any) -> None:
        raise TooLong(f"took more than {seconds} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def attempt(
    target: Target, rng: random.Random, tally: Tally, seconds: int, keep: Callable[[str, Any, str], None]
) -> None:
    """Make one input of a kind, and see how it ends."""
    made = target.make(rng)
    began = time.process_time()
    try:
        with patience(seconds):
            target.run(made)
        tally.accepted += 1
    except NetsmithError as error:
        tally.refused += 1
        tally.errors[type(error).__name__] += 1
        if not str(error).strip():
            tally.refused, tally.findings = tally.refused - 1, tally.findings + 1
            keep(target.name, made, "an error without a message")
    except Exception:
        tally.findings += 1
        keep(target.name, made, traceback.format_exc())
    took = time.process_time() - began
    tally.seconds += took
    tally.slowest = max(tally.slowest, took)


def fuzz(
    inputs: int | None,
    seconds: float | None,
    seed: int,
    *,
    findings: Path | None,
    kinds: list[str] | None = None,
    each: int = 60,
) -> dict[str, Tally]:
    """So many inputs, or for so many seconds; `findings` is the folder in which what fails is kept."""
    tallies: dict[str, Tally] = {}

    def keep(kind: str, made: Any, text: str) -> None:
        last = text.strip().splitlines()[-1]
        print(f"finding ({kind}): {last[:200]}", file=sys.stderr)
        if findings is not None:
            findings.mkdir(parents=True, exist_ok=True)
            name = f"{kind.replace(' ', '_')}_{tallies[kind].findings}"
            data = made if isinstance(made, bytes) else repr(made).encode("utf-8", "backslashreplace")
            (findings / f"{name}.input").write_bytes(data[:5_000_000])
            (findings / f"{name}.txt").write_text(text, errors="backslashreplace")

    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        every = targets(make_specimens(Path(scratch) / "specimens"), Path(scratch) / "work")
        chosen = {name: t for name, t in every.items() if kinds is None or name in kinds}
        total = sum(SHARES[name] for name in chosen)
        for name, target in chosen.items():
            tally, rng = tallies.setdefault(name, Tally()), random.Random(f"{seed}/{name}")
            share = SHARES[name] / total
            if inputs is not None:
                for _ in range(max(1, round(inputs * share))):
                    attempt(target, rng, tally, each, keep)
            else:
                end = time.monotonic() + (seconds or 0) * share
                while time.monotonic() < end:
                    attempt(target, rng, tally, each, keep)
            print(f"{name}: {tally.inputs} inputs, {tally.findings} findings, {tally.seconds:.0f} s", file=sys.stderr)
    return tallies


def written(tallies: dict[str, Tally], seed: int, began: float) -> dict[str, Any]:
    """The result, as it goes into the JSON file."""
    rows = [
        {
            "kind": name,
            "inputs": t.inputs,
            "accepted": t.accepted,
            "refused": t.refused,
            "findings": t.findings,
            "milliseconds": round(1000 * t.seconds / max(1, t.inputs), 3),
            "slowest_seconds": round(t.slowest, 2),
            "errors": dict(t.errors.most_common()),
        }
        for name, t in tallies.items()
    ]
    inputs, findings = sum(r["inputs"] for r in rows), sum(r["findings"] for r in rows)
    return {
        "rows": rows,
        "inputs": inputs,
        "findings": findings,
        "ratio": findings / max(1, inputs),
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **machine.describe(),
    }


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    parser.add_argument("--inputs", type=int, metavar="N", help="so many in all (default: 110000)")
    parser.add_argument("--seconds", type=float, metavar="N", help="for so long, instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(SHARES), help="these alone; may be given many times")
    parser.add_argument("--megabytes", type=int, default=4096, help="address space beyond the start (default: 4096)")
    parser.add_argument("--patience", type=int, default=60, help="CPU seconds for one input (default: 60)")
    parser.add_argument("--findings", type=Path, default=Path("findings"), help="folder for what fails")
    parser.add_argument("--atheris", action="store_true", help="coverage-guided, with the library atheris")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.atheris:
        from fuzz_atheris import run

        return run(arguments.inputs or 20_000, arguments.seed)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + (arguments.megabytes << 20), resource.RLIM_INFINITY))
    inputs = None if arguments.seconds else arguments.inputs or 110_000
    began = time.monotonic()
    tallies = fuzz(
        inputs, arguments.seconds, arguments.seed,
        findings=arguments.findings, kinds=arguments.kind, each=arguments.patience,
    )  # fmt: skip
    result = written(tallies, arguments.seed, began)
    if arguments.json:
        machine.write(arguments.json, result)
    print(f"{result['inputs']} inputs, {result['findings']} findings in {result['seconds']} s")
    return 1 if result["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
