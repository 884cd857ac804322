"""What a network is trained for: its loss and its metrics behind one small interface."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from netsmith.data.images import IGNORED
from netsmith.errors import TrainingError, did_you_mean
from netsmith.training.generation import Generation
from netsmith.training.segmentation import Segmentation
from netsmith.training.task import Task, check_classes, softened_divergence, sum_type

__all__ = ["TASKS", "Classification", "Generation", "Segmentation", "Task", "make_task", "sum_type"]

TASKS = ("classification", "segmentation", "generation")
"""Names that `make_task` knows."""


class Classification:
    """One class an image: cross-entropy and accuracy.

    Args:
        num_classes: at least 2.
        label_smoothing: of the loss (not of the metrics), where `loss` is not told otherwise.

    Examples:
        >>> netsmith.evaluate(zoo[0].model, data.validation, netsmith.Classification(10), preprocess=zoo[0].preprocess)
        {'accuracy': ..., 'loss': ...}
    """

    name = "classification"
    primary = "accuracy"
    higher_is_better = True
    soft_targets = True

    def __init__(self, num_classes: int, label_smoothing: float = 0.0) -> None:
        if num_classes < 2:
            raise TrainingError(f"classification needs at least two classes, not {num_classes}")
        if not 0.0 <= label_smoothing < 1.0:
            raise TrainingError(f"label_smoothing is at least 0 and below 1, not {label_smoothing}")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing

    def check(self, classes: tuple[str, ...], outputs: Tensor, targets: Tensor | None = None) -> None:
        """Raise TrainingError unless data, task and network have the same number of classes."""
        check_classes(classes, self.num_classes)
        if outputs.ndim != 2 or outputs.shape[1] != self.num_classes:
            raise TrainingError(
                f"the network gives outputs of shape {tuple(outputs.shape)}, ({len(outputs)}, {self.num_classes}) was "
                f"expected: load it with num_classes={self.num_classes}, or use data with as many classes as it has"
            )
        if targets is not None and targets.ndim != 1:
            raise TrainingError("classification needs one class an image, this data set has masks (task: segmentation)")

    def targets_of(self, images: Tensor, targets: Tensor) -> Tensor:
        """The labels."""
        return targets

    def loss(
        self, outputs: Float[Tensor, "n c"], targets: Int[Tensor, " n"] | Float[Tensor, "n c"], smoothing: float = 0.0
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy to labels or to mixed, soft labels."""
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing or self.label_smoothing)

    def distil(
        self, outputs: Float[Tensor, "n c"], teacher_outputs: Float[Tensor, "n c"], temperature: float = 1.0
    ) -> Float[Tensor, ""]:
        """KL divergence of the softened classes, the mean over the images, times the squared temperature."""
        return softened_divergence(outputs, teacher_outputs, temperature)

    def metrics(self, outputs: Float[Tensor, "n c"], targets: Int[Tensor, " n"]) -> dict[str, Tensor]:
        """Right answers, summed cross-entropy, number of images."""
        exact = sum_type(outputs.device)
        return {
            "correct": (outputs.argmax(dim=1) == targets).sum().to(exact),
            "loss": F.cross_entropy(outputs.float(), targets, reduction="sum").to(exact),
            "count": torch.tensor(len(targets), dtype=exact, device=outputs.device),
        }

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """`accuracy` (0..1) and mean cross-entropy `loss`."""
        count = float(sums["count"])
        return {"accuracy": float(sums["correct"]) / count, "loss": float(sums["loss"]) / count}


def make_task(
    name: str,
    num_classes: int = 0,
    *,
    shape: tuple[int, int, int] | None = None,
    classes: tuple[str, ...] = (),
    ignore: int | None = None,
) -> Task:
    """The task of that name.

    Args:
        name: one of `TASKS`.
        num_classes: for classification and segmentation.
        shape: `(c, h, w)` of the images, for generation.
        classes: their names, for segmentation.
        ignore: the class of the data that counts nowhere (`Splits.ignore`), for segmentation.

    Raises:
        TrainingError: there is no such task, or what it needs is missing.

    Examples:
        >>> netsmith.make_task("classification", 10).primary
        'accuracy'
    """
    if name == "classification":
        return Classification(num_classes)
    if name == "segmentation":
        # masks hold 255 in place of one that is none of the classes
        left_out = IGNORED if ignore is None or ignore >= num_classes else ignore
        return Segmentation(num_classes, left_out, classes)
    if name == "generation":
        if shape is None:
            raise TrainingError("the task generation needs the shape of the images: (channels, height, width)")
        return Generation(shape)
    raise TrainingError(f"unknown task '{name}'. {did_you_mean(name, TASKS)} Tasks are {', '.join(TASKS)}")
