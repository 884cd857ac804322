"""Trial runs of a network: what it must take and give, and leaving it as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from netsmith.errors import DissectionError
from netsmith.trace.checks import check_inputs, check_readable, explained, kept_modes, shape_text, uncompiled


def check_arguments(model: nn.Module, x: Tensor, label: str) -> None:
    """Refuse (DissectionError) an example that is no batch, and a network that cannot be looked into or that needs more
    than one input."""
    if not isinstance(x, Tensor):
        raise DissectionError(
            f"{label}: expected an example batch such as torch.zeros(1, 3, 224, 224), but the example is a"
            f" {type(x).__name__}"
        )
    if x.ndim < 2 or 0 in x.shape:
        raise DissectionError(
            f"{label}: expected an example batch (n, ...) such as (1, 3, 224, 224), but the example has shape"
            f" {shape_text(x.shape)}"
        )
    if x.is_meta:
        raise DissectionError(f"{label}: the example is on the meta device and has no values; give torch.zeros(...)")
    check_readable(model, label)
    check_inputs(model, label)


def trial_batches(example: Tensor) -> tuple[Tensor, Tensor]:
    """Batches of two and of three inputs: the example's own first, then noise of the same scale."""
    example = example.detach()
    if not (example.is_floating_point()):
        rows = torch.arange(5, device=example.device) % example.shape[0]
        return example[rows[:2]], example[rows[2:]]
    generator = torch.Generator().manual_seed(0)
    scale = float(example.float().std()) if example.numel() > 1 else 1.0
    scale = scale if 1e-6 < scale < float("inf") else 1.0
    noise = torch.randn((5, *example.shape[1:]), generator=generator) * scale
    noise = noise.to(device=example.device, dtype=example.dtype)
    return torch.cat([example[:1], noise[:1]]), noise[2:]


def run_whole(model: nn.Module, x: Tensor, label: str) -> Tensor:
    """The network's output for `x`; refuses (DissectionError) anything but one finite tensor with the batch first, the
    same each time."""
    what = f"{label} fails on an example of shape {shape_text(x.shape)}"
    with explained(model, x, what, "Give an example of the size it was built for"), torch.no_grad():
        out = model(x.clone())
    if not isinstance(out, Tensor):
        what = f"a {type(out).__name__}" + (f" of {len(out)}" if isinstance(out, (tuple, list, dict)) else "")
        raise DissectionError(
            f"{label}: expected a network whose forward returns one tensor, but it returns {what}; wrap it in a module"
            " that returns the tensor you mean"
        )
    if out.ndim < 1 or out.shape[0] != x.shape[0]:
        raise DissectionError(
            f"{label}: expected an output with the batch first, but {x.shape[0]} inputs give shape "
            f"{shape_text(out.shape)}"
        )
    if not bool(torch.isfinite(out).all()):
        where = _first(model, x, lambda _, now: not bool(torch.isfinite(now).all()))
        raise DissectionError(
            f"{label} gives NaN or infinite values on the example, first in {where}; check its weights and the scale of"
            " the input"
        )
    with explained(model, x, what, "It ran on it before; remove what it keeps from run to run"), torch.no_grad():
        again = model(x.clone())
    if differ(out, again):
        raise DissectionError(
            f"{label} gives another output each time it runs in eval mode, first in {_first(model, x, differ)}, so"
            " nothing can be shown of it; make it deterministic (no random numbers or counters in eval mode, in hooks"
            " neither)"
        )
    return out


def differ(before: Tensor, now: Tensor) -> bool:
    """Whether two outputs differ by more than the order of parallel sums explains."""
    if before.shape != now.shape:
        return True
    if not before.is_floating_point():
        return not torch.equal(before, now)
    return float((before - now).abs().max()) > 1e-4 * float(before.abs().max()) if before.numel() else False


def _first(model: nn.Module, x: Tensor, wrong: Callable[[Tensor, Tensor], bool]) -> str:
    """The first module, in the order in which they end, whose outputs in two runs are `wrong`."""
    outputs: list[list[tuple[nn.Module, Tensor]]] = []

    def hook(module: nn.Module, _: object, out: object) -> None:
        if isinstance(out, Tensor):
            outputs[-1].append((module, out.clone()))

    hooks = [m.register_forward_hook(hook) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    try:
        with torch.no_grad():
            for _ in range(2):
                outputs.append([])
                model(x.clone())
    finally:
        for h in hooks:
            h.remove()
    names = {m: n or "the network itself" for n, m in model.named_modules()}
    for (module, before), (_, now) in zip(*outputs, strict=False):
        if wrong(before, now):
            return f"{names[module]} ({type(module).__name__})"
    return "its last operation"


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back the mode of every module, every buffer and the random state.

    Meanwhile torch's transformer layers run their own code, as they do while they are recorded, and not the fused
    kernel that stands in for it in eval mode, whose numbers are a little different; compiled modules run as plain code.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.random.fork_rng(devices=devices), kept_modes(model), uncompiled():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
