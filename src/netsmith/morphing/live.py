"""The model that serves live: one artifact, any size, and a size that changes while requests are answered."""

from __future__ import annotations

import copy
import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from netsmith import limits
from netsmith.errors import BudgetError, MorphError
from netsmith.morphing.coordinates import check_affordable
from netsmith.morphing.generator import Noise
from netsmith.morphing.morphable import Morphable
from netsmith.networks.pretrained import Pretrained
from netsmith.records.architecture import architecture, note
from netsmith.search.budget import format_count
from netsmith.trace.cost import count_macs, count_params, measure_latency


@dataclass(frozen=True)
class Sampling:
    """How weights are read: the mean of `reads` noisy reads, or one exact read.

    Attributes:
        reads: K; 1 reads once.
        noise: coordinate noise of each read, in cells; 0 makes all reads equal, so that one is enough.
        seed: of the noise.

    Examples:
        >>> netsmith.Sampling(reads=4, noise=0.1).seed
        0
    """

    reads: int = 1
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.reads <= limits.COUNT:
            raise MorphError(f"the number of reads must be from 1 to {limits.COUNT}, not {self.reads}")
        if not 0 <= self.noise <= limits.WIDTH:
            raise MorphError(f"noise must be from 0 to {limits.WIDTH} cells, not {self.noise:g}")


EXACT = Sampling()
"""One read without noise."""


@torch.no_grad()
def sample_tensors(morphable: Morphable, widths: Mapping[str, int], how: Sampling = EXACT) -> dict[str, Tensor]:
    """The generated tensors at these widths: the mean over K noisy reads (Yang et al., 2024, section 3.4).

    One running mean is kept, so memory does not grow with K, and no network is copied.
    """
    if how.noise == 0 or how.reads == 1:
        noise = Noise(how.noise, torch.Generator().manual_seed(how.seed)) if how.noise else None
        return morphable.tensors(widths, noise)
    source = torch.Generator().manual_seed(how.seed)
    mean: dict[str, Tensor] = {}
    for k in range(how.reads):
        read = morphable.tensors(widths, Noise(how.noise, source))
        if not mean:
            mean = {name: value.clone() for name, value in read.items()}
            continue
        for name, value in read.items():
            mean[name].lerp_(value, 1.0 / (k + 1))
    return mean


@dataclass(frozen=True)
class Size:
    """What a morphable model serves: its widths by group, their mean ratio, params and MACs of the whole network.

    Examples:
        >>> morphed.model.size
        Size(ratio=1.0, ...)
    """

    ratio: float
    params: int
    macs: int
    widths: Mapping[str, int]


Asked = float | int | Mapping[str, int | float]
"""A size: a ratio, or widths by group."""


class Request(TypedDict, total=False):
    """What else a size may be asked for by (`MorphableModel.widths_for`)."""

    ratio: float | int | None
    widths: Mapping[str, int | float] | None
    params: float | int | None
    macs: float | int | None
    latency_ms: float | int | None
    batch: int


_REQUESTS = ("ratio", "widths", "params", "macs", "latency_ms")


@dataclass(frozen=True)
class _Served:
    """A network and its widths, replaced as one; nobody changes the network once it is here."""

    widths: Mapping[str, int]
    how: Sampling
    network: nn.Module
    size: int  # bytes of its weights


class MorphableModel(Pretrained, nn.Module):
    """One artifact, networks of any size.

    `model.at(0.5)`, `model.at(params=100_000)`, `model.at(macs=20e6)`, `model.at(latency_ms=3.0)` and
    `model.at({"layer3.2.conv1": 24})` give plain networks, which share nothing with this one.

    `model(x)` runs the network of the current size, at first the base's widths; `model.set_size(...)`, which takes the
    same requests, changes it. Any number of threads may call `model(x)` meanwhile: each call runs one whole network, of
    the size before or of the size after. Networks that have been served are kept, up to `cache_mb`, so that going back
    to a size costs nothing.

    Args:
        morphable: base network and generator, fitted.
        input_shape: of one input, without the batch.
        about: name, task, preprocessing and provenance, as a manifest has them: networks of any size are saved with it.
        cache_mb: memory for the weights of networks that have been served.

    Examples:
        >>> morphed.model.at(0.5)(torch.rand(2, 1, 8, 8)).shape  # also at(params=20_000), at({"features.0": 8})
        torch.Size([2, 10])
    """

    how_to_save = (
        "Save what `morph` gave: netsmith.save_morphed(result, FOLDER). Then "
        "netsmith.push_to_hub(FOLDER, 'you/name') puts it to the Hugging Face Hub."
    )

    def __init__(
        self,
        morphable: Morphable,
        input_shape: tuple[int, ...],
        *,
        about: Mapping[str, Any] | None = None,
        cache_mb: float | int = 256,
    ) -> None:
        super().__init__()
        self.morphable = morphable.eval()
        self.input_shape = tuple(input_shape)
        self.about = dict(about or {})
        self.pretrained_cfg = getattr(morphable.base, "pretrained_cfg", None)
        self.cache_mb = float(cache_mb)
        self._reset()

    def _reset(self, served: _Served | None = None) -> None:
        self._lock = threading.RLock()  # whoever reads from the generator, or touches what follows, holds it
        self._served = served
        self._cache: OrderedDict[tuple[object, ...], _Served] = OrderedDict()
        self._sizes: dict[tuple[int, ...], tuple[int, int]] = {}
        self._latencies: dict[tuple[object, ...], float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles take the artifact, not locks and caches."""
        own = ("_lock", "_served", "_cache", "_sizes", "_latencies")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset()

    # --- serving ------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """The output of the current size for a batch `(n, ...)`."""
        served = self._served  # one read: a switch meanwhile changes the next call, not this one
        if served is None:
            self._warn(self.morphable.space.full)
            served = self._serve(self.morphable.space.full, EXACT)
        return served.network(x)

    def set_size(
        self, size: Asked | None = None, *, how: Sampling = EXACT, **request: Unpack[Request]
    ) -> dict[str, int]:
        """Serve another size from the next call on; returns its widths. Requests and errors: see `widths_for`."""
        found = self.widths_for(size, **request)
        self._warn(found)
        self._serve(found, how)
        return found

    @property
    def size(self) -> Size:
        """The current size."""
        served = self._served
        return self.describe(self.morphable.space.full if served is None else served.widths)

    def describe(self, widths: Mapping[str, int]) -> Size:
        """Ratio, params and MACs of the whole network at these widths."""
        params, macs = self.sizes(widths)
        return Size(self.morphable.space.ratio(widths), params, macs, dict(widths))

    def _serve(self, widths: Mapping[str, int], how: Sampling) -> _Served:
        """Make a size the current one: from the cache, or read anew. The last to ask wins."""
        key = (*widths.values(), how)
        with self._lock:
            served = self._cache.get(key)
            if served is None:
                network = self._read(widths, how).requires_grad_(False)
                served = _Served(dict(widths), how, network, _bytes(network))
                self._cache[key] = served
            self._cache.move_to_end(key)
            while len(self._cache) > 1 and self.cached_bytes() > self.cache_mb * 2**20:
                self._cache.popitem(last=False)
            self._served = served
        return served

    def cached_bytes(self) -> int:
        """Bytes of the weights of the networks that are kept."""
        with self._lock:
            return sum(served.size for served in self._cache.values())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MorphableModel:
        """Moving or casting the model drops what was read before; the current size is read again."""
        with self._lock:
            before = self._served
            super()._apply(fn, recurse)
            self._cache.clear()
            self._latencies.clear()
            self._served = None
            if before is not None:
                self._serve(before.widths, before.how)
        return self

    # --- networks of their own ----------------------------------------------------------------------------------------

    def at(self, size: Asked | None = None, *, how: Sampling = EXACT, **request: Unpack[Request]) -> nn.Module:
        """A plain network of its own in evaluation mode at a size: see `widths_for` for requests and errors."""
        found = self.widths_for(size, **request)
        self._warn(found)
        with self._lock:
            served = self._cache.get((*found.values(), how))
            if served is not None:
                return copy.deepcopy(served.network).requires_grad_(True)
            return self._read(found, how)

    def _warn(self, widths: Mapping[str, int]) -> None:
        """Warn the caller of `at`, `set_size` or the model where these widths were not fitted."""
        reason = self.morphable.space.unfitted(widths)
        if reason:
            warnings.warn(f"{reason}: expect a loss of accuracy, and measure it", stacklevel=3)

    def _read(self, widths: Mapping[str, int], how: Sampling) -> nn.Module:
        network = self.morphable.module(widths, sample_tensors(self.morphable, widths, how))
        origin = self.about.get("from", {"name": self.about.get("name", "")})
        fitted = self.morphable.space.fitted(widths)
        note(network, {**architecture(network), **self.about, "from": origin, "fitted": fitted})
        return network

    # --- sizes --------------------------------------------------------------------------------------------------------

    def widths_for(self, size: Asked | None = None, **request: Unpack[Request]) -> dict[str, int]:
        """The widths of every group for one request.

        Args:
            size: a ratio or widths, whichever it is.

        Keyword Args:
            ratio (float): one ratio for all groups.
            widths (Mapping[str, int | float]): widths by group, integers as channels and floats as ratios; the others
                stay at full width.
            params (float): at most so many parameters in the whole network; the widest such ratio is taken.
            macs (float): likewise multiply-adds for one input.
            latency_ms (float): likewise milliseconds a call, measured on this machine with the threads that torch has,
                once for each size, and remembered; more than the largest network needs gives the largest.
            batch (int): inputs in the call that `latency_ms` is for.

        Raises:
            MorphError: not exactly one request, or one that is no size.
            BudgetError: a budget below the smallest network (one channel a group) or above the largest (the base's
                widths, or the highest fitted ratio above them); the message has both.
        """
        asked: dict[str, Any] = {"size": size, **request}
        batch = asked.pop("batch", 1)
        given = {name: value for name, value in asked.items() if value is not None}
        what, value = next(iter(given.items()), ("", 0))
        if len(given) != 1 or what not in ("size", *_REQUESTS):
            raise MorphError(
                f"ask for one of {', '.join(_REQUESTS)} (or a size, a ratio or widths by its type), "
                f"not {' and '.join(given) or 'none'}"
            )
        space = self.morphable.space
        if what in ("size", "ratio", "widths"):
            widths = space.of(value) if isinstance(value, Mapping) else space.at(float(value))
            check_affordable(self.morphable.generator.slots, space.full, widths)
            return widths
        if what == "latency_ms":
            largest = space.at(self._top())
            if value >= self.latency(largest, batch):
                return largest
            return self._widest(what, float(value), lambda w: self.latency(w, batch))
        return self._widest(what, float(value), lambda w: float(self.sizes(w)[what == "macs"]))

    def sizes(self, widths: Mapping[str, int]) -> tuple[int, int]:
        """Params and MACs (of one input) of the whole network at these widths."""
        key = tuple(widths.values())
        with self._lock:
            if key not in self._sizes:
                module = self.morphable.module(widths)
                self._sizes[key] = count_params(module), count_macs(module, self.input_shape)
            return self._sizes[key]

    def latency(self, widths: Mapping[str, int], batch: int = 1) -> float:
        """Milliseconds of a call with `batch` inputs at these widths: the median of ten, measured once a size."""
        if batch < 1:
            raise MorphError(f"a batch holds at least one input, not {batch}")
        key = (*widths.values(), batch, torch.get_num_threads())
        with self._lock:
            if key not in self._latencies:
                first = next(self.morphable.base.parameters())
                x = torch.zeros(batch, *self.input_shape, device=first.device, dtype=first.dtype)
                self._latencies[key] = measure_latency(self.morphable.module(widths), x)
            return self._latencies[key]

    def narrowest(self) -> dict[str, int]:
        """The narrowest widths that a budget may give: one channel in every group."""
        space = self.morphable.space
        return space.at(1 / max(g.width for g in space.groups))

    def _top(self) -> float:
        """The highest ratio that a budget may give: the base's own, or the highest fitted one above it."""
        return max(1.0, self.morphable.space.ratios[1])

    def _widest(self, what: str, bound: float, cost: Callable[[Mapping[str, int]], float]) -> dict[str, int]:
        """The widths of the highest ratio, up to the top one, whose cost is within the bound."""
        space = self.morphable.space
        steps = max(g.width for g in space.groups)
        top = round(self._top() * steps)
        smallest, largest = self.narrowest(), space.at(top / steps)
        least, most = cost(smallest), cost(largest)
        if not least <= bound <= most:
            side = "above the largest" if bound > most else "below the smallest"
            raise BudgetError(
                f"{what} of {_amount(what, bound)} is {side} network of this artifact: it reaches from "
                f"{_amount(what, least)} (one channel a group) to {_amount(what, most)}"
            )
        low, high = 1, top  # cost(low) fits; the highest that fits is looked for
        while low < high:
            middle = (low + high + 1) // 2
            if cost(space.at(middle / steps)) <= bound:
                low = middle
            else:
                high = middle - 1
        return space.at(low / steps)


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


def _amount(what: str, value: float) -> str:
    if not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.3g} ms" if what == "latency_ms" else format_count(round(value))
