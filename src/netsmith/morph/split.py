"""A network in parts: a front that does not change, whose features need computing but once, and pieces after it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import takewhile

import torch
from torch import Tensor, nn

from netsmith.core.graph import Chain, dissect
from netsmith.errors import DissectionError


class Split(nn.Module):
    """A network that also runs piece by piece, behind a front that is not trained; its parameters are those of `whole`.

    Args:
        whole: the network.
        front: its first part, in evaluation mode; None where there is none.
        pieces: what goes on from there, in order; the last gives the output. All share the parameters of `whole`.
        start: where the pieces begin: the number of units in the front, or None without one.
        names: of the pieces.
    """

    def __init__(
        self,
        whole: nn.Module,
        front: nn.Module | None,
        pieces: Sequence[nn.Module],
        start: int | None,
        names: Sequence[str],
    ) -> None:
        super().__init__()
        self.whole, self.start, self.names = whole, start, tuple(names)
        # not registered: they share the modules of `whole`
        self._front, self._pieces = [] if front is None else [front.eval()], tuple(pieces)

    def forward(self, x: Tensor) -> Tensor:
        """The network's output for a batch."""
        return self.whole(x)

    def front(self, x: Tensor) -> Tensor:
        """From a batch to features, without gradients; the batch itself where there is no front."""
        with torch.no_grad():
            for front in self._front:
                x = front(x)
        return x

    def rest(self, features: Tensor) -> Tensor:
        """From features to the network's output."""
        for piece in self._pieces:
            features = piece(features)
        return features

    def trace(self, features: Tensor) -> list[Tensor]:
        """From features to what each piece makes of them; the last is the network's output."""
        found = []
        for piece in self._pieces:
            features = piece(features)
            found.append(features)
        return found

    def train(self, mode: bool = True) -> Split:
        """The front stays in evaluation mode."""
        super().train(mode)
        for piece in self._pieces:
            piece.train(mode)
        for front in self._front:
            front.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Split:
        """Move all parts along: a part that was cut out of a network's code has buffers of its own."""
        super()._apply(fn, recurse)
        for part in (*self._front, *self._pieces):
            part._apply(fn, recurse)
        return self


def halves(model: nn.Module, chain: Chain, names: Collection[str]) -> tuple[nn.Module, nn.Module] | None:
    """A dissected network before and from the first unit that holds a tensor of these names, in evaluation mode.

    None where the stem holds one, or not all are behind it.
    """
    front = untouched_front(model, chain, names)
    if not front:
        return None
    start = len(front) - 1  # of the units; the stem is no unit
    before, rest = chain.front(start), chain.rest(start)
    return (before.eval(), rest.eval()) if set(names) <= set(rest.state_dict()) else None


def untouched_front(model: nn.Module, chain: Chain, names: Collection[str]) -> tuple[nn.Module, ...]:
    """Stem and units of a dissected network before the first that holds a parameter of these names; perhaps none."""
    wanted = {id(p) for name, p in model.named_parameters() if name in names}

    def free(piece: nn.Module) -> bool:
        return not any(id(p) in wanted for p in piece.parameters())

    return tuple(takewhile(free, (chain.stem, *(unit.module for unit in chain.units))))


def split(model: nn.Module, example: Tensor, names: Collection[str] | None = None) -> Split | None:
    """A network in pieces; None where that cannot be, or changes what it computes.

    Args:
        model: in evaluation mode.
        example: a batch as it takes it.
        names: of the parameters that are trained: what lies before the first of them is the front. None for all.
    """
    try:
        chain = dissect(model, example)
    except DissectionError:
        return None
    start = None if names is None or halves(model, chain, names) is None else len(untouched_front(model, chain, names))
    return _pieces(model, example, chain, None if start is None else start - 1)


def split_as(model: nn.Module, example: Tensor, other: Split) -> Split | None:
    """A network of the same kind in the same pieces as another; None where it has no such pieces."""
    try:
        chain = dissect(model, example)
    except DissectionError:
        return None
    found = _pieces(model, example, chain, other.start) if len(chain) > (other.start or 0) else None
    return found if found is not None and found.names == other.names else None


def _pieces(model: nn.Module, example: Tensor, chain: Chain, start: int | None) -> Split | None:
    names = ["stem", *(unit.name for unit in chain.units), "head"]
    if start is None:
        made = Split(model, None, (chain.stem, *(unit.module for unit in chain.units), chain.head), None, names)
    else:
        rest = [unit.module for unit in chain.units[start:]]
        made = Split(model, chain.front(start), (*rest, chain.head), start, names[start + 1 :])
    made.eval()
    with torch.no_grad():
        same = torch.allclose(made.rest(made.front(example)), model(example), rtol=1e-4, atol=1e-5)
    return made if same else None
