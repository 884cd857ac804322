"""One training run: its epochs, what it keeps on disk, and where it stops and goes on."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from netsmith.data.images import ImageSet, batches, derived_seed
from netsmith.distributed import stopping
from netsmith.distributed.processes import any_of_us
from netsmith.errors import TrainingError
from netsmith.files.cache import digest
from netsmith.networks.structure import structure
from netsmith.training import checkpoint as files
from netsmith.training.measure import Entry, Preprocessing, Progress, measure, prepare
from netsmith.training.objective import Objective, Step, Supervised, Wrapped, make_mixing, make_optimizer
from netsmith.training.session import Session, training_mode
from netsmith.training.settings import TrainSettings, lr_factor
from netsmith.training.tasks import Task, sum_type


@dataclass(frozen=True)
class TrainResult:
    """How a training went.

    Attributes:
        history: one entry an epoch: `epoch` (from 1), `loss` (training), `lr` (at its end), the task's metrics on the
            validation part (`accuracy`) and its loss there (`validation_loss`).
        best_epoch: the epoch whose weights the model now has, from 1; 0 where the training was undone.
        metrics: of that epoch, on the validation part.
        seconds: of all epochs, those before a resume included.
        images_per_second: while training, validation left out, over all processes; 0 when nothing was left to do.
        resumed_from: epochs taken from a checkpoint.
        processes: that took part.
        precision: in which it computed: `no`, `bf16` or `fp16`; where it was `auto`, what was chosen.
    """

    history: list[Entry]
    best_epoch: int
    metrics: dict[str, float]
    seconds: float
    images_per_second: float
    resumed_from: int = 0
    processes: int = 1
    precision: str = "no"


@dataclass
class Progressed:
    """What of a run changes as it goes on, weights apart.

    `epoch` counts complete epochs and `step` optimizer steps.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    history: list[Entry] = field(default_factory=list)
    seconds: float = 0.0


class TrainingRun:
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
        at_once: int,
    ) -> None:
        self.model, self.task, self.settings, self.current = model, task, settings, current
        self.train_set, self.validation_set = train_set, validation_set
        self.preprocess, self.folder, self.at_once = preprocess, folder, at_once
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
            made = structure(model)
            self.key = digest(self.key, train_set.identity(), validation_set.identity(), self._frozen_names(), made)
            classes = f"{task.name}, {task.num_classes} classes"
            self.facts = files.facts(
                settings.model_dump(mode="json"), classes, len(train_set), digest(self.best), made, current.world
            )
        self.ema = ModelEmaV3(model, settings.ema, use_warmup=True) if settings.ema else None
        # the wrapper, not the model, is what accelerate patches for mixed precision and wraps for many processes
        self.objective: Objective = Supervised(task, settings.label_smoothing)
        self.views, self.first_view = settings.epochs, 0
        self.optimizer = current.accelerator.prepare_optimizer(make_optimizer(self.parameters, settings), False)
        self.done = Progressed()
        self.resumed_from = 0
        self.training_seconds = 0.0
        self.began = time.perf_counter()

    def aim(self, objective: Objective, views: int | None, first_view: int = 0) -> None:
        """Say what steps minimise and which views of the images they see, before the first one."""
        self.objective, self.first_view = objective, first_view
        self.views = views or self.settings.epochs
        wrapped = Wrapped(self.model, objective)
        # an objective of its own may leave parameters out of a step
        unused = not isinstance(objective, Supervised)
        kwargs = DistributedDataParallelKwargs(find_unused_parameters=unused)
        self.current.accelerator.ddp_handler = kwargs  # pyright: ignore[reportAttributeAccessIssue]
        self.forward = self.current.accelerator.prepare_model(wrapped, device_placement=False)
        if self.folder is not None:
            self.key = digest(self.key, objective.identity(), views or 0, first_view)

    def _view(self, epoch: int) -> int:
        return (self.first_view + epoch) % self.views

    def _frozen_names(self) -> list[str]:
        return [name for name, p in self.model.named_parameters() if not p.requires_grad]

    def to_the_end(self, on_epoch: Callable[[Entry], None] | None) -> TrainResult:
        """Train the epochs that are left."""
        begun = self.done.epoch * self.images
        settings = self.settings
        try:
            while self.done.epoch < settings.epochs:
                entry = self._epoch()
                if self.progress is not None:
                    whole = settings.epochs * self.batches
                    self.progress("training", self.done.epoch * self.batches, whole, self._remark())
                if on_epoch is not None and self.current.main:
                    on_epoch(dict(entry))
                if self.done.epoch < settings.epochs and any_of_us(stopping.asked(), self.current.device):
                    raise stopping.stop()
        except KeyboardInterrupt as stop:
            number = stop.number if isinstance(stop, stopping.Stopped) else signal.SIGINT
            raise stopping.Stopped(number, f"training stopped in epoch {self.done.epoch + 1}. {self._kept()}") from stop
        finally:
            self.model.load_state_dict(self.best)
        trained = self.images * self.done.epoch - begun
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
            self.current.accelerator.mixed_precision,
        )

    def _epoch(self) -> Entry:
        """One time through the training part, validation, checkpoint."""
        began = self.began = time.perf_counter()
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
        # a class that is in no mask of a part has no number of its own: history keeps the means
        plain = {k: v for k, v in measured.items() if k != "loss" and not k.startswith("iou/")}
        entry |= plain | {"validation_loss": measured["loss"]}
        done.history.append(entry)
        if done.best_epoch == 0 or self._better(entry, done.history[done.best_epoch - 1]):
            done.best_epoch = done.epoch
            self.best = files.copied_state(judged)
        self._save()
        return entry

    def _measured(self, model: nn.Module) -> dict[str, float]:
        return measure(
            model, self.validation_set, self.task, self.preprocess, self.at_once, self.current,
            channels_last=self.settings.channels_last,
        )  # fmt: skip

    def _better(self, entry: Entry, best: Entry) -> bool:
        sign = 1.0 if self.task.higher_is_better else -1.0
        new, old = sign * entry[self.task.primary], sign * best[self.task.primary]
        slack = self.objective.slack(best[self.task.primary], len(self.validation_set))
        return new > old + slack or (new >= old - slack and entry["validation_loss"] < best["validation_loss"])

    def _train_epoch(self) -> float:
        """Mean training loss of one epoch, over all processes."""
        epoch, settings, current = self.done.epoch, self.settings, self.current
        training_mode(self.model, settings.frozen_statistics)
        warmup = round(settings.warmup_epochs * self.steps / settings.epochs)
        # [sum of losses, images]: read at the end, so that a GPU need not wait for the CPU at every step
        exact = sum_type(current.device)
        sums = torch.zeros(2, dtype=exact, device=current.device)
        for index, images, targets, last in self._batches(epoch):
            group = min(settings.accumulate, self.batches - index // settings.accumulate * settings.accumulate)
            torch.manual_seed(derived_seed(settings.seed, 1, epoch, index, current.rank))
            images, targets = self._prepared(images, targets)
            with nullcontext() if last else current.accelerator.no_sync(self.forward):
                moment = Step(self.done.step, self.steps, self._view(epoch), index)
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
            if current.world == 1:  # several processes stop together, after an epoch
                stopping.safe_point()
        sums = current.total(sums)
        return float(sums[0] / sums[1])

    def _batches(self, epoch: int) -> Iterator[tuple[int, Tensor, Tensor, bool]]:
        """Number of the batch, images, labels or masks, and whether a step follows."""
        stream = batches(
            self.train_set,
            self.settings.batch_size,
            shuffle=True,
            seed=derived_seed(self.settings.seed, 0, self._view(epoch)),
            augment=self.settings.augment,
            drop_last=self.drop_last,
            rank=self.current.rank,
            world=self.current.world,
        )
        for index, (images, targets) in enumerate(stream):
            yield index, images, targets, (index + 1) % self.settings.accumulate == 0 or index + 1 == self.batches

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
        now = time.perf_counter()
        self.done.seconds += now - self.began
        self.began = now
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
                "precision": self.current.accelerator.mixed_precision,
                "scaler": scaler.state_dict() if scaler else None,
            }
            files.write_state(self.folder / files.LAST, tensors, state | vars(self.done))
        self.current.wait()

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one. Raises TrainingError when it is another run's."""
        if self.folder is None or not (self.folder / files.LAST).exists():
            return
        tensors, state = files.read_state(self.folder / files.LAST)
        known = state.pop("facts", {})
        keys = {state.pop("key", None)}
        scaler_state = state.pop("scaler", None)
        state.pop("precision", None)
        best = self.best
        if state["epoch"]:
            best, about = files.read_state(self.folder / files.BEST)
            keys.add(about.get("key"))
        if keys != {self.key}:
            raise TrainingError(files.another_run(self.folder, known, self.facts))
        processes = known.get(files.PROCESSES, self.current.world)
        if processes != self.current.world:
            # steps, batches of an epoch and the learning rate's course are counted for as many
            raise TrainingError(files.other_processes(self.folder, processes, self.current.world))
        if self.current.accelerator.scaler is not None and scaler_state:
            self.current.accelerator.scaler.load_state_dict(scaler_state)
        self.model.load_state_dict(files.unprefixed("model", tensors))
        if self.ema is not None:
            self.ema.module.load_state_dict(files.unprefixed("ema", tensors))
        files.load_optimizer(self.optimizer, files.unprefixed("optimizer", tensors))
        self.done = Progressed(**state)
        self.best = best
        self.resumed_from = self.done.epoch
