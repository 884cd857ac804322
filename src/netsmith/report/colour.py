"""Colours that hold up in light and dark, in print, and for readers with any kind of colour vision.

Fills for networks and sets are the same in both modes: their luminance is such that they stand out from both
backgrounds, and the text on them is black or white, whichever has the greater contrast (never below 4.5 to 1).
"""

from __future__ import annotations

from collections.abc import Sequence

# viridis of van der Walt and Smith (2015), dedicated to the public domain (CC0): 256 colours, perceptually uniform
_VIRIDIS = (
    "44015444025645045745055946075a46085c460a5d460b5e470d60470e61471063471164471365481467481668481769"
    "48186a481a6c481b6d481c6e481d6f481f70482071482173482374482475482576482677482878482979472a7a472c7a"
    "472d7b472e7c472f7d46307e46327e46337f463480453581453781453882443983443a83443b84433d84433e85423f85"
    "4240864241864142874144874045884046883f47883f48893e49893e4a893e4c8a3d4d8a3d4e8a3c4f8a3c508b3b518b"
    "3b528b3a538b3a548c39558c39568c38588c38598c375a8c375b8d365c8d365d8d355e8d355f8d34608d34618d33628d"
    "33638d32648e32658e31668e31678e31688e30698e306a8e2f6b8e2f6c8e2e6d8e2e6e8e2e6f8e2d708e2d718e2c718e"
    "2c728e2c738e2b748e2b758e2a768e2a778e2a788e29798e297a8e297b8e287c8e287d8e277e8e277f8e27808e26818e"
    "26828e26828e25838e25848e25858e24868e24878e23888e23898e238a8d228b8d228c8d228d8d218e8d218f8d21908d"
    "21918c20928c20928c20938c1f948c1f958b1f968b1f978b1f988b1f998a1f9a8a1e9b8a1e9c891e9d891f9e891f9f88"
    "1fa0881fa1881fa1871fa28720a38620a48621a58521a68522a78522a88423a98324aa8325ab8225ac8226ad8127ad81"
    "28ae8029af7f2ab07f2cb17e2db27d2eb37c2fb47c31b57b32b67a34b67935b77937b87838b9773aba763bbb753dbc74"
    "3fbc7340bd7242be7144bf7046c06f48c16e4ac16d4cc26c4ec36b50c46a52c56954c56856c66758c7655ac8645cc863"
    "5ec96260ca6063cb5f65cb5e67cc5c69cd5b6ccd5a6ece5870cf5773d05675d05477d1537ad1517cd2507fd34e81d34d"
    "84d44b86d54989d5488bd6468ed64590d74393d74195d84098d83e9bd93c9dd93ba0da39a2da37a5db36a8db34aadc32"
    "addc30b0dd2fb2dd2db5de2bb8de29bade28bddf26c0df25c2df23c5e021c8e020cae11fcde11dd0e11cd2e21bd5e21a"
    "d8e219dae319dde318dfe318e2e418e5e419e7e419eae51aece51befe51cf1e51df4e61ef6e620f8e621fbe723fde725"
)
VIRIDIS: tuple[tuple[int, int, int], ...] = tuple(
    (int(_VIRIDIS[i : i + 2], 16), int(_VIRIDIS[i + 2 : i + 4], 16), int(_VIRIDIS[i + 4 : i + 6], 16))
    for i in range(0, len(_VIRIDIS), 6)
)

# after Okabe and Ito (2008), the light ones darkened so that they show on white as well
_CATEGORIES = ("#0a74b8", "#d55e00", "#0f9d78", "#c06c9a", "#b07d00", "#6f66c8", "#3d8fb5", "#7d8a2e")
_OTHER = "#7b8491"

# points of plasma (same source as viridis): luminance rises all along, so that order shows without hue
_RAMP = ("#6e00a8", "#8f0da4", "#ad2793", "#c6417d", "#da5b69", "#eb7655", "#f89540", "#feb72d")

# for values on both sides of 0: blue below, orange above (apart for readers with any kind of colour vision)
_BELOW, _MIDDLE, _ABOVE = (10, 76, 150), (244, 244, 244), (176, 72, 0)


def diverging(n: int) -> tuple[tuple[int, int, int], ...]:
    """`n` colours (an odd number) from blue through near white, which stands for 0, to orange."""
    assert n % 2 == 1
    half = n // 2
    colours = []
    for i in range(-half, half + 1):
        end, share = (_BELOW if i < 0 else _ABOVE), (abs(i) / half) ** 0.8 if half else 0.0
        r, g, b = (round(m + (e - m) * share) for m, e in zip(_MIDDLE, end, strict=True))
        colours.append((r, g, b))
    return tuple(colours)


def rgb(colour: str) -> tuple[int, int, int]:
    """``#d55e00`` as three numbers 0..255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def hexadecimal(colour: Sequence[float | int]) -> str:
    """Three numbers 0..255 as ``#rrggbb``."""
    return "#" + "".join(f"{round(v):02x}" for v in colour)


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2, 0..1."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in rgb(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.2, 1..21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def ink(fill: str) -> str:
    """Black or white, whichever reads better on `fill`."""
    return max(("#000000", "#ffffff"), key=lambda text: contrast(text, fill))


def network_colours(names: Sequence[str], used: Sequence[str]) -> dict[str, str]:
    """One fill per network. With more networks than colours, those in `used` get theirs first, the rest share grey."""
    order = list(names) if len(names) <= len(_CATEGORIES) else list(dict.fromkeys(used))
    colours = dict.fromkeys(names, _OTHER)
    colours.update(zip(order, _CATEGORIES, strict=False))
    return {name: colours.get(name, _OTHER) for name in (*names, *used)}


def ramp(n: int) -> tuple[str, ...]:
    """`n` fills from dark to light, for things that have an order."""
    if n < 2:
        return _RAMP[2 : 2 + n]
    stops = [rgb(c) for c in _RAMP]
    colours = []
    for i in range(n):
        at = i / (n - 1) * (len(stops) - 1)
        j = min(int(at), len(stops) - 2)
        colours.append(hexadecimal([a + (b - a) * (at - j) for a, b in zip(stops[j], stops[j + 1], strict=True)]))
    return tuple(colours)
