"""Batch norms that stay: their statistics at a width, estimated on training images."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from netsmith.data.splits import Splits, batches
from netsmith.morphing.morphable import Morphable
from netsmith.trace.checks import kept_modes
from netsmith.training.measure import Preprocessing
from netsmith.training.session import placed
from netsmith.training.tasks import Task
from netsmith.widths.folding import recalibrate

IMAGES = 2048
"""Training images of one estimate."""

_BATCH = 128


@torch.no_grad()
def has_statistics(model: nn.Module, input_shape: Sequence[int]) -> bool:
    """Whether a network in evaluation mode runs batch norms with statistics, which hold for one width only.

    `input_shape` is that of one input, without the batch.
    """
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    run: set[nn.Module] = set()
    handles = [m.register_forward_pre_hook(lambda module, _: run.add(module)) for m in norms]
    try:
        if norms:
            parameter = next(model.parameters())
            model(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return bool(run)


def is_base(morphable: Morphable, widths: Mapping[str, int]) -> bool:
    """Whether the network at these widths is the base network itself, whose statistics are right as they are."""
    return dict(widths) == morphable.space.full and bool(morphable.generator.anchors())


@torch.no_grad()
def augmented(
    base: nn.Module, data: Splits, preprocess: Preprocessing, *, seed: int = 0, device: torch.device | str | None = None
) -> bool:
    """Whether a network's batch norms have seen training images shifted and mirrored, rather than as they are.

    Its statistics are compared with those of both, by the distance of means and of the logarithms of deviations. False
    of a network without batch norms. Arguments and errors are those of `recalibrated`.
    """
    kept = {
        name: b.detach().clone() for name, b in base.named_buffers() if name.endswith(("running_mean", "running_var"))
    }

    def distance(augment: bool) -> float:
        other = copy.deepcopy(base)
        drawn = _Drawn(data, preprocess, augment, IMAGES // 2, seed, _device(base, device))
        with placed(other, drawn.device, channels_last=False):
            recalibrate(other, drawn.inputs())
        found, total = dict(other.named_buffers()), 0.0
        for name in kept:
            if name.endswith("running_mean"):
                var = name.removesuffix("mean") + "var"
                deviation = kept[var].clamp_min(1e-12).sqrt()
                ratio = (found[var].clamp_min(1e-12).sqrt() / deviation).log()
                total += float((((found[name] - kept[name]) / deviation) ** 2 + ratio**2).mean())
        return total

    return bool(kept) and distance(True) < distance(False)


@torch.no_grad()
def recalibrated(
    model: nn.Module,
    base: nn.Module,
    data: Splits,
    preprocess: Preprocessing,
    task: Task,
    *,
    augment: bool | None = None,
    images: int = IMAGES,
    seed: int = 0,
    device: torch.device | str | None = None,
    norms: Collection[str] | None = None,
) -> bool:
    """Estimate the statistics of the batch norms that a network runs anew, in place, and keep them where they help.

    Statistics that a generator gives are made of the base's; those of a network of fewer channels are others (Yu et
    al., "Universally Slimmable Networks", ICCV 2019, section 3.3). Those of few images can be worse than both, so
    further training images decide: the answers on them have to come closer to the base's.

    Args:
        model: a network that was read at some widths; it comes back on its device and in its mode.
        base: the network that it was made of, for the same inputs.
        data: its training part is used, never the others, and no label.
        preprocess: the networks'.
        task: how answers are compared.
        augment: shift and mirror images as training does; None where the base has seen such (`augmented`). The weights
            know statistics of images drawn as they were for training: a residual network of CIFAR-10 loses 3.7 points
            of its own 89.3% with those of plain images.
        images: how many training images, in batches of 128; a quarter as many decide.
        seed: draws them.
        device: where to compute; None where the network is.
        norms: names of those that get new ones; None for all.

    Returns:
        Whether there are new statistics.

    Raises:
        ChannelError: there is one training image only.
    """
    if augment is None:
        augment = augmented(base, data, preprocess, seed=seed, device=device)
    drawn = _Drawn(data, preprocess, augment, images, seed, _device(model, device))
    with kept_modes(model), kept_modes(base), placed(model, drawn.device, False), placed(base, drawn.device, False):
        model.eval()
        base.eval()
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        distance = drawn.distance(model, base, task)
        if not recalibrate(model, drawn.inputs(), only=norms):
            return False
        if drawn.distance(model, base, task) < distance:
            return True
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
        return False


class _Drawn:
    """Training images in full batches, each of which counts the same: the first for statistics, the next to judge."""

    def __init__(
        self,
        data: Splits,
        preprocess: Preprocessing,
        augment: bool,
        images: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.data, self.preprocess, self.augment, self.seed, self.device = data, preprocess, augment, seed, device
        self.size = min(_BATCH, max(1, len(data.train) // 2))
        self.count = max(1, images // self.size)
        there = len(data.train) // self.size
        self.held = max(1, min(self.count, there) // 4)
        self.count = max(1, min(self.count, there - self.held))

    def inputs(self) -> Iterator[Tensor]:
        """For statistics, as the network takes them."""
        return self._batches(0, self.count)

    def distance(self, model: nn.Module, base: nn.Module, task: Task) -> float:
        """How far answers are from the base's, on batches that no statistic has seen."""
        return math.fsum(float(task.distil(model(x), base(x))) for x in self._batches(self.count, self.held))

    def _batches(self, begin: int, count: int) -> Iterator[Tensor]:
        drawn = batches(
            self.data.train, self.size, shuffle=True, seed=self.seed, augment=self.augment, drop_last=True, begin=begin
        )
        return (self.preprocess(images.to(self.device)) for images, _ in islice(drawn, count))


def _device(model: nn.Module, device: torch.device | str | None) -> torch.device:
    return next(model.parameters()).device if device is None else torch.device(device)
