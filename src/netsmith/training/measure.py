"""A network's metrics on a set of images, and what that shares with training."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from netsmith.data.images import ImageSet, batches
from netsmith.errors import TrainingError
from netsmith.networks.preprocess import Preprocessing
from netsmith.trace.checks import explained
from netsmith.training.session import Session
from netsmith.training.tasks import Task

Entry = dict[str, int | float]
"""One epoch of a training's history."""


@runtime_checkable
class Progress(Protocol):
    """Called as long work goes on: what it is, how much is done, out of how much (None: unknown), and a remark."""

    def __call__(self, what: str, done: float, total: float | None, note: str = "") -> None:
        """Take note."""
        ...


def standard_error(share: float, images: int) -> float:
    """Of a share (0..1) of so many images, such as an accuracy."""
    return math.sqrt(max(0.0, share * (1 - share)) / max(1, images))


def prepare(images: Tensor, preprocess: Preprocessing | None, channels_last: bool) -> Tensor:
    """Images `(n, c, h, w)` in [0, 1], preprocessed, in the memory format asked for."""
    images = preprocess(images) if preprocess is not None else images
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


@torch.no_grad()
def try_out(
    model: nn.Module, image_set: ImageSet, task: Task, preprocess: Preprocessing | None, current: Session
) -> Tensor:
    """Run two images through the network, so that what does not fit is said before anything is spent or written.

    Returns:
        The two, as the network takes them.
    """
    if not len(image_set):
        raise TrainingError("the data set holds no image")
    images = image_set.images([0, len(image_set) - 1]).to(current.device)
    given = prepare(images, preprocess, channels_last=False)
    what = f"the network cannot take images of shape {'x'.join(map(str, image_set.shape))}"
    remedy = "Give the data a size, or load the network for these channels and pixels"
    with explained(model, given, what, remedy, TrainingError):
        outputs = model(given)
    task.check(image_set.classes, outputs, task.targets_of(images, image_set.targets([0, len(image_set) - 1])))
    return given


@torch.no_grad()
def measure(
    model: nn.Module,
    image_set: ImageSet,
    task: Task,
    preprocess: Preprocessing | None,
    batch_size: int,
    current: Session,
    *,
    channels_last: bool = False,
    progress: Progress | None = None,
) -> dict[str, float]:
    """The task's metrics over a set, each process taking its share; the model is in evaluation mode already."""
    sums: dict[str, Tensor] = {}
    done = 0
    for images, found in batches(image_set, batch_size, shuffle=False, seed=0, rank=current.rank, world=current.world):
        images = images.to(current.device)
        targets = task.targets_of(images, found.to(current.device))
        with current.accelerator.autocast():
            outputs = model(prepare(images, preprocess, channels_last))
        for name, value in task.metrics(outputs.float(), targets).items():
            sums[name] = sums[name] + value if name in sums else value
        done += len(images) * current.world
        if progress is not None and current.main:
            progress("evaluation", min(done, len(image_set)), len(image_set))
    return task.summary({name: current.total(value) for name, value in sums.items()})
