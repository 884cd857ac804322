"""Channels in order of importance: which to keep first when a width shrinks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from netsmith.core.channels import WidthGroup, entries
from netsmith.core.tasks import Task


def channel_importance(
    model: nn.Module, groups: Sequence[WidthGroup], batches: Iterable[tuple[Tensor, Tensor]], task: Task
) -> dict[str, Float[Tensor, " width"]]:
    """How much the loss depends on each channel: the mean square of its gate's gradient over the batches.

    The gradient by a factor on a channel's output is the sum of weight times gradient over the weights that read it
    (Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, equation 9, with batches in
    place of images). The model is left as it was, without gradients.

    Args:
        model: the network, in the mode in which it is judged.
        groups: the groups to rank.
        batches: preprocessed images and targets.
        task: whose loss counts.
    """
    readers = {g.name: replace(g, axes=tuple(a for a in g.axes if a.fan_in) or g.axes) for g in groups}
    sums = {g.name: torch.zeros(g.width) for g in groups}
    required = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.requires_grad_(True)
        for images, targets in batches:
            model.zero_grad(set_to_none=True)
            task.loss(model(images), targets).backward()
            products = {
                name: torch.zeros_like(p) if p.grad is None else p.detach() * p.grad
                for name, p in model.named_parameters()
            }
            products |= {name: torch.zeros_like(b) for name, b in model.named_buffers()}
            for name, group in readers.items():
                sums[name] += entries(products, group).sum(dim=1).float().cpu() ** 2
    finally:
        for parameter, flag in required:
            parameter.requires_grad_(flag)
            parameter.grad = None
    return sums


def by_importance(scores: Float[Tensor, " width"]) -> tuple[int, ...]:
    """Channels from the most important to the least; equal ones in their old order."""
    return tuple(torch.argsort(scores, descending=True, stable=True).tolist())
