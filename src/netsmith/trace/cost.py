"""What a network costs: parameters, multiply-adds, latency, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from netsmith.errors import DissectionError
from netsmith.trace.checks import check_sizes, eval_mode, explained, original, packed_tensors, shape_text
from netsmith.trace.counting import multiply_adds

__all__ = [
    "count_macs",
    "count_params",
    "images_at_once",
    "in_parts",
    "measure_latency",
    "memory_bytes",
    "peak_bytes",
]


def count_params(module: nn.Module) -> int:
    """Parameters of a module; one that is used in several places counts once, quantised weights like others.

    Examples:
        >>> netsmith.count_params(torch.nn.Linear(8, 4))
        36
    """
    check_sizes(module)
    return sum(t.numel() for t in [*module.parameters(), *packed_tensors(module)])


def count_macs(module: nn.Module, input_shape: tuple[int, ...] | Tensor) -> int:
    """Multiply-adds of one forward pass in eval mode for one input of shape `input_shape` (without batch).

    Where inputs are no floating numbers (token ids), give a batch of examples in the place of the shape. Counted are
    convolutions and products of matrices, in fused and quantised layers too; nothing is computed unless the network's
    code decides by values. Under `torch.compile` and the wrappers of parallel training the network itself is counted.

    Raises DissectionError for a network that does not run on one such input, and for an operation whose multiply-adds
    are not known: its formula can be given by `torch.utils.flop_counter.register_flop_formula`.

    Examples:
        >>> netsmith.count_macs(torch.nn.Linear(8, 4), (8,))
        32
    """
    return multiply_adds(module, input_shape)


def measure_latency(module: nn.Module, x: Tensor, *, warmup: int = 3, runs: int = 10) -> float:
    """Median time of a forward pass on the batch `x` in eval mode without gradients, in ms.

    A compiled module is measured compiled. Raises DissectionError for a network that does not run on `x`.

    Examples:
        >>> netsmith.measure_latency(torch.nn.Linear(8, 4), torch.rand(1, 8)) > 0  # milliseconds
        True
    """
    times = []
    label = type(original(module)).__name__
    if not isinstance(x, Tensor):
        raise DissectionError(
            f"{label}: expected a batch such as torch.zeros(1, 3, 224, 224), got a {type(x).__name__}"
        )
    what, remedy = f"{label} does not run on a batch of {shape_text(x.shape)}", "Give a batch as the network takes it"
    with eval_mode(module), explained(module, x, what, remedy), torch.no_grad():
        for _ in range(warmup):
            module(x)
        for _ in range(runs):
            _wait(x)
            start = time.perf_counter()
            module(x)
            _wait(x)
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def memory_bytes(module: nn.Module, input_shape: tuple[int, ...] | Tensor, batch: int) -> int:
    """Estimated peak memory of inference on `batch` inputs, in bytes: weights and buffers, and the largest input plus
    output of any one leaf module (what must be alive at once, save tensors kept for a shortcut).

    `input_shape` is as for `count_macs`.

    Examples:
        >>> netsmith.memory_bytes(zoo[1].model, (1, 8, 8), batch=32) > 4 * netsmith.count_params(zoo[1].model)
        True
    """
    state = [*module.parameters(), *module.buffers(), *packed_tensors(module)]
    return sum(t.numel() * t.element_size() for t in state) + batch * peak_bytes(module, input_shape)


def peak_bytes(module: nn.Module, input_shape: tuple[int, ...] | Tensor) -> int:
    """Bytes of the largest input plus output of any one leaf module, or of the whole, for one input."""
    module = original(module)
    if any(isinstance(m, torch.jit.ScriptModule) for m in module.modules()):
        raise DissectionError(
            f"{type(module).__name__}: the memory of TorchScript cannot be estimated, as its layers are not seen; load"
            " the network as plain PyTorch code"
        )
    return _peak(module, lambda: count_macs(module, input_shape))


# Larger tensors a C library gives back to the operating system at once, and every layer pays for new pages: four times
# the CPU time in EfficientNet-Lite0 at 224 pixels in batches of 64, which is fastest one image at a time.
_LAYER_BYTES = 16 << 20
_AT_ONCE = 256  # more gain nothing on a CPU; on a GPU they fill it


@torch.no_grad()
def images_at_once(module: nn.Module, inputs: Tensor) -> int:
    """Return how many inputs a forward pass should take: as many as keep a layer's input and output in 16 MB on a CPU.

    Args:
        module: in evaluation mode; one of `inputs` is run through it.
        inputs: a batch, as the network takes it, on its device.
    """
    if inputs.device.type != "cpu":
        return _AT_ONCE
    peak = _peak(module, lambda: module(inputs[:1]))
    return max(1, min(_AT_ONCE, _LAYER_BYTES // max(1, peak)))


def in_parts(piece: nn.Module, x: Tensor) -> Tensor:
    """Run a piece of a network on a batch, as many of it at once as is fast (`images_at_once`)."""
    return torch.cat([piece(part) for part in x.split(images_at_once(piece, x))])


def _peak(module: nn.Module, run: Callable[[], object]) -> int:
    peak = 0

    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.numel() * value.element_size()
        return sum(size(v) for v in value) if isinstance(value, (list, tuple)) else 0

    def hook(_: nn.Module, args: Any, output: Any) -> None:
        nonlocal peak
        peak = max(peak, size(args) + size(output))

    modules = [module, *(m for m in module.modules() if not any(True for _ in m.children()))]
    # the layers of TorchScript take no hooks
    hooks = [m.register_forward_hook(hook) for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    try:
        run()
    finally:
        for h in hooks:
            h.remove()
    return peak
