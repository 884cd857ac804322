"""A network in two parts: a front that does not change, whose features need computing but once, and the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import takewhile

import torch
from torch import Tensor, nn

from netsmith.errors import DissectionError
from netsmith.trace.chain import Chain, dissect


class Split(nn.Module):
    """A network that also runs in two parts, `front` and `rest`; its parameters are those of `whole`.

    Args:
        whole: the network.
        front: its first part; it is not trained, and stays in evaluation mode.
        rest: what goes on from there. Both share the parameters of `whole`.
    """

    def __init__(self, whole: nn.Module, front: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.whole = whole
        self._parts = (front.eval(), rest)  # not registered: they share the modules of `whole`

    def forward(self, x: Tensor) -> Tensor:
        """The network's output for a batch."""
        return self.whole(x)

    def front(self, x: Tensor) -> Tensor:
        """From a batch to features, without gradients."""
        with torch.no_grad():
            return self._parts[0](x)

    def rest(self, features: Tensor) -> Tensor:
        """From features to the network's output."""
        return self._parts[1](features)

    def train(self, mode: bool = True) -> Split:
        """The front stays in evaluation mode."""
        super().train(mode)
        self._parts[1].train(mode)
        self._parts[0].eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Split:
        """Move both parts along: a part that was cut out of a network's code has buffers of its own."""
        super()._apply(fn, recurse)
        for part in self._parts:
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


def split(model: nn.Module, example: Tensor, names: Collection[str]) -> Split | None:
    """A network cut before the first parameter of these names; None where that cannot be, or changes what it computes.

    Args:
        model: in evaluation mode.
        example: a batch as it takes it.
        names: of parameters.
    """
    try:
        found = halves(model, dissect(model, example), names)
    except DissectionError:
        return None
    if found is None:
        return None
    made = Split(model, *found).eval()
    with torch.no_grad():
        same = torch.allclose(made.rest(made.front(example)), model(example), rtol=1e-4, atol=1e-5)
    return made if same else None
