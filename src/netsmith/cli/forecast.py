"""What a run would take, for `--plan`: time from a short measurement, memory, disk. Rough, and said to be."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

from netsmith import limits
from netsmith.cli.estimates import (
    Rate,
    Sketch,
    image_counts,
    in_digits,
    in_words,
    measured,
    product_rate,
    size_in_words,
    sketch,
)
from netsmith.config import DataSection, MorphConfig, ReassembleConfig
from netsmith.config.sections import Machine
from netsmith.morphing.inr import INR
from netsmith.morphing.pipeline import WARM_START
from netsmith.networks.zoo import ZooEntry
from netsmith.search.budget import Bound
from netsmith.training.engine import Progress, TrainSettings

_CUTS = 16  # of a network, as a rule: between 8 (ResNet-18) and 24 (large transformers)
_OVERHEAD = 0.5  # seconds for building and fitting one candidate, images apart
_FITTED_PASSES = 4  # of the stitching images through a candidate: adapters one after another, the head, a check
_REPAIRED, _REPAIR_IMAGES = 25, 2048  # networks whose statistics a grid measures, on so many images
_CHECKPOINTS = 14  # of the keyframes, together: copies of the network (weights, their average, momentum, the best)
_KERNEL = 9  # numbers that an `inr` gives at once, of most of a convolutional network's
_WIDEST = 1024  # product that is measured: wider ones are as fast
_BEGINS = "estimate"


def forecast_reassembly(config: ReassembleConfig, device: str, progress: Progress | None = None) -> list[str]:
    """Time by step, memory and disk of a reassembly, one text a line; says what could not be known."""
    sketches = _sketches(config.zoo, progress)
    rate = measured(config.zoo, sketches, device, **_manner(config, config.finetune))
    counts = _counts(config.data)
    if rate is None or counts is None:
        return [_unknown(rate, config.data.source)]
    train, validation, test = counts
    macs = sum(s.macs for s in sketches)
    chosen = _expected([s.macs for s in sketches], config.budget.macs)
    params = _expected([s.params for s in sketches], config.budget.params)
    fit, scored = min(config.stitch.images, train), min(config.score.images, validation)
    images = config.search.candidates * (_FITTED_PASSES * fit + scored)
    seconds = {
        "accuracy of the zoo": (validation + test) * macs / rate.forward,
        "representations": min(config.probe.images, train) * macs / rate.forward,
        "stitch costs": 2 * fit * macs / rate.forward,
        "scoring": images * chosen / rate.forward + config.search.candidates * _OVERHEAD,
    }
    tune = config.finetune
    if tune is not None:
        epochs = config.score.finalists * tune.epochs
        seconds["fine-tuning"] = epochs * (train / rate.training + validation / rate.forward) * chosen
    grams = len(sketches) * _CUTS * 4 * config.probe.images**2
    weights = 4 * sum(s.params for s in sketches)
    batch = 0 if tune is None else tune.batch_size
    memory = weights + grams + 20 * params + batch * chosen * rate.saved_per_mac
    disk = grams + 4 * params * (1 + 4 * (config.score.finalists if tune is not None else 0))
    return _lines(rate, seconds, memory, disk, len(sketches) < len(config.zoo))


def forecast_morph(config: MorphConfig, device: str, progress: Progress | None = None) -> list[str]:
    """Time by step, memory and disk of a morphing, one text a line; says what could not be known."""
    sketches = _sketches([config.network], progress)
    rate = measured([config.network], sketches, device, **_manner(config, config.training))
    counts = _counts(config.data)
    if rate is None or counts is None:
        return [_unknown(rate, config.data.source)]
    train, validation, test = counts
    network, tune = sketches[0], config.training
    grid = tune is not None and config.generator.kind == "grid"
    mean = _mean_macs(config)
    seconds = {"ordering": 2 * min(config.order.images, train) * network.macs / rate.forward}
    read = 0.0
    if config.generator.kind == INR.kind:
        read = _read(config, network, device)
        seconds["warm start"] = _whole(config, "warm_start", WARM_START) * read * (1 + mean**2) / 2
    if tune is not None:
        apart = config.fitting.apart if grid else 0.0  # of the epochs, in which a step is one keyframe's
        step = (apart + (1 - apart) * config.fitting.per_step) * train * mean / rate.training
        judged = 3 * validation * mean / rate.forward
        taught = min(config.fitting.views, tune.epochs) * train / tune.epochs / rate.forward
        seconds["fitting"] = tune.epochs * (step + judged + taught) * network.macs
        seconds["fitting"] += tune.epochs * (train / tune.batch_size) * config.fitting.per_step * read * mean**2
        if grid:
            seconds["repair"] = _REPAIRED * min(_REPAIR_IMAGES, train) * mean * network.macs / rate.forward
    measures = sum(min(r, 1.0) for r in config.ratios) + 2
    seconds["measuring"] = measures * (validation + test) * network.macs / rate.forward
    batch = 0 if tune is None else tune.batch_size * config.fitting.per_step
    kept = config.fitting.cache_mb * 2**20 if tune is not None else 0
    memory = 4 * network.params * 8 + batch * network.macs * rate.saved_per_mac + kept
    disk = 4 * network.params * 2 * 4
    if grid:
        disk += 4 * network.params * _CHECKPOINTS
    return _lines(rate, seconds, memory, disk, False)


def _expected(counts: Sequence[int], bound: Bound | None) -> float:
    """What the chosen network will have: as much as its bound allows, yet no more than the largest of the zoo."""
    if bound is None or bound.max is None:
        return sum(counts) / len(counts)
    return min(float(bound.max), float(max(counts)))


def _manner(config: Machine, tune: TrainSettings | None) -> dict[str, Any]:
    if tune is None:
        return {}
    return {"precision": config.filled(tune, "precision").precision, "channels_last": tune.channels_last}


def _read(config: MorphConfig, network: Sketch, device: str) -> float:
    """Seconds in which an `inr` gives all weights at full width once, and learns from that."""
    usual = inspect.signature(INR).parameters
    layers, hidden = (_whole(config, name, usual[name].default) for name in ("layers", "hidden"))
    return network.params / _KERNEL * layers * hidden**2 / product_rate(max(1, min(hidden, _WIDEST)), device)


def _whole(config: MorphConfig, name: str, default: int) -> int:
    """A number of the generator's settings; what is none is refused later."""
    found = config.generator.settings.get(name, default)
    return found if type(found) is int and 0 <= found <= limits.INTEGER else default


def _mean_macs(config: MorphConfig) -> float:
    """Of the drawn widths, over those of the base network: inner widths cost in proportion."""
    low, high = (float(w) if w <= 4 else 1.0 for w in config.space.widths)
    return (low + high) / 2


def _sketches(entries: Sequence[ZooEntry], progress: Progress | None) -> list[Sketch]:
    found = []
    for i, entry in enumerate(entries):
        if progress is not None:
            progress("counting MACs", i, len(entries), entry.called())
        one = sketch(entry)
        if one is not None:
            found.append(one)
    if progress is not None:
        progress("counting MACs", len(entries), len(entries))
    return found


def _counts(data: DataSection) -> tuple[int, int, int] | None:
    return image_counts(data.source, seed=data.seed, validation_fraction=data.validation_fraction, size=data.size)


def _unknown(rate: Rate | None, source: str) -> str:
    if rate is None:
        return f"{_BEGINS}: none, since counting a network of the user's own would run its code"
    return (
        f"{_BEGINS}: none before {source} is on this machine; with {rate.name}, {rate.device} does "
        f"{_giga(rate.forward)} MACs a second, {_giga(rate.training)} while training"
    )


def _giga(count: float) -> str:
    return f"{in_digits(count / 1e9, 3)} G"


def _lines(rate: Rate, seconds: dict[str, float], memory: int | float, disk: int | float, partly: bool) -> list[str]:
    parts = ", ".join(f"{name} {in_words(value)}" for name, value in seconds.items())
    lines = [
        f"{_BEGINS}, within a factor of about two, for one process on {rate.device} as it is now "
        f"({_giga(rate.forward)} MACs a second with {rate.name}, {_giga(rate.training)} while training):",
        f"  time: about {in_words(math.fsum(seconds.values()))} ({parts})",
        f"  memory: about {size_in_words(memory)} beside the images and the libraries",
        f"  disk: about {size_in_words(disk)} in the output folder",
    ]
    return [*lines, "  without the networks of the user's own, whose code a plan does not run"] if partly else lines
