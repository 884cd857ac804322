"""What a network is trained for: its loss and its metrics behind one small interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from netsmith.errors import TrainingError


@runtime_checkable
class Task(Protocol):
    """A loss, and metrics as sums that add up over batches and processes.

    Attributes:
        name: of the task.
        primary: the metric by which the best epoch is picked.
        higher_is_better: of that metric.
        num_classes: outputs a network for this task has.
    """

    name: str
    primary: str
    higher_is_better: bool
    num_classes: int

    def check(self, classes: tuple[str, ...], outputs: Tensor) -> None:
        """Raise TrainingError when the data's classes or a network's outputs on a batch do not fit the task."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """The training loss, a scalar; `targets` may be soft (mixed images), `(n, num_classes)`."""
        ...

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Sums over the batch, and the number of images as `count`."""
        ...

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics from summed sums."""
        ...


class Classification:
    """One class an image: cross-entropy and accuracy.

    Args:
        num_classes: at least 2.
        label_smoothing: of the loss (not of the metrics), where `loss` is not told otherwise.
    """

    name = "classification"
    primary = "accuracy"
    higher_is_better = True

    def __init__(self, num_classes: int, label_smoothing: float = 0.0) -> None:
        if num_classes < 2:
            raise TrainingError(f"classification needs at least two classes, not {num_classes}")
        if not 0.0 <= label_smoothing < 1.0:
            raise TrainingError(f"label_smoothing is at least 0 and below 1, not {label_smoothing}")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing

    def check(self, classes: tuple[str, ...], outputs: Tensor) -> None:
        """Raise TrainingError unless data, task and network have the same number of classes."""
        if len(classes) != self.num_classes:
            raise TrainingError(
                f"the data set has {len(classes)} classes, the task has {self.num_classes}: they must be the same"
            )
        if outputs.ndim != 2 or outputs.shape[1] != self.num_classes:
            raise TrainingError(
                f"the network gives outputs of shape {tuple(outputs.shape)}, ({len(outputs)}, {self.num_classes}) was "
                f"expected: load it with num_classes={self.num_classes}, or use data with as many classes as it has"
            )

    def loss(
        self, outputs: Float[Tensor, "n c"], targets: Int[Tensor, " n"] | Float[Tensor, "n c"], smoothing: float = 0.0
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy to labels or to mixed, soft labels."""
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing or self.label_smoothing)

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


def sum_type(device: torch.device) -> torch.dtype:
    """What sums over many batches are kept in: float64, where the device has it (Apple's GPUs do not)."""
    return torch.float32 if device.type == "mps" else torch.float64
