"""The base network made ready: a copy with its batch norms folded, and its proven width groups."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netsmith.networks.network import Network
from netsmith.networks.preprocess import remember
from netsmith.widths.folding import fold_batch_norms
from netsmith.widths.groups import WidthGroup, WidthGroups, width_groups


@dataclass
class Prepared:
    """A copy of the base network that is reordered, in place; `example` is an input that it takes."""

    model: nn.Module
    groups: WidthGroups
    folded: bool
    example: Tensor


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
