"""Channels in order of importance: which to keep first when a width shrinks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor, nn

from netsmith.data.images import batches
from netsmith.data.splits import Splits
from netsmith.networks.network import Network
from netsmith.trace.cost import images_at_once
from netsmith.widths.groups import Axis, WidthGroup

_BATCH = 64


@torch.no_grad()
def channel_importance(
    model: nn.Module, groups: Sequence[WidthGroup], batches: Iterable[Tensor]
) -> dict[str, Float[Tensor, " width"]]:
    """How much each channel gives to the layers that read it: the norm of its weights there times its own root mean
    square over the batches; squared, summed over readers, and the root.

    It is the size of what such a layer's output loses with the channel, were channels uncorrelated. On CIFAR ResNets it
    ranks better than norms of weights alone, and than the gradient of the loss by gates (Fisher pruning), whose parts
    from different images and places cancel.

    Args:
        model: the network, in the mode in which it is judged; it is not changed.
        groups: the groups to rank.
        batches: preprocessed images.
    """
    where = next(model.parameters()).device
    reading = {a.tensor.rpartition(".")[0] for g in groups for a in g.axes if a.fan_in}
    squares: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(_accumulator(name, squares, counts)) for name in reading
    ]
    try:
        for images in batches:
            model(images.to(where))
    finally:
        for handle in handles:
            handle.remove()
    tensors = model.state_dict()
    found = {}
    for group in groups:
        total = torch.zeros(group.width, dtype=torch.float64)
        for axis in group.axes:
            name, _, last = axis.tensor.rpartition(".")
            if axis.fan_in and last == "weight":
                weight = tensors[axis.tensor].double().cpu()
                size = weight.movedim(axis.dim, 0).flatten(1).square().sum(dim=1)
                if name in squares and len(squares[name]) == len(size):
                    size = size * (squares[name] / counts[name])
                total += _by_channel(size, axis, group.width)
        found[group.name] = total.sqrt().float()
    return found


def ranking_images(data: Splits, network: Network, images: int, seed: int) -> Iterator[Tensor]:
    """Training images by which channels are ranked, preprocessed, at most 64 at once; the same for the same seed."""
    found = batches(data.train, _BATCH, shuffle=True, seed=seed)
    for batch, _ in islice(found, max(1, images // _BATCH)):
        inputs = network.preprocess(batch)
        yield from inputs.split(images_at_once(network.model, inputs))


def _accumulator(name: str, squares: dict[str, Tensor], counts: dict[str, int]):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        dim = 1 if x.ndim > 2 and not isinstance(module, nn.Linear) else x.ndim - 1
        sums = x.movedim(dim, 0).flatten(1).double().square().sum(dim=1).cpu()
        squares[name] = squares[name] + sums if name in squares else sums
        counts[name] = counts.get(name, 0) + x.numel() // x.shape[dim]

    return hook


def _by_channel(values: Tensor, axis: Axis, width: int) -> Tensor:
    """Sums over the entries of each channel along an axis."""
    return values.narrow(0, axis.start, axis.span(width)).view(axis.tiles, width, axis.repeat).sum(dim=(0, 2))


def by_importance(scores: Float[Tensor, " width"]) -> tuple[int, ...]:
    """Channels from the most important to the least; equal ones in their old order."""
    return tuple(torch.argsort(scores, descending=True, stable=True).tolist())
