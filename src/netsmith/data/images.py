"""Labelled images: sets, their splits, batches, augmentation and probe sets. Where they come from is in `data`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from netsmith.errors import DataError

IGNORED = 255
"""What masks hold where nothing is known of a pixel."""

UNLABELLED = -1
"""The label of images that have none; their set has no classes either."""


_T = TypeVar("_T")
_R = TypeVar("_R")


def in_threads(function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """Return what a function gives for each item, computed by a few threads: decoding leaves Python's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))


class ImageSet(ABC):
    """Images of one size with one label each; those for segmentation have a mask each as well (`data.masks`).

    Attributes:
        classes: name of each class; labels index it. None where images have no labels.
        shape: `(C, H, W)` of every image.
        labels: `(n,)`, int64.
        mirror: whether an image flipped left to right still shows its class (digits do not).
        ignore: the class of masks that counts nowhere: they hold `IGNORED` in its place.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    labels: Tensor
    mirror: bool = True
    ignore: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def images(self, indices: Sequence[int] | Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """The images at `indices`, in that order, with values in [0, 1]."""

    def targets(self, indices: Sequence[int] | Int[Tensor, " b"]) -> Int[Tensor, " b"] | Int[Tensor, "b h w"]:
        """What is known of the images at `indices`: their labels or, where the set has such, their masks."""
        return self.labels[torch.as_tensor(indices, dtype=torch.int64)]

    @abstractmethod
    def subset(self, indices: Sequence[int] | Int[Tensor, " b"]) -> ImageSet:
        """The set of the images at `indices`, in that order; shares memory where it can."""

    @abstractmethod
    def identity(self) -> tuple[object, ...]:
        """What `cache.digest` is fed: changes when the images, their order or their labels do."""


class MemoryImages(ImageSet):
    """Decoded images held as bytes."""

    def __init__(
        self,
        pixels: UInt8[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        classes: tuple[str, ...],
        *,
        mirror: bool = True,
    ) -> None:
        self.pixels = pixels
        self.labels = labels.to(torch.int64)
        self.classes = classes
        self.shape = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))
        self.mirror = mirror

    def images(self, indices: Sequence[int] | Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """The images at `indices`, values in [0, 1]."""
        return self.raw(indices).to(torch.float32).div_(255.0)

    def raw(self, indices: Sequence[int] | Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """The images at `indices` as bytes."""
        return self.pixels[torch.as_tensor(indices, dtype=torch.int64)]

    def subset(self, indices: Sequence[int] | Int[Tensor, " b"]) -> MemoryImages:
        """A copy of the images at `indices`."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return MemoryImages(self.pixels[chosen], self.labels[chosen], self.classes, mirror=self.mirror)

    def identity(self) -> tuple[object, ...]:
        """Pixels and labels themselves."""
        return (self.classes, self.labels, self.pixels)


class LazyImages(ImageSet):
    """Images decoded each time they are asked for, by a few threads (decoding leaves Python's lock).

    Args:
        read: gives image `i` as uint8 `(C, H, W)`; raises DataError for one that cannot be read.
        ids: what tells image `i` from others without decoding it (a path with size and time, a hash).
    """

    def __init__(
        self,
        read: Callable[[int], np.ndarray],
        ids: Sequence[str],
        labels: Int[Tensor, " n"],
        classes: tuple[str, ...],
        shape: tuple[int, int, int],
        *,
        mirror: bool = True,
        rows: Int[Tensor, " m"] | None = None,
    ) -> None:
        self._read = read
        self._ids = ids
        self._all_labels = labels.to(torch.int64)
        self._rows = torch.arange(len(labels)) if rows is None else rows
        self.labels = self._all_labels[self._rows]
        self.classes = classes
        self.shape = shape
        self.mirror = mirror

    def images(self, indices: Sequence[int] | Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """The images at `indices`, values in [0, 1]. Raises DataError for a corrupt one."""
        return self.raw(indices).to(torch.float32).div_(255.0)

    def raw(self, indices: Sequence[int] | Int[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """The images at `indices` as bytes. Raises DataError for a corrupt one."""
        rows = self._rows[torch.as_tensor(indices, dtype=torch.int64)].tolist()
        return torch.from_numpy(np.stack(in_threads(self._read, rows)))

    def subset(self, indices: Sequence[int] | Int[Tensor, " b"]) -> LazyImages:
        """The same images under fewer indices."""
        rows = self._rows[torch.as_tensor(indices, dtype=torch.int64)]
        return LazyImages(
            self._read, self._ids, self._all_labels, self.classes, self.shape, mirror=self.mirror, rows=rows
        )

    def identity(self) -> tuple[object, ...]:
        """Labels and identities, not pixels."""
        return (self.classes, self.shape, self.labels, [self._ids[row] for row in self._rows.tolist()])


@dataclass(frozen=True)
class Splits:
    """Train, validation and test part of one data set. Select on validation; read test once, at the end.

    Attributes:
        name: the source it was opened by.
        fingerprint: sha256 of all three parts, for caches.

    Examples:
        >>> splits = netsmith.open_data("digits")
        >>> len(splits.train), len(splits.validation), len(splits.test)
        (1169, 269, 359)
    """

    name: str
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    fingerprint: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.train.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(C, H, W)` of every image."""
        return self.train.shape

    @property
    def ignore(self) -> int | None:
        """The class of masks that counts nowhere."""
        return self.train.ignore


def check_labelled(data: ImageSet | Splits, purpose: str) -> None:
    """Raises DataError, naming what labels are needed for, where images have none."""
    if not data.classes:
        raise DataError(no_labels(purpose))


def no_labels(purpose: str) -> str:
    """What is said where `purpose` needs labels and there are none."""
    return (
        f"the images have no labels, and {purpose} needs them: give folder:PATH with one folder of images a class, "
        "masks:PATH, parquet:PATH, hf:NAME or torchvision:NAME"
    )


def stratified_split(
    labels: Int[Tensor, " n"], fraction: float, seed: int
) -> tuple[Int[Tensor, " rest"], Int[Tensor, " part"]]:
    """Indices of the rest and of a part that holds `fraction` of every class, both ascending.

    Each class gives the part `round(fraction * size)` images, at least one and never all of them; a class of one image
    stays in the rest. The same labels, fraction and seed give the same split on every machine.
    """
    rng = np.random.default_rng(seed)
    values = labels.numpy()
    part = []
    for value in np.unique(values):
        members = np.flatnonzero(values == value)
        take = min(max(1, round(fraction * len(members))), len(members) - 1)
        part.append(rng.permutation(members)[:take])
    chosen = np.zeros(len(values), dtype=bool)
    if part:
        chosen[np.concatenate(part)] = True
    return torch.from_numpy(np.flatnonzero(~chosen)), torch.from_numpy(np.flatnonzero(chosen))


PROBE_IMAGES = 512
"""Probe images where nobody says how many: similarities hardly change beyond, and a Gram matrix has 1 MB."""


def probe_count(n: int | None, there: int) -> int:
    """Return `n`, or the default where it is None. Raises DataError when fewer are there."""
    if n is None:
        return min(PROBE_IMAGES, there)
    if not 0 < n <= there:
        raise DataError(f"{n} probe images were asked for, the training part has {there}: ask for 1 to {there}")
    return n


def balanced_indices(labels: Int[Tensor, " n"], n: int, seed: int) -> Int[Tensor, " m"]:
    """Indices of `n` images drawn without return, classes taking turns, so that every prefix is balanced as well.

    A class that has run out is passed over. Raises DataError when there are fewer than `n` images.
    """
    probe_count(n, len(labels))
    rng = np.random.default_rng(seed)
    values = labels.numpy()
    turn = np.empty(len(values), dtype=np.int64)
    for value in np.unique(values):
        members = np.flatnonzero(values == value)
        turn[rng.permutation(members)] = np.arange(len(members))
    # by turn, and at random within one turn, so that no class is favoured when n is no multiple of the classes
    order = np.lexsort((rng.random(len(values)), turn))
    return torch.from_numpy(order[:n])


def probe_set(
    splits: Splits, n: int | None = None, *, seed: int = 0
) -> tuple[Float[Tensor, "n_probe c h w"], Int[Tensor, " n_probe"]]:
    """Return `n` class-balanced images of the training part, in [0, 1], with labels.

    Without `n` they are 512, or all where there are fewer. Raises DataError when fewer than `n` are there.

    Examples:
        >>> images, labels = netsmith.probe_set(data, 64)
        >>> images.shape, labels.shape
        (torch.Size([64, 1, 8, 8]), torch.Size([64]))
    """
    chosen = balanced_indices(splits.train.labels, probe_count(n, len(splits.train)), seed)
    return splits.train.images(chosen), splits.train.labels[chosen]


def augmented(
    images: Float[Tensor, "n c h w"],
    generator: torch.Generator,
    *,
    mirror: bool = True,
    share: tuple[int, int] = (0, 1),
) -> Float[Tensor, "n c h w"]:
    """Every image shifted by up to an eighth of its height (zeros come in) and, with `mirror`, flipped with chance 1/2.

    The standard augmentation of He et al. (2015, section 4.2): at 32 pixels, padding of 4. One gather for the batch.
    With `share=(rank, world)`, `images` are every `world`-th of a larger batch and get what they would get in it.
    """
    return _gathered(images, *_places(images.shape, generator, mirror, share), fill=0)


def augmented_pair(
    images: Float[Tensor, "n c h w"],
    masks: Int[Tensor, "n h w"],
    generator: torch.Generator,
    *,
    mirror: bool = True,
    share: tuple[int, int] = (0, 1),
) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, "n h w"]]:
    """`augmented` for images and their masks together; what comes into a mask from outside is `IGNORED`."""
    places = _places(images.shape, generator, mirror, share)
    return _gathered(images, *places, fill=0), _gathered(masks[:, None], *places, fill=IGNORED)[:, 0]


def _places(
    shape: torch.Size, generator: torch.Generator, mirror: bool, share: tuple[int, int]
) -> tuple[int, Tensor, Tensor]:
    """Padding, and the row and the column of the padded image that every row and column is taken from, by image."""
    n, _, height, width = shape
    rank, world = share
    pad = max(1, height // 8)
    draws = torch.randint(0, 2 * pad + 1, (2, n * world, 1), generator=generator)[:, rank::world]
    rows = draws[0] + torch.arange(height)
    columns = draws[1] + torch.arange(width)
    if mirror:
        flip = torch.rand(n * world, 1, generator=generator)[rank::world] < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    return pad, rows, columns


def _gathered(images: Tensor, pad: int, rows: Tensor, columns: Tensor, *, fill: int) -> Tensor:
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad), value=fill)
    items = torch.arange(len(images))[:, None, None]
    return padded.permute(0, 2, 3, 1)[items, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def derived_seed(*numbers: int) -> int:
    """One seed from several numbers: neighbours give unrelated streams."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def batches(
    image_set: ImageSet,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int,
    augment: bool = False,
    drop_last: bool = False,
    rank: int = 0,
    world: int = 1,
    begin: int = 0,
) -> Iterator[tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"] | Int[Tensor, "b h w"]]]:
    """Images in [0, 1] and labels (or masks), `batch_size` at a time, once through the set.

    Everything follows from `seed`: pass another one each epoch. With `shuffle`, each of `world` processes goes through
    its own share, all of one length (up to `world - 1` images are left out); without, shares may differ by one image.
    The batches of all processes together are those of one process with `world * batch_size`. With `augment`, images are
    shifted and flipped (`augmented`), and masks with them. The first `begin` batches are left out, the others as ever.
    """
    if shuffle:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(image_set)))
        order = order[: len(order) // world * world]
    else:
        order = torch.arange(len(image_set))
    order = order[rank::world]
    share = {"mirror": image_set.mirror, "share": (rank, world)}
    for first in range(begin * batch_size, len(order), batch_size):
        chosen = order[first : first + batch_size]
        if drop_last and len(chosen) < batch_size:
            return
        images, targets = image_set.images(chosen), image_set.targets(chosen)
        generator = torch.Generator().manual_seed(derived_seed(seed, first // batch_size))
        if augment and targets.ndim == 3:
            images, targets = augmented_pair(images, targets, generator, **share)
        elif augment:
            images = augmented(images, generator, **share)
        yield images, targets
