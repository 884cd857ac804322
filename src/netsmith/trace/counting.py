"""Multiply-adds of a network: every operation that multiplies and sums is counted by its shapes, or named."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from netsmith.errors import DissectionError, NetsmithError
from netsmith.trace.checks import (
    check_inputs,
    check_sizes,
    eval_mode,
    explained,
    original,
    packed,
    shape_text,
    uncompiled,
)

# Words in the names of torch's operations that multiply and sum. One of them without a formula is refused.
_PRODUCTS = frozenset(
    {"mm", "addmm", "int4pack", "int8pack", "mv", "addmv", "dot", "vdot", "bmm", "baddbmm", "addbmm", "matmul", "conv"}
    | {"convolution", "linear", "trilinear", "lstm", "gru", "rnn", "attention", "transformer", "cdist"}
)
_ELEMENTWISE = re.compile(r"upsample|fused_(lstm|gru)_cell|convert")
# Namespaces of operations that their names describe; of others nothing is known.
_NAMESPACES = frozenset({"aten", "prim", "prims", "quantized", "torchvision", "profiler", "c10d", "_c10d_functional"})


def _trilinear(args: Sequence[Any], out: Tensor) -> int:
    shapes = []
    for factor, new in zip(args[:3], args[3:6], strict=True):
        for dim in sorted(new):
            factor = factor.unsqueeze(dim)
        shapes.append(factor.shape)
    return math.prod(torch.broadcast_shapes(*shapes))


def _rows(args: Sequence[Any], out: Any) -> int:
    """Return the products of layers that multiply each vector of the input with all their weights."""
    return args[0].numel() // args[0].shape[-1] * sum(t.numel() for t in packed(args[1:]) if t.ndim == 2)


# Multiply-adds by arguments and output, for what `torch.utils.flop_counter` has no formula.
_FORMULAS: dict[str, Callable[[Sequence[Any], Any], int]] = {
    "aten.mv": lambda args, out: args[0].numel(),
    "aten.addmv": lambda args, out: args[1].numel(),
    "aten.dot": lambda args, out: args[0].numel(),
    "aten.vdot": lambda args, out: args[0].numel(),
    "aten.addbmm": lambda args, out: args[1].numel() * args[2].shape[-1],
    "aten._int_mm": lambda args, out: args[0].numel() * args[1].shape[-1],
    "aten._cdist_forward": lambda args, out: out.numel() * args[0].shape[-1],
    "aten._euclidean_dist": lambda args, out: out.numel() * args[0].shape[-1],
    "aten._trilinear": _trilinear,
    "aten.quantized_lstm": lambda args, out: _rows((args[0], args[2]), out),  # args[1]: the first states
    "aten.quantized_gru": lambda args, out: _rows((args[0], args[2]), out),
    "aten.mkldnn_rnn_layer": lambda args, out: _rows(args[:3], out),
    "aten._cudnn_rnn": lambda args, out: _rows(args[:2], out),
    "aten.miopen_rnn": lambda args, out: _rows(args[:2], out),
    "quantized.matmul": lambda args, out: out.numel() * args[0].shape[-1],
    "torchvision.deform_conv2d": lambda args, out: out.numel() * args[1][0].numel(),
}


def _formula(name: str) -> Callable[[Sequence[Any], Any], int] | None:
    if name in _FORMULAS or not name.startswith("quantized."):
        return _FORMULAS.get(name)
    if "transpose" in name:  # every input entry meets all weights of its channel
        return lambda args, out: args[0].numel() * packed(args[1])[0][0].numel()
    if "conv" in name:
        return lambda args, out: out.numel() * packed(args[1])[0][0].numel()
    if "cell" in name:
        return lambda args, out: _rows((args[0], [v for v in args if isinstance(v, torch.ScriptObject)]), out)
    return _rows if "linear" in name else None


class _Counter(TorchDispatchMode):
    """The multiply-adds of all operations that run meanwhile."""

    supports_higher_order_operators = True

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and count it."""
        kwargs = kwargs or {}
        operation = getattr(func, "_overloadpacket", func)
        formula, of_torch = _formula(str(operation)), flop_registry.get(operation)
        if formula is None and of_torch is None:
            if isinstance(func, torch._ops.HigherOrderOperator):
                raise self._unknown(str(func))
            if func.namespace != "prim":
                with self:
                    out = func.decompose(*args, **kwargs)
                if out is not NotImplemented:
                    return out
            words = set(re.split(r"[_.]", re.sub(r"(?<=[a-z])\d+d?\b|_(?=\d)", "", func._opname)))
            products = words & _PRODUCTS and not _ELEMENTWISE.search(func._opname)
            if products or func.namespace not in _NAMESPACES:
                raise self._unknown(str(operation))
        out = func(*args, **kwargs)
        if formula is not None:
            self.macs += formula(args, out)
        elif of_torch is not None:
            self.macs += of_torch(*args, **kwargs, out_val=out) // 2
        return out

    def _unknown(self, operation: str) -> DissectionError:
        name = operation.replace(".", "::", 1)
        return DissectionError(
            f"{self.label}: the multiply-adds of {name} are not known, so they cannot be counted. Give them by"
            f" torch.utils.flop_counter.register_flop_formula(torch.ops.{operation}), as two FLOPs each"
        )


class _NumPy(TorchFunctionMode):
    """Refuses what would be computed out of sight."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` unless it hands numbers over to NumPy."""
        if getattr(func, "__name__", "") in ("numpy", "__array__") and args[0].is_floating_point():
            raise DissectionError(
                f"{self.label} computes in NumPy (Tensor.{func.__name__}), where multiply-adds cannot be counted; write"
                " that part with torch functions"
            )
        return func(*args, **(kwargs or {}))


def multiply_adds(module: nn.Module, given: Tensor | tuple[int, ...]) -> int:
    """Count the multiply-adds of one pass in eval mode, for one input (`given`: its shape, or a batch of examples).

    The pass runs on shapes only where it can, in the plain operations that fused kernels stand for. Code that keeps
    tensors of its own, unregistered, cannot run on the meta device; fake tensors take those along. Code that decides by
    values needs real ones.
    """
    module = original(module)
    label = type(module).__name__
    check_inputs(module, label)
    check_sizes(module)
    state = [*module.parameters(), *module.buffers()]
    device = next((t.device for t in state), torch.device("cpu"))
    if not isinstance(given, Tensor | tuple | list) or (isinstance(given, Tensor) and 0 in given.shape):
        kind = (
            f"a batch of shape {shape_text(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        )
        raise DissectionError(
            f"{label}: expected the shape of one input, such as (3, 224, 224), or a batch of examples, got {kind}"
        )
    if isinstance(given, Tensor):
        x = given.detach()[:1].to(device)
    else:
        dtype = next((t.dtype for t in state if t.is_floating_point()), torch.float32)
        x = torch.zeros(1, *given, device=device, dtype=dtype)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    ways: list[tuple[Callable[[Tensor], Tensor], AbstractContextManager[Any]]] = [
        (lambda t: torch.empty_like(t, device="meta"), nullcontext()),
        (fake.from_tensor, fake),
    ]
    with _plain_operations():
        for convert, mode in ways:
            try:
                return _count(_twin(module, convert), convert(x), mode, label)
            except NetsmithError:
                raise
            except Exception:  # whatever its code makes of tensors without values: real ones will tell
                continue
        remedy = "Give the shape of one input, without the batch, or a batch of examples"
        what = f"{label} does not run on one input of {shape_text(x.shape[1:])}"
        with eval_mode(module), explained(module, x, what, remedy):
            return _count(module, x, _NumPy(label), label)


def _count(module: nn.Module, x: Tensor, mode: AbstractContextManager[Any], label: str) -> int:
    with torch.no_grad(), mode, _Counter(label) as counter:
        module(x.clone())
    return counter.macs


def _twin(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy `module` with parameters and buffers converted: it may keep what it computes, without values."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(convert(p.detach()), requires_grad=False)
    for b in module.buffers():
        memo[id(b)] = convert(b)
    return copy.deepcopy(module, memo).eval()


@contextmanager
def _plain_operations() -> Iterator[None]:
    """Have fused and compiled code run as the operations it is made of."""
    fused = torch.backends.mha.get_fastpath_enabled()
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # prints a traceback for each operation it cannot run
    silent = logger.disabled
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        stack.callback(setattr, logger, "disabled", silent)
        torch.backends.mha.set_fastpath_enabled(False)
        logger.disabled = True
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(uncompiled())
        yield
