"""Semantic segmentation: one class a pixel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from netsmith.data.images import IGNORED
from netsmith.errors import TrainingError
from netsmith.training.task import check_classes, softened_divergence, sum_type


class Segmentation:
    """One class a pixel: cross-entropy; mean intersection over union, mean F1 (Dice) and pixel accuracy.

    A network for it gives `(n, num_classes, h, w)`, and the data has masks `(n, h, w)`.

    Args:
        num_classes: at least 2, background included.
        ignore_index: what masks hold where nothing is known; such pixels count nowhere. It may be one of the classes,
            which then is in no mean, and 255 is left out as well.
        classes: their names, for the IoU of each; their numbers without.

    Examples:
        >>> netsmith.Segmentation(21).primary
        'miou'
    """

    name = "segmentation"
    primary = "miou"
    higher_is_better = True
    soft_targets = False

    def __init__(self, num_classes: int, ignore_index: int = IGNORED, classes: tuple[str, ...] = ()) -> None:
        if num_classes < 2:
            raise TrainingError(f"segmentation needs at least two classes, background included, not {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.ignores_class = 0 <= ignore_index < num_classes
        self.classes = classes if len(set(classes)) == num_classes else tuple(map(str, range(num_classes)))

    def check(self, classes: tuple[str, ...], outputs: Tensor, targets: Tensor | None = None) -> None:
        """Raise TrainingError unless data, masks, task and network have the same classes and pixels."""
        check_classes(classes, self.num_classes)
        if outputs.ndim != 4 or outputs.shape[1] != self.num_classes:
            raise TrainingError(
                f"the network gives outputs of shape {tuple(outputs.shape)} where ({len(outputs)}, {self.num_classes}, "
                f"h, w) was expected: take a segmentation network of {self.num_classes} classes, such as "
                f"smp:Unet/resnet18"
            )
        if targets is None:
            return
        if targets.ndim != 3:
            raise TrainingError(
                "segmentation needs a mask for every image, and this data set has none: use masks:PATH or "
                "torchvision:VOCSegmentation"
            )
        if outputs.shape[2:] != targets.shape[1:]:
            got, want = ("x".join(str(s) for s in shape) for shape in (outputs.shape[2:], targets.shape[1:]))
            raise TrainingError(
                f"the network gives outputs of {got} pixels (height x width) for masks of {want}: give the data the "
                f"size that the network was loaded for, or take a network that keeps the size"
            )
        self._check_range(targets)

    def _check_range(self, targets: Tensor) -> None:
        targets = self._left_out(targets)
        known = targets[targets != self.ignore_index]
        if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < self.num_classes:
            wrong = int(known.max()) if int(known.max()) >= self.num_classes else int(known.min())
            raise TrainingError(
                f"a mask holds class {wrong}, the network has {self.num_classes} classes (0 to {self.num_classes - 1}; "
                f"{self.ignore_index} marks pixels to be left out)"
            )

    def targets_of(self, images: Tensor, targets: Tensor) -> Tensor:
        """The masks."""
        return targets

    def loss(
        self, outputs: Float[Tensor, "n c h w"], targets: Int[Tensor, "n h w"], smoothing: float = 0.0
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy over the pixels that are known; 0 when there are none."""
        targets = self._left_out(targets)
        total = F.cross_entropy(
            outputs, targets, ignore_index=self.ignore_index, label_smoothing=smoothing, reduction="sum"
        )
        return total / (targets != self.ignore_index).sum().clamp_min(1)

    def distil(
        self, outputs: Float[Tensor, "n c h w"], teacher_outputs: Float[Tensor, "n c h w"], temperature: float = 1.0
    ) -> Float[Tensor, ""]:
        """KL divergence of the softened classes, the mean over all pixels, times the squared temperature."""
        return softened_divergence(outputs, teacher_outputs, temperature)

    def metrics(self, outputs: Float[Tensor, "n c h w"], targets: Int[Tensor, "n h w"]) -> dict[str, Tensor]:
        """Confusion matrix (rows: true class), summed cross-entropy, number of known pixels and of images.

        Raises:
            TrainingError: a mask holds a class that the network does not have.
        """
        self._check_range(targets)
        targets = self._left_out(targets)
        exact = sum_type(outputs.device)
        known = targets != self.ignore_index
        pairs = targets[known] * self.num_classes + outputs.argmax(dim=1)[known]
        confusion = torch.bincount(pairs, minlength=self.num_classes**2)
        loss = F.cross_entropy(outputs.float(), targets, ignore_index=self.ignore_index, reduction="sum")
        return {
            "confusion": confusion.view(self.num_classes, self.num_classes).to(exact),
            "loss": loss.to(exact),
            "pixels": known.sum().to(exact),
            "count": torch.tensor(len(targets), dtype=exact, device=outputs.device),
        }

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """`miou`, `f1` (both the mean over classes), `accuracy` of pixels (all 0..1) and mean cross-entropy `loss`.

        `iou/NAME` is that of a class. Classes that are neither in a mask nor in a prediction, and the one that is
        ignored, are left out.

        Raises:
            TrainingError: no pixel is known.
        """
        pixels = float(sums["pixels"])
        if not pixels:
            raise TrainingError(f"no pixel has a class: the masks hold {self.ignore_index} (left out) everywhere")
        confusion = sums["confusion"].double().cpu()
        right, total = confusion.diagonal(), confusion.sum(dim=0) + confusion.sum(dim=1)
        present = total > 0
        if self.ignores_class:
            present[self.ignore_index] = False
        right, total = right[present], total[present]
        each = right / (total - right)
        named = zip(present.nonzero()[:, 0].tolist(), each.tolist(), strict=True)
        return {
            "miou": float(each.mean()),
            "f1": float((2 * right / total).mean()),
            "accuracy": float(right.sum()) / pixels,
            "loss": float(sums["loss"]) / pixels,
            **{f"iou/{self.classes[k]}": value for k, value in named},
        }

    def _left_out(self, targets: Int[Tensor, "n h w"]) -> Int[Tensor, "n h w"]:
        """Targets that hold `ignore_index` wherever a pixel counts nowhere."""
        return targets.masked_fill(targets == IGNORED, self.ignore_index) if self.ignores_class else targets
