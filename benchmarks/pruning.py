"""The rival of morphing that everybody has: a network pruned by Torch-Pruning to given widths.

Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from itertools import islice
from typing import Any, Literal

import torch
from torch import nn

from netsmith.data.splits import Splits, batches
from netsmith.errors import MorphError
from netsmith.morphing.space import MorphSpace
from netsmith.networks.network import Network
from netsmith.training.tasks import Task
from netsmith.widths.folding import fold_batch_norms
from netsmith.widths.groups import resize

Importance = Literal["l1", "taylor"]
_BATCH = 64


def pruned(
    network: Network,
    space: MorphSpace,
    widths: Mapping[str, int],
    *,
    by: Importance,
    data: Splits,
    task: Task,
    seed: int = 0,
    images: int = 2048,
) -> nn.Module:
    """A copy of a network whose groups Torch-Pruning has cut to these widths; not fine-tuned, in evaluation mode.

    Its batch norms stay as they are, as users of Torch-Pruning have them: they are trained on with everything else.
    Once they are folded (`core.folding`) it has the very parameters that the morphed network has, tensor for tensor,
    which is checked; unfolded it has two more a normalised channel, and two statistics, and one bias less. So count
    its parameters after folding where those of the morphed network were.

    Each group loses the channels of the lowest score, one group after the other in the order of the network, as
    Torch-Pruning's own pruners do at a fixed ratio for each layer.

    Args:
        network: the base; it is not changed.
        space: names the groups. Those of the folded network will do, as they are called alike in both.
        widths: of groups by name, at most the base's; groups that are not named keep theirs.
        by: "l1" (`GroupMagnitudeImportance(p=1)`) or "taylor" (`GroupTaylorImportance`).
        data: its training part gives the gradients of "taylor".
        task: whose loss they are of.
        seed: draws their batches.
        images: how many training images, in batches of 64.

    Raises:
        MorphError: a width above the base's, a group that is not made by one convolution or linear layer (heads of
            attention, channels after a concatenation), or that Torch-Pruning cuts elsewhere or not at all.
    """
    wanted = {name: width for name, width in space.of(widths).items() if width != space.full[name]}
    for name, width in wanted.items():
        if width > space.full[name]:
            raise MorphError(f"pruning only removes: '{name}' has {space.full[name]} channels, {width} were asked for")
    model = copy.deepcopy(network.model).eval().requires_grad_(True)
    layers = {name: _layer(model, name, space.full[name]) for name in wanted}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        if by == "taylor":
            _gradients(model, network, data, task, images, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its guesses at operations that it does not know: checked below
            _cut(model, layers, wanted, by, network.preprocess.input_size)
    model.zero_grad(set_to_none=True)
    _check_sizes(model, network, space, widths)
    return model.eval()


def _layer(model: nn.Module, name: str, width: int) -> nn.Module:
    """The module of that name, if its outputs are the group's channels."""
    layer = dict(model.named_modules()).get(name)
    outputs = getattr(layer, "out_channels", getattr(layer, "out_features", None))
    if not isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) or outputs != width:
        kind = "no module of the network" if layer is None else f"a {type(layer).__name__} of {outputs} outputs"
        raise MorphError(
            f"Torch-Pruning removes outputs of convolutions and linear layers, and the group '{name}' of {width} "
            f"channels is {kind}: leave it out of the morph space, or leave out the rivals l1 and taylor"
        )
    return layer


def _gradients(model: nn.Module, network: Network, data: Splits, task: Task, images: int, seed: int) -> None:
    """Sums of the loss's gradients over some training batches, in the mode in which the network is judged."""
    for pictures, found in islice(batches(data.train, _BATCH, shuffle=True, seed=seed), max(1, images // _BATCH)):
        loss = task.loss(model(network.preprocess(pictures)), task.targets_of(pictures, found))
        loss.backward()


def _cut(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    widths: Mapping[str, int],
    by: Importance,
    shape: tuple[int, ...],
) -> None:
    """Remove channels in place."""
    import torch_pruning as tp

    scorer: Any = tp.importance.GroupTaylorImportance() if by == "taylor" else None
    scorer = scorer or tp.importance.GroupMagnitudeImportance(p=1)
    name = "the network"
    try:
        # by default it would call the model with the images of the batch as so many arguments
        graph = tp.DependencyGraph().build_dependency(
            model, torch.zeros(2, *shape), forward_fn=lambda run, x: run(x), verbose=False
        )
        for name, layer in layers.items():
            remove: Any = graph.get_pruner_of_module(layer)
            have = int(remove.get_out_channels(layer))
            scores = scorer(graph.get_pruning_group(layer, remove.prune_out_channels, list(range(have))))
            lowest = torch.argsort(scores, stable=True)[: have - widths[name]].tolist()
            graph.get_pruning_group(layer, remove.prune_out_channels, lowest).prune()
    except Exception as error:
        raise MorphError(
            f"Torch-Pruning cannot prune '{name}' ({type(error).__name__}: {error}): leave it out of the morph space, "
            f"or leave out the rivals l1 and taylor"
        ) from error


def _check_sizes(model: nn.Module, network: Network, space: MorphSpace, widths: Mapping[str, int]) -> None:
    """Raise MorphError unless the pruned network has the parameters that the morphed one has."""
    shape = (2, *network.preprocess.input_size)
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    base, found = fold_batch_norms(network.model, example), model
    if all(axis.tensor in base.state_dict() for group in space.groups for axis in group.axes):
        found = fold_batch_norms(model, example)
    else:  # the groups are those of the network with its norms
        base = network.model
    expected = {n: tuple(p.shape) for n, p in resize(base, space.groups, space.of(widths)).named_parameters()}
    reached = {n: tuple(p.shape) for n, p in found.named_parameters()}
    for name, size in expected.items():
        if reached.get(name) != size:
            raise MorphError(
                f"Torch-Pruning gave {name} the shape {reached.get(name)}, the morphed network has {size} there: "
                f"leave that part out of the morph space, or leave out the rivals l1 and taylor"
            )
    assert not set(reached) - set(expected), f"{sorted(set(reached) - set(expected))}"
