"""The repair of what a grid reads between its keyframes: statistics of every channel, set from data.

Jordan et al., "REPAIR: REnormalizing Permuted Activations for Interpolation Repair" (ICLR 2023).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from netsmith.data.splits import Splits
from netsmith.morphing.frames import Frames, way_down
from netsmith.widths.groups import WidthGroup

_PLACES = 2**19


def repairable(model: nn.Module, groups: Sequence[WidthGroup], own: Collection[str]) -> tuple[str, ...]:
    """Layers that a grid can repair: convolutions and linear layers that a group touches, with a generated bias.

    Generated is what a group touches, and what is the keyframes' `own`. A convolution that is transposed has its
    outputs second, and is left out.
    """
    touched = {axis.tensor for group in groups for axis in group.axes}
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
        and f"{name}.weight" in touched
        and (f"{name}.bias" in touched or f"{name}.bias" in own)
    )


def probe_images(data: Splits, shape: Sequence[int], seed: int) -> Tensor:
    """Training images for `repair`, in [0, 1]: at most 2048, and about half a million places in all."""
    count = max(16, min(2048, _PLACES // max(1, math.prod(shape[1:])), len(data.train)))
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    return data.train.images(order[:count].sort().values)


@torch.no_grad()
def repair(grid: Frames, read: Callable[[Mapping[str, int]], nn.Module], images: Tensor) -> None:
    """Set the factors of a grid's repaired layers, in place; it has none yet. Some widths between each two keyframes.

    There the mean and deviation of a layer's outputs, channel by channel, become the means of those that the two
    keyframes' networks have (Jordan et al., "REPAIR", ICLR 2023, section 3), from the first layer to the last.

    Args:
        grid: whose factors are set.
        read: gives the network at some widths.
        images: training images, preprocessed, in one batch.
    """
    ends = {r: _outputs(read(grid.widths_at(r)), grid.repaired, images) for r in grid.keyframes}
    for place, ratio in enumerate(grid.between):
        high, low = next((h, k) for h, k in pairwise(grid.keyframes) if k < ratio < h)
        share = 1 - way_down(high, low, ratio)  # of the wider network
        wanted = {
            layer: (_mixed(ends[high][layer][0], narrow[0], share), _mixed(ends[high][layer][1], narrow[1], share))
            for layer in grid.repaired_at(place)
            if (narrow := ends[low].get(layer)) is not None
        }
        if not wanted:
            continue
        plain = read(grid.widths_at(ratio))
        for layer, (factor, shift) in _corrections(plain, wanted, images).items():
            grid.set_repair(place, layer, factor, shift)


def _mixed(wide: Tensor, narrow: Tensor, share: float) -> Tensor:
    """The mean of both on the channels of the narrower, and the wider's beyond them."""
    found = wide.clone()
    found[: len(narrow)] = share * wide[: len(narrow)] + (1 - share) * narrow
    return found


def _outputs(model: nn.Module, layers: Collection[str], images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation of each channel of each layer's outputs; of layers that run once."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    calls: Counter[str] = Counter()

    def look(layer: str, out: Tensor) -> None:
        calls[layer] += 1
        rows = _rows(model.get_submodule(layer), out)
        found[layer] = rows.mean(0), rows.std(0, correction=0)

    with _hooked(model, {layer: partial(look, layer) for layer in layers}):
        model(images)
    return {layer: value for layer, value in found.items() if calls[layer] == 1}


def _corrections(
    model: nn.Module, wanted: Mapping[str, tuple[Tensor, Tensor]], images: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Factor and shift of each layer that give its outputs these means and deviations, those before it corrected."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def correct(layer: str, out: Tensor) -> Tensor:
        module: Any = model.get_submodule(layer)
        rows = _rows(module, out)
        mean, deviation = rows.mean(0), rows.std(0, correction=0)
        goal, spread = (value[: len(mean)] for value in wanted[layer])
        factor = torch.where(deviation > 1e-6 * (1 + mean.abs()), spread / deviation.clamp_min(1e-12), 1.0)
        factor = factor.clamp(0.1, 10.0)  # a channel that is all but silent would be made of noise
        found[layer] = factor, (module.bias - mean) * factor + goal - module.bias
        shape = [1] * out.ndim
        shape[-1 if isinstance(module, nn.Linear) else 1] = -1
        return (out - mean.view(shape)) * factor.view(shape) + goal.view(shape)

    with _hooked(model, {layer: partial(correct, layer) for layer in wanted}):
        model(images)
    return found


def _rows(module: nn.Module, out: Tensor) -> Tensor:
    """A layer's outputs as rows of its channels."""
    return out.float().flatten(0, -2) if isinstance(module, nn.Linear) else out.float().transpose(0, 1).flatten(1).T


@contextmanager
def _hooked(model: nn.Module, watching: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda module, inputs, out, watch=watch: watch(out))
        for layer, watch in watching.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
