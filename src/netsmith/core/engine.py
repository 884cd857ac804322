"""The one train and evaluate loop, on accelerate: one process or many, mixed precision, EMA, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from netsmith.core import checkpoint as files
from netsmith.core.cache import digest
from netsmith.core.images import ImageSet, Splits, batches, derived_seed
from netsmith.core.measure import Entry, Preprocessing, Progress, measure, prepare, try_out
from netsmith.core.objective import Objective, Step, Supervised, Wrapped, make_mixing, make_optimizer
from netsmith.core.session import (
    Session,
    chosen_parameters,
    kept_modes,
    own_randomness,
    placed,
    session,
    training_mode,
)
from netsmith.core.settings import TrainSettings, lr_factor
from netsmith.core.tasks import Task, sum_type
from netsmith.errors import TrainingError

__all__ = ["Objective", "Progress", "Step", "TrainResult", "TrainSettings", "evaluate", "lr_factor", "train"]


@dataclass(frozen=True)
class TrainResult:
    """How a training went.

    Attributes:
        history: one entry an epoch: `epoch` (from 1), `loss` (training), `lr` (at its end), the task's metrics on the
            validation part (`accuracy`) and its loss there (`validation_loss`).
        best_epoch: the epoch whose weights the model now has, from 1.
        metrics: of that epoch, on the validation part.
        seconds: of all epochs, those before a resume included.
        images_per_second: while training, validation left out, over all processes; 0 when nothing was left to do.
        resumed_from: epochs taken from a checkpoint.
        processes: that took part.
    """

    history: list[Entry]
    best_epoch: int
    metrics: dict[str, float]
    seconds: float
    images_per_second: float
    resumed_from: int = 0
    processes: int = 1


def evaluate(
    model: nn.Module,
    image_set: ImageSet,
    task: Task,
    *,
    preprocess: Preprocessing | None = None,
    batch_size: int = 256,
    precision: str = "no",
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """The task's metrics on a set; for classification `accuracy` (0..1) and `loss`.

    Under torchrun every process must call it; each takes its share and all get the same result. The model comes back in
    its mode and on its device.

    Raises:
        TrainingError: classes of network, task and data differ, or the network cannot take the images.
    """
    with ExitStack() as stack:
        current = stack.enter_context(session(precision, device))
        stack.enter_context(own_randomness(current.device))
        stack.enter_context(kept_modes(model))
        stack.enter_context(placed(model, current.device, channels_last=False))
        model.eval()
        try_out(model, image_set, task, preprocess, current)
        return measure(model, image_set, task, preprocess, batch_size, current, progress=progress)


def train(
    model: nn.Module,
    data: Splits | tuple[ImageSet, ImageSet],
    task: Task,
    settings: TrainSettings,
    *,
    preprocess: Preprocessing | None = None,
    trainable: Callable[[str, nn.Parameter], bool] | None = None,
    checkpoint_dir: Path | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    on_epoch: Callable[[Entry], None] | None = None,
    device: str | torch.device | None = None,
    objective: Objective | None = None,
    views: int | None = None,
) -> TrainResult:
    """Train `model` in place; it ends with the weights of the epoch that was best on the validation part.

    Only parameters that require a gradient (or that `trainable` picks) change. After every epoch a checkpoint is
    written to `checkpoint_dir`; a run that finds one there continues from it and ends as if it had never stopped. When
    training fails or is interrupted the model has the best weights so far (before the first epoch: those it came with).

    Args:
        data: `Splits`, whose test part is not touched, or a training and a validation set.
        preprocess: from images in [0, 1] to what the network takes, on the training device.
        trainable: picks parameters by name for this run only.
        checkpoint_dir: of `last.safetensors` and `best.safetensors`; None keeps nothing.
        resume: False starts again, over the checkpoint there.
        progress: called at every step.
        on_epoch: called with the history's entry after every epoch, once it is saved.
        device: "cpu", "cuda", ...; by default the best there is. Under torchrun each process has its own.
        objective: what a step minimises and an epoch is judged by; by default the task's loss and metrics.
        views: epochs after which order and augmentation of the training images start again, for objectives that
            remember what they computed for a batch; None never.

    Raises:
        TrainingError: nothing to train, classes that do not match, a loss that is not finite (says what was kept), or
            a checkpoint of another run.
        KeyboardInterrupt: interrupted; its message says what was kept.
    """
    train_set, validation_set = (data.train, data.validation) if isinstance(data, Splits) else data
    with ExitStack() as stack:
        current = stack.enter_context(session(settings.precision, device))
        stack.enter_context(own_randomness(current.device))
        stack.enter_context(kept_modes(model))
        stack.enter_context(chosen_parameters(model, trainable))
        stack.enter_context(placed(model, current.device, settings.channels_last))
        model.eval()
        for image_set in (train_set, validation_set):
            try_out(model, image_set, task, preprocess, current)
        run = _Run(model, train_set, validation_set, task, settings, preprocess, current, checkpoint_dir, progress)
        run.aim(objective or Supervised(task, settings.label_smoothing), views)
        if resume:
            run.resume()
        return run.to_the_end(on_epoch)


@dataclass
class _Progressed:
    """What of a run changes from epoch to epoch, weights apart."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    history: list[Entry] = field(default_factory=list)
    seconds: float = 0.0


class _Run:
    """One training run: everything that `train` sets up once."""

    def __init__(
        self,
        model: nn.Module,
        train_set: ImageSet,
        validation_set: ImageSet,
        task: Task,
        settings: TrainSettings,
        preprocess: Preprocessing | None,
        current: Session,
        folder: Path | None,
        progress: Progress | None,
    ) -> None:
        self.model, self.task, self.settings, self.current = model, task, settings, current
        self.train_set, self.validation_set = train_set, validation_set
        self.preprocess, self.folder = preprocess, folder
        self.progress = progress if current.main else None
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise TrainingError("no parameter of the network is trainable: all have requires_grad=False")
        share = len(train_set) // current.world
        if not share:
            raise TrainingError(f"{len(train_set)} training images cannot be shared among {current.world} processes")
        self.drop_last = share >= settings.batch_size
        self.batches = share // settings.batch_size if self.drop_last else 1
        self.steps = settings.epochs * math.ceil(self.batches / settings.accumulate)
        self.images = min(share, self.batches * settings.batch_size) * current.world
        self.mix = make_mixing(settings, task)
        # before preparing anything: the key and the fallback are those of the model as it came
        self.best = files.copied_state(model)
        self.key = digest("training", settings, task.name, task.num_classes, self.best) if folder else ""
        if folder:
            self.key = digest(self.key, train_set.identity(), validation_set.identity(), self._frozen_names())
            classes = f"{task.name}, {task.num_classes} classes"
            self.facts = files.facts(settings.model_dump(mode="json"), classes, len(train_set), digest(self.best))
        self.ema = ModelEmaV3(model, settings.ema, use_warmup=True) if settings.ema else None
        # the wrapper, not the model, is what accelerate patches for mixed precision and wraps for many processes
        self.objective: Objective = Supervised(task, settings.label_smoothing)
        self.views: int | None = None
        self.optimizer = current.accelerator.prepare_optimizer(make_optimizer(self.parameters, settings), False)
        self.done = _Progressed()
        self.resumed_from = 0
        self.training_seconds = 0.0

    def aim(self, objective: Objective, views: int | None) -> None:
        """Say what steps minimise, before the first one."""
        self.objective, self.views = objective, views
        wrapped = Wrapped(self.model, objective)
        self.forward = self.current.accelerator.prepare_model(wrapped, device_placement=False)
        if self.folder is not None:
            self.key = digest(self.key, objective.identity(), views or 0)

    def _frozen_names(self) -> list[str]:
        return [name for name, p in self.model.named_parameters() if not p.requires_grad]

    def to_the_end(self, on_epoch: Callable[[Entry], None] | None) -> TrainResult:
        """Train the epochs that are left."""
        first = self.done.epoch
        try:
            while self.done.epoch < self.settings.epochs:
                entry = self._epoch()
                if on_epoch is not None and self.current.main:
                    on_epoch(dict(entry))
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"training stopped in epoch {self.done.epoch + 1}. {self._kept()}") from stop
        finally:
            self.model.load_state_dict(self.best)
        trained = self.images * (self.done.epoch - first)
        best = self.done.history[self.done.best_epoch - 1]
        own = ("epoch", "loss", "lr", "validation_loss")
        metrics = {**{k: v for k, v in best.items() if k not in own}, "loss": best["validation_loss"]}
        speed = trained / self.training_seconds if self.training_seconds > 0 else 0.0
        return TrainResult(
            [dict(h) for h in self.done.history],
            self.done.best_epoch,
            metrics,
            self.done.seconds,
            speed,
            self.resumed_from,
            self.current.world,
        )

    def _epoch(self) -> Entry:
        """One time through the training part, validation, checkpoint."""
        began = time.perf_counter()
        loss = self._train_epoch()
        self.training_seconds += time.perf_counter() - began
        judged = self.ema.module if self.ema is not None else self.model
        self.current.agree_on_buffers(judged)
        judged.eval()
        measured = self.objective.judge(judged, self._measured)
        if not math.isfinite(measured["loss"]):
            raise TrainingError(self._not_finite("validation loss", measured["loss"]))
        done = self.done
        done.epoch += 1
        lr = float(self.optimizer.param_groups[0]["lr"])
        entry: Entry = {"epoch": done.epoch, "loss": loss, "lr": lr}
        entry |= {k: v for k, v in measured.items() if k != "loss"} | {"validation_loss": measured["loss"]}
        done.history.append(entry)
        if done.best_epoch == 0 or self._better(entry, done.history[done.best_epoch - 1]):
            done.best_epoch = done.epoch
            self.best = files.copied_state(judged)
        done.seconds += time.perf_counter() - began
        self._save()
        return entry

    def _measured(self, model: nn.Module) -> dict[str, float]:
        return measure(
            model, self.validation_set, self.task, self.preprocess, 2 * self.settings.batch_size, self.current,
            channels_last=self.settings.channels_last,
        )  # fmt: skip

    def _better(self, entry: Entry, best: Entry) -> bool:
        sign = 1.0 if self.task.higher_is_better else -1.0
        new, old = sign * entry[self.task.primary], sign * best[self.task.primary]
        return new > old or (new == old and entry["validation_loss"] < best["validation_loss"])

    def _train_epoch(self) -> float:
        """Mean training loss of one epoch, over all processes."""
        epoch, settings, current = self.done.epoch, self.settings, self.current
        training_mode(self.model, settings.frozen_statistics)
        warmup = round(settings.warmup_epochs * self.steps / settings.epochs)
        # [sum of losses, images]: read at the end, so that a GPU need not wait for the CPU at every step
        exact = sum_type(current.device)
        sums = torch.zeros(2, dtype=exact, device=current.device)
        for index, (images, targets, last) in enumerate(self._batches(epoch)):
            group = min(settings.accumulate, self.batches - index // settings.accumulate * settings.accumulate)
            torch.manual_seed(derived_seed(settings.seed, 1, epoch, index, current.rank))
            images, targets = self._prepared(images, targets)
            with nullcontext() if last else current.accelerator.no_sync(self.forward):
                moment = Step(self.done.step, self.steps, epoch % (self.views or settings.epochs), index)
                loss = self.forward(images, targets, moment)
                current.accelerator.backward(loss / group)
            sums += len(images) * torch.stack([loss.detach().to(exact), torch.ones_like(loss, dtype=exact)])
            if current.device.type == "cpu" or index % 16 == 15 or index + 1 == self.batches:
                self._check_finite(float(sums[0]), index)
            if last:
                factor = lr_factor(settings.schedule, self.done.step, self.steps, warmup)
                self._step(settings.lr * factor)
            if self.progress is not None:
                self.progress(
                    "training", epoch * self.batches + index + 1, settings.epochs * self.batches, self._remark()
                )
        sums = current.total(sums)
        return float(sums[0] / sums[1])

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Images, labels or masks, and whether a step follows."""
        stream = batches(
            self.train_set,
            self.settings.batch_size,
            shuffle=True,
            seed=derived_seed(self.settings.seed, 0, epoch % (self.views or self.settings.epochs)),
            augment=self.settings.augment,
            drop_last=self.drop_last,
            rank=self.current.rank,
            world=self.current.world,
        )
        for index, (images, targets) in enumerate(stream):
            yield images, targets, (index + 1) % self.settings.accumulate == 0 or index + 1 == self.batches

    def _prepared(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self.current.device)
        targets = self.task.targets_of(images, targets.to(self.current.device))
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        return prepare(images, self.preprocess, self.settings.channels_last), targets

    def _step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.settings.clip_grad is not None:
            self.current.accelerator.clip_grad_norm_(self.parameters, self.settings.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done.step += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.done.step)

    def _remark(self) -> str:
        if not self.done.history:
            return ""
        latest = self.done.history[-1]
        return f"epoch {self.done.epoch}: {self.task.primary} {latest[self.task.primary]:.4f}"

    def _check_finite(self, loss_sum: float, index: int) -> None:
        if not math.isfinite(loss_sum):
            raise TrainingError(self._not_finite(f"loss at step {index + 1} of {self.batches}", loss_sum))

    def _not_finite(self, what: str, value: float) -> str:
        lr = float(self.optimizer.param_groups[0]["lr"])
        return (
            f"the {what} of epoch {self.done.epoch + 1} is {value} (learning rate {lr:g}). {self._kept()} Lower lr, "
            f"set clip_grad, add warmup_epochs, or check that the images and the preprocessing are right"
        )

    def _kept(self) -> str:
        if not self.done.epoch:
            return "No epoch was complete: nothing was kept."
        best = self.done.history[self.done.best_epoch - 1][self.task.primary]
        state = f"the best of {self.done.epoch} complete epochs ({self.task.primary} {best:.4f} on validation)"
        if self.folder is None:
            return f"The network has the weights of {state}; there was no folder for checkpoints."
        return f"'{self.folder}' keeps {state}; run the same again to go on from there."

    def _save(self) -> None:
        """Write the checkpoint: the best weights first, so that `last` never speaks of a best that is not there."""
        if self.folder is None:
            return
        if self.current.main:
            if self.done.best_epoch == self.done.epoch:
                entry = self.done.history[self.done.best_epoch - 1]
                files.write_state(self.folder / files.BEST, self.best, {"key": self.key, **entry})
            tensors = files.prefixed("model", self.model.state_dict())
            if self.ema is not None:
                tensors |= files.prefixed("ema", self.ema.module.state_dict())
            tensors |= files.prefixed("optimizer", files.optimizer_tensors(self.optimizer))
            scaler = self.current.accelerator.scaler
            state: dict[str, Any] = {
                "key": self.key,
                "facts": self.facts,
                "scaler": scaler.state_dict() if scaler else None,
            }
            files.write_state(self.folder / files.LAST, tensors, state | vars(self.done))
        self.current.wait()

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one. Raises TrainingError when it is another run's."""
        if self.folder is None or not (self.folder / files.LAST).exists():
            return
        tensors, state = files.read_state(self.folder / files.LAST)
        best, about = files.read_state(self.folder / files.BEST)
        known = state.pop("facts", {})
        if {state.pop("key", None), about.get("key")} != {self.key}:
            raise TrainingError(files.another_run(self.folder, known, self.facts))
        scaler_state = state.pop("scaler")
        if self.current.accelerator.scaler is not None and scaler_state:
            self.current.accelerator.scaler.load_state_dict(scaler_state)
        self.model.load_state_dict(files.unprefixed("model", tensors))
        if self.ema is not None:
            self.ema.module.load_state_dict(files.unprefixed("ema", tensors))
        files.load_optimizer(self.optimizer, files.unprefixed("optimizer", tensors))
        self.done = _Progressed(**state)
        self.best = best
        self.resumed_from = self.done.epoch
