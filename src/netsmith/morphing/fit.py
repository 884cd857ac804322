"""Fitting a generator: every step draws widths, runs the network with the weights generated for them, and learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from netsmith.data.images import derived_seed
from netsmith.data.splits import Splits
from netsmith.errors import MorphError, TrainingError
from netsmith.files.cache import digest
from netsmith.morphing.generator import Noise
from netsmith.morphing.morphable import Morphable
from netsmith.morphing.settings import FitSettings
from netsmith.morphing.space import Drawn
from netsmith.training.checkpoint import copied_state
from netsmith.training.engine import Progress, Step, TrainResult, evaluate, train
from netsmith.training.finetuning import Memory, kept_or_undone
from netsmith.training.measure import Entry, Preprocessing
from netsmith.training.settings import TrainSettings
from netsmith.training.tasks import Task


def drawn_together(morphable: Morphable, settings: FitSettings) -> Drawn:
    """Return which widths of several groups these settings draw together."""
    draws = settings.draws or morphable.generator.default_draws()
    if "mixed" in draws:
        return "each"
    return "range" if "random" in draws else "ratio"


class Fitting:
    """The objective of fitting (`netsmith.training.engine.Objective`).

    Loss of one drawn width vector (Yang et al., "Neural Metamorphosis", ECCV 2024, equation 5): task loss and
    distillation from the base network, reconstruction of the base's weights at full width, and the norm of what is
    generated. Features before the first generated tensor and the base's outputs are computed once for each batch of
    each view.
    """

    def __init__(
        self, task: Task, settings: FitSettings, seed: int, judged: tuple[float, ...], smoothing: float = 0.0
    ) -> None:
        self.task, self.settings, self.seed, self.judged, self.smoothing = task, settings, seed, judged, smoothing
        self._memory = Memory(settings.cache_mb * 2**20)

    def identity(self) -> str:
        """Settings, seed, and the ratios that are judged."""
        return digest("fitting", self.settings.model_dump_json(), self.seed, list(self.judged))

    # --- one step -----------------------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, step: Step) -> Tensor:
        """The mean over the widths drawn for this step."""
        assert isinstance(model, Morphable)
        features, taught = self._known(model, images, step)
        rng = torch.Generator().manual_seed(derived_seed(self.seed, 2, step.number, step.index))
        draws = self.settings.draws or model.generator.default_draws()
        total = torch.zeros((), device=features.device)
        for k in range(self.settings.per_step):
            kind = draws[(step.number * self.settings.per_step + k) % len(draws)]
            widths = self._waiting(model, model.generator.draw(kind, model.space, rng), step)
            loss = self._loss_at(model, features, taught, targets, widths, kind == "coarse", rng)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss at step {step.number + 1} of {step.total} is {value}, at widths "
                    f"{_widths_text(model, widths)}. The last complete epoch is kept. Lower lr, set clip_grad, or "
                    f"check that images and preprocessing are right"
                )
            total = total + loss / self.settings.per_step
        if self.settings.reconstruction:
            total = total + self.settings.reconstruction * reconstruction(model)
        if not total.requires_grad:  # all widths of this step are read from what is not fitted
            total = total + 0.0 * next(model.generator.parameters()).sum()
        return total

    def _loss_at(
        self,
        model: Morphable,
        features: Tensor,
        taught: Tensor,
        targets: Tensor,
        widths: Mapping[str, int],
        coarse: bool,
        rng: torch.Generator,
    ) -> Tensor:
        noise = Noise(self.settings.noise, rng) if self.settings.noise else None
        tensors = model.tensors(widths, noise, coarse)
        outputs = model.rest(features, widths, tensors).float()
        share = self.settings.distillation
        loss = outputs.new_zeros(())
        if share < 1:
            loss = loss + (1 - share) * self.task.loss(outputs, targets, self.smoothing)
        if share:
            loss = loss + share * self.task.distil(outputs, taught, self.settings.temperature)
        if self.settings.norm:
            squares = sum((t.float() ** 2).sum() for t in tensors.values())
            loss = loss + self.settings.norm * squares / sum(t.numel() for t in tensors.values())
        return loss

    def _known(self, model: Morphable, images: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Features and the base's outputs for a batch: remembered, or computed and remembered."""
        batch, where = (step.view, step.index), images.device
        key = ("front", *batch) if model.splits else None
        features = self._memory(key, where, lambda: model.front(images))
        if not self.settings.distillation:
            return features, features.new_zeros(())
        taught = self._memory(("taught", *batch), where, lambda: model.teacher(features).float())
        return features, taught

    def _waiting(self, model: Morphable, widths: dict[str, int], step: Step) -> dict[str, int]:
        """In a blockwise schedule, groups whose turn has not come stay at full width."""
        if not self.settings.blockwise:
            return widths
        done = step.number / (self.settings.blockwise * step.total)
        groups = model.space.groups
        active = min(len(groups), 1 + int(done * len(groups)))
        return {g.name: widths[g.name] if k < active else g.width for k, g in enumerate(groups)}

    # --- one epoch ----------------------------------------------------------------------------------------------------

    def judge(self, model: nn.Module, measured: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """The task's metrics at each judged ratio (`accuracy@0.5`), and their means; of what is fitted.

        Where the coarse set alone is drawn, it is what is read.
        """
        assert isinstance(model, Morphable)
        coarse = self.settings.coarse_alone
        means: dict[str, float] = {}
        single: dict[str, float] = {}
        for ratio in self.judged:
            with model.at_widths(model.space.clamped(ratio), coarse):
                found = measured(model)
            for name, value in found.items():
                means[name] = means.get(name, 0.0) + value / len(self.judged)
            single[f"{self.task.primary}@{ratio:g}"] = found[self.task.primary]
        return means | single

    def slack(self, metric: float, images: int) -> float:
        """None."""
        return 0.0


def _widths_text(model: Morphable, widths: Mapping[str, int]) -> str:
    shown = [f"{g.name} {widths[g.name]} of {g.width}" for g in model.space.groups]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def reconstruction(model: Morphable) -> Tensor:
    """Mean square distance of the tensors at full width from the base's, over the base's mean square."""
    base = model.base.state_dict()
    parts = []
    for name, value in model.tensors(model.space.full).items():
        wanted = base[name].float()
        parts.append(((value - wanted) ** 2).mean() / wanted.pow(2).mean().clamp(min=1e-12))
    return torch.stack(parts).mean()


def fit(
    morphable: Morphable,
    data: Splits,
    task: Task,
    settings: FitSettings,
    training: TrainSettings,
    *,
    preprocess: Preprocessing | None = None,
    judged: tuple[float, ...] | None = None,
    checkpoint_dir: Path | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    on_epoch: Callable[[Entry], None] | None = None,
    device: str | None = None,
) -> TrainResult:
    """Fit the generator of `morphable` in place; it ends with the weights of the epoch best on validation.

    Where even that epoch is worse than what it began with, it ends as that, with a warning.

    Which epoch is best is judged by the mean of the task's metric over `judged` ratios (by default highest, middle and
    lowest of the fitted range; no group leaves its own). A run that was stopped goes on from its checkpoint and ends as
    if it had not been.

    Raises:
        TrainingError: a loss that is not finite (with step and widths), or a checkpoint of another run.
        MorphError: images would be mixed, so that what the base makes of them could not be remembered.
    """
    check_unmixed(training)
    if judged is None:
        low, high = morphable.space.hull
        if settings.coarse_alone:
            high = min(high, 1.5 * low)
        judged = tuple(dict.fromkeys((high, round((low + high) / 2, 4), low)))
    objective = Fitting(task, settings, training.seed, judged, training.label_smoothing)

    def measured(model: nn.Module) -> dict[str, float]:
        return evaluate(model, data.validation, task, preprocess=preprocess, device=device)

    called, fitted = "the coarse set" if settings.coarse_alone else "the generator", morphable.generator
    state, start = copied_state(fitted), objective.judge(morphable, measured)
    result = train(
        morphable, data, task, training, preprocess=preprocess, checkpoint_dir=checkpoint_dir, resume=resume,
        progress=progress, on_epoch=on_epoch, device=device, objective=objective, views=settings.views,
    )  # fmt: skip
    return kept_or_undone(called, fitted, state, start, result, task)


def check_unmixed(training: TrainSettings) -> None:
    """Raise MorphError for settings that mix images."""
    if training.mixup or training.cutmix:
        raise MorphError("fitting remembers what the base network makes of each image: leave mixup and cutmix 0")
