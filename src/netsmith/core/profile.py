"""What a network costs: parameters, multiply-adds, latency, memory; and the budget it has to keep."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from netsmith.errors import BudgetError

_MOST = 1e30  # beyond it, somebody means something else
_SUFFIX = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Bound:
    """A range of allowed values, both ends included; None leaves an end open."""

    min: int | float | None = None
    max: int | float | None = None

    def __post_init__(self) -> None:
        for name, value in (("min", self.min), ("max", self.max)):
            if value is not None and not 0 <= value <= _MOST:
                raise BudgetError(f"a bound must be a finite number of at least 0, not {name}: {str(value)[:40]}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise BudgetError(
                f"min must not exceed max, but min is {format_count(self.min)} and max is {format_count(self.max)};"
                " swap them"
            )

    def contains(self, x: int | float) -> bool:
        """Whether `x` lies in the range."""
        return (self.min is None or x >= self.min) and (self.max is None or x <= self.max)

    def text(self, unit: str = "") -> str:
        """The range in words: `at most 3G`, `between 1M and 2M`, `any`."""
        low = None if self.min is None else format_count(self.min, unit)
        high = None if self.max is None else format_count(self.max, unit)
        if low and high:
            return f"exactly {low}" if self.min == self.max else f"between {low} and {high}"
        return f"at most {high}" if high else f"at least {low}" if low else "any"

    @classmethod
    def parse(cls, value: Any) -> Bound:
        """A bound from what a user writes: `500000` or `"0.5M"` (a maximum), or `{min: ..., max: ...}`."""
        if isinstance(value, Bound):
            return value
        if isinstance(value, dict):
            unknown = set(value) - {"min", "max"}
            if unknown or not value:
                raise BudgetError(
                    "a bound has the keys min and max, not"
                    f" {', '.join(map(repr, sorted(unknown, key=str))) or 'none at all'}"
                )
            return cls(**{k: None if v is None else parse_count(v) for k, v in value.items()})
        return cls(max=parse_count(value))


def parse_count(value: Any) -> int | float:
    """A number from `500000`, `"500000"`, `"0.5M"`, `"3G"` or `"1e6"` (suffixes k, M, G or B, T in powers of 1000)."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = value.strip().replace("_", "").replace(",", "").lower()
        factor = _SUFFIX.get(text[-1:])
        try:
            number = float(text[:-1]) * factor if factor else float(text)
            return int(number) if number.is_integer() else number
        except ValueError:
            pass
    raise BudgetError(f"expected a number such as 500000, '0.5M' or '3G', not {value!r:.80}")


def _optional_bound(value: Any) -> Bound | None:
    return None if value is None else Bound.parse(value)


BoundLike = Bound | int | float | str | Mapping[str, Any] | None
"""What is taken for a bound: see `Budget`."""

OptionalBound = Annotated[Bound | None, BeforeValidator(_optional_bound)]


class Budget(BaseModel):
    """What a network may cost. A bare number or text (`"0.5M"`) is a maximum; `{min: ..., max: ...}` gives both ends.

    `params` and `macs` (one image) are counts, `latency_ms` is milliseconds, `memory_mb` is 10^6 bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    params: OptionalBound = None
    macs: OptionalBound = None
    latency_ms: OptionalBound = None
    memory_mb: OptionalBound = None

    if TYPE_CHECKING:  # what a type checker should let through: anything that becomes a bound

        def __init__(
            self,
            *,
            params: BoundLike = None,
            macs: BoundLike = None,
            latency_ms: BoundLike = None,
            memory_mb: BoundLike = None,
        ) -> None: ...

    def bounds(self) -> dict[str, Bound]:
        """The bounds that are set, by name."""
        return {name: b for name in Budget.model_fields if (b := getattr(self, name)) is not None}

    def check(self, **values: int | float) -> list[str]:
        """One text for each bound that `values` (by the names of the fields) breaks; a value not given breaks none."""
        unknown = set(values) - set(Budget.model_fields)
        assert not unknown, f"no such resource: {unknown}"
        bounds = self.bounds()
        return [
            _broken(name, value, bounds[name])
            for name, value in values.items()
            if name in bounds and not bounds[name].contains(value)
        ]

    def __str__(self) -> str:
        return ", ".join(f"{name} {b.text(_UNITS[name])}" for name, b in self.bounds().items()) or "no bounds"


def _broken(name: str, value: int | float, bound: Bound) -> str:
    unit = _UNITS[name]
    text = f"{name} {format_count(value, unit)} is not {bound.text(unit)}"
    limit = bound.max if bound.max is not None and value > bound.max else bound.min
    if limit is not None and format_count(value, unit) == format_count(limit, unit):
        text += f" ({value:,} against {limit:,})"  # apart by less than the rounding shows
    return text


_UNITS = {"params": "", "macs": "", "latency_ms": "ms", "memory_mb": "MB"}


def format_count(n: int | float, unit: str = "") -> str:
    """`n` for people: 0, 812, 269.72k, 2.5M, 1.25G; with a unit 12.3 ms (units take no k, M or G)."""
    if unit:
        return f"{n:.4g} {unit}"
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= factor * 0.999995:
            return f"{f'{n / factor:.2f}'.rstrip('0').rstrip('.')}{suffix}"
    return f"{n:.2f}".rstrip("0").rstrip(".")


def count_params(module: nn.Module) -> int:
    """Parameters of a module; one that is used in several places counts once."""
    return sum(p.numel() for p in module.parameters())


def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-adds of one forward pass in eval mode for one input of shape `input_shape` (without batch).

    Counted are convolutions and matrix products (`torch.utils.flop_counter`, halved). Nothing is computed: the pass
    runs on shapes only, where fused attention counts in full, which it does not on the CPU in every release of torch.
    """
    state = [*module.parameters(), *module.buffers()]
    device = next((t.device for t in state), torch.device("cpu"))
    dtype = next((t.dtype for t in state if t.is_floating_point()), torch.float32)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    # Code that keeps tensors of its own, unregistered, cannot run on meta; fake tensors take those along. Code that
    # decides by values needs real ones.
    ways = [
        (lambda t: torch.empty_like(t, device="meta"), torch.device("meta"), nullcontext()),
        (fake.from_tensor, device, fake),
        (lambda t: t.detach().clone(), device, nullcontext()),
    ]
    for convert, place, mode in ways[:-1]:
        try:
            return _flops(module, input_shape, convert, place, dtype, mode) // 2
        except (RuntimeError, NotImplementedError, TypeError, AttributeError, ValueError):
            continue
    convert, place, mode = ways[-1]
    return _flops(module, input_shape, convert, place, dtype, mode) // 2


def _flops(
    module: nn.Module,
    input_shape: tuple[int, ...],
    convert: Callable[[Tensor], Tensor],
    device: torch.device,
    dtype: torch.dtype,
    mode: AbstractContextManager[Any],
) -> int:
    """Operations counted in a run of a twin of `module` whose parameters and buffers went through `convert`.

    A twin, because a module may keep what it computes: the original must not come to hold tensors without values.
    """
    memo: dict[int, Any] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(convert(p.detach()), requires_grad=False)
    for b in module.buffers():
        memo[id(b)] = convert(b)
    twin = copy.deepcopy(module, memo).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), mode, counter:
        twin(torch.zeros(1, *input_shape, device=device, dtype=dtype))
    return counter.get_total_flops()


def measure_latency(module: nn.Module, x: Tensor, *, warmup: int = 3, runs: int = 10) -> float:
    """Median time of a forward pass on the batch `x` in eval mode without gradients, in ms."""
    training = {m: m.training for m in module.modules()}
    module.eval()
    times = []
    try:
        with torch.no_grad():
            for _ in range(warmup):
                module(x)
            for _ in range(runs):
                _wait(x)
                start = time.perf_counter()
                module(x)
                _wait(x)
                times.append((time.perf_counter() - start) * 1e3)
    finally:
        for m, mode in training.items():
            m.training = mode
    return statistics.median(times)


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def memory_bytes(module: nn.Module, input_shape: tuple[int, ...], batch: int) -> int:
    """Estimated peak memory of inference on `batch` inputs, in bytes: weights and buffers, and the largest input plus
    output of any one leaf module (what must be alive at once, save tensors kept for a shortcut).

    `input_shape` is without batch.
    """
    weights = sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
    return weights + batch * peak_bytes(module, input_shape)


def peak_bytes(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Bytes of the largest input plus output of any one leaf module, for one image of shape `input_shape`."""
    peak = 0

    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.numel() * value.element_size()
        return sum(size(v) for v in value) if isinstance(value, (list, tuple)) else 0

    def hook(_: nn.Module, args: Any, output: Any) -> None:
        nonlocal peak
        peak = max(peak, size(args) + size(output))

    leaf_modules = [m for m in module.modules() if not any(True for _ in m.children())]
    hooks = [m.register_forward_hook(hook) for m in leaf_modules]
    try:
        count_macs(module, input_shape)
    finally:
        for h in hooks:
            h.remove()
    return peak
