"""A grid's keyframes: what they have of their own, their training one by one, and the repair of what lies between."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netsmith.core.channels import WidthGroup, permute, relocate, resize, width_groups
from netsmith.core.data import Splits
from netsmith.core.engine import Progress
from netsmith.core.folding import fold_batch_norms, foldable
from netsmith.core.graph import Chain
from netsmith.core.network import Network
from netsmith.core.settings import TrainSettings
from netsmith.core.tasks import Task
from netsmith.morph.finetuning import Teacher, finetuned, named, optimizer_steps
from netsmith.morph.fit import FitSettings
from netsmith.morph.grid import Grid
from netsmith.morph.morphable import Morphable, untouched_front
from netsmith.morph.preparing import Prepared

_SMALL = 0.01
"""Of the network's parameters, the most that one tensor of the keyframes' own may have."""

_PLACES = 2**19

_BatchNorm = nn.modules.batchnorm._BatchNorm


def own_tensors(model: nn.Module, groups: Sequence[WidthGroup], chain: Chain | None) -> tuple[str, ...]:
    """Parameters that no group touches and that every keyframe should have of its own: they cost next to nothing.

    Biases, norms, a small classifier: what lies behind the first tensor that a group touches (before it everything is
    the same at all widths, and computed once), or, of a network that is not dissected, in the layers of those tensors;
    each with at most a hundredth of the network's parameters.
    """
    touched = {axis.tensor for group in groups for axis in group.axes}
    parameters = dict(model.named_parameters())
    most = _SMALL * sum(p.numel() for p in parameters.values())
    if chain is None:
        layers = {name.rpartition(".")[0] for name in touched}
        behind = {name for name in parameters if name.rpartition(".")[0] in layers}
    else:
        front = untouched_front(model, chain, touched)
        before = {id(p) for piece in front for p in piece.parameters()}
        behind = {name for name, p in parameters.items() if id(p) not in before}
    return tuple(
        name
        for name, p in parameters.items()
        if name in behind - touched and p.is_floating_point() and p.numel() <= most
    )


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


@dataclass(frozen=True)
class Apart:
    """How training is divided: steps of each keyframe by itself, and what is left for all widths together, if any."""

    steps: tuple[int, ...]
    together: TrainSettings | None


def divide(grid: Grid, images: int, training: TrainSettings, share: float) -> Apart:
    """Divide a training's steps; a keyframe gets the more the narrower it is (as 1 / ratio), for it loses the more.

    Where there is no coarse set to fit, all are the keyframes'. Nothing is taken of a single epoch.
    """
    each = optimizer_steps(images, training)
    epochs = 0 if share and grid.coarse is None else max(1, training.epochs - round(share * training.epochs))
    total, needs = (training.epochs - epochs) * each, [1 / ratio for ratio in grid.keyframes[1:]]
    steps = tuple(int(total * need / sum(needs)) for need in needs)
    if min(steps) < 1:
        return Apart((), training)
    warmup = training.warmup_epochs * epochs / training.epochs
    left = training.model_copy(update={"epochs": epochs, "warmup_epochs": warmup})
    return Apart(steps, left if epochs else None)


def fit_keyframes(
    grid: Grid,
    network: Network,
    prepared: Prepared,
    orders: Mapping[str, Sequence[int]],
    data: Splits,
    task: Task,
    training: TrainSettings,
    fitting: FitSettings,
    steps: Sequence[int],
    *,
    checkpoints: Path | None = None,
    progress: Progress | None = None,
    device: str | None = None,
) -> None:
    """Train the network of each keyframe by itself, from the highest to the lowest, and let the grid learn them.

    Each begins as the first channels of the one above it, the highest as those of the base, and keeps its batch norms
    while it is trained, as a network that lost channels recovers faster with them. Folded, it is what the keyframe
    holds. Only what the grid generates is trained.

    Args:
        grid: its keyframes are set, in place.
        network: the base.
        prepared: its copy, in the grid's order of channels.
        orders: that order by group.
        data: its test part is not touched.
        task: whose loss it is.
        training: of each.
        fitting: distillation, temperature and views.
        steps: of each keyframe but the first.
        checkpoints: folder from which this goes on after an interruption.
        progress: told how far it is.
        device: where to compute.

    Raises:
        TrainingError: a loss that is not finite, or a checkpoint of another run.
    """
    twin, groups = _twin(grid, network, prepared, orders)
    learned = _learned(grid, twin, prepared)
    teacher = Teacher(network.model)
    for ratio, count in zip(grid.keyframes[1:], steps, strict=True):
        widths = grid.widths_at(ratio)
        twin = resize(twin, groups, widths)
        groups = relocate(groups, widths)
        finetuned(
            twin, network, data, task, training, count,
            distillation=fitting.distillation, temperature=fitting.temperature, views=fitting.views, teacher=teacher,
            parameters=learned, checkpoint_dir=None if checkpoints is None else checkpoints / f"keyframe-{ratio:g}",
            progress=named(progress, f"keyframe {ratio:g}"), device=device,
        )  # fmt: skip
        twin.eval()
        plain = fold_batch_norms(twin, prepared.example) if prepared.folded else twin
        grid.learn(ratio, plain.state_dict())


def probe_images(data: Splits, shape: Sequence[int], seed: int) -> Tensor:
    """Training images for `repair`, in [0, 1]: at most 2048, and about half a million places in all."""
    count = max(16, min(2048, _PLACES // max(1, math.prod(shape[1:])), len(data.train)))
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    return data.train.images(order[:count].sort().values)


@torch.no_grad()
def repair(morphable: Morphable, grid: Grid, images: Tensor) -> None:
    """Set the factors of a grid's repaired layers, in place; it has none yet. Some widths between each two keyframes.

    There the mean and deviation of a layer's outputs, channel by channel, become the means of those that the two
    keyframes' networks have (Jordan et al., "REPAIR", ICLR 2023, section 3), from the first layer to the last.

    Args:
        morphable: what is read.
        grid: its generator.
        images: training images, preprocessed, in one batch.
    """
    ends = {r: _outputs(morphable.module(grid.widths_at(r)), grid.repaired, images) for r in grid.keyframes}
    for place, ratio in enumerate(grid.between):
        high, low = next((h, k) for h, k in pairwise(grid.keyframes) if k < ratio < h)
        share = math.log(ratio / low) / math.log(high / low)  # of the wider network
        wanted = {
            layer: (_mixed(ends[high][layer][0], narrow[0], share), _mixed(ends[high][layer][1], narrow[1], share))
            for layer in grid.repaired_at(place)
            if (narrow := ends[low].get(layer)) is not None
        }
        if not wanted:
            continue
        plain = morphable.module(grid.widths_at(ratio))
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


def _twin(
    grid: Grid, network: Network, prepared: Prepared, orders: Mapping[str, Sequence[int]]
) -> tuple[nn.Module, Sequence[WidthGroup]]:
    """The base in the grid's order of channels, with its batch norms; without them where its groups are then others."""
    if prepared.folded:
        model = copy.deepcopy(network.model).eval()
        found = {g.name: g for g in width_groups(model, prepared.example)}
        if all(g.name in found and found[g.name].width == g.width for g in grid.groups):
            groups = tuple(found[g.name] for g in grid.groups)
            for group in groups:
                permute(model, group, orders[group.name])
            return model, groups
    return copy.deepcopy(prepared.model), grid.groups


def _learned(grid: Grid, twin: nn.Module, prepared: Prepared) -> set[str]:
    """Parameters of the twin that end up in what the grid generates, and nowhere else."""
    generated = {slot.name for slot in grid.slots}
    norms = foldable(twin, prepared.example) if prepared.folded else {}
    names = dict(twin.named_parameters())
    learned: set[str] = set()
    for name, module in twin.named_modules():
        own = {f"{name}.{part}" if name else part for part, _ in module.named_parameters(recurse=False)} & set(names)
        if name in norms.values():
            continue
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            wanted = own | {f"{name}.running_mean", f"{name}.running_var"}
        elif name in norms:
            wanted = {f"{name}.weight", f"{name}.bias"}
            own |= {f"{norms[name]}.{part}" for part in ("weight", "bias")} & set(names)
        else:
            learned |= own & generated
            continue
        if wanted <= generated:
            learned |= own
    return learned
