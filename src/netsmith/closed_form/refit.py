"""Refit what reads a group of channels once some of them are gone: ridge towards the weights that were there.

With centred moments of the inputs x and of the target t, `G = cov(x)` and `R = cov(x, t)`, the loss of weights `W`
(inputs x outputs) is `tr(W' G W) - 2 tr(W' R) + l |W - W0|^2`, where `l` is a share of G's mean diagonal. It is
quadratic with the Hessian `H = G + l I`, the same for every output. So the best weights without some inputs, and what
their loss costs, follow from the inverse of H alone (the optimal brain surgeon, Hassibi and Stork, NeurIPS 1992, by
blocks, as in OSSCAR, arXiv 2403.12983).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from netsmith.closed_form.ridge import Moments


@dataclass(frozen=True)
class Refit:
    """New weights of a reader.

    Attributes:
        weight: (inputs, outputs), 0 where a channel is gone.
        bias: (outputs,).
        loss: mean square of what the refitted reader misses of its target, over the variance of the target.
    """

    weight: Float[Tensor, "q d"]
    bias: Float[Tensor, " d"]
    loss: float


class ReaderFit:
    """What the refit of a reader needs, for any choice of channels.

    Args:
        moments: of the rows that reach the reader (one place), and of what it should give for them.
        weight: (q, d), as they are.
        blocks: (width, b), the inputs that belong to each channel; inputs in no block always stay.
        ridge: share of the inputs' mean variance.
    """

    def __init__(
        self, moments: Moments, weight: Float[Tensor, "q d"], blocks: Int64[Tensor, "width b"], ridge: float
    ) -> None:
        mean_x, mean_y, rows = moments.means(by_place=False)
        others = torch.ones(len(weight), dtype=torch.bool)
        others[blocks.flatten()] = False
        order = torch.cat([blocks.flatten(), others.nonzero().flatten()]).to(weight.device)
        self.order, (self.width, self.size) = order, blocks.shape
        self.mean_x, self.mean_y = mean_x[0, order], mean_y[0]
        self.gram = (moments.xx / rows - mean_x.T @ mean_x)[order][:, order]
        self.cross = (moments.xy / rows - mean_x.T @ mean_y)[order]
        self.variance = max(float(moments.yy / rows - mean_y.square().sum()), torch.finfo(torch.float64).tiny)
        shift = ridge * float(self.gram.diagonal().mean()) + torch.finfo(torch.float64).tiny
        self.hessian = self.gram + shift * torch.eye(len(order), dtype=torch.float64, device=order.device)
        self.prior = weight.double()[order]
        self.right = self.cross + shift * self.prior

    def places(self, kept: Int64[Tensor, " k"]) -> Int64[Tensor, " q"]:
        """Return where the inputs of these channels are among the ordered ones, with those that always stay."""
        own = (kept.view(-1, 1) * self.size + torch.arange(self.size, device=kept.device)).flatten()
        return torch.cat([own, torch.arange(len(self.order), device=kept.device)[self.width * self.size :]])

    def refit(self, kept: Int64[Tensor, " k"]) -> Refit:
        """Return the best weights that read these channels alone."""
        at = self.places(kept)
        return self._result(at, torch.cholesky_solve(self.right[at], torch.linalg.cholesky(self.hessian[at][:, at])))

    def unchanged(self, kept: Int64[Tensor, " k"]) -> Refit:
        """Return the weights as they were, with the bias that keeps the mean of the outputs."""
        at = self.places(kept)
        return self._result(at, self.prior[at])

    def _result(self, at: Int64[Tensor, " q"], weight: Float[Tensor, "q d"]) -> Refit:
        error = self.variance - 2 * (weight * self.cross[at]).sum() + ((self.gram[at][:, at] @ weight) * weight).sum()
        full = torch.zeros_like(self.prior)
        full[self.order[at]] = weight
        return Refit(full, self.mean_y - self.mean_x[at] @ weight, float(error) / self.variance)


def surviving(fits: Sequence[ReaderFit], counts: Sequence[int]) -> list[Int64[Tensor, " k"]]:
    """Return for each of some numbers of channels, in falling order, those that are left.

    Those go first whose loss costs least, all readers refitted after each. The loss of a reader counts as a share of
    the variance of its target. Channels go one by one where they are few, otherwise 1/32 of those left at a time: the
    others are ranked anew after each.
    """
    states = []
    for fit in fits:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(fit.hessian))
        states.append((inverse, inverse @ fit.right))
    left = torch.arange(fits[0].width, device=fits[0].order.device)
    kept = []
    for count in counts:
        while (n := len(left)) > count:
            cost = torch.zeros(n, dtype=torch.float64, device=left.device)
            for fit, (inverse, weight) in zip(fits, states, strict=True):
                size = n * fit.size
                blocks = inverse[:size, :size].view(n, fit.size, n, fit.size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
                rows = weight[:size].view(n, fit.size, -1)
                cost += (rows * torch.linalg.solve(blocks, rows)).sum((1, 2)) / fit.variance
            going = cost.argsort()[: min(n - count, max(1, n // 32))]
            stays = torch.ones(n, dtype=torch.bool, device=left.device)
            stays[going] = False
            states = [_without(*state, stays, fit.size) for fit, state in zip(fits, states, strict=True)]
            left = left[stays]
        kept.append(left)
    return kept


def by_importance(fits: Sequence[ReaderFit], count: int) -> Int64[Tensor, " k"]:
    """Return the channels that weigh most: the norm of the weights that read one times its own root mean square."""
    total = torch.zeros(fits[0].width, dtype=torch.float64, device=fits[0].order.device)
    for fit in fits:
        squares = fit.gram.diagonal() + fit.mean_x.square()
        inputs = fit.prior.square().sum(1) * squares
        total += inputs[: fit.width * fit.size].view(fit.width, -1).sum(1)
    return total.argsort(descending=True, stable=True)[:count].sort().values


def _without(
    inverse: Float[Tensor, "q q"], weight: Float[Tensor, "q d"], stays: Bool[Tensor, " n"], size: int
) -> tuple[Float[Tensor, "p p"], Float[Tensor, "p d"]]:
    """Return inverse Hessian and best weights once the inputs of some channels are gone."""
    rest = len(inverse) - len(stays) * size
    mask = torch.cat([stays.repeat_interleave(size), torch.ones(rest, dtype=torch.bool, device=stays.device)])
    on, off = mask.nonzero().flatten(), (~mask).nonzero().flatten()
    solved = torch.linalg.solve(inverse[off][:, off], torch.cat([inverse[off][:, on], weight[off]], dim=1))
    beside = inverse[on][:, off]
    return inverse[on][:, on] - beside @ solved[:, : len(on)], weight[on] - beside @ solved[:, len(on) :]
