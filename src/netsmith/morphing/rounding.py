"""How a grid's numbers are kept in a file: matrices in 8 bits, vectors in 16, statistics in 32."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int8, Shaped
from torch import Tensor


def kept_in_bytes(name: str, value: Tensor) -> bool:
    """Whether a tensor is kept in 8 bits; vectors are small."""
    return name.startswith(("deltas.", "smooth.")) and value.ndim > 1


def rounded(name: str, value: Tensor) -> Tensor:
    """A parameter as it comes back when it was saved."""
    return from_bytes(*in_bytes(value)) if kept_in_bytes(name, value) else in_16_bits(name, value)


def in_16_bits(name: str, value: Tensor) -> Tensor:
    """A vector in 16 bits, where that loses nothing but digits; statistics, which may be large or tiny, in 32."""
    half = value.half()
    return value.float() if name.endswith(("running_mean", "running_var")) or not half.isfinite().all() else half


def in_bytes(value: Float[Tensor, "*shape"]) -> tuple[Int8[Tensor, "*shape"], Float32[Tensor, " rows"]]:
    """A tensor in whole steps from -127 to 127, and the size of a step for each row of its first dimension.

    Sizes have 16 significant bits, so that a tensor that was rounded is rounded to itself.
    """
    largest = value.detach().float().flatten(1).abs().amax(1) / 127
    scale = (largest.view(torch.int32) & ~0xFF).view(torch.float32)
    tiny = torch.finfo(torch.float32).tiny
    steps = value.detach() / scale.clamp_min(tiny).view(-1, *[1] * (value.ndim - 1))
    return steps.round().clamp(-127, 127).to(torch.int8), scale


def from_bytes(steps: Shaped[Tensor, "*shape"], scale: Float[Tensor, " rows"]) -> Float[Tensor, "*shape"]:
    """What `in_bytes` rounded a tensor to."""
    return steps.float() * scale.float().view(-1, *[1] * (steps.ndim - 1))
