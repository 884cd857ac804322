"""What long work will take, from a short measurement on this machine: time by MACs, memory and disk by sizes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from netsmith.data.named import describe_data
from netsmith.data.splits import open_data
from netsmith.distributed.processes import own_device
from netsmith.errors import NetsmithError
from netsmith.networks.network import Network, load_source, parse_source
from netsmith.networks.zoo import ZooEntry
from netsmith.trace.cost import count_macs, count_params
from netsmith.training.precision import automatic

_ENOUGH = 0.3  # seconds that a measurement lasts at least
_LARGEST = 1e9  # MACs of a network that is chosen to be measured, where there is such a one
_WORK = 1e9  # MACs of one batch that is measured


@dataclass(frozen=True)
class Sketch:
    """A network's counts, without its weights: MACs of one image, parameters, and its input `(c, h, w)`."""

    name: str
    macs: int
    params: int
    input_shape: tuple[int, int, int]


@dataclass(frozen=True)
class Rate:
    """How fast this machine was with one network.

    Attributes:
        name: of the network.
        forward: multiply-adds a second when it answers.
        training: the same when it learns (the forward pass's multiply-adds, over the time of forward and backward).
        saved_per_mac: bytes kept for the backward pass, a multiply-add.
        device: where.
    """

    name: str
    forward: float
    training: float
    saved_per_mac: float
    device: str


def sketch(entry: ZooEntry) -> Sketch | None:
    """Counts of a source, built without memory or weights; None where building it would run a user's own code.

    Raises:
        SourceError: nothing of that name, or it cannot be built.
    """
    if parse_source(entry.source).scheme == "py":
        return None
    try:
        with torch.device("meta"):
            network = built(entry)
        macs = count_macs(network.model, network.preprocess.input_size)
    except (RuntimeError, NotImplementedError, NetsmithError):  # an initialiser that needs real numbers
        network = built(entry)
        macs = count_macs(network.model, network.preprocess.input_size)
    return Sketch(entry.called(), macs, count_params(network.model), network.preprocess.input_size)


def built(entry: ZooEntry) -> Network:
    """Return the network of an entry with random weights; those of a local artifact are read."""
    parsed = parse_source(entry.source)
    artifact = parsed.scheme == "artifact"
    return load_source(
        entry.source if artifact else f"{parsed.scheme}:{parsed.name}",
        name=entry.called(),
        pretrained=artifact,
        num_classes=entry.num_classes,
        input_size=entry.input_size,
        options=dict(entry.options),
    )


def measured(
    entries: Sequence[ZooEntry],
    sketches: Sequence[Sketch],
    device: str = "cpu",
    *,
    precision: str = "no",
    channels_last: bool = False,
) -> Rate | None:
    """The rate with one of these networks, a middle one that is not too large, with random weights.

    `precision` and `channels_last` are those of the training that is to come.

    Takes about a second, and what building the network takes. None where there is none to measure.
    """
    if not sketches:
        return None
    order = sorted(sketches, key=lambda s: s.macs)
    small = [s for s in order if s.macs <= _LARGEST]
    chosen = small[len(small) // 2] if small else order[0]
    network = built(next(e for e in entries if e.called() == chosen.name))
    where = own_device(device)
    model = network.model.to(where).eval()
    batch = int(min(64, max(2, _WORK // max(chosen.macs, 1))))
    x = torch.rand(batch, *chosen.input_shape, device=where)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)  # pyright: ignore
    half = precision != "no"
    if precision == "auto":
        half = automatic(model, x, batch) == "bf16"
    mixed = torch.autocast(where.type, torch.bfloat16, enabled=half)
    saved = [0]

    def answer() -> None:
        with torch.no_grad():
            model(x)

    def learn() -> None:
        with mixed:
            loss = model(x).float().square().mean()
        loss.backward()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[0] += tensor.numel() * tensor.element_size()
        return tensor

    forward = batch * chosen.macs / _seconds(answer, where)
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learn()
    training = batch * chosen.macs / _seconds(learn, where)
    model.to("cpu")
    return Rate(chosen.name, forward, training, saved[0] / (batch * chosen.macs), str(where))


def product_rate(width: int, device: str = "cpu") -> float:
    """Multiply-adds a second of products with `width x width` matrices, forward, over the time of all three passes."""
    rows, where = torch.rand(4096, width, device=own_device(device)), own_device(device)
    weight = torch.rand(width, width, device=where, requires_grad=True)
    rows.requires_grad_()

    def learn() -> None:
        (rows @ weight).sum().backward()

    return rows.numel() * width / _seconds(learn, where)


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    """The shortest time of one call, after one to warm up."""
    best, began = math.inf, time.perf_counter()
    for turn in range(100):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn:
            best = min(best, time.perf_counter() - start)
        if turn and time.perf_counter() - began > _ENOUGH:
            break
    return best


def image_counts(
    source: str, *, seed: int, validation_fraction: float, size: int | tuple[int, int] | None
) -> tuple[int, int, int] | None:
    """Images for training, validation and test, where the data are on this machine already; else None."""
    try:
        if not describe_data(source).present:
            return None
        splits = open_data(source, seed=seed, validation_fraction=validation_fraction, size=size)
    except NetsmithError:
        return None
    return len(splits.train), len(splits.validation), len(splits.test)


def in_words(seconds: int | float) -> str:
    """A duration as one says it: `40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length:
            return f"{in_digits(seconds / length, 2)} {unit}"
    return f"{max(seconds, 1):.0f} s"


def size_in_words(count: int | float) -> str:
    """Bytes as one says them: `85 MB`, `2.1 GB`."""
    return f"{in_digits(count / 1e9, 2)} GB" if count >= 1e9 else f"{max(count / 1e6, 1):.0f} MB"


def in_digits(value: int | float, digits: int) -> str:
    """A number rounded to so many digits, never with an exponent where it is large: `0.34`, `2.1`, `120`, `12000`."""
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if abs(value) >= 10 ** (digits - 1) else text
