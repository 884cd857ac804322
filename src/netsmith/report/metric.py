"""The number by which networks are compared: how it is called and written depends on the task."""

from __future__ import annotations

import math
from dataclasses import dataclass

from netsmith.formats import SHARES
from netsmith.report import formats

_TITLES = {"miou": "mean IoU", "iou": "IoU", "elbo": "ELBO", "f1": "F1", "dice": "Dice"}
_UNITS = {"elbo": "nats"}
RECONSTRUCTION = "reconstruction error"
UNITS = (
    "The ELBO is in nats a number of the image; the reconstruction error is the mean squared error of values in 0..1."
)
"""What is said where both stand."""


@dataclass(frozen=True)
class Metric:
    """A task's primary metric; `images` is of how many it was measured, where that is known."""

    name: str = "accuracy"
    higher_is_better: bool = True
    images: formats.Real | None = None

    @property
    def fraction(self) -> bool:
        """Whether it lies in 0..1 and is written as a percentage."""
        return self.name.lower() in SHARES

    @property
    def title(self) -> str:
        """Its name in a sentence: ``accuracy``, ``mean IoU``, ``ELBO``."""
        return _TITLES.get(self.name.lower(), self.name.replace("_", " "))

    @property
    def head(self) -> str:
        """Its name with a capital, for headings."""
        return self.title[:1].upper() + self.title[1:]

    @property
    def unit(self) -> str:
        """What a difference is counted in; empty for a plain number."""
        return "points" if self.fraction else _UNITS.get(self.name.lower(), "")

    def text(self, value: formats.Real | None) -> str:
        """The value: ``88.1%``, ``−0.4213``; a dash when there is none."""
        return formats.percent(value, self.images) if self.fraction else formats.decimal(value)

    def said(self, value: formats.Real | None) -> str:
        """The value as a sentence names it: accuracy needs no name, other metrics do: ``mean IoU 61.2%``."""
        return self.text(value) if self.name == "accuracy" else f"{self.title} {self.text(value)}"

    def gap(self, difference: formats.Real | None) -> str:
        """A difference of two values, signed: ``−0.8`` (percentage points), ``+0.0031``."""
        if self.fraction or difference is None or not math.isfinite(difference):
            return formats.points(difference, self.images)
        if abs(difference) < 1e-9:
            return "±0"
        return ("+" if difference > 0 else "−") + formats.decimal(abs(difference), 3)

    def judged(self, difference: formats.Real | None, noise: float = 0.0) -> str:
        """``good`` for an improvement that shows and is more than the noise, ``bad`` for the opposite, else nothing."""
        if difference is None or not math.isfinite(difference) or self.gap(difference)[0] not in "+−":
            return ""
        if abs(difference) <= noise:
            return ""
        return "good" if (difference > 0) == self.higher_is_better else "bad"

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is strictly better than `other`."""
        return one > other if self.higher_is_better else one < other
