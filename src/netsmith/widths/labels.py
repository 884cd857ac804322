"""Labels for channels: which of them are the same, which lie within which, and which must stay where they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Entries of a layer of labels that are no channel: zeros put in by padding, and values that carry no labels.
PADDED, BARE = -1, -2


@dataclass(eq=False)
class Family:
    """Labels made together: one for each index of a dimension of a tensor, of a module's number, or of a bundle.

    `tensor` is a state-dict key, or for a number `module` and `attribute` say whose. `summed` and `given` tell how the
    dimension was used: summed over by a layer, or handed on to its output.
    """

    start: int
    size: int
    tensor: str = ""
    dim: int = 0
    setting: tuple[str, str] | None = None
    bundle: str = ""
    summed: bool = False
    given: bool = False
    first: int = -1  # the step that first handed it on


@dataclass(eq=False)
class Labels:
    """All labels of one run. Labels are integers; layers of labels are integer tensors, negative where there is none.

    United labels are one channel. A fine label nested in a coarse one is a part of that channel: an entry of an
    attention head, of a normalised or convolved group of channels, a pixel of a flattened map. A pinned label belongs
    to a place that must keep its index, for the reason given.
    """

    families: list[Family] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)  # (2, n): fine labels above the coarse ones they lie within
    reasons: dict[int, str] = field(default_factory=dict)
    added: set[int] = field(default_factory=set)  # labels of sums of two tensors: residual streams
    count: int = 0

    def __post_init__(self) -> None:
        self._parent = torch.arange(1024)
        self._colour = torch.zeros(1024, dtype=torch.int64)

    def fresh(self, shape: tuple[int, ...], **about: object) -> Tensor:
        """A layer of new labels, one for each entry of `shape`."""
        size = 1
        for s in shape:
            size *= s
        family = Family(self.count, size, **about)  # type: ignore[arg-type]
        self.families.append(family)
        self.count += size
        while self.count > len(self._parent):
            self._parent = torch.cat([self._parent, torch.arange(len(self._parent), 2 * len(self._parent))])
            self._colour = torch.cat([self._colour, torch.zeros_like(self._colour)])
        return torch.arange(family.start, self.count).view(shape)

    def find(self, labels: Tensor) -> Tensor:
        """The representative of each label; negative entries stay."""
        real = labels >= 0
        at = labels.clamp_min(0)
        while True:
            above = self._parent[at]
            if torch.equal(above, at):
                return torch.where(real, at, labels)
            at = above

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Make the labels at the same places of two layers of one shape one."""
        while True:
            x, y = self.find(a), self.find(b)
            apart = (x != y) & (x >= 0) & (y >= 0)
            if not bool(apart.any()):
                return
            self._parent[torch.maximum(x, y)[apart]] = torch.minimum(x, y)[apart]

    def nest(self, fine: Tensor, coarse: Tensor) -> None:
        """Make the labels of `fine` parts of those at the same places of `coarse`."""
        pairs = torch.stack([self.find(fine).flatten(), self.find(coarse).flatten()])
        pairs = pairs[:, (pairs >= 0).all(dim=0) & (pairs[0] != pairs[1])]
        self.parts.append(pairs)

    def within(self) -> dict[int, set[int]]:
        """The coarse labels that each fine one lies within, by their representatives."""
        found: dict[int, set[int]] = defaultdict(set)
        if self.parts:
            for a, b in torch.unique(self.find(torch.cat(self.parts, dim=1)), dim=1).T.tolist():
                if a != b:
                    found[a].add(b)
        return found

    def pin(self, labels: Tensor, reason: str) -> None:
        """These channels cannot be moved."""
        for label in torch.unique(self.find(labels)).tolist():
            if label >= 0:
                self.reasons.setdefault(label, reason)

    def relate(self, a: Tensor, b: Tensor) -> str:
        """Note what two layers, broadcast against each other, say about their labels.

        "same": one to one, now united. "within" and "around": those of `a` lie within those of `b`, or the other way;
        noted. "crossed": neither.
        """
        a, b = torch.broadcast_tensors(self.find(a), self.find(b))
        real = (a >= 0) & (b >= 0)
        codes = torch.unique(a[real] * self.count + b[real])
        pairs = torch.stack([codes // self.count, codes % self.count])
        n, n_a, n_b = pairs.shape[1], len(torch.unique(pairs[0])), len(torch.unique(pairs[1]))
        if n == n_a == n_b:
            self.unite(pairs[0], pairs[1])
            return "same"
        if n == n_a:
            self.nest(pairs[0], pairs[1])
            return "within"
        if n == n_b:
            self.nest(pairs[1], pairs[0])
            return "around"
        return "crossed"

    def colour(self, labels: Tensor, step: int) -> None:
        """Note that these labels were seen at a step: channels that were not seen at the same steps are no equals."""
        seen = torch.unique(labels)
        seen = seen[seen >= 0]
        self._colour[seen] ^= mixed(step)

    def colours(self) -> Tensor:
        """One number for each label that tells the steps at which it was seen."""
        return self._colour[: self.count]

    def owners(self, labels: Tensor) -> Iterable[Family]:
        """The families that the labels of a layer come from."""
        starts = torch.tensor([f.start for f in self.families])
        seen = torch.unique(labels)
        seen = seen[seen >= 0]
        where = torch.unique(torch.searchsorted(starts, seen, right=True) - 1)
        return [self.families[i] for i in where.tolist()]


def mixed(step: int) -> int:
    """A number whose bits depend on all bits of `step` (splitmix64)."""
    mask = (1 << 64) - 1
    z = (step + 1) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    z ^= z >> 31
    return z - (1 << 64) if z >= 1 << 63 else z


def varying(layer: Tensor) -> frozenset[int]:
    """The dimensions along which a compressed layer varies."""
    return frozenset(d for d, s in enumerate(layer.shape) if s > 1)


def compress(layer: Tensor) -> Tensor:
    """The layer with every dimension along which it does not vary cut down to one entry."""
    for d, s in enumerate(layer.shape):
        if s > 1:
            first = layer.narrow(d, 0, 1)
            if layer.stride(d) == 0 or torch.equal(layer, first.expand_as(layer)):
                layer = first
    return layer
