"""Groups that lie side by side in one layer's output and can only be resized together, as halves of a chunk must."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from netsmith.widths.types import Axis, Setting, WidthGroup


def tied(groups: Sequence[WidthGroup]) -> list[tuple[WidthGroup, tuple[WidthGroup, ...]]]:
    """One group in place of all those that one layer makes side by side, with those that it replaces.

    Channels are taken together so that all have the same number: a chunk of 8 groups of 4 channels and one of 32
    channels give 8 channels, each of 4 entries in both. An order that suits each of them suits the whole.
    """
    by_layer: dict[str, list[WidthGroup]] = defaultdict(list)
    for g in groups:
        by_layer[g.name.partition("[")[0]].append(g)
    found = []
    for layer, parts in by_layer.items():
        width = math.gcd(*(p.width for p in parts))
        if len(parts) > 1 and width > 1:
            found.append((_whole(layer, [_coarse(p, width) for p in parts]), tuple(parts)))
    return found


def _coarse(group: WidthGroup, width: int) -> WidthGroup:
    """The group with neighbouring channels taken together so that `width` are left."""
    times = group.width // width
    axes = tuple(replace(a, repeat=a.repeat * times) for a in group.axes)
    settings = tuple(replace(s, per_channel=s.per_channel * times) for s in group.settings)
    return replace(group, width=width, axes=axes, settings=settings)


def _whole(layer: str, parts: Sequence[WidthGroup]) -> WidthGroup:
    width = parts[0].width
    shares: Counter[tuple[str, str]] = Counter()
    values: dict[tuple[str, str], int] = {}
    for s in (s for p in parts for s in p.settings):
        shares[s.module, s.attribute] += s.per_channel
        values[s.module, s.attribute] = s.fixed + s.per_channel * width
    settings = tuple(Setting(*key, share, values[key] - share * width) for key, share in shares.items())
    axes: dict[Axis, None] = dict.fromkeys(a for p in parts for a in p.axes)
    kind = "stream" if any(p.kind == "stream" for p in parts) else parts[0].kind
    return WidthGroup(layer, width, kind, tuple(axes), settings)
