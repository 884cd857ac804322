"""Width groups of a small member of every timm family, beside Torch-Pruning's; writes the page docs/widths.md.

    python benchmarks/widths.py --json benchmarks/results/widths.json --markdown docs/widths.md
    python benchmarks/widths.py resnet vgg --json ... --markdown ...     (these anew, the others as the file has them)
    python benchmarks/widths.py --drawn --json ... --markdown ...        (the page alone, from the file)

Weights are random and nothing is downloaded. Torch-Pruning says which channels belong together (its dependency graph,
read as index maps by benchmarks/dependency_graph.py); what it says is put to the same proof as ours: a random order
must leave the output as it is, half and 1.25 times the channels must run, and doubled channels must compute the same.
Each gets `--seconds` of CPU time for a family. `ratio` in the JSON is the number of groups proved over that of
Torch-Pruning, over all families in which both gave a number.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from dependency_graph import dependency_groups
from families import build, smallest
from machine import describe, write
from torch import Tensor, nn
from widths_page import KINDS, page, totals

from netsmith.errors import NetsmithError
from netsmith.trace.trial import trial_batches
from netsmith.widths.groups import WidthGroups, width_groups
from netsmith.widths.proof import MISFIT, Proof, sift

OUTPUTS = "these are the network's own outputs"


class TooLong(BaseException):
    """The time is used up; no handler of errors on the way is meant to catch this."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TooLong when the block takes more CPU time than this."""

    def stop(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def rival(model: nn.Module, x: Tensor, seconds: float) -> dict[str, Any]:
    """How many groups Torch-Pruning's dependency graph names and how many of these pass the proof, or why not."""
    start = time.process_time()
    passed = named = None
    problem = ""
    try:
        with limited(seconds):
            groups, unread = dependency_groups(model, x)
            proof = Proof(model, trial_batches(x)[0])
            good, _ = sift(groups, lambda some: _quietly(proof.order_free, some))
            good, _ = sift(proof.resizable(good)[0], lambda some: not proof.changes(some))
            passed, named = len(good), len(groups) + sum(r.reason != OUTPUTS for r in unread)
    except TooLong:
        problem = f"took longer than {seconds:.0f} s"
    except (*MISFIT, RecursionError) as error:
        problem = type(error).__name__
    return {
        "torch_pruning": passed,
        "torch_pruning_named": named,
        "torch_pruning_problem": problem,
        "torch_pruning_seconds": round(time.process_time() - start, 2),
    }


def _quietly(test: Callable[[Any], bool], groups: Any) -> bool:
    try:
        return test(groups)
    except MISFIT:  # indices that the tensor does not have
        return False


def row(family: str, name: str, seconds: float) -> dict[str, Any]:
    """The width groups of one architecture."""
    model, options, x = build(name)
    start = time.process_time()
    groups, problem, cut_off = WidthGroups((), ()), "", False
    try:
        with limited(seconds):
            groups = width_groups(model, x, name=name)
    except TooLong:
        problem, cut_off = f"took longer than {seconds:.0f} s", True
    except NetsmithError as error:
        problem = str(error)
    took = time.process_time() - start
    kinds = Counter(g.kind for g in groups)
    refused = [{"name": r.name, "width": r.width, "reason": r.reason} for r in groups.refused if r.reason != OUTPUTS]
    return {
        "family": family,
        "architecture": name,
        "size": x.shape[-1],
        "options": options,
        "accepted": len(groups),
        **{k: kinds[k] for k in KINDS},
        "refused": refused,
        "problem": problem,
        "cut_off": cut_off,
        "seconds": round(took, 2),
        **rival(model, x, seconds),
    }


def line(r: dict[str, Any]) -> str:
    """A row as it is printed."""
    peer = r["torch_pruning_problem"] if r["torch_pruning"] is None else r["torch_pruning"]
    kept = f"{r['accepted']:3} of {r['accepted'] + len(r['refused']):3}, Torch-Pruning {peer}"
    times = f"{r['seconds']:.1f}s {r['torch_pruning_seconds']:.1f}s"
    return f"{r['family']:24} {r['architecture']:34} {kept} {times} {r['problem'][:160]}"


def measured(families: list[str], seconds: float, save: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """The rows of these families; `save` gets what there is after each."""
    rows: list[dict[str, Any]] = []
    for family in families:
        rows.append(row(family, smallest(family), seconds))
        print(line(rows[-1]), flush=True)
        save(rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="families of timm; all when none is given, others as in --json")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU time for a family, ours and the peer's alike")
    parser.add_argument("--drawn", action="store_true", help="measure nothing, draw the page from --json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.drawn:
        result = json.loads(args.json.read_text())
    else:
        known = (
            {r["family"]: r for r in json.loads(args.json.read_text())["rows"]} if args.json and args.families else {}
        )

        def gathered(rows: list[dict[str, Any]]) -> dict[str, Any]:
            every = sorted({**known, **{r["family"]: r for r in rows}}.values(), key=lambda r: r["family"])
            return {"rows": every, "ratio": totals(every).ratio, **describe()}

        def save(rows: list[dict[str, Any]]) -> None:  # a run that is cut short is not lost
            if args.json:
                write(args.json, gathered(rows))

        result = gathered(measured(args.families or timm.list_modules(), args.seconds, save))
    t = totals(result["rows"])
    print(f"{t.proved} of {t.proved + t.refused} groups proved in {t.families} families")
    print(f"in {t.compared} of them: {t.ours}, Torch-Pruning {t.theirs} of {t.named}")
    if args.markdown:
        args.markdown.write_text(page(result))


if __name__ == "__main__":
    sys.exit(main())
