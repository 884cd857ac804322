"""What is computed once for a batch and kept for the next time, up to a number of bytes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Key = tuple[object, ...]


class Memory:
    """Tensors by key, kept as long as there is room; what came first stays.

    Args:
        most: bytes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.bytes = 0
        self._kept: dict[Key, Tensor] = {}

    def __call__(self, key: Key | None, device: torch.device, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, on a device: as kept, or computed (without gradients) and kept. None keeps nothing."""
        if key is not None and key in self._kept:
            return self._kept[key].to(device)
        with torch.no_grad():
            found = compute()
        size = found.numel() * found.element_size()
        if key is not None and self.bytes + size <= self.most:
            self._kept[key] = found
            self.bytes += size
        return found
