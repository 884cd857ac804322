"""What reads a width group, and the rows that reach it and leave it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from netsmith.widths.types import Axis, WidthGroup

Dense = nn.Linear | nn.Conv1d | nn.Conv2d


@dataclass(frozen=True)
class Reader:
    """A dense layer whose input axis belongs to a group: `name` in the network, and where the channels lie in it."""

    name: str
    axis: Axis


def readers(model: nn.Module, groups: Sequence[WidthGroup], x: Tensor) -> dict[str, list[Reader]]:
    """Return for each group the layers that can be refitted when it is narrowed, in the order in which they run.

    Those are dense layers that run once on the batch `x`. Left out are grouped convolutions, as a channel reaches only
    a part of their outputs, and layers whose weights are used without calling them, as in `nn.MultiheadAttention`.
    """
    order = _runs(model, x)
    found: dict[str, list[Reader]] = {}
    for group in groups:
        found[group.name] = []
        for axis in group.axes:
            name, _, tensor = axis.tensor.rpartition(".")
            if axis.fan_in and tensor == "weight" and order.count(name) == 1:
                found[group.name].append(Reader(name, axis))
        found[group.name].sort(key=lambda reader: order.index(reader.name))
    return found


@torch.no_grad()
def _runs(model: nn.Module, x: Tensor) -> list[str]:
    """Return the names of the layers that multiply by their matrix, in the order in which they run, once for each run.

    That is tried, not believed: a class may pad its inputs, or change its weights, on the way.
    """
    order: list[str] = []
    names = {
        id(module): name
        for name, module in model.named_modules()
        if isinstance(module, Dense) and getattr(module, "groups", 1) == 1
    }

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        at, bias = torch.arange(output_places(layer, output), device=output.device)[::7], layer._parameters.get("bias")
        with suppress(IndexError):  # it has more places than its matrix reaches
            product = input_rows(layer, inputs[0], at) @ matrix(layer) + (0 if bias is None else bias)
            if torch.allclose(product, output_rows(layer, output, at), rtol=1e-3, atol=1e-4):
                order.append(names[id(layer)])

    hooks = [m.register_forward_hook(note) for m in model.modules() if id(m) in names]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return order


def matrix(module: nn.Module) -> Float[Tensor, "q d"]:
    """Return the layer's weights as inputs x outputs; the taps of a channel are neighbours."""
    weight = module.get_parameter("weight").detach()
    return weight.flatten(1).T


def taps(module: nn.Module) -> int:
    """Return how many weights of one output belong to one input channel."""
    return module.get_parameter("weight")[0, 0].numel()


def input_rows(module: nn.Module, x: Tensor, places: Int64[Tensor, " p"]) -> Float[Tensor, "r q"]:
    """Return what the layer multiplies with its matrix at some places of its output."""
    if isinstance(module, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])[:, places].flatten(0, 1)
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    flat = isinstance(module, nn.Conv1d)
    kernel, stride, dilation = ((1, *v) if flat else v for v in (module.kernel_size, module.stride, module.dilation))
    if any(padding := module._reversed_padding_repeated_twice):
        x = nn.functional.pad(x, padding, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    x = x.unsqueeze(2) if flat else x
    if taps(module) == 1:
        patches = x[:, :, :: stride[0], :: stride[1]].flatten(2)
    else:
        patches = nn.functional.unfold(x, kernel, dilation=dilation, stride=stride)
    return patches[:, :, places].transpose(1, 2).flatten(0, 1)


def output_rows(module: nn.Module, y: Tensor, places: Int64[Tensor, " p"]) -> Float[Tensor, "r d"]:
    """Return the layer's outputs (or anything of their shape) at some places of them."""
    flat = y.reshape(len(y), -1, y.shape[-1]) if isinstance(module, nn.Linear) else y.flatten(2).transpose(1, 2)
    return flat[:, places].flatten(0, 1)


def output_places(module: nn.Module, y: Tensor) -> int:
    """Return how many places the layer's output has: pixels or tokens."""
    return y.numel() // (len(y) * y.shape[-1 if isinstance(module, nn.Linear) else 1])


def blocks(module: nn.Module, axis: Axis, width: int) -> Int64[Tensor, "width b"]:
    """Return the rows of `matrix` that belong to each channel of a group."""
    channels = torch.arange(width).view(-1, 1, 1) * axis.repeat
    tile = torch.arange(axis.tiles).view(1, -1, 1) * (width * axis.repeat)
    inputs = (axis.start + channels + tile + torch.arange(axis.repeat)).flatten(1)
    return (inputs.unsqueeze(2) * taps(module) + torch.arange(taps(module))).flatten(1)
