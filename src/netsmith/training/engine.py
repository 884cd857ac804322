"""The one train and evaluate loop, on accelerate: one process or many, mixed precision, EMA, resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from netsmith.data.classes import by_name
from netsmith.data.images import ImageSet, Splits
from netsmith.errors import TrainingError
from netsmith.networks.preprocess import Preprocessing, chosen
from netsmith.trace.checks import kept_modes, original, unusable
from netsmith.trace.cost import images_at_once
from netsmith.training import checkpoint as files
from netsmith.training.loop import TrainingRun, TrainResult
from netsmith.training.measure import Entry, Progress, measure, try_out
from netsmith.training.norms import synced_norms
from netsmith.training.objective import Objective, Step, Supervised
from netsmith.training.session import chosen_parameters, own_randomness, placed, session, settled
from netsmith.training.settings import Precision, TrainSettings, lr_factor
from netsmith.training.tasks import Task

__all__ = ["Objective", "Progress", "Step", "TrainResult", "TrainSettings", "evaluate", "lr_factor", "train"]


def evaluate(
    model: nn.Module,
    image_set: ImageSet,
    task: Task,
    *,
    preprocess: Preprocessing | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int | None = None,
    precision: Precision = "no",
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    alone: bool = False,
) -> dict[str, float]:
    """The task's metrics on a set; for classification `accuracy` (0..1) and `loss`.

    Where the network tells names of its classes, the data's are matched with them by name. Under torchrun every process
    must call it; each takes its share and all get the same result. With `alone` this
    process measures the whole set, and others need not. The model comes back in its mode and on its device.
    `batch_size` is by default what suits the network and the device; `precision` "auto" is bf16 where that is faster.

    Args:
        preprocess: from images in [0, 1] to what the network takes.
        mean: in place of `preprocess`: per channel, of images in [0, 1]. Without either, what the module says of
            itself counts (`pretrained_cfg`, which timm's networks and those that Netsmith builds have).
        std: likewise.

    Raises:
        SourceError: nothing tells how the network wants its images.
        DataError: the network's classes have other names than the data's.
        TrainingError: classes of network, task and data differ, or the network cannot take the images.

    Examples:
        >>> model, prepare = zoo[0].model, zoo[0].preprocess
        >>> netsmith.evaluate(model, data.validation, netsmith.Classification(10), preprocess=prepare)
        {'accuracy': ..., 'loss': ...}
    """
    model = _runnable(model)
    preprocess = chosen(model, image_set.shape, preprocess, mean, std)
    image_set = by_name(model, image_set, task.num_classes)
    with ExitStack() as stack:
        current = stack.enter_context(session(precision, device, alone=alone))
        stack.enter_context(own_randomness(current.device))
        stack.enter_context(kept_modes(model))
        stack.enter_context(placed(model, current.device, channels_last=False))
        model.eval()
        inputs = try_out(model, image_set, task, preprocess, current)
        size = batch_size or images_at_once(model, inputs)
        with torch.no_grad():
            current = stack.enter_context(settled(current, precision, model, inputs, size))
        return measure(model, image_set, task, preprocess, size, current, progress=progress)


def train(
    model: nn.Module,
    data: Splits | tuple[ImageSet, ImageSet],
    task: Task,
    settings: TrainSettings,
    *,
    preprocess: Preprocessing | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trainable: Callable[[str, nn.Parameter], bool] | None = None,
    checkpoint_dir: Path | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    on_epoch: Callable[[Entry], None] | None = None,
    device: str | torch.device | None = None,
    objective: Objective | None = None,
    views: int | None = None,
    first_view: int = 0,
) -> TrainResult:
    """Train `model` in place; it ends with the weights of the epoch that was best on the validation part.

    Only parameters that require a gradient (or that `trainable` picks) change. After every epoch a checkpoint is
    written to `checkpoint_dir`; a run that finds one there continues from it and ends as if it had never stopped. When
    training fails or is interrupted the model has the best weights so far (before the first epoch: those it came with).

    Args:
        data: `Splits`, whose test part is not touched, or a training and a validation set.
        preprocess: from images in [0, 1] to what the network takes, on the training device.
        mean: in place of `preprocess`, as in `evaluate`.
        std: likewise.
        trainable: picks parameters by name for this run only.
        checkpoint_dir: of `last.safetensors` and `best.safetensors`; None keeps nothing.
        resume: False starts again, over the checkpoint there.
        progress: called at every step.
        on_epoch: called with the history's entry after every epoch, once it is saved.
        device: "cpu", "cuda", ...; by default the best there is. Under torchrun each process has its own.
        objective: what a step minimises and an epoch is judged by; by default the task's loss and metrics.
        views: epochs after which order and augmentation of the training images start again, for objectives that
            remember what they computed for a batch; None never.
        first_view: of them, with which the first epoch begins.

    Raises:
        SourceError: nothing tells how the network wants its images.
        TrainingError: nothing to train, classes that do not match, a loss that is not finite (says what was kept), or
            a checkpoint of another run.
        KeyboardInterrupt: interrupted; its message says what was kept.

    Examples:
        >>> network = netsmith.load_source("netsmith:plain_cnn", num_classes=10, input_size=(1, 8, 8))
        >>> settings = netsmith.TrainSettings(epochs=1, lr=0.002, optimizer="adamw")
        >>> task = netsmith.Classification(10)
        >>> result = netsmith.train(network.model, data, task, settings, preprocess=network.preprocess)
    """
    model = _runnable(model)
    train_set, validation_set = (data.train, data.validation) if isinstance(data, Splits) else data
    train_set, validation_set = (by_name(model, part, task.num_classes) for part in (train_set, validation_set))
    preprocess = chosen(model, train_set.shape, preprocess, mean, std)
    with ExitStack() as stack:
        begun = files.begun_in(checkpoint_dir) if resume and checkpoint_dir is not None else None
        current = stack.enter_context(session(begun or settings.precision, device))
        stack.enter_context(own_randomness(current.device))
        stack.enter_context(kept_modes(model))
        stack.enter_context(chosen_parameters(model, trainable))
        stack.enter_context(placed(model, current.device, settings.channels_last))
        model.eval()
        inputs = [try_out(model, images, task, preprocess, current) for images in (train_set, validation_set)][-1]
        if begun is None:
            current = stack.enter_context(settled(current, settings.precision, model, inputs, settings.batch_size))
        run = TrainingRun(
            model, train_set, validation_set, task, settings, preprocess, current, checkpoint_dir, progress,
            images_at_once(model, inputs),
        )  # fmt: skip
        run.aim(objective or Supervised(task, settings.label_smoothing), views, first_view)
        if resume:
            run.resume()
        stack.enter_context(synced_norms(model, current.world))
        return run.to_the_end(on_epoch)


def _runnable(model: nn.Module) -> nn.Module:
    """The network itself, without wrappers. Raises TrainingError where it cannot be run."""
    model = original(model)
    if reason := unusable(model):
        raise TrainingError(f"{type(model).__name__}: {reason}.")
    return model
