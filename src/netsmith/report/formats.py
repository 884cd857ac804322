"""Numbers as a reader wants them. Every function takes `None` or a number that is not finite, and gives a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from netsmith.formats import decimals

DASH = "–"
Real: TypeAlias = int | float  # a number, whole or not: what JSON gives


def count(value: Real | None) -> str:
    """Params or MACs in short: ``950``, ``269.72k``, ``1.25G``."""
    if value is None or not math.isfinite(value):
        return DASH
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999,996 would round to 1000.00k: it belongs to the next letter
        if abs(value) >= size * 0.999995:
            return f"{value / size:.2f}{letter}"
    return f"{value:g}"


def exact(value: Real | None) -> str:
    """The whole number with separators, ``269,722``; fractions keep six digits."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.6g}"


def raw(value: Real | None) -> str:
    """The number for machines: all its digits, no separators; empty when there is none."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.0f}" if float(value).is_integer() else repr(float(value))


def percent(value: Real | None, images: Real | None = None) -> str:
    """A fraction in 0..1 as a percentage: ``88.4%``; of so many images, with as many decimals as they are worth."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{100 * value:.{decimals(images, 1)}f}%"


def points(difference: Real | None, images: Real | None = None) -> str:
    """A difference of two fractions in percentage points, signed, with decimals as `percent`: ``+0.8``, ``−1.2``."""
    if difference is None or not math.isfinite(difference):
        return DASH
    text = f"{100 * abs(difference):.{decimals(images, 1)}f}"
    if not float(text):
        return f"±{text}"
    return ("+" if difference > 0 else "−") + text


def decimal(value: Real | None, digits: int = 4) -> str:
    """A score or a cost, with `digits` significant digits and no trailing noise."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.{digits}g}".replace("-", "−")


def amount(value: Real | None) -> str:
    """A quantity of any size, with four significant digits: ``110.6``, ``28.51k``."""
    return count(value) if value is not None and abs(value) >= 9999.5 else decimal(value)


def milliseconds(value: Real | None) -> str:
    """A latency: ``3.21 ms``."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.3g} ms"


def megabytes(value: Real | None) -> str:
    """A memory size given in MB: ``12.5 MB``."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.3g} MB"


def size_bytes(value: Real | None) -> str:
    """A file's size, in decimal units: ``812 B``, ``1.09 MB``."""
    if value is None or not math.isfinite(value):
        return DASH
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def duration(value: Real | None) -> str:
    """Seconds in words: ``0.42 s``, ``12.3 s``, ``4 min 05 s``, ``2 h 07 min``."""
    if value is None or not math.isfinite(value):
        return DASH
    if value < 10:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def shape(sizes: Sequence[int] | None) -> str:
    """A tensor's shape without its batch: ``16×32×32``."""
    return "×".join(str(s) for s in sizes) if sizes else DASH


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 block``, ``4 blocks``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def rounded(value: Real) -> str:
    """A coordinate of a drawing: one decimal, no trailing zero."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def short(text: str) -> str:
    """`text` of `count` or `percent` without idle zeros: ``500k`` for ``500.00k``, ``80%`` for ``80.0%``."""
    digits = text.rstrip("kMGT%")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + text[len(digits) :]


def resource(name: str, value: Real | None) -> str:
    """A value of one of the four budgeted resources (`params`, `macs`, `latency_ms`, `memory_mb`), with its unit."""
    if name == "latency_ms":
        return milliseconds(value)
    if name == "memory_mb":
        return megabytes(value)
    return count(value)


def listing(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]
