"""Texts that appear under the pointer: kept once a page, however many marks or drawings refer to them."""

from __future__ import annotations


class Tips:
    """Collects texts and gives each a number; the page's script looks them up by it."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def add(self, *lines: str) -> int:
        """The number of the text made of `lines` (empty ones left out)."""
        return self._numbers.setdefault("\n".join(line for line in lines if line), len(self._numbers))

    @property
    def texts(self) -> list[str]:
        """All texts in the order of their numbers."""
        return list(self._numbers)
