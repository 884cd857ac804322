"""What every task offers: the interface behind which classification, segmentation and image generation look alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from netsmith.data.images import no_labels
from netsmith.errors import TrainingError


@runtime_checkable
class Task(Protocol):
    """A loss, and metrics as sums that add up over batches and processes.

    Attributes:
        name: of the task.
        primary: the metric by which the best epoch is picked.
        higher_is_better: of that metric.
        num_classes: classes that a network for this task tells apart; 0 where there are none.
        soft_targets: whether `loss` takes the soft labels of mixed images (mixup, cutmix).
    """

    name: str
    primary: str
    higher_is_better: bool
    num_classes: int
    soft_targets: bool

    def check(self, classes: tuple[str, ...], outputs: Tensor, targets: Tensor | None = None) -> None:
        """Raise TrainingError when the data's classes, its targets or a network's outputs do not fit the task."""
        ...

    def targets_of(self, images: Tensor, targets: Tensor) -> Tensor:
        """What outputs are compared with, from images `(n, c, h, w)` in [0, 1] and what the data set tells of them."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """The training loss, a scalar; `targets` may be soft (mixed images), `(n, num_classes)`, if `soft_targets`."""
        ...

    def distil(self, outputs: Tensor, teacher_outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """How far the outputs are from a teacher's on the same images, a scalar: 0 where they are equal."""
        ...

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums over the batch, and the number of images as `count`."""
        ...

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics from summed sums, the primary one and `loss` among them."""
        ...


def sum_type(device: torch.device) -> torch.dtype:
    """What sums over many batches are kept in: float64, where the device has it (Apple's GPUs do not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def softened_divergence(
    outputs: Float[Tensor, "n c *grid"], teacher_outputs: Float[Tensor, "n c *grid"], temperature: float
) -> Float[Tensor, ""]:
    """KL divergence of the teacher's softened classes from the student's, times the squared temperature.

    The mean over images, and over pixels where there are any (Hinton et al., "Distilling the knowledge in a neural
    network", 2015: the square keeps the size of the gradient).

    Raises:
        TrainingError: the temperature is not positive.
    """
    check_temperature(temperature)
    student = F.log_softmax(outputs.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_outputs.float() / temperature, dim=1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    return divergence.mean() * temperature**2


def check_temperature(temperature: float) -> None:
    """Raises TrainingError unless it is above 0."""
    if not temperature > 0:
        raise TrainingError(f"the temperature of distillation is a number above 0, not {temperature}")


def check_classes(classes: tuple[str, ...], expected: int) -> None:
    """Raises TrainingError unless the data set has as many classes as the task."""
    if not classes:
        raise TrainingError(no_labels("measuring or training this network"))
    if len(classes) != expected:
        raise TrainingError(f"the data set has {len(classes)} classes, the task has {expected}: they must be the same")
