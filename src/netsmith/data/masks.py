"""Images with a mask each: what segmentation is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from netsmith.data.images import ImageSet, LazyImages, MemoryImages
from netsmith.errors import DataError


class MaskedImages(ImageSet):
    """Images with a mask of the same size each; their labels are all 0.

    Args:
        pictures: the images themselves; their labels are not looked at.
        masks: `(1, h, w)` each, the number of its class in every pixel, or `images.IGNORED`.
        classes: name of each class, background included.
        ignore: the class that counts nowhere, if there is one; `masks` hold `images.IGNORED` in its place already.

    Raises:
        DataError: not as many masks as images, or of another size.
    """

    def __init__(
        self, pictures: ImageSet, masks: MemoryImages | LazyImages, classes: tuple[str, ...], ignore: int | None = None
    ) -> None:
        if len(pictures) != len(masks) or pictures.shape[1:] != masks.shape[1:]:
            sizes = [f"{len(s)} of {s.shape[1]}x{s.shape[2]} pixels" for s in (pictures, masks)]
            raise DataError(f"images ({sizes[0]}) and masks ({sizes[1]}) do not belong together")
        self.pictures = pictures
        self.masks = masks
        self.classes = classes
        self.ignore = ignore
        self.shape = pictures.shape
        self.mirror = pictures.mirror
        self.labels = torch.zeros(len(pictures), dtype=torch.int64)

    def images(self, indices: Sequence[int] | Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """The images at `indices`, values in [0, 1]. Raises DataError for a corrupt one."""
        return self.pictures.images(indices)

    def targets(self, indices: Sequence[int] | Int[Tensor, " b"]) -> Int[Tensor, "b h w"]:
        """The masks at `indices`. Raises DataError for a corrupt one or one that holds a class that is not there."""
        return self.masks.raw(indices)[:, 0].to(torch.int64)

    def subset(self, indices: Sequence[int] | Int[Tensor, " b"]) -> MaskedImages:
        """The set of the images and masks at `indices`."""
        return MaskedImages(self.pictures.subset(indices), self.masks.subset(indices), self.classes, self.ignore)

    def identity(self) -> tuple[object, ...]:
        """Those of the images and of the masks."""
        ignored = () if self.ignore is None else (self.ignore,)
        return (self.classes, self.pictures.identity(), self.masks.identity(), *ignored)
