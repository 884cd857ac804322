"""Trial runs of a network: what it must take and give, and leaving it as it was found."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from netsmith.errors import DissectionError


def check_arguments(model: nn.Module, x: Tensor, label: str) -> None:
    """Refuse (DissectionError) an example that is no batch, and a network that needs more than one input."""
    if x.ndim < 2 or 0 in x.shape:
        raise DissectionError(
            f"{label}: expected an example batch (n, ...) such as (1, 3, 224, 224), but the example has shape"
            f" {shape_text(x.shape)}"
        )
    required = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if len(required) > 1:
        raise DissectionError(
            f"{label}: expected a network that takes one tensor, but its forward needs {len(required)} inputs"
            f" ({', '.join(required)}); wrap it in a module whose forward takes one and fills in the others"
        )


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
    """The network's output for `x`; refuses (DissectionError) anything but one finite tensor with the batch first."""
    try:
        with torch.no_grad():
            out = model(x.clone())
    except Exception as error:
        raise DissectionError(
            f"{label} fails on an example of shape {shape_text(x.shape)}: {type(error).__name__}: {error}. Give an "
            "example of the size it was built for"
        ) from error
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
        raise DissectionError(
            f"{label} gives NaN or infinite values on the example, first in {_first_not_finite(model, x)}; check its"
            " weights and the scale of the input"
        )
    return out


def _first_not_finite(model: nn.Module, x: Tensor) -> str:
    found: list[str] = []
    names = {id(m): n or "the network itself" for n, m in model.named_modules()}

    def hook(module: nn.Module, _: object, out: object) -> None:
        if not found and isinstance(out, Tensor) and not bool(torch.isfinite(out).all()):
            found.append(f"{names[id(module)]} ({type(module).__name__})")

    hooks = [m.register_forward_hook(hook) for m in model.modules()]
    try:
        with torch.no_grad():
            model(x.clone())
    finally:
        for h in hooks:
            h.remove()
    return found[0] if found else "its last operation"


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back the mode of every module, every buffer and the random state.

    Meanwhile torch's transformer layers run their own code, as they do while they are recorded, and not the fused
    kernel that stands in for it in eval mode, whose numbers are a little different.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    modes = {m: m.training for m in model.modules()}
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for m, mode in modes.items():
            m.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def shape_text(shape: Sequence[int]) -> str:
    """A shape for messages: 3x32x32."""
    return "x".join(str(s) for s in shape) or "()"
