"""Where a network can be cut, and which of these cuts are worth keeping.

A cut is a step that every path from input to output crosses (a dominator of the output) and that carries one tensor.
A deep network has hundreds. Kept are those at the ends of blocks: calls of modules that hold several weighted layers
and cannot be taken apart further into such blocks. Between blocks, or where there are none, a group of one weighted
layer with the norms, activations and pools that follow it is the smallest unit.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import networkx as nx
from torch import nn

from netsmith.trace.tape import Call, Recording, Ref, Step

# A point of the run that can be found again in another recording: (module path, which call of it, which of its own
# steps), where -1 stands for the end of the call.
Key = tuple[str, int, int]

# Fewer units than this leave nothing to choose from, so smaller pieces are looked for.
ENOUGH = 4

_WEIGHTED_FUNCTIONS = frozenset(
    {
        "linear",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "einsum",
        "matmul",
        "__matmul__",
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "tensordot",
        "bilinear",
    }
)


@dataclass(frozen=True)
class Point:
    """A cut: the tensor `ref` of a recording."""

    key: Key
    ref: Ref
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Boundary:
    """A kept cut, named after what lies before it."""

    name: str
    point: Point


@dataclass(frozen=True)
class _Piece:
    """What lies between two neighbouring cuts of the opened part of the network."""

    point: Point
    name: str
    weights: int
    block: bool
    inline: bool  # ends in code of the opened module itself, not at the end of a module
    quiet: bool  # owns no parameters


def cut_points(recording: Recording) -> list[Point]:
    """All points that every path from input to output crosses and that carry exactly one tensor, in order.

    The first is the input itself, the last the output.
    """
    keys = _end_keys(recording)
    return [
        Point(keys.get(ref) or (step.owner.path, step.owner.count, step.ordinal), ref, shape[1:])
        for step, ref, shape in _crossed(recording)
        if shape[0] == recording.batch
    ]


def sequence_first(recording: Recording) -> tuple[int, ...] | None:
    """The shape of a point that every path crosses and whose second axis is the batch, where several are so."""
    shapes = [
        shape
        for _, _, shape in _crossed(recording)
        if len(shape) > 2 and shape[1] == recording.batch and shape[0] != recording.batch
    ]
    return shapes[0] if len(shapes) > 1 else None


def _crossed(recording: Recording) -> list[tuple[Step, Ref, tuple[int, ...]]]:
    """All points that every path from input to output crosses with exactly one tensor, with its shape, in order."""
    assert recording.result is not None
    graph = nx.DiGraph()
    used: dict[int, set[Ref]] = {recording.result.step: {recording.result}}
    for step in recording.steps:
        if not step.derived:
            continue
        for ref in step.refs():
            if recording.steps[ref.step].derived:
                graph.add_edge(ref.step, step.index)
                used.setdefault(ref.step, set()).add(ref)
        graph.add_edges_from((w, step.index) for w in step.after if recording.steps[w].derived)
    last = recording.result.step
    if last not in graph:
        return []
    graph = graph.subgraph(nx.ancestors(graph, last) | {last})
    above = nx.immediate_dominators(graph, 0)
    chain = [last]
    while chain[-1] != 0:
        chain.append(above[chain[-1]])
    points = []
    for i in reversed(chain):
        step = recording.steps[i]
        refs = {r for r in used.get(i, set()) if recording.steps[r.step].kind != "input"} or {Ref(0)}
        if len(refs) != 1 or not step.floating:
            continue
        ref = next(iter(refs))
        shape = step.shapes.get(ref.path, ())
        if len(shape) >= 2:
            points.append((step, ref, shape))
    return points


def _end_keys(recording: Recording) -> dict[Ref, Key]:
    """The outermost call that ends at each output."""
    keys: dict[Ref, Key] = {}
    for call in sorted(recording.calls, key=lambda c: c.path.count(".") if c.path else -1):
        if call.end is not None and call.parent is not None and call.end.step >= call.start:
            keys.setdefault(call.end, (call.path, call.count, -1))
    return keys


def find(recording: Recording, key: Key) -> Ref | None:
    """The output that `key` names in this recording."""
    path, count, ordinal = key
    for call in recording.calls:
        if call.path == path and call.count == count and ordinal < 0:
            return call.end
    for step in recording.steps:
        if ordinal >= 0 and step.kind == "function" and (step.owner.path, step.owner.count, step.ordinal) == key:
            return Ref(step.index)
    return None


def opened_by(recording: Recording, keys: Sequence[Key]) -> set[str]:
    """Paths of the modules that must be looked into so that every key is seen: those it lies strictly inside of."""
    by_place = {(c.path, c.count): c for c in recording.calls}
    paths: set[str] = {""}
    for path, count, ordinal in keys:
        call: Call | None = by_place[path, count]
        if ordinal < 0:
            call = call.parent if call else None
        while call is not None:
            paths.add(call.path)
            call = call.parent
    return paths


def leaking(recording: Recording, opened: Collection[str]) -> set[str]:
    """Paths of closed modules that hand on more than one tensor, so that closing them ties together what is apart."""
    found: set[str] = set()
    readers: dict[int, int] = {}  # the last step that reads a step's output
    for step in recording.steps:
        for ref in step.refs():
            readers[ref.step] = step.index
    todo = [c for call in recording.calls if call.path in opened for c in call.children if c.path not in opened]
    while todo:
        call = todo.pop()
        if call.stop - call.start > 1 and sum(readers.get(i, 0) >= call.stop for i in range(call.start, call.stop)) > 1:
            found.add(call.path)
            todo += call.children
    return found


class _Tree:
    """The calls of a recording, weighed and opened down to the blocks, at one level of strictness.

    Level 0 opens a module that holds two blocks or five layers in a row; level 1 one that holds two layers; level 2
    every module that has a cut inside.
    """

    def __init__(self, recording: Recording, points: Sequence[Point], level: int) -> None:
        self.recording = recording
        self.points = [p for p in points if recording.steps[p.ref.step].kind != "input"]
        self._at = [p.ref.step for p in self.points]
        self.by_step = {p.ref.step: p for p in self.points}
        self.level = level
        self._weights = [_weighted(recording, s) for s in recording.steps]
        self._sums = [0]
        for w in self._weights:
            self._sums.append(self._sums[-1] + w)
        self.open: dict[int, bool] = {}
        self.root = recording.calls[0]
        self._blocks(self.root)

    def weights(self, start: int, stop: int) -> int:
        return self._sums[stop] - self._sums[start]

    def links(self, call: Call) -> list[Call]:
        """Calls made by `call` that end at a cut, or that hold one."""
        return [c for c in call.children if self._within(c)]

    def _within(self, call: Call) -> list[Point]:
        first = bisect_left(self._at, call.start)
        return self.points[first : bisect_left(self._at, call.stop)]

    def _ends_at_cut(self, call: Call) -> bool:
        return call.end is not None and call.end.step in self.by_step and call.end.step >= call.start

    def _blocks(self, call: Call) -> int:
        """How many blocks `call` counts for; decides on the way whether it is opened."""
        links = self.links(call)
        blocks = sum(self._blocks(c) for c in links)
        layers = sum(self._ends_at_cut(c) and self.weights(c.start, c.stop) == 1 for c in links)
        inline = self._inline_blocks(call, links)
        if self.level > 0 or call.parent is None or any(isinstance(m, nn.ModuleList) for m in call.module.children()):
            blocks += inline
        least_blocks, least_layers = {0: (2, 5), 1: (2, 2)}.get(self.level, (1, 1))
        is_open = call.parent is None or not self._ends_at_cut(call) or blocks >= least_blocks or layers >= least_layers
        if self.level == 2:
            is_open = is_open or (bool(links) and self.weights(call.start, call.stop) > 1)
        self.open[id(call)] = is_open and bool(call.children or inline)
        if call.parent is None or self.open[id(call)]:
            return blocks
        return int(self.weights(call.start, call.stop) >= 2)

    def _inline_blocks(self, call: Call, links: Sequence[Call]) -> int:
        """Branches with weights that `call`'s own code closes (x + f(x)), not a module of its own."""
        found = 0
        previous = call.start
        for p in self._within(call):
            step = self.recording.steps[p.ref.step]
            if step.owner is call and step.kind == "function":
                found += self.weights(previous, p.ref.step) > 0
            previous = p.ref.step + 1
        return found

    def pieces(self) -> list[_Piece]:
        """The network as a sequence of pieces, each ending at a cut."""
        found: list[_Piece] = []
        previous = 1
        for point, call in self._stops(self.root):
            at = point.ref.step
            if at < previous:
                continue
            weights = self.weights(previous, at + 1)
            inline = call is None
            closes = inline and not self._weights[at]
            name = call.path if call else _heaviest(self.recording, previous, at + 1)
            quiet = not any(self._has_parameters(s) for s in self.recording.steps[previous : at + 1])
            found.append(_Piece(point, name, weights, weights >= 2 or (closes and weights > 0), inline, quiet))
            previous = at + 1
        return found

    def _has_parameters(self, step: Step) -> bool:
        if step.kind != "module":
            return False
        module = self.recording.model.get_submodule(step.target)
        return any(True for _ in module.parameters())

    def _stops(self, call: Call) -> list[tuple[Point, Call | None]]:
        stops: list[tuple[Point, Call | None]] = []
        links = {id(c): c for c in self.links(call)}
        done: set[int] = set()
        for p in self._within(call):
            link = next((c for c in links.values() if c.start <= p.ref.step < c.stop), None)
            if link is None:
                stops.append((p, None))
            elif id(link) not in done:
                done.add(id(link))
                if self.open[id(link)]:
                    stops += self._stops(link)
                elif link.end is not None and self._ends_at_cut(link):
                    stops.append((self.by_step[link.end.step], link))
                # else a layer that hands on more than a tensor (a recurrent one: outputs and states): no cut inside it
        return stops


def _weighted(recording: Recording, step: Step) -> int:
    """1 if the step is a layer with a weight matrix or kernel."""
    if step.kind == "module":
        module = recording.model.get_submodule(step.target)
        return int(step.derived and any(p.ndim >= 2 for p in module.parameters()))
    if step.kind == "input" or getattr(step.target, "__name__", "") not in _WEIGHTED_FUNCTIONS or not step.derived:
        return 0
    # two inputs that both depend on the input are attention at work, not a layer
    return int(sum(recording.steps[r.step].derived for r in step.refs()) == 1)


def _heaviest(recording: Recording, start: int, stop: int) -> str:
    """The longest path that all weighted closed modules of a range of steps have in common."""
    steps = [s for s in recording.steps[start:stop] if s.kind == "module"]
    heavy = [s for s in steps if _weighted(recording, s)] or steps
    if not heavy:
        return recording.steps[stop - 1].owner.path
    split = [s.target.split(".") for s in heavy]
    common = []
    for names in zip(*split, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    owner = heavy[0].owner.path
    if common or owner:
        return max(".".join(common), owner, key=len) if heavy[0].owner is heavy[-1].owner else ".".join(common) or owner
    return split[0][0] if split[0][0] == split[-1][0] else f"{split[0][0]}..{split[-1][0]}"


def choose(recording: Recording, points: Sequence[Point], *, flat: bool = False) -> list[Boundary]:
    """The cuts to keep, in order: the end of the stem, then the end of each unit.

    `flat` keeps vectors (`(n, c)`) too, for networks whose input is one. The strictest level that gives enough units
    wins; where none does, the one that gives most.
    """
    volumes = len(recording.steps[0].shapes[()]) == 5
    ranks = frozenset({2, 3} | ({1} if flat else set()) | ({4} if volumes else set()))
    best: list[Boundary] = []
    for level in range(3):
        kept = _thin(_Tree(recording, points, level).pieces(), recording, ranks)
        if len(kept) > len(best):
            best = kept
        if len(best) > ENOUGH:
            break
    return best


def _thin(pieces: list[_Piece], recording: Recording, ranks: frozenset[int]) -> list[Boundary]:
    pieces = pieces[: _collapse(pieces, 1 in ranks)]
    groups: list[list[_Piece]] = []
    pending: list[_Piece] = []
    for piece in pieces:
        if piece.weights:
            groups.append([*pending, piece])
            pending = []
        elif groups and not pending and _joins(groups[-1], piece):
            groups[-1].append(piece)
        else:
            pending.append(piece)
    is_block = [any(p.block for p in g) for g in groups]
    if sum(is_block[1:]) >= ENOUGH:
        first = is_block.index(True, 1)
        last = len(is_block) - is_block[::-1].index(True)
        groups = [[p for g in groups[:first] for p in g], *groups[first:last]]
    kept = []
    names: set[str] = set()
    for group in groups:
        # flattened or lost a dimension on the way: end where the tensor still has a layout
        ends = [p for p in group if len(p.point.shape) in ranks]
        main = next((p for p in group if p.block), None) or next(p for p in group if p.weights)
        if not ends or ends[-1].point.ref == recording.result or group.index(ends[-1]) < group.index(main):
            continue
        name = main.name
        while name in names:
            name += "+"
        names.add(name)
        kept.append(Boundary(name, ends[-1].point))
    return kept


def _joins(group: list[_Piece], piece: _Piece) -> bool:
    """Whether a piece without weights belongs to the group before it rather than to what follows."""
    main = next(p for p in group if p.weights)
    if not main.block:
        return True
    return main.inline and piece.quiet


def _collapse(pieces: Sequence[_Piece], flat: bool) -> int:
    """The index of the first piece that pools all positions into one: it and all after it belong to the head."""
    if flat:
        return len(pieces)
    positions = 0
    for i, piece in enumerate(pieces):
        shape = piece.point.shape
        now = _positions(shape)
        if len(shape) == 1 or (now == 1 and positions >= 16):
            return i
        positions = now or positions
    return len(pieces)


def _positions(shape: tuple[int, ...]) -> int:
    """How many positions a tensor has, whichever way it is laid out; 0 when its rank says nothing."""
    if len(shape) in (3, 4):
        return min(math.prod(shape[:-1]), math.prod(shape[1:]))
    if len(shape) == 2:
        return 1 if shape[1] == 1 else shape[0]
    return 0
