"""Classes by name: what a network's outputs stand for, and data whose labels follow that order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import timm.data
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from netsmith.data.images import IGNORED, ImageSet, Splits
from netsmith.data.masks import MaskedImages
from netsmith.errors import DataError
from netsmith.files.cache import digest

Spellings = Sequence[Sequence[str]]
_FIRST = "tench"
"""The first class of ImageNet in every list of it."""


class Renumbered(ImageSet):
    """A set whose labels follow the order of a network's classes.

    Args:
        inner: the set.
        order: for each class of the set, its place among the network's.
        classes: the network's.
    """

    def __init__(self, inner: ImageSet, order: Sequence[int], classes: tuple[str, ...]) -> None:
        self.inner, self.order, self.classes = inner, tuple(order), classes
        self.shape, self.mirror, self.ignore = inner.shape, inner.mirror, inner.ignore
        if self.ignore is not None and self.ignore < len(order):
            self.ignore = order[self.ignore]
        self._places = torch.arange(max(len(order), IGNORED + 1))  # what is ignored in masks stays so
        self._places[: len(order)] = torch.tensor(self.order)
        self.labels = inner.labels if isinstance(inner, MaskedImages) else self._places[inner.labels]

    def images(self, indices: Sequence[int] | Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """The images at `indices`, values in [0, 1]."""
        return self.inner.images(indices)

    def targets(self, indices: Sequence[int] | Int[Tensor, " b"]) -> Int[Tensor, " b"] | Int[Tensor, "b h w"]:
        """Labels or masks in the network's numbers."""
        return self._places[self.inner.targets(indices)]

    def subset(self, indices: Sequence[int] | Int[Tensor, " b"]) -> Renumbered:
        """The set of the images at `indices`."""
        return Renumbered(self.inner.subset(indices), self.order, self.classes)

    def identity(self) -> tuple[object, ...]:
        """That of the set, and the order."""
        return (self.classes, self.order, self.inner.identity())


def class_lists(model: nn.Module, count: int) -> tuple[Spellings, bool]:
    """The names of a module's `count` outputs, one list for each way to spell them, and whether the module tells them.

    They come from timm's attribute `pretrained_cfg`; a network of timm that does not tell is taken for one of ImageNet
    where it has as many classes.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, Mapping) or count < 1:
        return [], False
    if "label_names" in cfg:
        told = tuple(map(str, cfg["label_names"] or ()))
        if len(told) != count:
            return [], False
        is_imagenet = count == 1000 and told[0].partition(",")[0] == _FIRST
        return [told, *(_imagenet("imagenet-1k") if is_imagenet else ())], True
    subset = timm.data.infer_imagenet_subset(dict(cfg)) if cfg.get("num_classes") == count else None
    return (_imagenet(subset) if subset else []), False


def _imagenet(subset: str) -> list[list[str]]:
    info = timm.data.ImageNetInfo(subset)
    described = [str(text) for text in info.label_descriptions()]
    return [described, [text.partition(",")[0] for text in described], info.label_names()]


def order_by_name(spellings: Spellings, classes: Sequence[str], count: int) -> tuple[int, ...] | None:
    """For each of `classes` its place among a network's `count` outputs, by name or by number; None where none fits.

    By name the classes may be a part of the network's; case and underscores do not matter.
    """
    numbers = [str(i) for i in range(count)]
    for names in (*spellings, *([numbers] if len(classes) == count else [])):
        places: dict[str, int | None] = {}
        for i, name in enumerate(map(_plain, names)):
            places[name] = None if name in places else i  # a name that stands for two classes tells neither
        order = [places.get(_plain(name)) for name in classes]
        sure = tuple(place for place in order if place is not None)
        if len(set(sure)) == len(classes):
            return sure
    return None


def same_classes(first: nn.Module, second: nn.Module, count: int) -> tuple[int, ...] | None:
    """For each class of the first network its place in the second; as they stand where one tells no names.

    None where their names differ.
    """
    ours, theirs = class_lists(first, count)[0], class_lists(second, count)[0]
    if not ours or not theirs:
        return tuple(range(count))
    orders = (order_by_name(theirs, names, count) for names in ours)
    return next((order for order in orders if order is not None), None)


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def by_name(model: nn.Module, images: ImageSet, count: int, name: str | None = None) -> ImageSet:
    """The set with its labels in the order of the network's `count` classes; as it is where the network tells no names.

    Raises:
        DataError: the network's classes have other names.
    """
    spellings, told = class_lists(model, count)
    if spellings and tuple(spellings[0]) == images.classes:
        return images
    order = order_by_name(spellings, images.classes, count)
    if order is None:
        if not told:
            return images
        raise DataError(
            f"'{name or type(model).__name__}' tells {_listed(spellings[0])} apart, and the data has "
            f"{_listed(images.classes)}: other names, so its answers cannot be judged there. Give the classes of the "
            "data the network's names (a part of them will do), or take the data that it was trained on."
        )
    if order == tuple(range(count)):
        return images
    return Renumbered(images, order, tuple(spellings[0]) if spellings else tuple(map(str, range(count))))


def splits_by_name(model: nn.Module, data: Splits, count: int, name: str | None = None) -> Splits:
    """`by_name` for all parts of a data set."""
    parts = [by_name(model, part, count, name) for part in (data.train, data.validation, data.test)]
    if parts[0] is data.train:
        return data
    fingerprint = digest("splits", [part.identity() for part in parts])
    return replace(data, train=parts[0], validation=parts[1], test=parts[2], fingerprint=fingerprint)


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > 8 else ""
    return ", ".join(f"'{name:.40}'" for name in names[:8]) + more
