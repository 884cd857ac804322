"""Inputs without labels, of which the fits take their statistics, and others on which the result is judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from netsmith.data.splits import Splits, open_data
from netsmith.errors import DataError
from netsmith.networks.network import Network
from netsmith.trace.cost import images_at_once

IMAGES = 1000
"""Calibration inputs where nothing else is asked for, if there are so many."""

JUDGED = 2000
"""Inputs of validation and test on which candidates are compared, and the result is judged; of fewer, all."""

FEWEST = 8

HELD_OUT = 0.2
"""Share of inputs that come as tensors which is kept for judging: nothing else tells them apart."""

Data = str | Splits | Tensor | Iterable[object]


@dataclass(frozen=True)
class Calibration:
    """Inputs as the network takes them, in batches.

    `fit` is for the fits, `choose` for the choice between candidates, `held` for the agreement that is reported.
    """

    fit: tuple[Tensor, ...]
    choose: tuple[Tensor, ...]
    held: tuple[Tensor, ...]

    @property
    def images(self) -> int:
        """How many inputs the fits see."""
        return sum(map(len, self.fit))


def calibration(network: Network, data: Data, images: int | None, seed: int, device: torch.device) -> Calibration:
    """Take inputs from a data source, from splits, or as they are given: a tensor, or batches of any iterable.

    Of splits, the training part gives those for the fits, validation those for the choice between candidates, and test
    those for the agreement. Tensors are taken as preprocessed; a fifth of them, drawn by `seed`, is for both of the
    latter. No label is read.

    Raises:
        DataError: too few inputs, of another shape than the network takes, or not finite.
    """
    wanted = IMAGES if images is None else images
    if isinstance(data, str):
        data = open_data(data, seed=seed)
    if isinstance(data, Splits):
        fit = _prepared(network, data, "train", wanted, seed)
        choose, held = (_prepared(network, data, part, JUDGED, seed) for part in ("validation", "test"))
    else:
        inputs = _gathered(data, wanted if images is not None else None)
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
        judged = max(1, round(HELD_OUT * len(inputs)))
        held, fit = inputs[order[:judged]], inputs[order[judged:]]
        choose = held
    if len(fit) < FEWEST:
        raise DataError(
            f"{len(fit)} calibration inputs are too few to fit anything: give at least {FEWEST}, better some hundreds"
        )
    size = network.preprocess.input_size
    for part in (fit, choose, held):
        if not bool(torch.isfinite(part).all()):
            raise DataError("calibration inputs hold NaN or infinity: give finite ones, as the network takes them")
        if part.ndim == 4 and part.shape[1] != size[0]:
            raise DataError(
                f"{network.name} takes inputs of {size[0]} channels, and the calibration inputs have {part.shape[1]}"
            )
    if fit.ndim > 1 and float(fit.std()) == 0:
        raise DataError("all calibration inputs are the same number: give inputs such as the network will meet")
    batch = images_at_once(network.model, fit[:1].to(device))
    return Calibration(*(tuple(x.to(device) for x in part.split(batch)) for part in (fit, choose, held)))


def _prepared(network: Network, data: Splits, part: str, images: int, seed: int) -> Tensor:
    chosen = getattr(data, part)
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:images]
    if not len(order):
        return torch.empty(0)
    return torch.cat([network.preprocess(chosen.images(some)) for some in order.split(64)])


def _gathered(data: Tensor | Iterable[object], images: int | None) -> Tensor:
    """Join batches: tensors, or lists, tuples and dicts that begin with one, as those of a `DataLoader` do."""
    taken: list[Tensor] = []
    for item in [data] if isinstance(data, Tensor) else data:
        first = item
        if isinstance(item, dict):
            first = next(iter(item.values()), None)
        elif isinstance(item, Sequence):
            first = item[0] if item else None
        if not isinstance(first, Tensor):
            raise DataError(f"expected batches of tensors as calibration inputs, got a {type(item).__name__}")
        taken.append(first.detach().cpu())
        if images is not None and sum(map(len, taken)) >= images:
            break
    if not taken:
        raise DataError("no calibration inputs came: give a data source, a tensor, or batches")
    inputs = torch.cat(taken)
    return inputs if images is None else inputs[:images]
