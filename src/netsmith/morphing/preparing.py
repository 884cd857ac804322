"""The base network made ready, and what the steps of morphing share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from netsmith.data.splits import Splits
from netsmith.networks.network import Network
from netsmith.networks.preprocess import remember
from netsmith.training.measure import Progress
from netsmith.training.tasks import Task
from netsmith.widths.folding import fold_batch_norms
from netsmith.widths.groups import WidthGroup, WidthGroups, width_groups


@dataclass(frozen=True)
class Run:
    """Where a step computes, the folder in which long work keeps its state to go on from, and whom it tells."""

    device: str = "cpu"
    checkpoints: Path | None = None
    progress: Progress | None = None


@dataclass
class Prepared:
    """A copy of the base network that is reordered, in place; `example` is an input that it takes."""

    model: nn.Module
    groups: WidthGroups
    folded: bool
    example: Tensor


@dataclass(frozen=True)
class Subject:
    """What is morphed: the base as it came, what it is for, and its prepared copy."""

    network: Network
    data: Splits
    task: Task
    prepared: Prepared


def prepare(network: Network, *, fold: bool = True) -> Prepared:
    """Copy a network, fold its batch norms and find its width groups.

    Raises:
        ChannelError: no width group can be proved; with the reasons.
    """
    example = torch.zeros(2, *network.preprocess.input_size)
    example = example + torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    model = fold_batch_norms(network.model, example) if fold else copy.deepcopy(network.model)
    remember(model, network.preprocess)
    groups = width_groups(model, example, name=network.name)
    return Prepared(model.eval(), groups, fold, example)


def with_norms(
    network: Network, prepared: Prepared, groups: Sequence[WidthGroup]
) -> tuple[nn.Module, tuple[WidthGroup, ...]] | None:
    """A copy of the base, in its own order of channels, with the batch norms that were folded, and these groups in it.

    None where none were folded, or where it has no groups of these names and widths.
    """
    if not prepared.folded:
        return None
    model = copy.deepcopy(network.model).eval()
    found = {group.name: group for group in width_groups(model, prepared.example)}
    if any(g.name not in found or found[g.name].width != g.width for g in groups):
        return None
    return model, tuple(found[g.name] for g in groups)
