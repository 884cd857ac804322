"""What a training minimises, and by what: objectives, and the optimizer and mixing that settings ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from netsmith.errors import TrainingError
from netsmith.training.settings import TrainSettings
from netsmith.training.tasks import Task


@dataclass(frozen=True)
class Step:
    """Where a training is: optimizer step `number` of `total` (from 0), batch `index` of the view `view`."""

    number: int
    total: int
    view: int
    index: int


@runtime_checkable
class Objective(Protocol):
    """What training minimises, and what its epochs are judged by."""

    def identity(self) -> str:
        """What a checkpoint must have in common with it to be continued."""
        ...

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, step: Step) -> Tensor:
        """The loss of a batch of preprocessed images, a scalar."""
        ...

    def judge(self, model: nn.Module, measured: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """Metrics of the model; `measured` gives those of a network on the validation part."""
        ...

    def slack(self, metric: float, images: int) -> float:
        """By how much an epoch may miss the best metric so far and still replace it, if its validation loss is lower.

        `images` is how many the metric was measured on; 0 goes by the metric alone.
        """
        ...


class Supervised:
    """The objective of ordinary training."""

    def __init__(self, task: Task, smoothing: float) -> None:
        self.task, self.smoothing = task, smoothing

    def identity(self) -> str:
        """Nothing beyond the settings."""
        return ""

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, step: Step) -> Tensor:
        """The task's."""
        return self.task.loss(model(images), targets, self.smoothing)

    def judge(self, model: nn.Module, measured: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """The model as it is."""
        return measured(model)

    def slack(self, metric: float, images: int) -> float:
        """None."""
        return 0.0


class Wrapped(nn.Module):
    """A model and its objective as one module, whose output is the loss."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, targets: Tensor, step: Step) -> Tensor:
        """The loss of a batch."""
        return self.objective.loss(self.model, x, targets, step)


def make_optimizer(parameters: list[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    """Weight decay on weights, not on biases and norms."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)


def make_mixing(settings: TrainSettings, task: Task) -> Callable[[Tensor, Tensor], Any] | None:
    """Mixup, CutMix, or either at random; raises TrainingError for a task whose targets cannot be mixed."""
    mixes: list[nn.Module] = []
    if settings.mixup:
        mixes.append(v2.MixUp(alpha=settings.mixup, num_classes=task.num_classes))
    if settings.cutmix:
        mixes.append(v2.CutMix(alpha=settings.cutmix, num_classes=task.num_classes))
    if mixes and not task.soft_targets:
        raise TrainingError(f"mixup and cutmix mix the labels of images: for {task.name} leave them 0")
    return v2.RandomChoice(mixes) if mixes else None
