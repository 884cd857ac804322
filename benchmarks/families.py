"""Dissect a small member of every timm family and print the table of docs/families.md.

    python benchmarks/families.py --json benchmarks/results/families.json --markdown docs/families.md
    python benchmarks/families.py resnet vgg --json ... --markdown ...     (these anew, the others as the file has them)

Weights are random and nothing is downloaded. Inputs are as small as the member takes, which changes no cut of a network
that is a chain of blocks. `ratio` in the JSON is the share of families with four units or more.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from netsmith.errors import DissectionError
from netsmith.trace.chain import dissect

SMALL_NAMES = (
    "zepto",
    "femto",
    "atto",
    "pico",
    "nano",
    "micro",
    "mini",
    "tiny",
    "xxs",
    "xs",
    "small",
    "_s",
    "050",
    "002",
    "18",
)
SIZES = (64, 96, 112, 128, 192)
ENOUGH = 4
# what a constructor or a forward pass raises for a size it does not take
WRONG_SIZE = (RuntimeError, AssertionError, TypeError, ValueError, IndexError, ZeroDivisionError, NotImplementedError)


def smallest(family: str) -> str:
    """The member with fewest parameters among those with small names."""
    names = timm.list_models(module=family)
    hopeful = sorted(names, key=lambda n: (-sum(w in n for w in SMALL_NAMES), "384" in n or "448" in n, len(n), n))[:5]
    sizes = {}
    for name in hopeful:
        try:
            with torch.device("meta"):
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
        except WRONG_SIZE:  # computes with its weights while it is built
            sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
    return min(sizes, key=sizes.__getitem__)


def builds(name: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Arguments and input sizes worth trying, small ones first."""
    config = timm.get_pretrained_cfg(name) or timm.create_model(name).pretrained_cfg
    own = config.input_size[-1]
    for size in SIZES:
        if size < own:
            yield ({"img_size": size} if config.fixed_input_size else {}), size
    yield {}, own


def build(name: str) -> tuple[nn.Module, dict[str, Any], torch.Tensor]:
    """The architecture with the smallest input it takes: the model, the arguments it was built with, an example."""
    problem: Exception | None = None
    for options, size in builds(name):
        try:
            torch.manual_seed(0)
            model = timm.create_model(name, **options).eval()
            x = torch.randn(1, 3, size, size)
            with torch.no_grad():
                model(x)
            return model, options, x
        except WRONG_SIZE as error:
            problem = error
    raise RuntimeError(f"{name} takes no input that was tried") from problem


def row(family: str, name: str) -> dict[str, Any]:
    """How the dissection of one architecture went."""
    model, options, x = build(name)
    found = {"family": family, "architecture": name, "size": x.shape[-1], "options": options}
    start = time.perf_counter()
    try:
        chain = dissect(model, x, name=name)
    except DissectionError as error:
        seconds = time.perf_counter() - start
        return {**found, "units": 0, "layouts": "", "seconds": seconds, "reason": str(error), "names": []}
    kinds = dict.fromkeys(c.layout.kind for c in chain.cuts)
    seconds = time.perf_counter() - start
    names = [u.name for u in chain.units]
    return {**found, "units": len(chain), "layouts": ", ".join(kinds), "seconds": seconds, "reason": "", "names": names}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The page of the documentation."""
    good = sum(r["units"] >= ENOUGH for r in rows)
    lines = [
        "# Families of timm and their units",
        "",
        "Written by `python benchmarks/families.py --markdown docs/families.md`: one small member of every family,",
        f"random weights, timm {timm.__version__}, torch {torch.__version__}.",
        f"{good} of {len(rows)} families ({good / len(rows):.0%}) give {ENOUGH} units or more.",
        "",
        "| family | architecture | input | units | layouts | first unit | last unit |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if r["units"]:
            ends = f"`{r['names'][0]}` | `{r['names'][-1]}`"
            lines.append(
                f"| {r['family']} | {r['architecture']} | {r['size']} | {r['units']} | {r['layouts']} | {ends} |"
            )
    lines += ["", "## Not cut", "", "What the refusal says:", ""]
    lines += [f"- **{r['family']}** ({r['architecture']}): {r['reason']}" for r in rows if not r["units"]]
    few = [r["family"] for r in rows if 0 < r["units"] < ENOUGH]
    if few:
        lines += ["", f"Cut into fewer than {ENOUGH} units: {', '.join(few)}."]
    return "\n".join(lines) + "\n"


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
        took = f"{r['units']:3} units {r['seconds']:5.1f}s"
        print(f"{family:24} {r['architecture']:34} {r['size']:4} {took} {r['reason'][:160]}", flush=True)
    if args.families and args.json and args.json.exists():
        kept = {r["family"]: r for r in json.loads(args.json.read_text())["rows"]}
        rows = sorted({**kept, **{r["family"]: r for r in rows}}.values(), key=lambda r: r["family"])
    ratio = sum(r["units"] >= ENOUGH for r in rows) / len(rows)
    print(f"{ratio:.1%} of {len(rows)} families give {ENOUGH} units or more")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "ratio": ratio}, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    sys.exit(main())
