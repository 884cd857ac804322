"""How alike the answers of two networks are: divergence of their class probabilities, and how often they agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from netsmith.errors import DataError

Answering = Callable[[Tensor], Tensor]
"""From images `(b, c, h, w)` in [0, 1] to logits `(b, classes)`, or `(b, classes, h, w)` of every pixel."""


@dataclass(frozen=True)
class Agreement:
    """Of two networks on the same images.

    Attributes:
        images: how many.
        per: what a prediction is of: "image" or "pixel".
        forward: Kullback-Leibler divergence KL(first || second), the sum of `p1 (ln p1 - ln p2)` over the classes, in
            nats, the mean over images (and their pixels).
        backward: KL(second || first).
        same: share of predictions (images or pixels) for which both name the same class first, 0 to 1.
    """

    images: int
    per: str
    forward: float
    backward: float
    same: float


@torch.no_grad()
def agreement(
    first: Answering,
    second: Answering,
    images: Float[Tensor, "n c h w"],
    *,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Compare two networks' answers, batch by batch: no outputs are kept.

    Args:
        first: gives logits; it does its own preprocessing and is in evaluation mode.
        second: likewise.
        images: in [0, 1].
        batch_size: images at once.
        progress: told how many images are done, and out of how many.

    Raises:
        DataError: the networks' outputs have other shapes.
    """
    totals = torch.zeros(3, dtype=torch.float64)
    predictions, per = 0, "image"
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        a, b = first(batch).detach().cpu().double(), second(batch).detach().cpu().double()
        if a.shape != b.shape or a.ndim not in (2, 4):
            raise DataError(f"outputs of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared")
        p, q = a.log_softmax(dim=1), b.log_softmax(dim=1)
        totals += torch.stack(
            [
                (p.exp() * (p - q)).sum(),
                (q.exp() * (q - p)).sum(),
                (a.argmax(dim=1) == b.argmax(dim=1)).sum().double(),
            ]
        )
        predictions += a.numel() // a.shape[1]
        per = "pixel" if a.ndim == 4 else "image"
        if progress is not None:
            progress(min(start + batch_size, len(images)), len(images))
    forward, backward, same = (totals / max(predictions, 1)).tolist()
    return Agreement(len(images), per, max(forward, 0.0), max(backward, 0.0), same)
