"""Generators: widths in, weights out. What every kind answers, and `nested`, the simplest.

`grid` is in `netsmith.morphing.grid`, `inr` (the paper's) in `netsmith.morphing.inr`. All give a dictionary of tensors
under the names of the network's state dict, of the shapes that the network has at the widths asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from netsmith.errors import MorphError
from netsmith.morphing.coordinates import Slot, first, slots
from netsmith.morphing.preparing import Run, Subject
from netsmith.morphing.settings import Draw, FitSettings, Order
from netsmith.morphing.space import MorphSpace
from netsmith.trace.chain import Chain
from netsmith.training.engine import TrainResult
from netsmith.training.measure import Progress
from netsmith.training.settings import TrainSettings
from netsmith.widths.groups import WidthGroup


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


@dataclass(frozen=True)
class Apart:
    """How training is divided.

    Attributes:
        each: settings of each part that is trained by itself, but for its length.
        steps: of each such part; none where nothing is trained apart.
        together: what is left for all widths, if any.
    """

    each: TrainSettings
    steps: tuple[int, ...]
    together: TrainSettings | None


Courses = tuple[tuple[float, TrainResult], ...]
"""Trainings of what was trained apart, by ratio, in their order."""


class Generator(nn.Module):
    """Weights of a network as a function of its widths.

    Args:
        tensors: the base network's tensors by state-dict name, smoothed or ordered; only those that a group touches
            are generated.
        groups: the width groups that vary.
    """

    kind: ClassVar[str] = ""
    order: ClassVar[Order] = "importance"
    """The order of channels that suits the kind."""
    repaired: tuple[str, ...] = ()
    """Layers whose outputs `repair` sets right, once everything is trained."""

    def __init__(self, tensors: Mapping[str, Tensor], groups: Sequence[WidthGroup]) -> None:
        super().__init__()
        self.slots: tuple[Slot, ...] = slots(tensors, groups)
        if not self.slots:
            raise MorphError("there is nothing to generate: the morph space has no group with weights")
        self.groups = tuple(groups)
        self.base: dict[str, int] = {g.name: g.width for g in groups}

    @classmethod
    def defaults(
        cls, settings: Mapping[str, Any], model: nn.Module, space: MorphSpace, chain: Chain | None
    ) -> dict[str, Any]:
        """Return the settings, completed by what suits the network and the range."""
        return dict(settings)

    @classmethod
    def check_saved(cls, settings: Mapping[str, Any]) -> None:
        """Check the settings in a manifest, before anything is built by them. Raises ValueError."""

    def forward(self, widths: Mapping[str, int], noise: Noise | None = None, coarse: bool = False) -> dict[str, Tensor]:
        """Return the tensors at these widths (of every group), by state-dict name.

        `coarse` reads what holds below the fitted range alone, in a kind that has such a part.
        """
        raise NotImplementedError

    def default_draws(self) -> tuple[Draw, ...]:
        """Return the widths that fitting draws in turn, unless its settings say otherwise."""
        return ("full", "random", "low", "random")

    def draw(self, kind: Draw, space: MorphSpace, rng: torch.Generator) -> dict[str, int]:
        """Return the widths of one draw. Raises MorphError for a draw that the kind does not have."""
        if kind == "full":
            return space.full
        if kind == "low":
            return dict(space.low)
        if kind == "mixed":
            return {n: space.between(n, float(torch.rand((), generator=rng))) for n in space.names}
        if kind == "random":
            way = float(torch.rand((), generator=rng))
            return {n: space.between(n, way) for n in space.names}
        raise MorphError(f"the generator '{self.kind}' has no '{kind}' (fitting.draws) to draw: leave it out")

    def check_fitted(self, space: MorphSpace) -> None:
        """Raise MorphError where there is nothing to fit on the space."""

    def divide(self, images: int, training: TrainSettings, fitting: FitSettings) -> Apart:
        """Divide a training into what is trained apart, and what is fitted at all widths together."""
        return Apart(training, (), training)

    def fit_apart(
        self,
        subject: Subject,
        orders: Mapping[str, Sequence[int]],
        apart: Apart,
        fitting: FitSettings,
        run: Run,
        *,
        ranking: Callable[[], Iterable[Tensor]] | None = None,
    ) -> tuple[Courses, dict[str, tuple[int, ...]]]:
        """Train what is trained apart, in place; see `netsmith.morphing.keyframes.fit_keyframes`."""
        raise NotImplementedError

    def repair(self, read: Callable[[Mapping[str, int]], nn.Module], images: Tensor) -> None:
        """Set the outputs of the `repaired` layers right, in place: `read` gives the network at some widths."""

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


def key(name: str) -> str:
    """A state-dict name as the name of a parameter, where dots are not allowed."""
    return name.replace(".", "/")


class Nested(Generator):
    """Width `n` takes the first `n` channels (Yu et al., "Slimmable Neural Networks", ICLR 2019).

    The channels should come in order of importance. Beyond the base's width, channels are repeated and what is summed
    over is divided, so that the function is kept (Chen et al., "Net2Net", ICLR 2016).
    """

    kind = "nested"

    def __init__(self, tensors: Mapping[str, Tensor], groups: Sequence[WidthGroup]) -> None:
        super().__init__(tensors, groups)
        self.stored = nn.ParameterDict({key(s.name): nn.Parameter(tensors[s.name].clone()) for s in self.slots})

    def forward(self, widths: Mapping[str, int], noise: Noise | None = None, coarse: bool = False) -> dict[str, Tensor]:
        """See `Generator.forward`; there is nothing for noise to move."""
        return {s.name: first(s, self.stored[key(s.name)], self.base, self.base, widths) for s in self.slots}
