"""Fine-tuning with a teacher: the loss of the task and distillation, for a number of steps."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from netsmith.data.splits import Splits
from netsmith.distributed.launched import world
from netsmith.errors import MorphError, TrainingError
from netsmith.files.cache import digest
from netsmith.networks.network import Network
from netsmith.networks.structure import structure
from netsmith.training.checkpoint import copied_state
from netsmith.training.engine import Progress, Step, TrainResult, evaluate, train
from netsmith.training.measure import standard_error
from netsmith.training.restore import restore_if_worse
from netsmith.training.settings import TrainSettings
from netsmith.training.split import Split
from netsmith.training.tasks import Task

_log = logging.getLogger("netsmith.train")

_TOLERANCE = 0.02
_REMEMBERED_BYTES = 512 * 2**20


Key = tuple[object, ...]


class Memory:
    """Tensors by key, kept as long as there is room; what came first stays.

    Args:
        most: bytes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.bytes = 0
        self._kept: dict[Key, Tensor] = {}

    def __call__(self, key: Key | None, device: torch.device, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of a key, on a device: as kept, or computed (without gradients) and kept. None keeps nothing."""
        if key is not None and key in self._kept:
            return self._kept[key].to(device)
        with torch.no_grad():
            found = compute()
        size = found.numel() * found.element_size()
        if key is not None and self.bytes + size <= self.most:
            self._kept[key] = found
            self.bytes += size
        return found


class Teacher:
    """A network's outputs for batches, each computed once: several networks may learn from one teacher.

    Args:
        model: what teaches; a copy of it is kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.memory = Memory(_REMEMBERED_BYTES)

    def identity(self) -> str:
        """Changes with its weights, the numbers of its modules and its code."""
        return digest(self.model.state_dict(), structure(self.model))

    def __call__(self, images: Tensor, key: Key | None) -> Tensor:
        """Outputs for a batch that `key` names, remembered while there is room (512 MB); None remembers nothing."""
        return self.memory(key, images.device, lambda: self.model.to(images.device)(images).float())


class Distilling:
    """The objective (`netsmith.training.engine.Objective`): the task's loss, and distillation from a teacher.

    It is `(1 - share) * loss + share * distil`. `scope` names the batches: what of
    them does not follow from view and index. Of a `Split` network, `fronts` keeps the features.
    """

    def __init__(
        self,
        task: Task,
        teacher: Teacher,
        share: float,
        temperature: float,
        scope: Key | None,
        fronts: Memory | None = None,
        smoothing: float = 0.0,
    ) -> None:
        self.smoothing = smoothing
        self.task, self.teacher, self.share, self.temperature, self.scope = task, teacher, share, temperature, scope
        self.fronts = Memory(0) if fronts is None else fronts

    def identity(self) -> str:
        """Teacher and shares."""
        return digest("distilling", self.teacher.identity(), self.share, self.temperature)

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, step: Step) -> Tensor:
        """Of one batch."""
        key = None if self.scope is None else (*self.scope, step.view, step.index)
        if isinstance(model, Split):
            outputs = model.rest(self.fronts(key, images.device, lambda: model.front(images))).float()
        else:
            outputs = model(images).float()
        loss = outputs.new_zeros(())
        if self.share < 1:
            loss = loss + (1 - self.share) * self.task.loss(outputs, targets, self.smoothing)
        if self.share:
            loss = loss + self.share * self.task.distil(outputs, self.teacher(images, key), self.temperature)
        return loss

    def judge(self, model: nn.Module, measured: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """The task's metrics."""
        return measured(model)

    def slack(self, metric: float, images: int) -> float:
        """The standard error of an accuracy: among epochs that differ by less, the loss tells more.

        A network that begins close to its teacher is as good after one epoch as after all, but for this noise, and the
        weights of an early epoch have been trained at a high rate.
        """
        if self.task.primary != "accuracy":
            return 0.0
        return standard_error(metric, images)


def finetuned(
    model: nn.Module,
    network: Network,
    data: Splits,
    task: Task,
    training: TrainSettings,
    steps: int,
    *,
    distillation: float = 0.5,
    temperature: float = 2.0,
    teacher: nn.Module | Teacher | None = None,
    views: int = 8,
    first_view: int = 0,
    parameters: Collection[str] | None = None,
    fronts: Memory | None = None,
    called: str = "the network",
    checkpoint_dir: Path | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    device: str | None = None,
) -> TrainResult:
    """Train `model` in place for about `steps` optimizer steps; it ends as the epoch best on validation.

    Of epochs whose accuracies differ by less than a standard error, the one with the lowest loss is the best. Where
    even the best is worse by more than that than what `model` began as, it ends as it began (`best_epoch` 0), with a
    warning.

    Args:
        model: a network that takes and gives what the base does.
        network: the base, whose preprocessing it shares.
        data: its test part is not touched.
        task: whose loss and metrics count.
        training: as a generator's, but for the epochs, which follow from `steps`; the warm-up keeps its share.
        steps: how many, within 2% (`lesson`).
        distillation: share of the teacher in the loss, 0 to 1.
        temperature: that softens its outputs.
        teacher: by default the base.
        views: augmented views of the training images, as in fitting: in each, the teacher runs once on a batch.
        first_view: of them, with which it begins.
        parameters: names of those that are trained; None for all. Modules without any keep their statistics.
        fronts: of a `Split` network, what its front makes of the batches: several that share it compute that once.
        called: what progress and warnings call it.
        checkpoint_dir: where it goes on from after an interruption.
        resume: see `netsmith.training.engine.train`.
        progress: told how far it is.
        device: where to compute.

    Raises:
        MorphError: steps or distillation out of range.
        TrainingError: a loss that is not finite, or a checkpoint of another run.
    """
    if not 0 <= distillation <= 1:
        raise MorphError(f"the share of distillation in the loss is 0 to 1, not {distillation}")
    lessons, settings = lesson(data, training, steps)
    teaches = teacher if isinstance(teacher, Teacher) else Teacher(network.model if teacher is None else teacher)
    mixed = settings.mixup or settings.cutmix  # then images of one view differ from epoch to epoch
    scope = (lessons.fingerprint, settings.batch_size, settings.seed, settings.augment)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameters is None or name in parameters)
    scoped = None if mixed else scope
    objective = Distilling(task, teaches, distillation, temperature, scoped, fronts, settings.label_smoothing)

    start = evaluate(model, data.validation, task, preprocess=network.preprocess, device=device)
    state = copied_state(model)
    try:
        result = train(
            model, lessons, task, settings, preprocess=network.preprocess, checkpoint_dir=checkpoint_dir,
            resume=resume, progress=named(progress, called), device=device, views=views,
            first_view=first_view, objective=objective,
        )  # fmt: skip
    except TrainingError as error:
        raise TrainingError(f"{called}: {error}") from error
    slack = objective.slack(start[task.primary], len(data.validation))
    return kept_or_undone(called, model, state, start, result, task, slack=slack)


def kept_or_undone(
    called: str,
    trained: nn.Module,
    state: Mapping[str, Tensor],
    start: Mapping[str, float],
    result: TrainResult,
    task: Task,
    *,
    slack: float = 0.0,
) -> TrainResult:
    """A training's result; of one that was undone (`restore_if_worse`), with a warning, epoch 0 is the best."""

    def tell(before: float, after: float) -> None:
        _log.warning(
            "%s: training made it worse on validation (%s %.4f before, %.4f at best after): it stays as it was. "
            "Lower training.lr, set training.clip_grad or add training.warmup_epochs",
            called, task.primary, before, after,
        )  # fmt: skip

    return restore_if_worse(trained, state, start, result, task, tell, slack=slack)


def named(progress: Progress | None, text: str) -> Progress | None:
    """Progress that says of what it is."""
    if progress is None:
        return None

    def tell(what: str, done: int | float, total: int | float | None, note: str = "") -> None:
        progress(what, done, total, f"{text}. {note}" if note else text)

    return tell


def optimizer_steps(images: int, training: TrainSettings) -> int:
    """Optimizer steps that one epoch over so many training images takes."""
    share = images // world()
    return math.ceil(max(1, share // training.batch_size) / training.accumulate)


def lesson(data: Splits, training: TrainSettings, steps: int) -> tuple[Splits, TrainSettings]:
    """Data and settings with which the training loop, which counts epochs, makes so many steps, within 2%.

    Where whole epochs do, the data stay as they are. Otherwise epochs are as many as fit in, and each is a little
    longer: it begins a second pass over the training images. Fewer steps than an epoch has see a part of the images.

    Raises:
        MorphError: less than one step.
    """
    if steps < 1:
        raise MorphError(f"the number of steps must be at least 1, not {steps}")

    def near(found: int) -> bool:
        return abs(found - steps) <= _TOLERANCE * steps

    images, each = len(data.train), optimizer_steps(len(data.train), training)
    epochs = round(steps / each)
    if not near(epochs * each):
        epochs = next(n for n in range(max(1, steps // each), 0, -1) if near(n * round(steps / n)))
        length = round(steps / epochs) * training.accumulate * training.batch_size * world()
        order = torch.from_numpy(np.random.default_rng(training.seed).permutation(images))
        rows = order.repeat(math.ceil(length / images))[:length]
        name = digest("lesson", data.fingerprint, training.seed, length)
        data = replace(data, train=data.train.subset(rows), fingerprint=name)
    warmup = training.warmup_epochs * epochs / training.epochs
    return data, training.model_copy(update={"epochs": epochs, "warmup_epochs": warmup})
