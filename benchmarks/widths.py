"""Width groups of a small member of every timm family, beside Torch-Pruning's; prints the table of docs/widths.md.

    python benchmarks/widths.py --json benchmarks/results/widths.json --markdown docs/widths.md
    python benchmarks/widths.py resnet vgg --json ... --markdown ...     (these anew, the others as the file has them)

Weights are random and nothing is downloaded. Torch-Pruning says which channels belong together (its dependency graph,
read as index maps by benchmarks/dependency_graph.py); what it says is put to the same proof as ours: a random order
must leave the output as it is, and half and 1.25 times the channels must run. It gets ten times our CPU time, and at
least a minute. `ratio` in the JSON is the number of groups proved over that of Torch-Pruning, all families together.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
from dependency_graph import dependency_groups
from families import build, smallest
from machine import describe, write
from torch import Tensor, nn

from netsmith.core.channel_proof import MISFIT, Proof, sift
from netsmith.core.channels import WidthGroups, width_groups
from netsmith.core.trial import trial_batches
from netsmith.errors import NetsmithError

KINDS = ("inner", "mlp", "heads", "stream")
OUTPUTS = "these are the network's own outputs"


class TooLong(Exception):
    """The rival used up its time."""


def rival(model: nn.Module, x: Tensor, seconds: float) -> tuple[int | None, str, float]:
    """How many groups of Torch-Pruning's dependency graph pass the proof; why there is no number; CPU seconds."""

    def stop(*_: Any) -> None:
        raise TooLong

    start = time.process_time()
    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        groups, _ = dependency_groups(model, x)
        proof = Proof(model, trial_batches(x)[0])
        good, _ = sift(groups, lambda some: _quietly(proof.order_free, some))
        good, _ = sift(good, lambda some: _quietly(proof.fits, some))
        return len(good), "", time.process_time() - start
    except TooLong:
        return None, f"more than {seconds:.0f} s", time.process_time() - start
    except (*MISFIT, RecursionError) as error:
        return None, type(error).__name__, time.process_time() - start
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _quietly(test: Any, groups: Any) -> bool:
    try:
        return test(groups)
    except MISFIT:  # indices that the tensor does not have
        return False


def row(family: str, name: str) -> dict[str, Any]:
    """The width groups of one architecture."""
    model, options, x = build(name)
    found = {"family": family, "architecture": name, "size": x.shape[-1], "options": options}
    start = time.process_time()
    try:
        groups = width_groups(model, x, name=name)
        problem = ""
    except NetsmithError as error:
        groups, problem = WidthGroups((), ()), str(error)
    seconds = time.process_time() - start
    kinds = Counter(g.kind for g in groups)
    refused = [{"name": r.name, "width": r.width, "reason": r.reason} for r in groups.refused if r.reason != OUTPUTS]
    theirs, why, their_seconds = rival(model, x, max(60.0, 10 * seconds))
    return {
        **found,
        "accepted": len(groups),
        **{k: kinds[k] for k in KINDS},
        "refused": refused,
        "problem": problem,
        "seconds": round(seconds, 2),
        "torch_pruning": theirs,
        "torch_pruning_problem": why,
        "torch_pruning_seconds": round(their_seconds, 2),
    }


def totals(rows: list[dict[str, Any]]) -> tuple[int, int, int]:
    """Groups accepted, groups found, and groups that Torch-Pruning gets right."""
    ours = sum(r["accepted"] for r in rows)
    return ours, ours + sum(len(r["refused"]) for r in rows), sum(r["torch_pruning"] or 0 for r in rows)


def short(reason: str) -> str:
    """A reason without what differs from group to group."""
    return re.sub(r": with \d+ of \d+ channels, .*", "", reason)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The page of the documentation."""
    ours, found, theirs = totals(rows)
    some = sum(r["accepted"] > 0 for r in rows)
    lines = [
        "# Width groups of timm's families",
        "",
        "A width group is the set of all tensor axes that must share one channel order and one width. `width_groups`",
        "follows the channels through one run of the network. It accepts a group when a copy of the network with",
        "random weights gives the same output with its channels in a random order, and runs with half and with 1.25",
        "times the channels. What cannot be proved is refused with the reason.",
        "",
        "Written by `python benchmarks/widths.py --markdown docs/widths.md`: one small member of every family, random",
        f"weights, timm {timm.__version__}, torch {torch.__version__}. {some} of {len(rows)} families have groups;",
        f"{ours} of {found} groups are accepted (the networks' own outputs not counted). Torch-Pruning's dependency",
        f"graph gives {theirs} groups that pass the same proof. Groups of kind `heads` count attention heads, those of",
        "grouped convolutions and group norms count their groups. Seconds are CPU seconds of `width_groups`.",
        "",
        "| family | architecture | input | accepted | inner | mlp | heads | streams | refused | Torch-Pruning | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        kinds = " | ".join(str(r[k] or "") for k in KINDS)
        peer = r["torch_pruning_problem"] if r["torch_pruning"] is None else r["torch_pruning"]
        cells = [r["family"], r["architecture"], r["size"], r["accepted"], kinds, len(r["refused"]) or "", peer]
        lines.append(f"| {' | '.join(map(str, cells))} | {r['seconds']:.1f} |")
    lines += [
        "",
        "## What is refused, and why",
        "",
        "*A fixed size in the code* is the commonest: the code reshapes to a size that another width decides (heads",
        "whose number times their size must be the width of the stream, say), so one cannot change without the other.",
        "",
    ]
    for r in rows:
        reasons: dict[str, list[str]] = {}
        for g in r["refused"]:
            reasons.setdefault(short(g["reason"]), []).append(g["name"])
        if r["problem"]:
            lines.append(f"- **{r['family']}**: {r['problem'][:300]}")
        elif reasons:
            texts = [f"{len(n)} ({_some(n)}): {reason}" for reason, n in reasons.items()]
            lines.append(f"- **{r['family']}**: " + "; ".join(texts))
    return "\n".join(lines) + "\n"


def _some(names: list[str]) -> str:
    return ", ".join(f"`{n}`" for n in names[:2]) + (", ..." if len(names) > 2 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="families of timm; all when none is given, others as in --json")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for family in args.families or timm.list_modules():
        rows.append(row(family, smallest(family)))
        r = rows[-1]
        peer = r["torch_pruning"] if r["torch_pruning"] is not None else r["torch_pruning_problem"]
        kept = f"{r['accepted']:3} of {r['accepted'] + len(r['refused']):3}, Torch-Pruning {peer}"
        print(
            f"{family:24} {r['architecture']:34} {kept} {r['seconds']:.1f}s {r['torch_pruning_seconds']:.1f}s",
            flush=True,
        )
        if args.json and not args.families:
            write(args.json, {"rows": rows, "ratio": None})  # so that a run that is cut short is not lost
    if args.families and args.json and args.json.exists():
        kept_rows = {r["family"]: r for r in json.loads(args.json.read_text())["rows"]}
        rows = sorted({**kept_rows, **{r["family"]: r for r in rows}}.values(), key=lambda r: r["family"])
    ours, found, theirs = totals(rows)
    print(f"{ours} of {found} groups accepted in {len(rows)} families; {theirs} of Torch-Pruning's")
    if args.json:
        write(args.json, {"rows": rows, "ratio": ours / max(theirs, 1), **describe()})
    if args.markdown:
        args.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    sys.exit(main())
