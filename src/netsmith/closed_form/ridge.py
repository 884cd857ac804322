"""Ridge regression from streamed normal equations: the data pass by once, in batches, and are never kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from netsmith.errors import RecipeError

RIDGES: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Ridges tried, as fractions of the mean variance of the inputs: free of their scale."""


class Moments:
    """Sums of what a regression from `q` inputs to `d` outputs needs, in float64, kept by place.

    Rows come as `(n, p, q)` and `(n, p, d)`: n images, p places. Whether every place has an intercept of its own is
    decided when solving.
    """

    def __init__(self, places: int, inputs: int, outputs: int, device: torch.device | None = None) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(list(shape), dtype=torch.float64, device=device)

        self.count = 0
        self.x, self.y = zeros(places, inputs), zeros(places, outputs)
        self.xx, self.xy, self.yy = zeros(inputs, inputs), zeros(inputs, outputs), zeros()

    def add(self, x: Float[Tensor, "n p q"], y: Float[Tensor, "n p d"]) -> None:
        """Take in one batch of rows."""
        x, y = x.double(), y.double()
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        flat_x, flat_y = x.flatten(0, 1), y.flatten(0, 1)
        self.xx += flat_x.T @ flat_x
        self.xy += flat_x.T @ flat_y
        self.yy += flat_y.square().sum()

    def __add__(self, other: Moments) -> Moments:
        total = Moments(len(self.x), self.x.shape[1], self.y.shape[1], self.x.device)
        total.count = self.count + other.count
        for name in ("x", "y", "xx", "xy", "yy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def means(self, by_place: bool) -> tuple[Float[Tensor, "g q"], Float[Tensor, "g d"], int]:
        """Means of inputs and outputs, one for all places or one a place, and the rows behind each."""
        if by_place:
            return self.x / self.count, self.y / self.count, self.count
        rows = self.count * len(self.x)
        return self.x.sum(0, keepdim=True) / rows, self.y.sum(0, keepdim=True) / rows, rows


@dataclass(frozen=True)
class Ridge:
    """A fitted linear map `y = x weight + bias`; `bias` has one row, or one a place."""

    weight: Float[Tensor, "q d"]
    bias: Float[Tensor, "g d"]
    ridge: float
    r2: float

    def __post_init__(self) -> None:
        assert self.weight.shape[1] == self.bias.shape[1]


def solve_ridge(moments: Moments, ridges: Sequence[float], *, by_place: bool = False) -> list[tuple[Tensor, Tensor]]:
    """`(weight, bias)` for every ridge, in the order given.

    Raises:
        RecipeError: the rows held NaN or infinity.
    """
    mean_x, mean_y, rows = moments.means(by_place)
    xx = moments.xx - rows * mean_x.T @ mean_x
    xy = moments.xy - rows * mean_x.T @ mean_y
    if not (torch.isfinite(xx).all() and torch.isfinite(xy).all()):
        raise RecipeError(
            "activations on the probe images hold NaN or infinity, so no adapter can be fitted to them; "
            "check the weights and the preprocessing of the networks in the recipe"
        )
    found = []
    for ridge in ridges:
        weight = solve_shifted(xx, ridge, xy)
        found.append((weight, mean_y - mean_x @ weight))
    return found


def solve_shifted(matrix: Float[Tensor, "q q"], shift: float, right: Float[Tensor, "q d"]) -> Float[Tensor, "q d"]:
    """`(M + shift * mean(diag M) * I)^-1 right` for a positive semidefinite M; the least-norm solution if singular."""
    scale = matrix.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    shifted = matrix + shift * scale * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if not bool(failed):
        return torch.cholesky_solve(right, factor)
    return torch.linalg.pinv(shifted, rtol=1e-12, hermitian=True) @ right


def r_squared(moments: Moments, weight: Float[Tensor, "q d"], bias: Float[Tensor, "g d"]) -> float:
    """Share of the outputs' variance (around one mean an output) that a linear map explains, from sums alone."""
    sums_x, sums_y, counts = moments.x, moments.y, float(moments.count)
    if len(bias) == 1:
        sums_x, sums_y, counts = sums_x.sum(0, keepdim=True), sums_y.sum(0, keepdim=True), counts * len(moments.x)
    error = moments.yy - 2 * (weight * moments.xy).sum() + ((moments.xx @ weight) * weight).sum()
    error = error - 2 * (bias * sums_y).sum() + 2 * (bias * (sums_x @ weight)).sum() + counts * bias.square().sum()
    total = moments.yy - moments.y.sum(0).square().sum() / (moments.count * len(moments.y))
    return float(1 - error / total) if total > 0 else 0.0


def fit_ridge(fit: Moments, held: Moments | None, ridges: Sequence[float], *, by_place: bool = False) -> Ridge:
    """Ridge regression; the ridge with the best R² on `held` is taken and the map refitted on everything.

    Without `held` (or with one ridge) nothing is chosen: the first ridge is used, and R² is that of the fit itself.
    """
    if held is None or held.count == 0:
        weight, bias = solve_ridge(fit, ridges[:1], by_place=by_place)[0]
        return Ridge(weight, bias, ridges[0], r_squared(fit, weight, bias))
    tried = [r_squared(held, w, b) for w, b in solve_ridge(fit, ridges, by_place=by_place)]
    best = max(range(len(tried)), key=lambda i: tried[i])
    weight, bias = solve_ridge(fit + held, [ridges[best]], by_place=by_place)[0]
    return Ridge(weight, bias, ridges[best], tried[best])
