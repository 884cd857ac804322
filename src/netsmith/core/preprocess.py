"""From images to what a network takes: size and normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from netsmith.core.manifest_fields import ImageFields, check_fields
from netsmith.errors import DataError


@dataclass(frozen=True)
class Preprocess:
    """What a network expects of its images: `input_size` is (channels, height, width); `mean`, `std` per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]
    interpolation: str = "bilinear"

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Images with values in [0, 1] resized (antialiased) where they are of another size, then normalised.

        Raises:
            DataError: the images have another number of channels.
        """
        channels, height, width = self.input_size
        if images.shape[1] != channels:
            raise DataError(
                f"The network takes images of {channels} channels and these have {images.shape[1]} "
                f"(shape {tuple(images.shape)}). Convert the images, or build the network for them (input_size)."
            )
        if images.shape[2:] != (height, width):
            if self.interpolation == "nearest":
                images = F.interpolate(images, (height, width), mode="nearest-exact")
            else:
                resized = F.interpolate(images, (height, width), mode=self.interpolation, antialias=True)
                images = resized.clamp(0, 1)  # bicubic overshoots
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).view(-1, 1, 1)
        return (images - mean) / std

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a manifest keeps them under `preprocess`."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "input_size": list(self.input_size),
            "interpolation": self.interpolation,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_json`. Raises ArtifactError."""
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in dict(value).items()}
        found = check_fields(plain, ImageFields, "a network's 'preprocess'")
        return Preprocess(tuple(found.mean), tuple(found.std), found.shape, found.interpolation)
