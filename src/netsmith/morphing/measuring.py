"""A network at some widths, measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from netsmith.data.images import ImageSet
from netsmith.morphing.coordinates import along
from netsmith.morphing.live import MorphableModel
from netsmith.morphing.morphable import Morphable
from netsmith.morphing.pictures import pictures
from netsmith.morphing.preparing import Run, Subject
from netsmith.morphing.recalibrating import augmented, has_statistics, is_base, recalibrated
from netsmith.trace.cost import measure_latency
from netsmith.training.engine import evaluate
from netsmith.training.tasks import Generation
from netsmith.widths.groups import Axis


@dataclass(frozen=True)
class WidthResult:
    """The network at one width: params and MACs of the whole, and the task's metrics by split.

    `recalibrated`: it was measured with statistics of batch norms that were estimated anew on training images.
    `pictures`: of a network that generates images, some of the test part and what it makes of them.
    """

    ratio: float
    widths: dict[str, int]
    params: int
    macs: int
    fitted: bool
    metrics: dict[str, dict[str, float]]
    latency_ms: float | None = None
    recalibrated: bool = False
    pictures: Mapping[str, str] = field(default_factory=dict)


class Judge:
    """Measures networks on both splits with one task, preprocessing and device."""

    def __init__(self, subject: Subject, run: Run) -> None:
        self.task, self.network, self.data = subject.task, subject.network, subject.data
        self.device, self.progress = run.device, run.progress
        self._augment: bool | None = None  # not known yet

    def of(self, model: torch.nn.Module, images: ImageSet) -> dict[str, float]:
        """Metrics of a network on a set."""
        return evaluate(
            model, images, self.task, preprocess=self.network.preprocess, device=self.device, progress=self.progress
        )

    def both(self, measure: Callable[[ImageSet], dict[str, float]]) -> dict[str, dict[str, float]]:
        """The same on validation and test."""
        return {"validation": measure(self.data.validation), "test": measure(self.data.test)}

    def at(self, model: MorphableModel, ratio: float, latency: bool = False, seed: int = 0) -> WidthResult:
        """A plain network at a ratio, measured; `seed` picks the images for batch norms and those that are shown."""
        widths = model.widths_for(ratio)
        plain = model.morphable.module(widths)
        anew = not is_base(model.morphable, widths) and self.recalibrated(plain, seed)
        params, macs = model.sizes(widths)
        took = measure_latency(plain, torch.zeros(1, *model.input_shape)) if latency else None
        metrics = self.both(lambda part: self.of(plain, part))
        fitted, shown = model.morphable.space.fitted(widths), self.pictures(plain, seed)
        return WidthResult(ratio, widths, params, macs, fitted, metrics, took, anew, shown)

    def pictures(self, model: torch.nn.Module, seed: int) -> dict[str, str]:
        """Some images of the test part and what a network makes of them, where it generates images."""
        if not isinstance(self.task, Generation):
            return {}
        return pictures(model, self.task, self.network.preprocess, self.data.test, seed)

    def recalibrated(self, plain: torch.nn.Module, seed: int) -> bool:
        """Give a network of some width statistics of its own, where it has batch norms that are better with them."""
        augment = self.augmented(plain, seed)
        if augment is None:
            return False
        return recalibrated(
            plain, self.network.model, self.data, self.network.preprocess, self.task,
            augment=augment, seed=seed, device=self.device,
        )  # fmt: skip

    def augmented(self, plain: torch.nn.Module, seed: int) -> bool | None:
        """Whether the batch norms of a network get statistics of shifted and mirrored images; None without any."""
        if not has_statistics(plain, self.network.preprocess.input_size):
            return None
        if self._augment is None:
            self._augment = augmented(
                self.network.model, self.data, self.network.preprocess, seed=seed, device=self.device
            )
        return self._augment

    def floor(self, morphable: Morphable, images: ImageSet) -> dict[str, float]:
        """Metrics without what is generated: at full width, with nothing read from the channels that vary."""
        space = morphable.space
        state = morphable.base.state_dict()
        tensors = {slot.name: state[slot.name] for slot in morphable.generator.slots}

        def cut(value: Tensor, axis: Axis, group: str) -> Tensor:
            n = space.full[group]
            return along(value, axis, n, torch.zeros(n, n)) if axis.fan_in else value

        for slot in morphable.generator.slots:
            tensors[slot.name] = slot.walk(tensors[slot.name], space.full, space.full, cut)
        return self.of(morphable.module(space.full, tensors), images)
