"""The page docs/widths.md, drawn from what benchmarks/widths.py measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("inner", "mlp", "heads", "stream")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Why:
    """A kind of refusal: the reasons that it stands for, its short name in the table, and what it means."""

    pattern: str
    short: str
    plain: str


WHY = (
    Why(
        "^it is of a fixed size",
        "fixed size",
        "with half or with 1.25 times the channels the network does not run: its code holds a number that does not"
        " follow. Most often a reshape to the width of another layer (heads whose number times their size must be the"
        " width of the stream, say), a bias table of so many heads, or a size computed once when the network was built",
    ),
    Why(
        "channels is doubled$|when they are doubled",
        "doubled",
        "with every channel twice, and what reads it halved, the network computes something else: channels are summed,"
        " normalised or compared without weights, or together with those of another group",
    ),
    Why(
        "^the output changes",
        "order",
        "the output changes when the channels are reordered: the code treats them by their place",
    ),
    Why(
        "together with others$",
        "together",
        "resized alone the group passes, resized together with the other groups it does not",
    ),
    Why(
        "fixed places",
        "fixed places",
        "the channels meet numbers that stand at fixed places: the network's input, a table of positions computed in"
        " the code, a constant for each channel",
    ),
    Why("padded with zeros", "padding", "a shortcut pads the channels with zeros at one end, which fixes their places"),
    Why(
        "overlap",
        "overlap",
        "sets of channels that must move together overlap (chunks, shuffles and groups of convolutions cut one tensor"
        " in several ways), until all are tied to each other",
    ),
    Why(
        "another arrangement",
        "arrangement",
        "the channels meet others in another arrangement (a shuffle on one of two paths), so that one order cannot suit"
        " both",
    ),
    Why("^no two of its", "no equals", "no two channels take the same way through the network, so none can be swapped"),
    Why("side by side", "scattered", "in some tensor the channels do not lie side by side in one order"),
    Why(
        "run(s)? along its channels",
        "along",
        "a convolution, pooling or window runs along the channels: neighbours matter",
    ),
    Why(
        "picked by (its place|their values)|written to by index",
        "by index",
        "the code reads or writes single channels by number",
    ),
    Why("which is not followed", "not followed", "the channels pass an operation whose effect on them is not known"),
    Why("no layer's weights read", "unread", "no layer's weights read the channels"),
    Why("both ways", "both ways", "one weight is used as it is and transposed"),
    Why(
        "did not reach",
        "unseen",
        "the channels pass code around a part of the network that the trial run did not reach",
    ),
    Why("is computed by a", "computed", "a layer's weights are computed from others (weight norm, spectral norm)"),
    Why(
        "share one dimension",
        "shared dimension",
        "all groups of a transposed convolution share one dimension of its weight",
    ),
)


def why(reason: str) -> str:
    """The short name of a reason."""
    return next((w.short for w in WHY if re.search(w.pattern, reason)), reason)


@dataclass(frozen=True)
class Totals:
    """Sums over families; `compared` counts those for which Torch-Pruning gave a number."""

    proved: int
    refused: int
    families: int
    none: int
    cut_off: int
    compared: int
    ours: int
    theirs: int
    named: int

    @property
    def ratio(self) -> float:
        """Groups proved over those of Torch-Pruning, where both gave a number."""
        return self.ours / max(self.theirs, 1)


def totals(rows: Sequence[Row]) -> Totals:
    """The sums of a table."""
    both = [r for r in rows if r["torch_pruning"] is not None and not r["cut_off"]]
    return Totals(
        proved=sum(r["accepted"] for r in rows),
        refused=sum(len(r["refused"]) for r in rows),
        families=len(rows),
        none=sum(not r["accepted"] and not r["cut_off"] for r in rows),
        cut_off=sum(r["cut_off"] for r in rows),
        compared=len(both),
        ours=sum(r["accepted"] for r in both),
        theirs=sum(r["torch_pruning"] for r in both),
        named=sum(r["torch_pruning_named"] for r in both),
    )


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    rows: list[Row] = result["rows"]
    parts = [_introduction(result), _refusals(rows), _reading(result), _table(rows), _details(rows)]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _introduction(result: Mapping[str, Any]) -> list[str]:
    rows = result["rows"]
    t = totals(rows)
    versions, machine = result["versions"], result["machine"]
    missed = [
        r["torch_pruning_problem"] for r in rows if r["torch_pruning"] is None and not r["cut_off"]
    ]  # why Torch-Pruning gave no number
    slow = sum(m.startswith("took longer") for m in missed)
    return [
        "# Width groups of timm's families",
        "",
        "A **width group** is the set of all tensor axes that must share one channel order and one width: the outputs"
        " of a layer, the norm behind it, the inputs of every layer that reads it. `netsmith.width_groups` follows the"
        " channels through a run of the network in eval mode and one in train mode, and *proves* each group that it"
        " finds, on a copy with random weights: in a random order of the channels the output must stay as it is, with"
        " half and with 1.25 times the channels the network must run, and with every channel twice (from its own width"
        " and from half of it) it must compute the same, with others and without. What is not proved is refused, and"
        " the refusal says why. A part of the network that no run reached (a branch by a value, an expert without"
        " tokens) fixes all channels that pass the code around it, if that code can reach it at all.",
        "",
        f"- **{t.proved} of {t.proved + t.refused} groups** are proved"
        f" ({t.proved / max(t.proved + t.refused, 1):.0%}), in {t.families - t.none - t.cut_off} of {t.families}"
        f" families; {t.none} families have none" + (f", {t.cut_off} took too long." if t.cut_off else "."),
        f"- **Torch-Pruning {versions['torch-pruning']}**: in the {t.compared} families for which its dependency graph"
        f" gives an answer it names {t.named} groups, of which {t.theirs} pass the same proof; in these families"
        f" {t.ours} of ours do ({t.ratio:.2f} times as many). In {len(missed)} families it gives none"
        f" ({slow} took too long, {len(missed) - slow} ended in an error).",
        "",
        "Written by `python benchmarks/widths.py --json benchmarks/results/widths.json --markdown docs/widths.md`: one"
        " small member of every family, random weights, inputs as small as it takes."
        f" timm {versions['timm']}, torch {versions['torch']}, Torch-Pruning {versions['torch-pruning']},"
        f" {machine['cpu']}, {machine['cores']} cores, one thread, {result['date']}."
        " Each family gets a limited CPU time, ours and Torch-Pruning's alike; the table says where it was used up.",
    ]


def _refusals(rows: Sequence[Row]) -> list[str]:
    counts = Counter(why(g["reason"]) for r in rows for g in r["refused"])
    families = Counter(w for r in rows for w in {why(g["reason"]) for g in r["refused"]})
    plain = {w.short: w.plain for w in WHY}
    lines = [
        "## Why a group is refused",
        "",
        "| in the table | groups | families | what it means |",
        "|---|---|---|---|",
    ]
    lines += [f"| {w} | {n} | {families[w]} | {plain.get(w, w)} |" for w, n in counts.most_common()]
    lines += [
        "",
        "A refused group costs nothing but freedom: its width stays as it is, and the other groups vary without it.",
    ]
    return lines


def _reading(result: Mapping[str, Any]) -> list[str]:
    return [
        "## How to read the table",
        "",
        "- **proved**: the groups accepted, and of these: *inner* ones never leave a block, *mlp* ones lie between two"
        " linear layers, *heads* are attention heads (the group counts heads, not entries), *streams* are residual"
        " streams that many blocks share. The groups of a grouped convolution or group norm are counted as channels.",
        "- **refused**: groups found and not proved, with the number for each reason. The network's own outputs (its"
        " classes), which every network has, are counted nowhere.",
        "- **Torch-Pruning**: groups of its dependency graph that pass the same proof, of those that it names. It is"
        " told nothing of the network's own attributes (number of heads and the like), and neither are we: we find them"
        " by trying. Heads, group counts and channels that share a layer with others are groups to us and not to it, so"
        " the numbers differ in kind as well as in count.",
        "- **s**: CPU seconds of `width_groups`.",
        "",
        "A proof is one of the function, not of the accuracy: what a network loses at a smaller width is measured after"
        " fitting ([How morphing works](morphing.md)).",
    ]


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "## The table",
        "",
        "| family | network | input | proved | inner | mlp | heads | streams | refused | Torch-Pruning | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(str(c) for c in _cells(r))} |" for r in rows]
    t = totals(rows)
    sums = [sum(r[k] for r in rows) for k in KINDS]
    every = f"{t.theirs} of {t.named}"
    cells = ["**all**", t.families, "", f"**{t.proved}**", *sums, t.refused, every, f"{_seconds(rows):.0f}"]
    lines.append(f"| {' | '.join(str(c) for c in cells)} |")
    return lines


def _seconds(rows: Sequence[Row]) -> float:
    return sum(r["seconds"] for r in rows)


def _cells(r: Row) -> list[Any]:
    counts = Counter(why(g["reason"]) for g in r["refused"])
    refused = ", ".join(f"{n} {w}" for w, n in counts.most_common())
    if r["problem"] and not refused:
        refused = r["problem"] if r["cut_off"] else "see below"
    peer = f"{r['torch_pruning']} of {r['torch_pruning_named']}"
    if r["torch_pruning"] is None:
        peer = r["torch_pruning_problem"]
    kinds = [r[k] or "" for k in KINDS]
    proved = "" if r["cut_off"] else r["accepted"]
    return [r["family"], r["architecture"], r["size"], proved, *kinds, refused, peer, f"{r['seconds']:.1f}"]


def _details(rows: Sequence[Row]) -> list[str]:
    lines = ["## Which groups are refused", ""]
    for r in rows:
        by_reason: dict[str, list[str]] = {}
        for g in r["refused"]:
            by_reason.setdefault(_short(g["reason"]), []).append(g["name"])
        texts = [f"{len(names)} ({_some(names)}): {reason}" for reason, names in by_reason.items()]
        if r["problem"] and not texts:
            texts = [r["problem"][:300]]
        if texts:
            lines.append(f"- **{r['family']}**: " + "; ".join(texts))
    return lines


def _short(reason: str) -> str:
    """A reason without what differs from group to group."""
    return re.sub(r": with \d+ of \d+ channels, .*", "", reason)


def _some(names: Sequence[str], most: int = 2) -> str:
    shown: Iterable[str] = (f"`{n}`" for n in names[:most])
    return ", ".join(shown) + (", ..." if len(names) > most else "")
