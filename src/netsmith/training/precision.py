"""Which precision a training computes in: float32, or a 16-bit type where that is faster on the device at hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

# Where a processor computes in bfloat16, a step takes 0.5 to 0.8 of its time in float32 above these two numbers
# (ResNets, vision transformers), and up to twice as long below (LeNet, MobileNets, networks for 8x8 digits), since
# casting costs more than products gain. Counted, not timed: a choice within the noise of a clock would change the
# result from run to run.
_LAYER_MACS = 2e7  # of a layer, for a batch
_MACS_PER_OUTPUT = 100
_TRIAL = 16  # images by which a precision that was asked for is timed


def automatic(model: nn.Module, inputs: Tensor, batch_size: int) -> Literal["no", "bf16"]:
    """Return the faster of float32 and bfloat16 for steps of a network; equal networks and devices give equal answers.

    Args:
        model: in evaluation mode.
        inputs: some inputs, as the network takes them, on its device.
        batch_size: inputs of a step.
    """
    macs, outputs, layers = _work(model, inputs[:1])
    large = macs * batch_size >= _LAYER_MACS * layers and macs >= _MACS_PER_OUTPUT * outputs
    return "bf16" if large and _computes_in_bfloat16(inputs.device) else "no"


def relative_time(model: nn.Module, inputs: Tensor, precision: Literal["bf16", "fp16"]) -> float:
    """Return how long a step takes in a 16-bit precision, as a multiple of its time in float32; arguments as above."""
    kind, device = _TYPES[precision], inputs.device
    if device.type == "cpu" and (slow := _of_a_convolution(kind)) > 1:
        return slow  # emulated: a step of a whole network could take minutes
    x = inputs[:1].expand(_TRIAL, *inputs.shape[1:])
    return _ratio(lambda: model(x).float().square().mean(), kind, device)


def _work(model: nn.Module, inputs: Tensor) -> tuple[int, int, int]:
    """Return multiply-adds, numbers that come out, and count of the layers with a matrix of weights, of one run."""
    counts: list[tuple[int, int]] = []

    def note(module: nn.Module, _: object, output: object) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim > 1 and isinstance(output, Tensor):
            counts.append((output.numel() * weight.numel() // max(1, weight.shape[0]), output.numel()))

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(macs for macs, _ in counts), sum(numbers for _, numbers in counts), max(1, len(counts))


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # half the time where the processor has such instructions, 4 to 50 times the time where it has not
    return device.type == "cpu" and _of_a_convolution(torch.bfloat16) < 1


@cache
def _of_a_convolution(kind: torch.dtype) -> float:
    with torch.random.fork_rng(devices=[]):
        layer, images = nn.Conv2d(32, 32, 3), torch.rand(8, 32, 32, 32)
    return _ratio(lambda: layer(images).float().mean(), kind, torch.device("cpu"))


def _ratio(step: Callable[[], Tensor], kind: torch.dtype, device: torch.device) -> float:
    return _seconds(step, kind, device) / max(1e-9, _seconds(step, None, device))


def _seconds(step: Callable[[], Tensor], kind: torch.dtype | None, device: torch.device) -> float:
    """Return the time of a forward and a backward pass, the best of two after one to warm up."""

    def run() -> float:
        began = _clock(device)
        with torch.autocast(device.type, kind, enabled=kind is not None):
            loss = step()
        if loss.requires_grad:
            loss.backward()
        return _clock(device) - began

    run()
    return min(run(), run())


def _clock(device: torch.device) -> float:
    """Return a time in seconds: on a CPU that of this process alone, whoever shares the machine."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()
