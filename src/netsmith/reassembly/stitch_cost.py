"""What it costs to stitch one cut to another: `1 - R^2` of the ridge regression that an adapter would be.

All pairs come from second moments that are summed while the networks run on the same images, batch by batch: one matrix
product a batch over the stacked features of all sources and all targets. Nothing grows with the number of images. The
images are split: the regression is fitted on one part and judged on the other, each with moments of its own, so that a
wide source is not rewarded for remembering the fitted images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from netsmith.errors import DataError, NetsmithError, did_you_mean
from netsmith.reassembly.representation import (
    check_finite,
    check_images,
    check_same_images,
    device_of,
    evaluating,
    on_grid,
    walk,
)
from netsmith.trace.chain import Chain
from netsmith.trace.cost import images_at_once

CutOf = tuple[str, int]
# A cut whose variance is below this part of its squared mean is a constant: an adapter's bias alone gives it.
_CONSTANT = 1e-10


@dataclass(frozen=True, eq=False)
class StitchCosts:
    """Cost of feeding each target cut from each source cut: `values[s, t]` (S, T) float64, 0 best.

    0: the target is an affine image of the source, place by place. 1: no better than the target's mean. Above 1: worse
    than that on images that were not fitted; not cut off above.
    """

    sources: tuple[CutOf, ...]
    targets: tuple[CutOf, ...]
    values: Float[np.ndarray, "s t"]

    def cost(self, source: CutOf, target: CutOf) -> float:
        """The cost of one pair. Raises `NetsmithError` for a pair that was not asked for."""
        if source not in self.sources or target not in self.targets:
            raise NetsmithError(f"no stitch cost from {source} to {target}: it was not among the sources and targets")
        return float(self.values[self.sources.index(source), self.targets.index(target)])


class _Moments:
    """Sums over samples of one part of the images: of x, y, y^2, x x^T (a source) and x y^T (all pairs)."""

    def __init__(self, widths: Sequence[int], targets: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.count = 0
        # squares of what was taken off: what rounding is measured by
        self.x_size, self.y_size = zeros(sum(widths)), zeros(targets)
        self.x, self.y, self.yy = zeros(sum(widths)), zeros(targets), zeros(targets)
        self.xx = [zeros(width, width) for width in widths]
        self.xy = zeros(sum(widths), targets)

    def add(self, sources: Sequence[Float[Tensor, "b _"]], y: Float[Tensor, "b t"]) -> None:
        """Adds samples; features are shifted so that they are near 0, which keeps float32 products exact enough."""
        x = torch.cat(list(sources), dim=1)
        self.count += x.shape[0]
        self.x += x.sum(dim=0, dtype=torch.float64)
        self.y += y.sum(dim=0, dtype=torch.float64)
        self.yy += y.square().sum(dim=0, dtype=torch.float64)
        self.xy += x.T @ y
        for total, one in zip(self.xx, sources, strict=True):
            exact = one.double()  # this one is inverted
            total += exact.T @ exact


def stitch_costs(
    chains: Mapping[str, Chain],
    images: Mapping[str, Float[Tensor, "n _ _ _"]],
    sources: Sequence[CutOf],
    targets: Sequence[CutOf],
    *,
    grid: int = 4,
    ridge: float = 1e-3,
    batch_size: int = 128,
    holdout: float = 0.25,
    seed: int = 0,
    memory_limit: int = 2 << 30,
    progress: Callable[[int, int], None] | None = None,
) -> StitchCosts:
    """The stitch cost of every (source cut, target cut) (design, sections 4.4 and 4.5).

    A sample is one image at one place of a `grid x grid` raster: `x` (d_a) is the source there, `y` (d_b) the target.
    Prefix tokens are left out (`on_grid`). On the fitted part of the images

        W, b = argmin  sum |y - W^T x - b|^2 + ridge * tr(S_xx) / d_a * |W|^2,    S_xx = sum (x - mean)(x - mean)^T

    so `ridge` does not depend on the scale of the features. On the rest, a random `holdout` of the images, drawn by
    `seed`, the cost is `1 - R^2 = sum |y - W^T x - b|^2 / sum |y - mean|^2`, over all channels of the target together.
    The same cut of the same network costs exactly 0: no adapter is needed. `images[name]` are the same images in the
    same order, preprocessed for that network.

    Memory: moments of 8 bytes, `2 (D_s D_t + sum d_a^2)` of them, with `D` the stacked widths. Beyond `memory_limit`
    the sources are taken in groups, each with a forward pass of its own. `progress(done, total)` counts images.

    Raises `DataError` for images that do not fit or are too few to be split, `NetsmithError` for unknown cuts,
    `DissectionError` for NaN or infinity.
    """
    sources, targets = tuple(sources), tuple(targets)
    for cut in (*sources, *targets):
        _check_cut(chains, cut)
    n = check_same_images(images, list(dict.fromkeys(name for name, _ in (*sources, *targets))))
    held = _held_out(n, holdout, seed)
    width = {cut: chains[cut[0]].cuts[cut[1]].layout.channels for cut in (*sources, *targets)}
    unique = tuple(dict.fromkeys(targets))
    groups = _groups(tuple(dict.fromkeys(sources)), width, sum(width[t] for t in unique), memory_limit)
    costs: dict[CutOf, np.ndarray] = {}
    for number, group in enumerate(groups):

        def tick(done: int, before: int = number * n) -> None:
            if progress is not None:
                progress(before + done, len(groups) * n)

        fit, test = _accumulate(chains, images, group, unique, held, grid, batch_size, width, tick)
        first = 0
        for index, source in enumerate(group):
            span = slice(first, first + width[source])
            first = span.stop
            costs[source] = _judge(fit, test, index, span, [width[t] for t in unique], ridge)
    values = np.array([[costs[s][unique.index(t)] for t in targets] for s in sources]).reshape(
        len(sources), len(targets)
    )
    for row, source in enumerate(sources):
        values[row, [t == source for t in targets]] = 0.0
    return StitchCosts(sources, targets, values)


def _check_cut(chains: Mapping[str, Chain], cut: CutOf) -> None:
    name, index = cut
    if name not in chains:
        raise NetsmithError(f"no network '{name}' in the zoo. {did_you_mean(name, chains)}")
    if not 0 <= index < len(chains[name].cuts):
        raise NetsmithError(f"'{name}' has cuts 0 to {len(chains[name].cuts) - 1}, got {index}")


def _held_out(n: int, holdout: float, seed: int) -> Bool[Tensor, " n"]:
    """Drawn at random: probe images are often ordered by class, and every k-th would miss classes."""
    count = round(n * holdout)
    if not 1 <= count <= n - 2:
        raise DataError(
            f"stitch costs are fitted on one part of the probe images and judged on the other: {n} images with "
            f"holdout={holdout} leave {n - count} and {count}; use more images, or a holdout between 0 and 1"
        )
    mask = np.zeros(n, dtype=bool)
    mask[np.random.default_rng(seed).permutation(n)[:count]] = True
    return torch.from_numpy(mask)


def _groups(
    sources: Sequence[CutOf], width: Mapping[CutOf, int], targets: int, limit: int
) -> tuple[tuple[CutOf, ...], ...]:
    """Runs of sources whose moments fit in `limit` bytes (one source at least)."""
    groups: list[list[CutOf]] = []
    used = 0
    for source in sources:
        need = 16 * width[source] * (targets + width[source])
        if not groups or used + need > limit:
            groups.append([])
            used = 0
        groups[-1].append(source)
        used += need
    return tuple(tuple(group) for group in groups)


def _accumulate(
    chains: Mapping[str, Chain],
    images: Mapping[str, Tensor],
    sources: Sequence[CutOf],
    targets: Sequence[CutOf],
    held: Bool[Tensor, " n"],
    grid: int,
    batch_size: int,
    width: Mapping[CutOf, int],
    tick: Callable[[int], None],
) -> tuple[_Moments, _Moments]:
    """Moments of the fitted and of the held-out images, from one pass of every network that is named."""
    wanted: dict[str, set[int]] = {}
    for name, index in (*sources, *targets):
        wanted.setdefault(name, set()).add(index)
    for name in wanted:
        check_images(chains[name], images[name])
    device = device_of(chains[next(iter(wanted))])
    moments = [_Moments([width[s] for s in sources], sum(width[t] for t in targets), device) for _ in range(2)]
    shift: dict[CutOf, Tensor] = {}
    for first in range(0, held.shape[0], batch_size):
        rows = {}
        for name, cuts in wanted.items():
            batch = images[name][first : first + batch_size]
            rows |= {(name, cut): x.to(device) for cut, x in _places(chains[name], batch, cuts, grid, first).items()}
        for cut, placed in rows.items():
            rows[cut] = placed - shift.setdefault(cut, placed.mean(dim=(0, 1)))
        part = held[first : first + batch_size].to(device)
        for which, mask in zip(moments, (~part, part), strict=True):
            chosen = {cut: placed[mask].flatten(0, 1) for cut, placed in rows.items()}
            which.add([chosen[s] for s in sources], torch.cat([chosen[t] for t in targets], dim=1))
        tick(min(first + batch_size, held.shape[0]))
    for which in moments:
        which.x_size += torch.cat([shift[s] for s in sources]).double().square()
        which.y_size += torch.cat([shift[t] for t in targets]).double().square()
    return moments[0], moments[1]


def _places(chain: Chain, batch: Tensor, cuts: set[int], grid: int, first: int) -> dict[int, Tensor]:
    """The wanted cuts of one network on the raster, each `(b, places, channels)`."""
    found: dict[int, list[Tensor]] = {cut: [] for cut in cuts}
    with evaluating(chain):
        inputs = batch.to(device_of(chain))
        for part in inputs.split(images_at_once(chain.model, inputs)):
            for cut, x in walk(chain, part, max(cuts)):
                if cut in cuts:
                    found[cut].append(on_grid(x, chain.cuts[cut].layout, grid))
                    check_finite(found[cut][-1], chain, cut, first)
    return {cut: torch.cat(parts) for cut, parts in found.items()}


def _judge(
    fit: _Moments, test: _Moments, index: int, span: slice, widths: Sequence[int], ridge: float
) -> Float[np.ndarray, " t"]:
    """The cost of one source for all targets: fitted on `fit`, judged on `test`, from moments alone."""
    mean_x, mean_y = fit.x[span] / fit.count, fit.y / fit.count
    xx = fit.xx[index] - fit.count * torch.outer(mean_x, mean_x)
    xy = fit.xy[span] - fit.count * torch.outer(mean_x, mean_y)
    # a floor below which a source does but round: keeps the system solvable when ridge is 0 or the source is constant
    floor = _CONSTANT * fit.count * fit.x_size[span].mean() + 1e-30
    xx.diagonal().add_(max(ridge, 1e-9) * xx.diagonal().mean() + floor)
    weights = torch.cholesky_solve(xy, torch.linalg.cholesky(xx))
    # Moments of the held-out samples about the *fitted* means: what is left is then y - W^T x with no constant.
    sum_x, sum_y = test.x[span], test.y
    about_xx = _about(test.xx[index], sum_x, sum_x, mean_x, mean_x, test.count)
    about_xy = _about(test.xy[span], sum_x, sum_y, mean_x, mean_y, test.count)
    about_yy = test.yy - 2 * sum_y * mean_y + test.count * mean_y.square()
    left = about_yy - 2 * (weights * about_xy).sum(dim=0) + (weights * (about_xx @ weights)).sum(dim=0)
    spread = test.yy - sum_y.square() / test.count
    parts = [terms.split(list(widths)) for terms in (left, spread, test.count * test.y_size)]
    costs = []
    for terms in zip(*parts, strict=True):
        lost, whole, size = (float(term.sum()) for term in terms)
        costs.append(max(lost, 0.0) / whole if whole > _CONSTANT * size else 0.0)
    return np.array(costs)


def _about(moment: Tensor, sum_a: Tensor, sum_b: Tensor, at_a: Tensor, at_b: Tensor, count: int) -> Tensor:
    """`sum (a - at_a)(b - at_b)^T` from `sum a b^T` and the plain sums."""
    return moment - torch.outer(sum_a, at_b) - torch.outer(at_a, sum_b) + count * torch.outer(at_a, at_b)
