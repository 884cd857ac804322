"""Reading activations of any network without hooks: torch's functions are intercepted while a context is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
# every function that bends at (or near) zero, with its in-place form
_BENDING = {
    packet
    for name in ("relu", "gelu", "silu", "hardswish", "leaky_relu", "hardtanh", "elu", "mish", "_prelu_kernel", "relu6")
    for form in (name, name + "_")
    if (packet := getattr(_ATEN, form, None)) is not None
}
_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
_LINEAR = {F.linear}
_NORMS = {
    F.batch_norm,
    torch.batch_norm,
    F.layer_norm,
    torch.layer_norm,
    F.group_norm,
    torch.group_norm,
    F.instance_norm,
    torch.instance_norm,
    F.local_response_norm,
    *([torch.rms_norm, F.rms_norm] if hasattr(torch, "rms_norm") else []),
}


class SignCodes(TorchDispatchMode):
    """Adds to a kernel `(n, n)`, for each ReLU-like activation, in how many signs of its input two images agree."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.kernel = kernel
        self.bits = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count the signs before the function runs: it may work in place."""
        if func.overloadpacket in _BENDING and args[0].shape[:1] == self.kernel.shape[:1]:
            # agreements: both positive + both not, by one product of +-1 codes, exact in float32 below 2 ** 24 bits
            code = torch.where(args[0].flatten(1) > 0, 1.0, -1.0)
            bits = code.shape[1]
            self.kernel += ((code @ code.T).double() + bits) / 2
            self.bits += bits
        return func(*args, **(kwargs or {}))


class _Layers(TorchFunctionMode):
    """Calls `self.layer` with input, output and the channel dimension of every convolution and linear layer."""

    def layer(self, x: Tensor, out: Tensor, channel: int) -> Tensor:
        raise NotImplementedError

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _CONVOLUTIONS:
            return self.layer(args[0], out, 1)
        if func in _LINEAR:
            return self.layer(args[0], out, -1)
        return out


class Outputs(_Layers):
    """Keeps the outputs of all convolutions and linear layers, with their channel dimension, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[tuple[Tensor, int]] = []

    def layer(self, x: Tensor, out: Tensor, channel: int) -> Tensor:
        """Keep the output and hand on a copy, which may then be changed in place."""
        self.outputs.append((out, channel))
        return out.clone()


class PenultimateFeatures(_Layers):
    """Keeps what the last convolution or linear layer saw, averaged over places, `(n, d)`."""

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Tensor, int] | None = None

    def layer(self, x: Tensor, out: Tensor, channel: int) -> Tensor:
        """Remember the input."""
        self._last = (x, channel)
        return out

    @property
    def features(self) -> Tensor | None:
        """The features, or None when no such layer ran."""
        if self._last is None:
            return None
        x, channel = self._last
        return x if x.ndim == 2 else x.movedim(channel, 1).flatten(2).mean(2)


class WithoutNorms(TorchFunctionMode):
    """Every normalisation returns its input."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Skip norms, run the rest."""
        if func in _NORMS:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))
