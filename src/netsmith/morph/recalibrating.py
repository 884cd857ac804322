"""Batch norms that stay: their statistics at a width, estimated on training images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from netsmith.core.data import Splits, batches
from netsmith.core.folding import recalibrate
from netsmith.core.measure import Preprocessing
from netsmith.morph.morphable import Morphable

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
        recalibrated(other, data, preprocess, augment=augment, images=IMAGES // 2, seed=seed, device=device)
        found, total = dict(other.named_buffers()), 0.0
        for name in kept:
            if name.endswith("running_mean"):
                var = name.removesuffix("mean") + "var"
                deviation = kept[var].clamp_min(1e-12).sqrt()
                ratio = (found[var].clamp_min(1e-12).sqrt() / deviation).log()
                total += float((((found[name] - kept[name]) / deviation) ** 2 + ratio**2).mean())
        return total

    return bool(kept) and distance(True) < distance(False)


def recalibrated(
    model: nn.Module,
    data: Splits,
    preprocess: Preprocessing,
    *,
    augment: bool,
    images: int = IMAGES,
    seed: int = 0,
    device: torch.device | str | None = None,
    norms: Collection[str] | None = None,
) -> bool:
    """Estimate the statistics of the batch norms that a network runs anew, in place; whether there were any.

    Statistics that a generator gives are made of the base's; those of a network of fewer channels are others (Yu et
    al., "Universally Slimmable Networks", ICCV 2019, section 3.3).

    Args:
        model: a network that was read at some widths; it comes back on its device and in its mode.
        data: its training part is used, never the others.
        preprocess: the network's.
        augment: shift and mirror images as training does. The weights know statistics of images drawn as they were for
            training: a residual network of CIFAR-10 loses 3.7 points of its own 89.3% with those of plain images.
        images: how many training images, in batches of 128.
        seed: draws them.
        device: where to compute; None where the network is.
        norms: names of those that get new ones; None for all.

    Raises:
        ChannelError: there is one training image only.
    """
    own = next(model.parameters()).device
    where = own if device is None else torch.device(device)
    try:
        return recalibrate(model.to(where), _batches(data, preprocess, augment, images, seed, where), only=norms) > 0
    finally:
        model.to(own)


def recalibrated_like(
    base: Callable[[], nn.Module],
    model: nn.Module,
    data: Splits,
    preprocess: Preprocessing,
    *,
    known: bool | None = None,
    seed: int = 0,
) -> bool:
    """`recalibrated`, on images that are `augmented` where the base has seen such; it is asked for if none `known`."""
    augment = augmented(base(), data, preprocess, seed=seed) if known is None else known
    return recalibrated(model, data, preprocess, augment=augment, seed=seed)


def _batches(
    data: Splits, preprocess: Preprocessing, augment: bool, images: int, seed: int, device: torch.device
) -> Iterator[Tensor]:
    """Full batches: each counts the same in the mean, and statistics of few images are poor ones."""
    size = min(_BATCH, len(data.train))
    found = batches(data.train, size, shuffle=True, seed=seed, augment=augment, drop_last=True)
    for pictures, _ in islice(found, max(1, images // size)):
        yield preprocess(pictures.to(device))
