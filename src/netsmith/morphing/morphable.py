"""A base network and a generator of its weights as one module that runs at any width."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from netsmith.errors import MorphError
from netsmith.morphing.generator import Generator, Noise
from netsmith.morphing.space import MorphSpace
from netsmith.trace.chain import Chain
from netsmith.training.split import halves
from netsmith.widths.groups import resize, set_widths


class Morphable(nn.Module):
    """A frozen base network some of whose tensors come from a generator.

    `forward(x)` runs at the widths that `at_widths` has set, at first the base's. What lies before the first generated
    tensor is the same at every width: `front(x)` computes it once, `rest(features, widths)` goes on from there.

    Args:
        base: the network whose channels are in the generator's order; it is put into evaluation mode and frozen.
        space: what varies.
        generator: gives the tensors of `base` that the space touches.
        chain: the dissected base (of this very module), by which it is split; None runs it whole.
    """

    def __init__(self, base: nn.Module, space: MorphSpace, generator: Generator, chain: Chain | None = None) -> None:
        super().__init__()
        self.base = base.eval().requires_grad_(False)
        self.generator = generator
        self.space = space
        self.widths: dict[str, int] = space.full
        self.coarsely = False
        self._places: dict[bool, dict[str, tuple[str, ...]]] = {}  # by whether the network is run whole
        self._statistics = {name for name, _ in base.named_buffers()}
        # not registered: they share the modules of `base`
        names = {s.name for s in generator.slots}
        self._split: tuple[nn.Module, nn.Module] | None = None if chain is None else halves(self.base, chain, names)

    def train(self, mode: bool = True) -> Morphable:
        """The base network stays in evaluation mode; only the generator is trained."""
        super().train(mode)
        self.base.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Morphable:
        """Move both parts along: a part that was cut out of a network's code has buffers of its own."""
        super()._apply(fn, recurse)
        for part in self._split or ():
            part._apply(fn, recurse)
        return self

    @property
    def splits(self) -> bool:
        """Whether a part of the network lies before everything that is generated."""
        return self._split is not None

    def front(self, x: Tensor) -> Tensor:
        """What does not depend on the widths, without gradients: from an input to features."""
        if self._split is None:
            return x
        with torch.no_grad():
            return self._split[0](x)

    def tensors(self, widths: Mapping[str, int], noise: Noise | None = None, coarse: bool = False) -> dict[str, Tensor]:
        """The generated tensors, in full precision; `coarse` is that of `Generator.forward`."""
        device = next(iter(self.base.parameters())).device.type
        with torch.autocast(device, enabled=False):
            made = self.generator(widths, noise, coarse)
        # statistics of batch norms are read, not learned
        return {name: value.detach() if name in self._statistics else value for name, value in made.items()}

    def rest(self, features: Tensor, widths: Mapping[str, int], tensors: Mapping[str, Tensor]) -> Tensor:
        """From features to the network's output, at these widths, with these tensors."""
        module = self.base if self._split is None else self._split[1]
        set_widths(self.base, self.space.groups, widths)
        whole = self._split is None
        if whole not in self._places:
            self._places[whole] = _places(module)
        places = self._places[whole]
        given = {place: value for name, value in tensors.items() for place in places.get(name, (name,))}
        return functional_call(module, given, (features,), tie_weights=False)  # ties are in `places`

    def teacher(self, features: Tensor) -> Tensor:
        """The base network's output from features, without gradients."""
        set_widths(self.base, self.space.groups, self.space.full)
        with torch.no_grad():
            return (self.base if self._split is None else self._split[1])(features)

    @contextmanager
    def at_widths(self, widths: Mapping[str, int], coarse: bool = False) -> Iterator[Morphable]:
        """`forward` runs at these widths meanwhile; `coarse` is that of `Generator.forward`."""
        before = self.widths, self.coarsely
        self.widths, self.coarsely = dict(widths), coarse
        try:
            yield self
        finally:
            self.widths, self.coarsely = before

    def forward(self, x: Tensor) -> Tensor:
        """The network's output for a batch, at the widths that are set."""
        return self.rest(self.front(x), self.widths, self.tensors(self.widths, coarse=self.coarsely))

    def module(self, widths: Mapping[str, int], tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
        """A plain network at these widths that shares nothing with this one, in evaluation mode."""
        set_widths(self.base, self.space.groups, self.space.full)
        with torch.no_grad():
            found = self.tensors(widths) if tensors is None else tensors
            plain = resize(self.base, self.space.groups, widths)
            state = plain.state_dict()
            for name, value in found.items():
                assert state[name].shape == value.shape, f"{name}: {tuple(state[name].shape)}, {tuple(value.shape)}"
                state[name].copy_(value)
        return plain.requires_grad_(True).eval()


def _places(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Where each tensor of a network lies, by any of its names: once in each module that has it.

    Weights may be shared by two layers, which then both have to get the new ones; a layer that is called twice under
    two names is one module, and gets them once.
    """
    own: dict[int, list[str]] = {}
    for prefix, part in module.named_modules():
        mine = (*part.named_parameters("", False, False), *part.named_buffers("", False, False))
        for name, value in mine:
            own.setdefault(id(value), []).append(f"{prefix}.{name}" if prefix else name)
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: tuple(own[id(value)]) for name, value in named}


def check_split(morphable: Morphable, x: Tensor) -> None:
    """Run whole only, if the split network differs from the plain one at the lowest widths.

    A network whose code between blocks holds a channel count as a number runs in parts at the base's widths alone.

    Raises:
        MorphError: the network does not run as a function of its tensors at the lowest widths.
    """
    widths = dict(morphable.space.low)
    plain = morphable.module(widths)
    with torch.no_grad():
        expected = plain(x)
        for whole in (False, True):
            if whole:
                morphable._split = None
            try:
                found = morphable(x) if widths == morphable.widths else _at(morphable, widths, x)
            except RuntimeError:
                found = None
            if found is not None and torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
                return
    raise MorphError("the network at its lowest widths does not run as a function of its tensors: choose fewer blocks")


def _at(morphable: Morphable, widths: Mapping[str, int], x: Tensor) -> Tensor:
    with morphable.at_widths(widths):
        return morphable(x)
