"""From labels to width groups: channels that are equals of each other, and where they lie."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from netsmith.widths.entries import ENTRIES
from netsmith.widths.follow import Flow, tensors_of
from netsmith.widths.labels import Family, Labels, mixed
from netsmith.widths.products import PRODUCTS
from netsmith.widths.settings import around, layer_settings
from netsmith.widths.types import Axis, Refused, WidthGroup


class Unfit(Exception):
    """Channels whose places our terms cannot express."""


def candidates(model: nn.Module, example: Tensor, batch: Tensor) -> tuple[list[WidthGroup], list[Refused]]:
    """The groups that runs of the network show, to be proved, and those that must keep their channels as they are.

    It runs on `example` in eval mode and on `batch` in train mode, where it may take another way through its code.
    """
    own = {id(p): p for p in model.parameters() if p.device.type == "cpu"}  # a run writes to buffers only
    twin = copy.deepcopy(model, own).cpu()
    flow = Flow(twin, {**ENTRIES, **PRODUCTS})
    labels = flow.labels
    for x, training in ((example, False), (batch, True)):
        twin.train(training)
        try:
            output = flow.run(x.detach().cpu())
        except Exception:  # in train mode it may want targets, or larger inputs: what only that mode uses is unseen
            if not training:
                raise
            break
        flow.lost(tensors_of(output), "these are the network's own outputs")
    flow.pin_unseen()
    tops = _Tops(labels)
    groups = tops.groups()
    found = [f for channels in groups if (f := _describe(model, labels, tops, channels)) is not None]
    found += _lonely(model, labels, tops, {c for channels in groups for c in channels})
    found.sort(key=lambda f: f[0])
    names: Counter[str] = Counter()
    accepted: list[WidthGroup] = []
    refused: list[Refused] = []
    for _, group in found:
        names[group.name] += 1
        if names[group.name] > 1:
            group = replace(group, name=f"{group.name}+{names[group.name] - 1}")
        (accepted if isinstance(group, WidthGroup) else refused).append(group)  # type: ignore[arg-type]
    return accepted, refused


class _Tops:
    """Every label's channel: itself, or the coarsest label that it lies within.

    What lies within two bundles that overlap ties these together: they are one channel.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self._settle()
        bundles = self._bundles()
        self.reasons: dict[int, str] = {}
        memo: dict[int, int] = {}
        self._above = labels.within()
        top_of = np.arange(labels.count)
        for label in self._above:
            top_of[label] = self._top(label, bundles, memo)
        top_of = top_of[labels.find(torch.arange(labels.count)).numpy()]
        self.of = top_of
        for label, reason in labels.reasons.items():
            self.reasons.setdefault(int(top_of[label]), reason)
        colours = np.zeros(labels.count, dtype=np.int64)
        np.bitwise_xor.at(colours, top_of, labels.colours().numpy())
        self.colours = colours
        self.heads = {
            int(top_of[i]) for f in labels.families if f.bundle == "heads" for i in range(f.start, f.start + f.size)
        }
        self.added = {int(top_of[i]) for i in labels.added if i >= 0}

    def _bundles(self) -> set[int]:
        families = [f for f in self.labels.families if f.bundle]
        every = [torch.arange(f.start, f.start + f.size) for f in families]
        return set(self.labels.find(torch.cat(every)).tolist()) if every else set()

    def _settle(self) -> None:
        """Unite coarse labels that hold the same fine ones, or overlap; nest those that hold some of another's."""
        changed = True
        while changed:
            changed = False
            bundles = self._bundles()
            edges = self.labels.within()
            members: dict[int, set[int]] = defaultdict(set)
            for fine, coarse in edges.items():
                for c in coarse:
                    members[c].add(fine)
            pairs = {(a, b) for coarse in edges.values() if len(coarse) > 1 for a in coarse for b in coarse if a < b}
            for a, b in pairs:
                small, large = (a, b) if len(members[a]) <= len(members[b]) else (b, a)
                overlap = not members[small] <= members[large] and {a, b} <= bundles  # must move together
                if members[small] == members[large] or overlap:
                    self.labels.unite(torch.tensor([a]), torch.tensor([b]))
                    changed = True
                elif members[small] < members[large] and large not in edges.get(small, ()):
                    self.labels.nest(torch.tensor([small]), torch.tensor([large]))
                    changed = True

    def _top(self, label: int, bundles: set[int], memo: dict[int, int]) -> int:
        if label in memo:
            return memo[label]
        memo[label] = label  # ends a circle
        above = {self._top(c, bundles, memo) for c in self._above.get(label, ())}
        chosen = above & bundles or above
        if len(chosen) > 1:
            for c in chosen:
                self.reasons.setdefault(c, "its channels belong to several sets that overlap")
        memo[label] = min(chosen) if chosen else label
        return memo[label]

    def groups(self) -> list[list[int]]:
        """Channels that lie in the same tensors equally often and were seen at the same steps."""
        seen = [f for f in self.labels.families if f.tensor or f.setting]
        places = np.zeros(len(self.of), dtype=np.int64)
        tops: list[Any] = [np.zeros(0, dtype=np.int64)]
        with np.errstate(over="ignore"):
            for f in seen:
                tops.append(self.of[f.start : f.start + f.size])
                np.add.at(places, tops[-1], np.int64(mixed(f.start)))
        every, first = np.unique(np.concatenate(tops), return_index=True)
        equals: dict[tuple[int, int], list[int]] = defaultdict(list)
        for top in every[np.argsort(first)].tolist():
            equals[int(places[top]), int(self.colours[top])].append(top)
        return [tops for tops in equals.values() if len(tops) > 1]

    def where(self, top: int) -> list[Family]:
        """The families that hold a channel."""
        return [
            f for f in self.labels.families if (f.tensor or f.setting) and top in self.of[f.start : f.start + f.size]
        ]


def _lonely(model: nn.Module, labels: Labels, tops: _Tops, grouped: set[int]) -> list[tuple[int, Refused]]:
    """Outputs of layers none of whose channels has an equal."""
    found = []
    for f in labels.families:
        if f.tensor and f.given and not f.summed and _is_layer(model, f.tensor) and f.tensor.endswith("weight"):
            own = set(_tops_of(tops, f))
            if not own & grouped:
                why = (
                    "no two of its channels are equals"
                    if len(own) > 1
                    else "overlapping sets tie all its channels together"
                )
                reason = next((tops.reasons[t] for t in own if t in tops.reasons), why)
                found.append((f.first, Refused(f.tensor.rpartition(".")[0], f.size, reason)))
    return found


def _is_layer(model: nn.Module, tensor: str) -> bool:
    module = model.get_submodule(tensor.rpartition(".")[0])
    return isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))


def _describe(
    model: nn.Module, labels: Labels, tops: _Tops, channels: list[int]
) -> tuple[int, WidthGroup | Refused] | None:
    """A set of channels as a group, or why it cannot be one; nothing when no layer makes it. With its first step."""
    where = tops.where(channels[0])
    makers = [f for f in where if f.tensor and f.given and not f.summed]
    if not makers:
        return None
    opening = min(makers, key=lambda f: (f.first, f.start))
    inside = set(channels)
    place = np.full(len(tops.of), -1)
    ordered = [t for t in dict.fromkeys(_tops_of(tops, opening)) if t in inside]
    place[ordered] = np.arange(len(ordered))
    name = _name(opening, [i for i, t in enumerate(_tops_of(tops, opening)) if t in inside])
    width = len(channels)
    reason = next((tops.reasons[c] for c in channels if c in tops.reasons), None)
    if reason:
        return (opening.first, Refused(name, width, reason)) if _is_layer(model, opening.tensor) else None
    axes: list[Axis] = []
    counts: dict[tuple[str, str], int] = {}
    try:
        for f in where:
            marks = place[tops.of[f.start : f.start + f.size]]
            if f.setting:
                counts[f.setting] = int((marks >= 0).sum()) // width
                continue
            if f.summed and f.given:
                raise Unfit(f"{f.tensor} is used both ways, as it is and transposed")
            axes += [Axis(f.tensor, f.dim, s, r, t, f.summed) for s, r, t in _runs(marks, width, f.tensor)]
        if not any(a.fan_in for a in axes):
            raise Unfit("no layer's weights read its channels")
    except Unfit as why:
        return opening.first, Refused(name, width, str(why))
    settings = layer_settings(model, axes, width, counts)
    kind = _kind(model, axes, heads=bool(inside & tops.heads), added=bool(inside & tops.added))
    return opening.first, WidthGroup(name, width, kind, tuple(axes), tuple(settings))


def _tops_of(tops: _Tops, family: Family) -> list[int]:
    return tops.of[family.start : family.start + family.size].tolist()


def _name(opening: Family, indices: list[int]) -> str:
    """The module that makes the channels; with their range where it makes others too."""
    module = opening.tensor.rpartition(".")[0] or opening.tensor
    if len(indices) == opening.size:
        return module
    ranges: list[list[int]] = []
    for i in indices:
        if ranges and i == ranges[-1][1]:
            ranges[-1][1] += 1
        else:
            ranges.append([i, i + 1])
    shown = ",".join(f"{a}:{b}" for a, b in ranges[:4])
    return f"{module}[{shown}{',...' if len(ranges) > 4 else ''}]"


def _runs(marks: Int64[np.ndarray, " n"], width: int, where: str) -> list[tuple[int, int, int]]:
    """The indices of a dimension that hold channels (-1: none) as runs (start, repeat, tiles)."""
    found = []
    ends = np.flatnonzero(np.diff(np.concatenate([[False], marks >= 0, [False]]).astype(int)))
    for start, stop in ends.reshape(-1, 2).tolist():
        run = marks[start:stop]
        repeat = int(np.argmax(run != run[0])) or len(run)
        tiles, rest = divmod(len(run), width * repeat)
        if rest or not np.array_equal(run, np.tile(np.arange(width).repeat(repeat), tiles)):
            raise Unfit(f"in {where} its {width} channels do not lie side by side in one order, each equally often")
        found.append((start, repeat, tiles))
    return found


def _kind(model: nn.Module, axes: Sequence[Axis], *, heads: bool, added: bool) -> str:
    """ "heads", "mlp", "stream" or "inner"."""
    if heads:
        return "heads"
    common = min(around(axes), key=len).split(".")
    while common != [""] and isinstance(model.get_submodule(".".join(common)), (nn.Sequential, nn.ModuleList)):
        common = common[:-1] or [""]
    if added and _layers(model.get_submodule(".".join(common))) * 2 > _layers(model):
        return "stream"
    owners = [a.tensor.rpartition(".")[0] for a in axes]
    layers = [model.get_submodule(o) for o in owners]
    weighted = [m for m in layers if any(p.ndim > 1 for p in m.parameters(recurse=False))]
    return "mlp" if weighted and all(isinstance(m, nn.Linear) for m in weighted) else "inner"


def _layers(module: nn.Module) -> int:
    return sum(p.ndim > 1 for p in module.parameters())
