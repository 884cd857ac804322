"""Candidates for width groups from Torch-Pruning's dependency graph, in our own terms.

Torch-Pruning (Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023) says which channels of which layers
belong together. What it says is read as index maps and not trusted: every candidate is proved afterwards.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning.ops import _OutputOp

from netsmith.widths.types import Axis, Refused, Setting, WidthGroup

_PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm, nn.PReLU)
_CONV_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class _Unfit(Exception):
    """A group of the dependency graph that our terms cannot express."""


def dependency_groups(model: nn.Module, example: Tensor) -> tuple[list[WidthGroup], list[Refused]]:
    """What the dependency graph of a copy of `model` says: groups to be proved, and those that cannot be meant."""
    twin = copy.deepcopy(model)
    for p in twin.parameters():
        p.requires_grad_(True)
    found: list[WidthGroup] = []
    refused: list[Refused] = []
    with warnings.catch_warnings(), redirect_stdout(StringIO()), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(twin, example_inputs=example, verbose=False)
        order = {m: i for i, m in enumerate(twin.modules())}
        names = {m: n for n, m in twin.named_modules()}
        parameters = {id(p): n for n, p in twin.named_parameters()}
        for group in graph.get_all_groups():
            opening = min((m for m in _opening(graph, group)), key=lambda m: order[m])
            name, width = names[opening], len(group[0].idxs)
            try:
                found.append(_group(graph, group, name, width, names, parameters))
            except _Unfit as why:
                refused.append(Refused(name, width, str(why)))
    return found, refused


def _opening(graph: Any, group: Any) -> Iterator[nn.Module]:
    """The layers that make the group's channels."""
    for item in group:
        module = item.dep.target.module
        if graph.is_out_channel_pruning_fn(item.dep.handler) and _is_layer(module) and not _is_depthwise(module):
            yield module
    yield group[0].dep.target.module


def _is_layer(module: Any) -> bool:
    return isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))


def _is_depthwise(module: Any) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.out_channels > 1


def _group(
    graph: Any, group: Any, name: str, width: int, names: dict[nn.Module, str], parameters: dict[int, str]
) -> WidthGroup:
    axes: dict[Axis, None] = {}
    settings: dict[Setting, None] = {}
    for item in group:
        target = item.dep.target
        module = target.module
        if isinstance(module, _OutputOp):
            raise _Unfit("these are the network's own outputs")
        if not isinstance(module, nn.Parameter) and module not in names:
            continue  # an operation, not a layer
        inward = not graph.is_out_channel_pruning_fn(item.dep.handler)
        label = parameters[id(module)] if isinstance(module, nn.Parameter) else names[module]
        for start, repeat, tiles in _runs(item.idxs, item.root_idxs, width, label):
            if isinstance(module, nn.Parameter):
                axes[Axis(label, target.pruning_dim, start, repeat, tiles)] = None
                continue
            per_channel = repeat * tiles
            for tensor, dim, fan_in in _layer_axes(module, label, inward):
                axes[Axis(f"{label}.{tensor}".lstrip("."), dim, start, repeat, tiles, fan_in)] = None
            for attribute, now in _layer_settings(module, inward):
                settings[Setting(label, attribute, per_channel, now - per_channel * width)] = None
    return WidthGroup(name, width, "inner", tuple(axes), tuple(settings))


def _runs(idxs: Sequence[int], roots: Sequence[int | None], width: int, where: str) -> list[tuple[int, int, int]]:
    """Indices of a layer and the channels they belong to as (start, repeat, tiles)."""
    pairs = sorted(zip(idxs, roots, strict=True))
    runs: list[list[tuple[int, int | None]]] = []
    for pair in pairs:
        if runs and pair[0] == runs[-1][-1][0] + 1:
            runs[-1].append(pair)
        else:
            runs.append([pair])
    found = []
    for run in runs:
        channels = [c for _, c in run]
        repeat = next((i for i, c in enumerate(channels) if c != channels[0]), len(channels))
        tiles, rest = divmod(len(run), width * repeat)
        expected = [j for j in range(width) for _ in range(repeat)] * tiles
        if rest or channels != expected:
            raise _Unfit(f"at {where} its {width} channels do not lie side by side in their order, each equally often")
        found.append((run[0][0], repeat, tiles))
    return found


def _layer_axes(module: nn.Module, label: str, inward: bool) -> list[tuple[str, int, bool]]:
    """(tensor, dimension, whether it is summed over) of a layer's input or output side."""
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
        if not _is_depthwise(module):
            raise _Unfit(f"{label} is a grouped convolution ({module.groups} groups)")
        inward = False
    if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
        out = 1 if isinstance(module, _CONV_TRANSPOSED) and module.groups == 1 else 0
        if inward:
            return [("weight", 1 - out, True)]
        return [("weight", out, False), *([("bias", 0, False)] if module.bias is not None else [])]
    if isinstance(module, _PER_CHANNEL):
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
            raise _Unfit(f"{label} normalises over {len(module.normalized_shape)} dimensions at once")
        state = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        return [(name, 0, False) for name, t in state if t.ndim == 1 and t.numel() > 1]
    raise _Unfit(f"{label} is a {type(module).__name__}, whose channels cannot be reordered freely")


def _layer_settings(module: nn.Module, inward: bool) -> list[tuple[str, int]]:
    """Attributes of a layer that count its input or output channels, with their present value."""
    if _is_depthwise(module):
        names = ["in_channels", "out_channels", "groups"]
    elif isinstance(module, nn.modules.conv._ConvNd):
        names = ["in_channels" if inward else "out_channels"]
    elif isinstance(module, nn.Linear):
        names = ["in_features" if inward else "out_features"]
    elif isinstance(module, nn.LayerNorm):
        return [("normalized_shape", module.normalized_shape[-1])]
    elif isinstance(module, nn.PReLU):
        names = ["num_parameters"] if module.num_parameters > 1 else []
    else:
        names = ["num_features"]
    return [(n, getattr(module, n)) for n in names]
