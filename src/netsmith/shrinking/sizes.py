"""What a network takes at other widths, and the widths that keep a budget: uniform ones, or the best by their costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor, nn

from netsmith.errors import BudgetError
from netsmith.search.blocks import Block
from netsmith.search.budget import format_count, parse_count
from netsmith.search.k_best import Choice, k_best
from netsmith.trace.cost import count_macs, count_params, measure_latency
from netsmith.widths.groups import WidthGroup, check_widths, resize

Amount = int | float | str

_STEPS = 256
"""Uniform ratios that are looked at: multiples of 1/256."""

LEVELS = 16
"""Widths of one group whose cost is measured: multiples of 1/16."""


@dataclass(frozen=True)
class Cost:
    """What a network takes for one input."""

    params: int
    macs: int


class Sizes:
    """A network with folded norms, and the groups that may be narrowed.

    Args:
        original: the network as it came; shares of a budget are shares of what it takes.
        folded: the same with its norms folded.
        groups: those that may be narrowed.
        x: a batch as the network takes it.
    """

    def __init__(self, original: nn.Module, folded: nn.Module, groups: Sequence[WidthGroup], x: Tensor) -> None:
        self.folded, self.groups, self.x = folded, tuple(groups), x[:1]
        self.before = self.cost(original)
        self.measures: Mapping[str, Callable[[nn.Module], int | float]] = {
            "params": count_params,
            "macs": lambda model: count_macs(model, tuple(x.shape[1:])),
            "latency_ms": lambda model: measure_latency(model, self.x),
        }

    def cost(self, model: nn.Module) -> Cost:
        """Return what a network takes for one input."""
        return Cost(count_params(model), count_macs(model, tuple(self.x.shape[1:])))

    def asked(self, widths: float | Mapping[str, int | float]) -> dict[str, int]:
        """Return the width of every group where widths are given: one ratio, or widths by group.

        Raises:
            BudgetError: a group would be wider than it is.
            ChannelError: no such group, or no such width.
        """
        checked = check_widths(self.groups, float(widths) if isinstance(widths, int) else widths)
        for group in self.groups:
            if checked.get(group.name, 0) > group.width:
                raise BudgetError(f"{group.name} has {group.width} channels: to shrink it, give fewer than that")
        return {g.name: checked.get(g.name, g.width) for g in self.groups}

    def limits(self, budget: Mapping[str, Amount]) -> dict[str, float]:
        """Return a budget in numbers; a number below 1 or a text such as "50%" is a share of what the original takes.

        Raises:
            BudgetError: what is no number above 0, a share above 1, or what the network keeps as it is.
        """
        return {name: self._limit(name, value) for name, value in budget.items()}

    def _limit(self, name: str, value: Amount) -> float:
        full = self.measures[name](self.folded) if name == "latency_ms" else float(getattr(self.before, name))
        text = value.strip() if isinstance(value, str) else ""
        number = float(parse_count(text[:-1])) / 100 if text.endswith("%") else float(parse_count(value))
        share = text.endswith("%") or (0 < number < 1 and name != "latency_ms")
        if not number > 0 or (share and number > 1):
            raise BudgetError(
                f"{name}: expected a number above 0, or a share of the original up to 100%, not {value!r}"
            )
        limit = number * full if share else number
        if limit >= full:
            raise BudgetError(
                f"the network keeps that budget as it is: it has {_text(name, full)}, asked: {_text(name, limit)}"
            )
        return limit

    def keeps(self, widths: Mapping[str, int], limits: Mapping[str, float]) -> bool:
        """Whether the network of these widths is within the limits."""
        model = resize(self.folded, self.groups, widths)
        return all(self.measures[name](model) <= limit for name, limit in limits.items())

    def uniform(self, limits: Mapping[str, float]) -> dict[str, int]:
        """Return the largest widths of one ratio that keep the limits; BudgetError where none does."""
        low, high = 0, _STEPS  # in steps of the ratio: one channel each, and the original
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.keeps(self._at(middle), limits) else (low, middle)
        if not low and not self.keeps(self._at(0), limits):
            least = resize(self.folded, self.groups, self._at(0))
            told = ", ".join(
                f"{_text(name, self.measures[name](least))} (asked: {_text(name, limit)})"
                for name, limit in limits.items()
            )
            raise BudgetError(f"with one channel in each of {len(self.groups)} groups the network still has {told}")
        return self._at(low)

    def _at(self, step: int) -> dict[str, int]:
        return {g.name: max(1, round(g.width * step / _STEPS)) for g in self.groups}

    def levels(self) -> dict[str, list[int]]:
        """Return for each group the widths whose cost is measured, in falling order, without its own."""
        return {
            g.name: sorted({max(1, round(g.width * k / LEVELS)) for k in range(1, LEVELS)} - {g.width}, reverse=True)
            for g in self.groups
        }

    def cheapest(self, costs: Mapping[str, Sequence[float]], limits: Mapping[str, float]) -> dict[str, int] | None:
        """Return the widths of least total cost within the limits, exactly, of those in `levels`; None where none are.

        What groups free is added up; where two share a tensor they free less together, so that the limit is drawn in
        until the network keeps it.
        """
        groups = [g for g in self.groups if g.name in costs]
        full = {name: self.measures[name](self.folded) for name in limits}
        stages = []
        for group in groups:
            widths = [group.width, *self.levels()[group.name]]
            models = [self.folded, *(resize(self.folded, self.groups, {group.name: n}) for n in widths[1:])]
            # costs are divergences: what is below 0 is noise
            own = [0.0, *(max(0.0, c) for c in costs[group.name])]
            takes = [{name: self.measures[name](m) / full[name] for name in limits} for m in models]
            block = Block(group.name, 0, 1)
            stages.append([Choice(block, 0, c, t) for c, t in zip(own, takes, strict=True)])
        pairs = [np.zeros((len(a), len(b))) for a, b in pairwise(stages)]
        drawn = {name: limit / full[name] for name, limit in limits.items()}
        for _ in range(12):
            budget = {name: (None, share + len(groups) - 1) for name, share in drawn.items()}
            try:
                best = k_best(stages, pairs, budget=budget, distinct_groups=False).assemblies[0]
            except BudgetError:
                return None
            found = {g.name: [g.width, *self.levels()[g.name]][i] for g, i in zip(groups, best.choices, strict=True)}
            model = resize(self.folded, self.groups, found)
            over = {name: self.measures[name](model) / full[name] - limits[name] / full[name] for name in limits}
            if max(over.values()) <= 0:
                return {g.name: found.get(g.name, g.width) for g in self.groups}
            drawn = {name: share - max(0.0, over[name]) for name, share in drawn.items()}
        return None


def _text(name: str, value: int | float) -> str:
    return f"{value:.3g} ms" if name == "latency_ms" else f"{format_count(value)} {'MACs' if name == 'macs' else name}"
