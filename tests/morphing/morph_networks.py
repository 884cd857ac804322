"""A tiny network on digits, by source, so that artifacts of it can be built again."""

from __future__ import annotations

import torch

from netsmith.morphing.morphable import Morphable
from netsmith.morphing.preparing import prepare
from netsmith.morphing.space import MorphSpace, morph_space
from netsmith.networks.network import Network, load_source
from netsmith.trace.chain import dissect
from netsmith.widths.groups import width_groups

OPTIONS = {"widths": [8, 12], "depth": 2}


def tiny(seed: int = 0) -> Network:
    """Four convolutions of 8, 8, 12, 12 channels with lively batch norms."""
    network = load_source("netsmith:plain_cnn", input_size=(1, 8, 8), num_classes=10, options=OPTIONS, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for module in network.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return network


def space_of(network: Network, widths: tuple[float, float] = (0.25, 1.0), blocks: str = "all") -> MorphSpace:
    """The network's morph space."""
    prepared = prepare(network)
    return morph_space(prepared.groups, blocks, widths)


def morphable(kind: type, network: Network | None = None, **settings: object) -> Morphable:
    """A network with a generator of this class."""
    prepared = prepare(network or tiny())
    chain = dissect(prepared.model, prepared.example)
    space = morph_space(prepared.groups, "all", (0.25, 1.0), chain=chain)
    return Morphable(prepared.model, space, kind(prepared.model.state_dict(), space.groups, **settings), chain)


__all__ = ["morphable", "space_of", "tiny", "width_groups"]
