"""The probe images as every network sees them, and what is remembered of them between recipes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from netsmith.errors import DataError, RecipeError, did_you_mean
from netsmith.reassembly.adapters import patches, to_map
from netsmith.trace.chain import Chain
from netsmith.trace.cost import images_at_once


@dataclass(frozen=True)
class Probe:
    """Labelled images, and how each network wants them.

    Attributes:
        images: in [0, 1]; never test images.
        labels: their classes.
        preprocess: for each network, the function from images in [0, 1] to its input.

    Examples:
        >>> images, labels = netsmith.probe_set(data, 64)
        >>> probe = netsmith.Probe(images, labels, {network.name: network.preprocess for network in zoo})
        >>> probe.images.shape
        torch.Size([64, 1, 8, 8])
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " _"]
    preprocess: Mapping[str, Callable[[Tensor], Tensor]]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise DataError(f"{len(self.images)} probe images came with {len(self.labels)} labels")
        if len(self.images) < 2:
            raise DataError(f"a fit needs at least 2 probe images, got {len(self.images)}")

    def batches(self, network: str, size: int, device: torch.device) -> Iterator[Tensor]:
        """The network's input in batches of nearly equal size, at most `size`, always in the same order."""
        if network not in self.preprocess:
            raise RecipeError(f"no preprocessing was given for '{network}'. {did_you_mean(network, self.preprocess)}")
        for start, stop in spans(len(self.images), size):
            yield self.preprocess[network](self.images[start:stop].to(device))


def spans(count: int, size: int) -> list[tuple[int, int]]:
    """`count` things cut into spans of nearly equal length, none longer than `size`."""
    pieces = -(-count // size)
    return [(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; every submodule's own mode is put back after."""
    modes = {m: m.training for module in modules for m in module.modules()}
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True)
class TargetRows:
    """What a block saw at its input in its own network.

    Attributes:
        rows: at the sampled places, `(n, p, d)`.
        prefix: its prefix tokens, if there are any.
        means: the mean over images at every place, `(places, d)`.
    """

    rows: Float[Tensor, "n p d"]
    prefix: Float[Tensor, "n t d"] | None
    means: Float[Tensor, "places d"]


@dataclass(frozen=True)
class PrefixState:
    """What fitting one joint and the block behind it has set: adapter weights and norm statistics, and how it went."""

    adapter: dict[str, Tensor]
    buffers: dict[str, Tensor]
    r2: float
    ridge: float


@dataclass
class ProbeCache:
    """What fits of many recipes to one probe share: targets of blocks, and fitted prefixes with their activations.

    Valid for one probe and one set of chains. Nothing in it changes a result: what was dropped is computed again, from
    the same batches in the same order.

    Attributes:
        limit_bytes: most memory for tensors; the least recently used go first. Fitted states are small and stay.
    """

    limit_bytes: int = 2 << 30
    states: dict[object, PrefixState] = field(default_factory=dict)
    _tensors: OrderedDict[object, tuple[Tensor, ...]] = field(default_factory=OrderedDict)
    _targets: dict[object, TargetRows] = field(default_factory=dict)
    _bytes: int = 0

    def activations(self, key: object) -> tuple[Tensor, ...] | None:
        """Batches kept under a key, or None."""
        if key in self._tensors:
            self._tensors.move_to_end(key)
        return self._tensors.get(key)

    def keep(self, key: object, batches: tuple[Tensor, ...]) -> None:
        """Remember batches, if they fit at all, and forget the least recently used until they do."""
        size = sum(b.numel() * b.element_size() for b in batches)
        if size > self.limit_bytes or key in self._tensors:
            return
        while self._bytes + size > self.limit_bytes:
            dropped, old = self._tensors.popitem(last=False)
            self._targets.pop(dropped, None)
            self._bytes -= sum(b.numel() * b.element_size() for b in old)
        self._tensors[key] = batches
        self._bytes += size

    def fits(self, size: int) -> bool:
        """Whether so many bytes can be kept at all."""
        return size <= self.limit_bytes

    def targets(
        self, probe: Probe, chain: Chain, cut: int, positions: Int[Tensor, " p"], batch_size: int
    ) -> TargetRows:
        """What block input `cut` of a network is on the probe, at some places of its grid."""
        key = ("target", chain.name, cut, tuple(positions.tolist()), batch_size)
        if key in self._targets and self.activations(key) is not None:
            return self._targets[key]
        found = target_rows(probe, chain, cut, positions, batch_size)
        tensors = (found.rows, found.means, *(() if found.prefix is None else (found.prefix,)))
        self.keep(key, tensors)
        if key in self._tensors:
            self._targets[key] = found
        return found


def target_rows(probe: Probe, chain: Chain, cut: int, positions: Int[Tensor, " p"], batch_size: int) -> TargetRows:
    """Run the network on the probe up to a cut, and keep its sampled places, prefix tokens and means a place."""
    layout = chain.cuts[cut].layout
    device = device_of(chain.model)
    rows, prefixes, total = [], [], None
    with evaluating(chain.model, chain.stem, *(u.module for u in chain.units[:cut])):
        batches = probe.batches(chain.name, batch_size, device)
        for x in (part for batch in batches for part in batch.split(images_at_once(chain.model, batch))):
            features, prefix = to_map(chain.run(0, cut, chain.stem(x)), layout)
            rows.append(patches(features, positions.to(device), 1).contiguous())
            if prefix is not None:
                prefixes.append(prefix.contiguous())
            summed = features.flatten(2).double().sum(0).T
            total = summed if total is None else total + summed
    assert total is not None
    return TargetRows(torch.cat(rows), torch.cat(prefixes) if prefixes else None, total / len(probe.images))


def sample_places(places: int, images: int, rows: int, seed: int) -> Int[Tensor, " p"]:
    """Places of a grid that a regression over all images sees: as many as `rows` allows, drawn once, in order."""
    count = min(places, max(1, rows // images))
    drawn = torch.randperm(places, generator=torch.Generator().manual_seed(seed))
    return drawn[:count].sort().values


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
