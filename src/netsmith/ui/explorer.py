"""What the page shows, without the page: an artifact, its current size, and what it makes of an image."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from netsmith.artifacts.artifact import read_manifest
from netsmith.data.decoding import open_image, read_picture
from netsmith.errors import DataError, MorphError
from netsmith.morphing.pictures import generated, row
from netsmith.morphing.saving import KIND, load_morphed
from netsmith.networks.network import Preprocess
from netsmith.training.tasks import Generation

TIMED = 5
"""Forward passes of which the shown time is the median."""


@dataclass(frozen=True)
class Shape:
    """A size: ratio, params and MACs of the whole network, widths by group beside the base's, and whether fitted."""

    ratio: float
    params: int
    macs: int
    widths: Mapping[str, tuple[int, int]]
    fitted: bool


@dataclass(frozen=True)
class Answer:
    """Confidence by class, from the surest on, and the milliseconds of one forward pass."""

    confidence: Mapping[str, float]
    milliseconds: float


@dataclass(frozen=True)
class Rebuilt:
    """Pixels of an image as the network takes it and, below it, gives it back; the error between the two, and time."""

    pixels: np.ndarray
    error: float
    milliseconds: float


def uploaded(file: Path) -> np.ndarray:
    """The pixels `(h, w)` or `(h, w, channels)`, uint8, of an image file that somebody sent, upright.

    Raises DataError for what is no image, one whose numbers have no defined range, or one of too many pixels.
    """
    with open_image(file, "what was uploaded") as image:
        return np.asarray(read_picture(image, "what was uploaded"))


class Explorer:
    """A morphable classifier or autoencoder that is asked about single images at a size that changes.

    Args:
        folder: a morphable artifact.

    Raises:
        ArtifactError: the folder is none, or damaged.
        MorphError: its task is another.
    """

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder, KIND)
        self.task = manifest.get("task", "classification")
        if self.task not in ("classification", "generation"):
            raise MorphError(
                f"{folder} is for {self.task}: the page shows what a classifier says, or an autoencoder draws. "
                f"`netsmith sample {folder} --ratio 0.5 --out half` reads networks from it."
            )
        self.name = str(manifest.get("name", Path(folder).name))
        measured = manifest.get("metrics", {})
        self.measured: dict[str, float] = {k: float(v) for k, v in measured.items() if isinstance(v, int | float)}
        self.images = manifest.get("test_images")
        self.preprocess = Preprocess.from_json(manifest["preprocess"])
        self.model = load_morphed(folder)
        named = [str(c) for c in manifest.get("classes", [])]
        count = manifest.get("num_classes") or len(named)
        self.classes = named if len(named) == count else [str(k) for k in range(count)]
        self.lowest, self.highest = self._ends()

    def _ends(self) -> tuple[float, float]:
        space = self.model.morphable.space
        low, high = space.ratios
        return max(0.01, math.floor(100 * min(low / 2, 0.5)) / 100), high  # the slider goes by hundredths

    def resize(self, ratio: float | int) -> Shape:
        """Serve another ratio from now on."""
        self.model.set_size(ratio=min(self.highest, max(self.lowest, float(ratio))))
        return self.shape()

    def within(self, milliseconds: float | int) -> Shape:
        """Serve the widest size that needs at most so long for one image, measured here.

        Raises BudgetError, with the fastest and the slowest, when no size is as fast.
        """
        self.model.set_size(latency_ms=milliseconds)
        return self.shape()

    def shape(self) -> Shape:
        """The current size."""
        size, space = self.model.size, self.model.morphable.space
        widths = {name: (width, space.full[name]) for name, width in size.widths.items()}
        return Shape(size.ratio, size.params, size.macs, widths, space.fitted(size.widths))

    def answer(self, image: np.ndarray) -> Answer:
        """What the current size says of one image `(h, w)` or `(h, w, channels)`, uint8, of any size.

        Raises DataError for anything else.
        """
        outputs, took = self._timed(self.preprocess(self.pixels(image)))
        shares = outputs[0].softmax(dim=0)
        order = shares.argsort(descending=True).tolist()
        return Answer({self.classes[k]: float(shares[k]) for k in order}, took)

    def rebuild(self, image: np.ndarray) -> Rebuilt:
        """What the current size of an autoencoder makes of one image. Raises DataError as `answer` does."""
        pixels, task = self.pixels(image), Generation(self.preprocess.input_size)
        resized = replace(self.preprocess, mean=(0.0,), std=(1.0,))(pixels)
        outputs, took = self._timed(self.preprocess(pixels))
        images = task.images(outputs)
        both = np.concatenate([row(resized), row(images)])
        return Rebuilt(both, float((images - resized).square().mean()), took)

    def draws(self) -> np.ndarray | None:
        """What the current size draws from codes that stay the same, as pixels; None where it has no `decode`."""
        empty = self.preprocess(torch.zeros(1, *self.preprocess.input_size))
        network = self.model.morphable.module(self.model.size.widths)
        drawn = generated(network, Generation(self.preprocess.input_size), empty)[1]
        return None if drawn is None else row(drawn)

    def milliseconds(self) -> float:
        """Of one forward pass at the current size."""
        return self._timed(torch.zeros(1, *self.preprocess.input_size))[1]

    def _timed(self, x: Tensor) -> tuple[Tensor, float]:
        with torch.no_grad():
            outputs = self.model(x)
            took = []
            for _ in range(TIMED):
                began = time.perf_counter()
                self.model(x)
                took.append(1e3 * (time.perf_counter() - began))
        return outputs, statistics.median(took)

    def pixels(self, image: np.ndarray) -> Tensor:
        """The image `(1, channels, h, w)` in [0, 1], grey or coloured as the network takes it; opacity is dropped."""
        channels = self.preprocess.input_size[0]
        if image.dtype != np.uint8:
            raise DataError(f"an image of bytes was expected (uint8), not of {image.dtype}")
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim != 3 or 0 in image.shape or image.shape[2] > 4:
            raise DataError(
                f"an image of shape (height, width) or (height, width, 1 to 4 channels) was expected, not {image.shape}"
            )
        values = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
        if values.shape[1] in (2, 4):
            values = values[:, :-1]
        if values.shape[1] == channels:
            return values
        if channels == 1:
            return (values * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        if values.shape[1] == 1:
            return values.expand(-1, channels, -1, -1)
        raise DataError(f"the network takes images of {channels} channels, and this one has {image.shape[2]}")
