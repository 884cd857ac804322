"""Generators: widths in, weights out. What all kinds share, the kinds that read stored weights, and how one is made.

`nested` is here, `grid` in `netsmith.morphing.grid`, `inr` (the paper's) in `netsmith.morphing.inr`. All give a
dictionary of tensors under the names of the network's state dict, of the shapes that the network has at the widths
asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from netsmith.errors import MorphError, did_you_mean
from netsmith.morphing.coordinates import Slot, first, slots
from netsmith.training.measure import Progress
from netsmith.widths.groups import WidthGroup

GENERATORS: dict[str, type[Generator]] = {}
"""Kinds of generators by name."""


@dataclass
class Noise:
    """Coordinate noise of one read: every coordinate moves by up to half of `amount` cells, drawn from `source`.

    Only positions along the outputs and inputs move; never the tensor's index, never the sizes.
    """

    amount: float
    source: torch.Generator

    def draw(self, *shape: int) -> Tensor:
        """Uniform shifts in `-amount / 2 .. amount / 2` cells."""
        return (torch.rand(*shape, generator=self.source) - 0.5) * self.amount


G = TypeVar("G", bound="Generator")


def generator(kind: str) -> Callable[[type[G]], type[G]]:
    """Register a kind of generator under a name."""

    def register(cls: type[G]) -> type[G]:
        cls.kind = kind
        GENERATORS[kind] = cls
        return cls

    return register


class Generator(nn.Module):
    """Weights of a network as a function of its widths.

    Args:
        tensors: the base network's tensors by state-dict name, smoothed or ordered; only those that a group touches
            are generated.
        groups: the width groups that vary.
    """

    kind: ClassVar[str] = ""

    def __init__(self, tensors: Mapping[str, Tensor], groups: Sequence[WidthGroup]) -> None:
        super().__init__()
        self.slots: tuple[Slot, ...] = slots(tensors, groups)
        if not self.slots:
            raise MorphError("there is nothing to generate: the morph space has no group with weights")
        self.groups = tuple(groups)
        self.base: dict[str, int] = {g.name: g.width for g in groups}

    def forward(self, widths: Mapping[str, int], noise: Noise | None = None) -> dict[str, Tensor]:
        """The tensors at these widths (of every group), by state-dict name."""
        raise NotImplementedError

    def begin(
        self,
        tensors: Mapping[str, Tensor],
        ends: Mapping[str, tuple[int, int]],
        progress: Progress | None = None,
        checkpoints: Path | None = None,
    ) -> None:
        """What is done once, before fitting.

        Args:
            tensors: the base network's, as this was made with.
            ends: lowest and highest fitted width of every group.
            progress: told how far it is.
            checkpoints: folder in which long work keeps its state, to go on after an interruption.
        """

    def settings(self) -> dict[str, Any]:
        """What rebuilds this generator, beside its tensors: keyword arguments of the class."""
        return {}

    def anchors(self) -> tuple[str, ...]:
        """Names of stored tensors that are the base network's own and that fitting does not change."""
        return ()

    def saved(self) -> dict[str, Tensor]:
        """What an artifact keeps beside the base network: all but the anchors."""
        anchors = set(self.anchors())
        return {name: value for name, value in self.state_dict().items() if name not in anchors}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take what `saved` gave. Raises MorphError when it is not this generator's."""
        state = self.state_dict()
        wanted = set(state) - set(self.anchors())
        wrong = sorted(wanted ^ set(saved)) or [n for n in sorted(wanted) if state[n].shape != saved[n].shape]
        if wrong:
            raise MorphError(f"these tensors are not those of this '{self.kind}' generator: {', '.join(wrong[:5])}")
        self.load_state_dict({**state, **saved})

    @torch.no_grad()
    def settle(self) -> None:
        """Round what is fitted to the precision in which it is saved: from now on this is what an artifact gives."""


def make_generator(
    kind: str, tensors: Mapping[str, Tensor], groups: Sequence[WidthGroup], settings: Mapping[str, Any] | None = None
) -> Generator:
    """A generator of a kind; raises MorphError for an unknown kind or settings it does not have."""
    if kind not in GENERATORS:  # the kinds of other modules register themselves when they are imported
        raise MorphError(f"unknown generator '{kind}'. {did_you_mean(kind, GENERATORS)}")
    given, hints = dict(settings or {}), get_type_hints(GENERATORS[kind].__init__)
    known = [name for name in inspect.signature(GENERATORS[kind]).parameters if name not in ("tensors", "groups")]
    for name, value in tuple(given.items()):
        if name not in known:
            hint = did_you_mean(name, known) or "It has none."
            raise MorphError(f"the generator '{kind}' has no setting '{name}'. {hint}")
        try:
            given[name] = TypeAdapter(hints[name]).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = inspect.formatannotation(hints[name]).removeprefix("collections.abc.")
            raise MorphError(f"{name} of the generator '{kind}' must be {wanted}, not {value!r}") from error
    return GENERATORS[kind](tensors, groups, **given)


def key(name: str) -> str:
    """A state-dict name as the name of a parameter, where dots are not allowed."""
    return name.replace(".", "/")


@generator("nested")
class Nested(Generator):
    """Width `n` takes the first `n` channels (Yu et al., "Slimmable Neural Networks", ICLR 2019).

    The channels should come in order of importance. Beyond the base's width, channels are repeated and what is summed
    over is divided, so that the function is kept (Chen et al., "Net2Net", ICLR 2016).
    """

    def __init__(self, tensors: Mapping[str, Tensor], groups: Sequence[WidthGroup]) -> None:
        super().__init__(tensors, groups)
        self.stored = nn.ParameterDict({key(s.name): nn.Parameter(tensors[s.name].clone()) for s in self.slots})

    def forward(self, widths: Mapping[str, int], noise: Noise | None = None) -> dict[str, Tensor]:
        """See `Generator.forward`; there is nothing for noise to move."""
        return {s.name: first(s, self.stored[key(s.name)], self.base, self.base, widths) for s in self.slots}
