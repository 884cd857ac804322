"""From images to what a network takes: size and normalisation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from netsmith.artifacts.manifest import ImageFields, check_fields
from netsmith.errors import ArtifactError, DataError, SourceError

_log = logging.getLogger("netsmith.data")

Preprocessing = Callable[[Tensor], Tensor]
"""From images in [0, 1] to what a network takes."""

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True)
class Preprocess:
    """What a network expects of its images: `input_size` is (channels, height, width); `mean`, `std` per channel.

    `mean` and `std` are None where nothing tells them: shapes, widths and costs need neither, images do. `name` is the
    network's, for messages.

    Examples:
        >>> prepare = netsmith.Preprocess(mean=(0.5,), std=(0.25,), input_size=(1, 8, 8))
        >>> prepare(torch.ones(2, 1, 8, 8)).unique()
        tensor([2.])
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    input_size: tuple[int, int, int]
    interpolation: str = "bilinear"
    name: str = field(default="the network", compare=False)

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation; they are never guessed.

        Raises:
            SourceError: nothing tells them.
        """
        if self.mean is None or self.std is None:
            raise SourceError(
                f"'{self.name}' meets images, and nothing tells how it wants them. Give the mean and the standard "
                "deviation it was trained with, per channel, of values from 0 to 1: mean= and std= (--mean and --std; "
                "0 and 1 if it takes values as they are). Or take a source that tells them: timm:, torchvision:, an "
                "artifact."
            )
        return self.mean, self.std

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Images with values in [0, 1] resized (antialiased) where they are of another size, then normalised.

        Raises:
            DataError: the images have another number of channels.
            SourceError: mean or standard deviation are not known.
        """
        means, stds = self.statistics
        channels, height, width = self.input_size
        if images.shape[1] != channels:
            raise DataError(
                f"The network takes images of {channels} channels and these have {images.shape[1]} "
                f"(shape {tuple(images.shape)}). Convert the images, or build the network for them (input_size)."
            )
        if images.shape[2:] != (height, width):
            _say_squeeze(self.name, tuple(images.shape[2:]), (height, width))
            if self.interpolation == "nearest":
                images = F.interpolate(images, (height, width), mode="nearest-exact")
            else:
                resized = F.interpolate(images, (height, width), mode=self.interpolation, antialias=True)
                images = resized.clamp(0, 1)  # bicubic overshoots
        mean = torch.tensor(means, dtype=images.dtype, device=images.device).view(-1, 1, 1)
        std = torch.tensor(stds, dtype=images.dtype, device=images.device).view(-1, 1, 1)
        return (images - mean) / std

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a manifest keeps them under `preprocess`."""
        return {
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "input_size": list(self.input_size),
            "interpolation": self.interpolation,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_json`. Raises ArtifactError."""
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in dict(value).items()}
        found = check_fields(plain, ImageFields, "a network's 'preprocess'")
        mean = None if found.mean is None else tuple(found.mean)
        std = None if found.std is None else tuple(found.std)
        return Preprocess(mean, std, found.shape, found.interpolation)


@lru_cache(maxsize=256)  # once for each pair of sizes, not for each batch
def _say_squeeze(name: str, given: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Say that images are squeezed, where their proportions are not the network's."""
    if abs(given[0] * wanted[1] / (given[1] * wanted[0]) - 1) > 0.01:
        _log.info(
            "images of %dx%d (height x width) are squeezed to the %dx%d of '%s'. A size of %dx%d cuts to the middle, "
            "and keeps proportions", *given, *wanted, name, *wanted,
        )  # fmt: skip


def remember(model: nn.Module, preprocess: Preprocess, classes: Sequence[str] | None = None) -> None:
    """Note on a module how it wants its images, in timm's words, so that it is known where it goes by itself.

    `classes` are the names of its outputs: empty where there are none, None to leave what the module says.
    """
    if isinstance(getattr(type(model), "pretrained_cfg", None), property):
        return
    cfg = getattr(model, "pretrained_cfg", None)
    known = dict(cfg) if isinstance(cfg, Mapping) else {}
    if preprocess.mean is not None and preprocess.std is not None:
        known.update(preprocess.to_json())
    if classes is not None:
        known["label_names"] = list(classes)
    if known:
        model.pretrained_cfg = known  # pyright: ignore[reportArgumentType]  no tensor, no module


def remembered(model: nn.Module) -> Preprocess | None:
    """What a module says of its images by timm's attribute `pretrained_cfg`; None where it says nothing."""
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, Mapping):
        return None
    try:
        found = Preprocess.from_json({"interpolation": "bilinear", **cfg})
    except ArtifactError:
        return None
    mode = found.interpolation if found.interpolation in INTERPOLATIONS else "bicubic"
    return replace(found, interpolation=mode, name=type(model).__name__)


def preprocess_of(
    model: nn.Module,
    shape: tuple[int, ...],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    *,
    name: str | None = None,
) -> Preprocess:
    """How a module's images are prepared: by `mean` and `std`, else as the module tells.

    `shape` is that of an image, for a module that does not tell its own.

    Raises:
        SourceError: nothing tells mean and standard deviation.
    """
    size = (*shape, 1, 1)
    known = remembered(model) or Preprocess(None, None, (size[0], size[1], size[2]), name=name or type(model).__name__)
    if mean is not None:
        known = replace(known, mean=per_channel("mean", mean, known.input_size[0]))
    if std is not None:
        known = replace(known, std=per_channel("std", std, known.input_size[0]))
    _ = known.statistics
    return known


def chosen(
    model: nn.Module,
    shape: tuple[int, ...],
    given: Preprocessing | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Preprocessing:
    """What is `given`, or else `preprocess_of`. Raises SourceError: given twice, or nothing tells it."""
    if given is None:
        return preprocess_of(model, shape, mean, std)
    if mean is not None or std is not None:
        raise SourceError("Give preprocess=, or mean= and std=, but not both.")
    if isinstance(given, Preprocess):
        _ = given.statistics
    return given


def per_channel(what: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    """A number for each channel; a single one stands for all. Raises SourceError for what can be no mean or std."""
    values = [values] if isinstance(values, int | float) else values
    if len(values) not in (1, channels):
        raise SourceError(
            f"The network takes {channels} channels, but its {what} has {len(values)} values: {list(values)}."
        )
    if what == "mean" and max(values) > 1:
        raise SourceError(
            f"mean is of images with values from 0 to 1, got {list(values)}. If it is of values from 0 to 255, divide "
            "it by 255, and std too."
        )
    if what == "std" and min(values) <= 0:
        raise SourceError(f"std holds numbers greater than 0, got {list(values)}.")
    return tuple(float(v) for v in values) * (channels // len(values))
