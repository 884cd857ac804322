"""The morph space: which width groups of a network vary, and between which widths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from netsmith import limits
from netsmith.errors import MorphError, did_you_mean
from netsmith.morphing.settings import Range, checked_range
from netsmith.trace.chain import Chain
from netsmith.widths.groups import WidthGroup, WidthGroups

MODES = ("all", "last_block")
"""Names that stand for many groups; anything else is the name of a block or of a group."""

Drawn = Literal["ratio", "range", "each"]
"""How widths were drawn while a generator was fitted: one ratio for all groups; also all groups equally far into their
own ranges; or each group by itself."""


@dataclass(frozen=True)
class MorphSpace:
    """Width groups that vary together or each by itself.

    Attributes:
        mode: what was asked for: "all", "last_block", or the names of blocks.
        groups: the groups, in the order in which the network computes them.
        low: lowest fitted width of each group, by name; `high` the highest.
        high: see `low`.
        drawn: which widths of several groups were fitted together.

    Examples:
        >>> groups = netsmith.width_groups(zoo[1].model, torch.rand(2, 1, 8, 8))
        >>> space = netsmith.morph_space(groups, widths=(0.25, 1.0))
        >>> space.at(0.5)
        {...}
    """

    mode: str
    groups: tuple[WidthGroup, ...]
    low: Mapping[str, int]
    high: Mapping[str, int]
    drawn: Drawn = "ratio"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the groups."""
        return tuple(g.name for g in self.groups)

    @property
    def full(self) -> dict[str, int]:
        """The base network's widths."""
        return {g.name: g.width for g in self.groups}

    @property
    def ratios(self) -> tuple[float, float]:
        """Lowest and highest ratio that are fitted in every group; where none is, those fitted in any (`hull`)."""
        low = max(self.low[g.name] / g.width for g in self.groups)
        high = min(self.high[g.name] / g.width for g in self.groups)
        return (low, high) if low <= high else self.hull

    @property
    def hull(self) -> tuple[float, float]:
        """Lowest and highest ratio that are fitted in any group."""
        low = min(self.low[g.name] / g.width for g in self.groups)
        return low, max(self.high[g.name] / g.width for g in self.groups)

    @property
    def channels(self) -> tuple[int, int] | None:
        """Lowest and highest width, where these are what groups of several widths have in common; else None."""
        ranges = {(self.low[g.name], self.high[g.name]) for g in self.groups}
        return ranges.pop() if len(ranges) == 1 and len({g.width for g in self.groups}) > 1 else None

    @property
    def range_text(self) -> str:
        """The fitted range in words: in channels, where that is what the groups have in common."""
        if self.channels is not None:
            return f"{self.channels[0]} to {self.channels[1]} channels"
        low, high = self.ratios
        return f"ratios {low:.3g} to {high:.3g}"

    def between(self, name: str, way: float) -> int:
        """Return the width of a group so far on the way, 0 to 1, from its lowest to its highest."""
        return self.low[name] + round(way * (self.high[name] - self.low[name]))

    def clamped(self, ratio: float | int) -> dict[str, int]:
        """Widths at one ratio, each within its fitted range."""
        return {name: min(self.high[name], max(self.low[name], n)) for name, n in self.at(ratio).items()}

    def at(self, ratio: float | int) -> dict[str, int]:
        """Widths at one ratio for all groups, rounded, at least 1. Raises MorphError unless it is positive."""
        if not ratio > 0:
            raise MorphError(f"a ratio must be above 0 (1 is the base network's width), not {ratio:g}")
        most = max(limits.RATIO, *(self.high[g.name] / g.width for g in self.groups))
        if ratio > most:
            raise MorphError(f"a ratio of {ratio:g} is too large: a network is made up to {most:g} times as wide")
        return {g.name: max(1, round(ratio * g.width)) for g in self.groups}

    def of(self, widths: Mapping[str, int | float]) -> dict[str, int]:
        """Full widths with those of some groups replaced: an integer is a width, a float a ratio of the full width.

        Raises MorphError for a group that is not in the space (with the nearest names), and for what is no width.
        """
        found = self.full
        for name, width in widths.items():
            if name not in found:
                raise MorphError(f"no group of the morph space is called '{name}'. {did_you_mean(name, found)}")
            if isinstance(width, float) and 0 < width <= limits.RATIO:
                width = max(1, round(width * found[name]))
            if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                raise MorphError(
                    f"the width of '{name}' must be an integer of at least 1, or a ratio as a float above 0 and up to "
                    f"{limits.RATIO}, not {width!r}"
                )
            if width > limits.WIDTH:
                raise MorphError(f"the width of '{name}' must be at most {limits.WIDTH}, not {str(width)[:40]}")
            found[name] = width
        return found

    def fitted(self, widths: Mapping[str, int]) -> bool:
        """Whether such widths were fitted (`unfitted`); groups that are not named are at full width."""
        return not self.unfitted(widths)

    def unfitted(self, widths: Mapping[str, int]) -> str:
        """Say why these widths were not fitted; empty where they were."""
        widths = {**self.full, **widths}
        if not all(self.low[name] <= width <= self.high[name] for name, width in widths.items()):
            return f"widths of ratio {self.ratio(widths):.3g} lie outside the fitted range ({self.range_text})"
        if self.drawn == "each" or self._one_ratio(widths) or (self.drawn == "range" and self._one_way(widths)):
            return ""
        ratios = [widths[g.name] / g.width for g in self.groups]
        return (
            f"widths of unequal ratios ({min(ratios):.3g} to {max(ratios):.3g}) were never fitted together, only one "
            "ratio for all groups"
        )

    def _one_ratio(self, widths: Mapping[str, int]) -> bool:
        """Whether one ratio gives all these widths, rounded and kept within the ranges."""
        lowest, highest = 0.0, math.inf
        for g in self.groups:
            width = widths[g.name]
            if width > self.low[g.name]:
                lowest = max(lowest, (width - 0.5) / g.width)
            if width < self.high[g.name]:
                highest = min(highest, (width + 0.5) / g.width)
        return lowest <= highest + 1e-9

    def _one_way(self, widths: Mapping[str, int]) -> bool:
        """Whether all these widths lie equally far between the ends of their ranges, rounded."""
        spans = [(widths[g.name] - self.low[g.name], self.high[g.name] - self.low[g.name]) for g in self.groups]
        lowest = max(((into - 0.5) / span for into, span in spans if span), default=0.0)
        highest = min(((into + 0.5) / span for into, span in spans if span), default=1.0)
        return lowest <= highest + 1e-9

    def ratio(self, widths: Mapping[str, int]) -> float:
        """Mean ratio over the groups."""
        return sum(widths[g.name] / g.width for g in self.groups) / len(self.groups)


def morph_space(
    found: WidthGroups,
    blocks: str | Sequence[str] = "all",
    widths: Range = (0.25, 1.0),
    *,
    streams: bool = False,
    chain: Chain | None = None,
) -> MorphSpace:
    """Choose the groups that vary and their ranges.

    Args:
        found: the network's proven groups.
        blocks: "all" inner widths, "last_block" (the paper's choice: those of the last block that has any), or names of
            blocks or groups.
        widths: lowest and highest width, as ratios (floats, above 1 too) or as channel counts (integers).
        streams: let residual streams vary too, where they were proven.
        chain: the dissected network, by whose units "last_block" goes; without it the last group alone is taken.

    Raises:
        MorphError: a block that does not exist (with the nearest names), one without a provable group (with the
            reasons), an empty range, or a width that is not positive.

    Examples:
        >>> groups = netsmith.width_groups(zoo[1].model, torch.rand(2, 1, 8, 8))
        >>> netsmith.morph_space(groups, widths=(0.5, 1.0)).low
        {...: 8, ...}
    """
    usable = found.accepted if streams else found.inner
    mode = blocks if isinstance(blocks, str) else ", ".join(blocks)
    chosen = _chosen(found, usable, blocks, chain)
    if not chosen:
        raise MorphError(
            "the network has no inner width that can vary; only residual streams were proven: allow them with streams"
        )
    try:
        low, high = checked_range(*widths)
    except ValueError as error:
        raise MorphError(f"widths: {error}") from error
    counts = isinstance(low, int)
    lows = {g.name: int(low) if counts else max(1, round(low * g.width)) for g in chosen}
    highs = {g.name: int(high) if counts else max(1, round(high * g.width)) for g in chosen}
    return MorphSpace(mode, chosen, lows, highs)


def _chosen(
    found: WidthGroups, usable: Sequence[WidthGroup], blocks: str | Sequence[str], chain: Chain | None
) -> tuple[WidthGroup, ...]:
    if blocks == "all":
        return tuple(usable)
    if blocks == "last_block":
        return _last_block(usable, chain)
    wanted = [blocks] if isinstance(blocks, str) else list(blocks)
    chosen: list[WidthGroup] = []
    for name in wanted:
        inside = [g for g in found.accepted if g.name == name or g.name.startswith(name + ".")]
        if not inside:
            refused = [r for r in found.refused if r.name == name or r.name.startswith(name + ".")]
            if refused:
                reasons = "; ".join(f"{r.name}: {r.reason}" for r in refused[:3])
                raise MorphError(f"no width of the block '{name}' can vary. {reasons}")
            raise MorphError(f"the network has no block '{name}'. {did_you_mean(name, _names(found, chain))}")
        own = [g for g in inside if g in usable or g.name == name]
        chosen += [g for g in own if g not in chosen]
    return tuple(g for g in found.accepted if g in chosen)


def _names(found: WidthGroups, chain: Chain | None) -> list[str]:
    names = [u.name for u in chain.units] if chain is not None else []
    for group in found.accepted:
        parts = group.name.split(".")
        names += [".".join(parts[:k]) for k in range(1, len(parts) + 1)]
    return [*MODES, *dict.fromkeys(names)]


def _last_block(usable: Sequence[WidthGroup], chain: Chain | None) -> tuple[WidthGroup, ...]:
    if chain is None or not usable:
        return tuple(usable[-1:])
    tensors = {id(p): n for n, p in chain.model.named_parameters()}
    for unit in reversed(chain.units):
        inside = {tensors[id(p)] for p in unit.module.parameters() if id(p) in tensors}
        own = tuple(g for g in usable if any(a.tensor in inside for a in g.axes))
        if own:
            return own
    return tuple(usable[-1:])
