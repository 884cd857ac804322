"""Reading weights from a generator: exact, or as the mean of noisy reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from netsmith import limits
from netsmith.errors import MorphError
from netsmith.morphing.generator import Noise
from netsmith.morphing.morphable import Morphable


@dataclass(frozen=True)
class Sampling:
    """How weights are read: the mean of `reads` noisy reads, or one exact read.

    Attributes:
        reads: K; 1 reads once.
        noise: coordinate noise of each read, in cells; 0 makes all reads equal, so that one is enough.
        seed: of the noise.
    """

    reads: int = 1
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reads < 1:
            raise MorphError(f"the number of reads must be at least 1, not {self.reads}")
        if self.reads > limits.COUNT:
            raise MorphError(f"the number of reads must be at most {limits.COUNT}, not {self.reads}")
        if not self.noise >= 0:
            raise MorphError(f"noise must be at least 0 cells, not {self.noise:g}")
        if self.noise > limits.WIDTH:
            raise MorphError(f"noise must be at most {limits.WIDTH} cells, not {self.noise:g}")


EXACT = Sampling()
"""One read without noise."""


@torch.no_grad()
def sample_tensors(morphable: Morphable, widths: Mapping[str, int], how: Sampling = EXACT) -> dict[str, Tensor]:
    """The generated tensors at these widths: the mean over K noisy reads (Yang et al., 2024, section 3.4).

    One running mean is kept, so memory does not grow with K, and no network is copied.
    """
    if how.noise == 0 or how.reads == 1:
        noise = Noise(how.noise, torch.Generator().manual_seed(how.seed)) if how.noise else None
        return morphable.tensors(widths, noise)
    source = torch.Generator().manual_seed(how.seed)
    mean: dict[str, Tensor] = {}
    for k in range(how.reads):
        read = morphable.tensors(widths, Noise(how.noise, source))
        if not mean:
            mean = {name: value.clone() for name, value in read.items()}
            continue
        for name, value in read.items():
            mean[name].lerp_(value, 1.0 / (k + 1))
    return mean
