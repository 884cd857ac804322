"""Batch norms over the batch of all processes, so that many processes train as one with the same batch would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Total(torch.autograd.Function):
    """The sum over the processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


def synced_batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What `norm` in training mode makes of the batches `(b, c, ...)` of all processes together, this one's share.

    Mean and variance are those over all samples of all processes, computed in two passes in float32; the running
    statistics follow them. (PyTorch's `SyncBatchNorm` does the same, on GPUs only.)
    """
    values = x.float()
    axes = [0, *range(2, x.ndim)]
    shape = [1, -1, *([1] * (x.ndim - 2))]
    count = torch.tensor([float(x.numel() // x.shape[1])], device=x.device)
    sums = _Total.apply(torch.cat([values.sum(dim=axes), count]))
    n = float(sums[-1].detach())
    mean = sums[:-1] / n
    centred = values - mean.view(shape)
    variance = _Total.apply(centred.square().sum(dim=axes)) / n
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
            norm.running_var.lerp_((variance * (n / max(n - 1, 1.0))).to(norm.running_var.dtype), share)
    out = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.weight is not None:
        out = out * norm.weight.float().view(shape)
    if norm.bias is not None:
        out = out + norm.bias.float().view(shape)
    return out.to(x.dtype)


@contextmanager
def synced_norms(model: nn.Module, world: int) -> Iterator[None]:
    """Meanwhile every batch norm in training mode sees the batch of all `world` processes."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)] if world > 1 else []

    def forward(norm: _BatchNorm, plain: Any, input: Tensor) -> Tensor:
        return synced_batch_norm(norm, input) if norm.training else plain(input)

    for norm in norms:
        norm.forward = partial(forward, norm, norm.forward)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward
