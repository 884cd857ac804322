"""Reading networks from a generator: weights for widths, widths for a budget, and the model that serves them live."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from netsmith.core.profile import count_macs, count_params, format_count, measure_latency
from netsmith.errors import BudgetError, MorphError
from netsmith.morph.generator import Noise
from netsmith.morph.morphable import Morphable


@dataclass(frozen=True)
class Sampling:
    """How weights are read: the mean of `reads` noisy reads, or one exact read.

    Attributes:
        reads: K; 1 reads once.
        noise: coordinate noise of each read, in cells; 0 makes all reads equal, so that one is enough.
        seed: of the noise.
    """

    reads: int = 1
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reads < 1:
            raise MorphError(f"the number of reads must be at least 1, not {self.reads}")
        if self.noise < 0:
            raise MorphError(f"noise must be at least 0 cells, not {self.noise:g}")


@torch.no_grad()
def sample_tensors(morphable: Morphable, widths: Mapping[str, int], how: Sampling = Sampling()) -> dict[str, Tensor]:
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


class MorphableModel(nn.Module):
    """One artifact, networks of any width.

    `model(x)` runs the network at full width; `model.at(0.5)`, `model.at(params=100_000)`, `model.at(macs=20e6)`,
    `model.at(latency_ms=3.0)` and `model.at({"layer3.2.conv1": 24})` give plain networks, which share no memory with
    this one. The last ones are kept, up to `keep`, and given again as they are.

    Args:
        morphable: base network and generator, fitted.
        input_shape: of one input, without the batch.
        keep: networks kept for requests that come again.
    """

    def __init__(self, morphable: Morphable, input_shape: tuple[int, ...], *, keep: int = 8) -> None:
        super().__init__()
        self.morphable = morphable.eval()
        self.input_shape = tuple(input_shape)
        self.keep = keep
        self._kept: OrderedDict[tuple[object, ...], nn.Module] = OrderedDict()
        self._sizes: dict[tuple[int, ...], tuple[int, int]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The output at full width for a batch `(n, ...)`."""
        return self.morphable(x)

    def at(
        self,
        size: float | int | Mapping[str, int] | None = None,
        *,
        params: float | int | None = None,
        macs: float | int | None = None,
        latency_ms: float | int | None = None,
        how: Sampling = Sampling(),
    ) -> nn.Module:
        """A plain network in evaluation mode at a size: see `widths_for` for what can be asked and what is raised."""
        widths = self.widths_for(size, params=params, macs=macs, latency_ms=latency_ms)
        key = (*widths.values(), how)
        if key not in self._kept:
            self._kept[key] = self._read(widths, how)
            while len(self._kept) > self.keep:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _read(self, widths: Mapping[str, int], how: Sampling) -> nn.Module:
        space = self.morphable.space
        if not space.fitted(widths):
            low, high = space.ratios
            warnings.warn(
                f"widths of ratio {space.ratio(widths):.3g} lie outside the fitted range {low:.3g} to {high:.3g}: "
                f"expect a loss of accuracy, and measure it",
                stacklevel=3,
            )
        return self.morphable.module(widths, sample_tensors(self.morphable, widths, how))

    def widths_for(
        self,
        size: float | int | Mapping[str, int] | None = None,
        *,
        params: float | int | None = None,
        macs: float | int | None = None,
        latency_ms: float | int | None = None,
    ) -> dict[str, int]:
        """The widths of every group for one request.

        Args:
            size: one ratio for all groups, or widths by group (others stay at full width).
            params: at most so many parameters in the whole network; the widest such ratio is taken.
            macs: likewise multiply-adds for one input.
            latency_ms: likewise milliseconds for one input, measured here and now on as many threads as torch has.

        Raises:
            MorphError: not exactly one request, or one that is no size.
            BudgetError: a budget below the smallest network (one channel a group) or above the largest that was
                fitted; the message has both.
        """
        asked = {"size": size, "params": params, "macs": macs, "latency_ms": latency_ms}
        given = [name for name, value in asked.items() if value is not None]
        if len(given) != 1:
            raise MorphError(f"ask for one of size, params, macs or latency_ms, not {', '.join(given) or 'none'}")
        space = self.morphable.space
        if isinstance(size, Mapping):
            return space.of(size)
        if size is not None:
            return space.at(float(size))
        if latency_ms is not None:
            return self._widest("latency_ms", float(latency_ms), self._latency)
        if params is not None:
            return self._widest("params", float(params), lambda w: float(self.sizes(w)[0]))
        assert macs is not None
        return self._widest("macs", float(macs), lambda w: float(self.sizes(w)[1]))

    def sizes(self, widths: Mapping[str, int]) -> tuple[int, int]:
        """Params and MACs (of one input) of the whole network at these widths."""
        key = tuple(widths.values())
        if key not in self._sizes:
            module = self.morphable.module(widths)
            self._sizes[key] = count_params(module), count_macs(module, self.input_shape)
        return self._sizes[key]

    def narrowest(self) -> dict[str, int]:
        """The narrowest widths that a budget may give: one channel in every group."""
        space = self.morphable.space
        return space.at(1 / max(g.width for g in space.groups))

    def _latency(self, widths: Mapping[str, int]) -> float:
        return measure_latency(self.morphable.module(widths), torch.zeros(1, *self.input_shape))

    def _widest(self, what: str, bound: float, cost: Callable[[Mapping[str, int]], float]) -> dict[str, int]:
        """The widths of the highest ratio, up to the highest fitted one, whose cost is within the bound."""
        space = self.morphable.space
        steps = max(g.width for g in space.groups)
        top = max(steps, round(space.ratios[1] * steps))
        smallest, largest = self.narrowest(), space.at(top / steps)
        least, most = cost(smallest), cost(largest)
        if bound < least or bound > most:
            side = "below the smallest" if bound < least else "above the largest"
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


def _amount(what: str, value: float) -> str:
    return f"{value:.3g} ms" if what == "latency_ms" else format_count(round(value))
