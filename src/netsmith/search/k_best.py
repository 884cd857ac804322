"""Search: the k best assemblies under a budget, exactly.

An assembly takes one block at each stage. Its additive cost is the sum of its blocks' own costs and of the costs of
neighbouring pairs (the stitch costs); its resources are sums too (params, macs, latency, weights), or greatest values
(peak activation), or sums of both kinds (memory). Problem: Yang et al., "Deep Model Reassembly", NeurIPS 2022, section
3.3, which samples assemblies at random; here the k best are found and proven by branch and bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from netsmith.errors import BudgetError, did_you_mean
from netsmith.search.blocks import Block
from netsmith.search.branch_and_bound import Found, branch_and_bound
from netsmith.search.infeasible import explain
from netsmith.search.space import Floats, Limit, Space, Steps, add_steps, finite_bounds, ids, into_steps, limit_value

Number = int | float
Bounds = tuple[Number | None, Number | None]

#: Resources of which an assembly has the greatest of its parts, not the sum.
PEAKS = ("peak_bytes",)

#: Quantities that are sums of resources: memory is all weights, and the activations at the worst moment.
TOTALS: Mapping[str, tuple[str, ...]] = MappingProxyType({"memory_bytes": ("weight_bytes", "peak_bytes")})


@dataclass(frozen=True)
class Choice:
    """A block that may be taken at a stage: its equivalence set, its own cost (lower is better) and its resources.

    What is there once for the whole network (stem, head) belongs to the resources of the first or last stage's choices.

    Examples:
        >>> netsmith.Choice(netsmith.Block("resnet20", 0, 3), group=0, cost=0.1, resources={"params": 5000}).resources
        {'params': 5000}
    """

    block: Block
    group: int
    cost: Number = 0.0
    resources: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Assembly:
    """One assembly: the index of its choice at each stage, the blocks, the additive cost, and every resource."""

    choices: tuple[int, ...]
    blocks: tuple[Block, ...]
    cost: float
    resources: dict[str, float]


@dataclass(frozen=True)
class SearchResult:
    """The k best assemblies, best first; fewer when there are no more within the budget.

    `optimal`: they are proven to be the k best. Otherwise the search met its limit, and `gap` says by how much, in
    units of the cost, an assembly that is not among them may be better than the last of them (infinite when fewer
    than k were found). `bound` is the proven lower bound on the cost of all others. `explored` counts the partial
    assemblies it took.

    Examples:
        >>> a, b = netsmith.Block("a", 0, 2), netsmith.Block("b", 2, 4)
        >>> stages = [[netsmith.Choice(a, 0)], [netsmith.Choice(b, 1)]]
        >>> result = netsmith.k_best(stages, [torch.tensor([[0.25]]).numpy()])
        >>> result.optimal, result.assemblies[0].cost
        (True, 0.25)
    """

    assemblies: tuple[Assembly, ...]
    optimal: bool
    gap: float
    bound: float
    explored: int


def k_best(
    stages: Sequence[Sequence[Choice]],
    pair_costs: Sequence[NDArray[np.floating] | NDArray[np.integer]],
    pair_resources: Mapping[str, Sequence[NDArray[np.floating] | NDArray[np.integer]]] = MappingProxyType({}),
    budget: Mapping[str, Bounds] = MappingProxyType({}),
    k: int = 1,
    *,
    distinct_groups: bool = True,
    mix: bool = False,
    peaks: Sequence[str] = PEAKS,
    totals: Mapping[str, Sequence[str]] = TOTALS,
    most_explored: int = 100_000_000,
    seconds: Number | None = None,
) -> SearchResult:
    """The `k` assemblies of least additive cost within the budget.

    Args:
        stages: the choices at each stage; an assembly takes one at each.
        pair_costs: for neighbouring stages s, s + 1 the cost (m_s, m_s+1) of each pair: an adapter's stitch cost.
        pair_resources: the same for resources that adapters use; a name may be missing.
        budget: (min, max) for any resource or total, None where open: `{"params": (None, 0.5e6)}`.
        k: how many assemblies.
        distinct_groups: no two blocks of one equivalence set.
        mix: blocks of at least two networks.
        peaks: names of resources that combine by their greatest value.
        totals: further quantities, each the sum of the resources named.
        most_explored: partial assemblies after which the search stops and reports its gap.
        seconds: likewise in time (the result then depends on the machine).

    Returns:
        Ties (costs that differ by no more than rounding) are in the order of the choices' indices. A search that met
        its limit may return fewer than exist, or none, with `optimal` False; only what is proven not to exist is an
        error.

    Raises:
        BudgetError: nothing fits; the message names the bounds that cannot be met and the nearest values that can.

    Examples:
        >>> a, b = netsmith.Block("a", 0, 2), netsmith.Block("b", 2, 4)
        >>> stages = [[netsmith.Choice(a, 0, cost=0.1)], [netsmith.Choice(b, 1, cost=0.2)]]
        >>> best = netsmith.k_best(stages, [torch.zeros(1, 1).numpy()]).assemblies[0]
        >>> [str(block) for block in best.blocks], round(best.cost, 2)
        (['a[0:2]', 'b[2:4]'], 0.3)
    """
    if k < 1:
        raise BudgetError(f"expected k of at least 1, got {k}")
    catalogue = Catalogue(stages, pair_costs, pair_resources, peaks, totals)
    space = catalogue.space(budget, distinct=distinct_groups, mix=mix)
    found = branch_and_bound(space, k, most_explored=most_explored, seconds=seconds)
    if not len(found.paths) and found.proven:
        raise BudgetError(explain(space, most_explored=most_explored))
    return catalogue.result(found, k)


class Catalogue:
    """The stages as arrays, every resource and total by name."""

    def __init__(
        self,
        stages: Sequence[Sequence[Choice]],
        pair_costs: Sequence[NDArray[np.floating] | NDArray[np.integer]],
        pair_resources: Mapping[str, Sequence[NDArray[np.floating] | NDArray[np.integer]]],
        peaks: Sequence[str],
        totals: Mapping[str, Sequence[str]],
    ) -> None:
        if not stages or not all(stages):
            empty = [i for i, s in enumerate(stages) if not s]
            raise BudgetError(f"every stage needs at least one block to choose from, got none for stages {empty}")
        self.stages = stages
        widths = [len(s) for s in stages]
        named = dict.fromkeys([*(n for s in stages for c in s for n in c.resources), *pair_resources])
        missing = [(n, c) for n in named for s in stages for c in s if n not in c.resources]
        if missing:
            name, choice = missing[0]
            raise BudgetError(f"block {choice.block} has no '{name}', which other blocks or pairs have")
        self.cost = into_steps(
            [np.array([c.cost for c in s], float) for s in stages], _pairs("pair_costs", pair_costs, widths)
        )
        self.sums: dict[str, Steps] = {}
        self.peaks: dict[str, Steps] = {}
        for name in named:
            own = [np.array([c.resources[name] for c in s], float) for s in stages]
            pairs = pair_resources.get(name)
            arrays = _pairs(name, pairs, widths) if pairs is not None else _none(widths, peak=name in peaks)
            kind = self.peaks if name in peaks else self.sums
            kind[name] = into_steps(own, arrays, peak=name in peaks)
            assert name not in peaks or all((step >= 0).all() for step in kind[name]), f"{name} is below zero"
        self.totals = {n: tuple(parts) for n, parts in totals.items() if all(p in named for p in parts)}

    def quantity(self, name: str, low: float, high: float) -> Limit:
        """What can be bounded under `name`, as sums and peaks."""
        known = [*self.sums, *self.peaks, *self.totals]
        if name not in known:
            raise BudgetError(
                f"the budget bounds '{name}', which no block states. {did_you_mean(name, known)}".rstrip()
            )
        parts = self.totals.get(name, (name,))
        sums = [(1.0, self.sums[p]) for p in parts if p in self.sums]
        return Limit(
            name, add_steps(sums) if sums else None, tuple(self.peaks[p] for p in parts if p in self.peaks), low, high
        )

    def space(self, budget: Mapping[str, Bounds], *, distinct: bool, mix: bool) -> Space:
        """Return the assemblies as arrays, with the limits of a budget."""
        limits = []
        for name, bounds in budget.items():
            low, high = finite_bounds(*bounds)
            if math.isnan(low) or math.isnan(high) or low > high:
                raise BudgetError(f"expected bounds on {name} with min <= max, got min {bounds[0]} and max {bounds[1]}")
            if low > -math.inf or high < math.inf:
                limits.append(self.quantity(name, low, high))
        return Space(
            cost=self.cost,
            group=ids([[c.group for c in s] for s in self.stages]),
            network=ids([[c.block.network for c in s] for s in self.stages]),
            limits=tuple(limits),
            distinct=distinct,
            mix=mix,
        )

    def result(self, found: Found, k: int) -> SearchResult:
        """Return the paths found with their blocks, costs and resources."""
        names = [*self.sums, *self.peaks, *self.totals]
        values = {n: limit_value(self.quantity(n, -math.inf, math.inf), found.paths) for n in names}
        assemblies = tuple(
            Assembly(
                choices=tuple(int(i) for i in path),
                blocks=tuple(stage[i].block for stage, i in zip(self.stages, path, strict=True)),
                cost=float(cost),
                resources={n: float(v[row]) for n, v in values.items()},
            )
            for row, (path, cost) in enumerate(zip(found.paths, found.costs, strict=True))
        )
        gap = 0.0
        if not found.proven:
            gap = max(0.0, assemblies[-1].cost - found.bound) if len(assemblies) == k else math.inf
        return SearchResult(assemblies, found.proven, gap, found.bound, found.explored)


def _pairs(
    name: str, arrays: Sequence[NDArray[np.floating] | NDArray[np.integer]], widths: Sequence[int]
) -> list[Floats]:
    expected = list(itertools.pairwise(widths))
    shapes = [a.shape for a in arrays]
    if shapes != expected:
        raise BudgetError(f"expected {name} of shapes {expected}, one for each two neighbouring stages, got {shapes}")
    return [np.asarray(a, float) for a in arrays]


def _none(widths: Sequence[int], *, peak: bool) -> list[Floats]:
    return [np.full(shape, -np.inf if peak else 0.0) for shape in itertools.pairwise(widths)]
