"""A block: a contiguous run of units of one network."""

from __future__ import annotations

import re
from dataclasses import dataclass

from netsmith.errors import RecipeError

_FORM = re.compile(r"(?P<network>.+)\[(?P<start>\d+):(?P<stop>\d+)\]", re.DOTALL)


@dataclass(frozen=True, order=True)
class Block:
    """Units `start` .. `stop - 1` of the network named `network`; half open, as in Python.

    Blocks sort by network name, then by place. `str(block)` is the form used everywhere in output, `resnet20[0:3]`,
    and `Block.parse` reads it back. Raises `RecipeError` for a run that is empty or starts before unit 0.

    Examples:
        >>> netsmith.Block.parse("resnet20[0:3]")
        Block(network='resnet20', start=0, stop=3)
    """

    network: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not self.network:
            raise RecipeError(f"a block needs the name of its network, got an empty one for units {self._run()}")
        if self.start < 0 or self.stop <= self.start:
            raise RecipeError(
                f"a block holds at least one unit, with 0 <= start < stop, got {self._run()} of '{self.network}'"
            )

    def __str__(self) -> str:
        return f"{self.network}{self._run()}"

    def __len__(self) -> int:
        """How many units it holds."""
        return self.stop - self.start

    def _run(self) -> str:
        return f"[{self.start}:{self.stop}]"

    @classmethod
    def parse(cls, text: str) -> Block:
        """The block written as `NETWORK[start:stop]`. Raises `RecipeError` when `text` is not of that form."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise RecipeError(f"expected a block such as 'resnet20[0:3]' (network, first unit, end), got '{text}'")
        return cls(found["network"], int(found["start"]), int(found["stop"]))
