"""Batch norms folded into the layer before them, and batch-norm statistics estimated anew."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from netsmith.core.trial import untouched

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TOLERANCE = 1e-5


def fold_batch_norms(model: nn.Module, example_input: Tensor) -> nn.Module:
    """A copy in which every batch norm right behind a convolution or linear layer is folded into it.

    Grouped, depthwise, dilated and transposed convolutions too. The layer gets a bias, the norm gives way to an
    identity (or to the activation that it held, as timm's do). Each fold must leave the output in eval mode as it was
    (largest difference over largest output: 1e-5); those that do not, such as of layers whose output goes elsewhere
    too, are put back. Norms that are folded cannot be trained any more: the copy computes what the network does in
    eval mode.

    Args:
        model: the network; it is not changed.
        example_input: a batch as the network takes it; of noise rather than zeros, so that differences show.
    """
    folded = copy.deepcopy(model).eval()
    with torch.no_grad(), untouched(folded):
        expected = folded(example_input)
        for layer, norm in _pairs(folded, example_input):
            kept = {name: copy.deepcopy(folded.get_submodule(name)) for name in (layer, norm)}
            _fold(folded, layer, norm)
            if not _same(folded(example_input), expected):
                for name, module in kept.items():
                    _put(folded, name, module)
    return folded


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Estimate the running statistics of all batch norms anew, in place, as plain means over the batches.

    Returns the number of batches. The network's mode is left as it was; everything but batch norms stays in eval mode
    meanwhile, so that dropout does not disturb the statistics.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    modes = [(m, m.training) for m in model.modules()]
    momenta = [m.momentum for m in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then keeps the plain mean
        norm.train()
    count = 0
    try:
        for batch in batches:
            model(batch)
            count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes:
            module.training = mode
    return count


def _pairs(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Names of layers and of the norms whose input is the very tensor that the layer gave, each called once."""
    gave: dict[int, tuple[str, Tensor]] = {}
    calls: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (*_LAYERS, *_TRANSPOSED)):

            def after(_: nn.Module, __: object, out: Tensor, name: str = name) -> None:
                calls[name] = calls.get(name, 0) + 1
                gave[id(out)] = (name, out)

            handles.append(module.register_forward_hook(after))
        elif isinstance(module, _NORMS) and module.track_running_stats and (type(module) in _NORMS or _act(module)):

            def before(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                calls[name] = calls.get(name, 0) + 1
                if id(inputs[0]) in gave:
                    pairs.append((gave[id(inputs[0])][0], name))

            handles.append(module.register_forward_pre_hook(before))
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return [(a, b) for a, b in pairs if calls[a] == 1 and calls[b] == 1]


def _act(norm: nn.Module) -> bool:
    """Whether a norm is one of timm's, which hold an activation too."""
    return isinstance(getattr(norm, "act", None), nn.Module) and isinstance(getattr(norm, "drop", None), nn.Module)


def _fold(model: nn.Module, layer_name: str, norm_name: str) -> None:
    layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
    assert isinstance(norm, _NORMS)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight: Tensor = layer.get_parameter("weight")
    scale = 1.0 / (norm.running_var.double() + norm.eps).sqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    bias = getattr(layer, "bias", None)
    if bias is not None:
        shift = shift + bias.double() * scale
    if isinstance(layer, _TRANSPOSED):
        parts = weight.double().unflatten(0, (layer.groups, -1))
        each = scale.view(layer.groups, 1, -1, *(1,) * (weight.ndim - 2))
        new = (parts * each).flatten(0, 1)
    else:
        new = weight.double() * scale.view(-1, *(1,) * (weight.ndim - 1))
    trains = weight.requires_grad
    layer.register_parameter("weight", nn.Parameter(new.to(weight.dtype), requires_grad=trains))
    layer.register_parameter("bias", nn.Parameter(shift.to(weight.dtype), requires_grad=trains))
    held = [m for m in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(m, nn.Module)]
    _put(model, norm_name, (nn.Sequential(*held) if held else nn.Identity()).eval())


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _same(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max().clamp(min=1e-12))
