"""The paper's generator: for every tensor a small residual network, from the coordinates of an entry to its value.

Yang et al., "Neural Metamorphosis" (ECCV 2024), section 3.2. All tensors of one kernel size are evaluated in one
batched product for each layer. The first layer is linear in the features of `o` and of `i`, so it is computed for the
`n_out` and the `n_in` positions, not for their `n_out * n_in` pairs, and added up: the same numbers, far less work.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from netsmith.data.images import derived_seed
from netsmith.distributed import processes, stopping
from netsmith.errors import MorphError, TrainingError, did_you_mean
from netsmith.files.cache import digest
from netsmith.limits import amount, memory
from netsmith.morphing.coordinates import along, cells
from netsmith.morphing.features import ROWS, Part, View, fourier, part, runs, view
from netsmith.morphing.generator import Generator, Noise
from netsmith.morphing.settings import Order
from netsmith.morphing.space import MorphSpace
from netsmith.trace.chain import Chain
from netsmith.training.checkpoint import (
    another_run,
    load_optimizer,
    optimizer_tensors,
    prefixed,
    read_state,
    unprefixed,
    write_state,
)
from netsmith.training.measure import Progress
from netsmith.widths.groups import Axis, WidthGroup

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What the products may be computed in; weights come out in float32 from both."""

WARM_START = 1000
"""Steps in which the base's weights are learned before fitting, unless the settings say otherwise."""

SAVE_EVERY = 600.0
"""Seconds after which the state of a warm start is written, too."""

WARM = "warm-start.safetensors"
"""The state of a warm start in a folder of checkpoints."""

_COLUMNS = 16
"""Products with fewer columns take longer than with so many, in float32 on a CPU."""


class Bank(nn.Module):
    """The residual MLPs of all tensors of one kernel size, their parameters stacked; one product serves all of them.

    A first layer and `layers - 1` residual ones, `h + relu(h W + b)`, then a linear one that gives the kernel. The
    values come out normalised: a tensor's entries have mean `mean` and deviation `std` (t, 1, 1) times and plus that.
    """

    def __init__(self, values: Sequence[Tensor], c: int, layers: int, hidden: int, rng: torch.Generator) -> None:
        super().__init__()
        t, kernel = len(values), values[0].shape[1]
        self.c = c

        def normal(rows: int, columns: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(t, rows, columns, generator=rng) * std)

        def zeros(columns: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(t, 1, columns))

        self.first = normal(4 * c, hidden, math.sqrt(1.0 / c))
        self.first_bias = zeros(hidden)
        # the residual layers add up to about what the first one gave
        self.weights = nn.ParameterList(
            normal(hidden, hidden, math.sqrt(2.0 / hidden) / layers) for _ in range(layers - 1)
        )
        self.biases = nn.ParameterList(zeros(hidden) for _ in range(layers - 1))
        self.last = normal(hidden, kernel, math.sqrt(1.0 / hidden))
        self.last_bias = zeros(kernel)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.stack([v.mean() for v in values])[:, None, None])
        self.register_buffer("std", torch.stack([deviation(v) for v in values])[:, None, None])

    def forward(
        self, parts: Sequence[Part], noise: Noise | None, dtype: torch.dtype, again: bool
    ) -> Iterator[tuple[Part, Tensor, Tensor, Tensor]]:
        """Each part with its normalised values (t, m, k) in float32, and mean and deviation of its tensors.

        `dtype` is that of the products; `again` computes activations once more in the backward pass.
        """
        stacked = [self.first, self.first_bias, self.last, self.last_bias, self.mean, self.std]
        stacked += [*self.weights, *self.biases]
        # splitting once gives views; taking slices would make a whole gradient for each slice
        counts = [len(p.sizes) for p in parts]
        pieces = [p.split(counts) if len(counts) > 1 else (p,) for p in stacked]
        for one, (first, first_bias, last, last_bias, mean, std, *rest) in zip(
            parts, zip(*pieces, strict=True), strict=True
        ):
            o, i, sizes = one.features
            if noise is not None:
                o, i = (fourier(x, omega) for x, omega in zip(one.moved(noise), one.omegas, strict=True))
            of_o, of_i, of_sizes = first.split([self.c, self.c, 2 * self.c], dim=1)
            a = torch.baddbmm(torch.baddbmm(first_bias, sizes, of_sizes), o, of_o).to(dtype)
            b = torch.bmm(i, of_i).to(dtype)
            # a tensor beyond ROWS is alone in its part
            step = max(1, ROWS // b.shape[1]) if one.rows > ROWS else a.shape[1]
            layers = [p.to(dtype) for p in (*rest, last, last_bias)]
            found = []
            for piece in a.split(step, dim=1):
                if again:
                    found.append(
                        checkpoint(trunk, one.sizes, piece, b, *layers, use_reentrant=False, preserve_rng_state=False)
                    )
                else:
                    found.append(trunk(one.sizes, piece, b, *layers))
            yield one, (found[0] if len(found) == 1 else torch.cat(found, dim=1)), mean, std


def trunk(sizes: Sequence[tuple[int, int]], a: Tensor, b: Tensor, *layers: Tensor) -> Tensor:
    """From the first layer's share of outputs `a` (t, n_out, h) and of inputs `b` (t, n_in, h) to values (t, m, k).

    `layers` are the residual layers' weights, then their biases, then the last weight and bias.
    """
    if len(set(sizes)) == 1:
        h = (a[:, :, None] + b[:, None]).flatten(1, 2)
    else:
        h = pad_sequence([(a[k, :o, None] + b[k, None, :i]).flatten(0, 1) for k, (o, i) in enumerate(sizes)], True)
    h = h.relu_()
    depth = len(layers) // 2 - 1
    for weight, bias in zip(layers[:depth], layers[depth : 2 * depth], strict=True):
        h = h + torch.baddbmm(bias, h, weight).relu_()
    last, bias = layers[-2:]
    columns = last.shape[2]
    if last.dtype == torch.float32 and columns < _COLUMNS and h.device.type == "cpu":
        last, bias = (nn.functional.pad(p, (0, _COLUMNS - columns)) for p in (last, bias))
    return torch.baddbmm(bias, h, last)[..., :columns].float()


def deviation(values: Tensor) -> Tensor:
    """Standard deviation; of constant values a hundredth of them, or of one."""
    std, largest = values.std(correction=0), values.abs().max()
    return std if std > 1e-6 * largest else (largest if largest > 0 else torch.ones(())) * 0.01


class Plans(OrderedDict[Any, Any]):
    """What was computed for the last width vectors. Copies and files of the generator begin with none."""

    LIMIT = 64

    def get_or(self, key: Any, make: Callable[[], Any]) -> Any:
        """The entry of `key`, made if there is none; the one not asked for longest goes."""
        if key not in self:
            self[key] = make()
            if len(self) > self.LIMIT:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return (Plans, ())


class INR(Generator):
    """Coordinates in, weights out: one residual MLP for each tensor (Yang et al., "Neural Metamorphosis", ECCV 2024).

    An entry `(o, i)` has the coordinates `(o / n_out, i / n_in, n_out, n_in)`
    (`netsmith.morphing.coordinates.relative`), of which the MLP gets Fourier features (`frequencies`); it gives the
    `k x k` kernel. Its output is normalised: it is multiplied by the base tensor's deviation, added to its mean, and
    scaled by the base's fan-in over the fan-in at these widths. Variances of batch norms (`running_var`) are generated
    as logarithms, so they are positive.

    At the defaults (the published configuration) this has some 0.3 million parameters for every tensor.

    Args:
        tensors: see `Generator`; channels in an order in which neighbours are alike.
        groups: see `Generator`.
        layers: a first layer and `layers - 1` residual ones.
        hidden: their width.
        frequencies: of the Fourier features, for each coordinate.
        precision: of the products, "float32" or "bfloat16"; parameters and what comes out are float32.
        warm_start: steps of the method `warm_start` when fitting begins (`begin`).
        seed: of the first parameters.

    Raises:
        MorphError: a setting out of its range, or a tensor with more than two dimensions that change with the widths.
    """

    kind = "inr"
    order: ClassVar[Order] = "smooth"

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        groups: Sequence[WidthGroup],
        layers: int = 5,
        hidden: int = 256,
        frequencies: int = 16,
        precision: str = "float32",
        warm_start: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(tensors, groups)
        limits = {"layers": (layers, 1, 64), "hidden": (hidden, 1, 2**14), "frequencies": (frequencies, 1, 64)}
        for name, (value, low, high) in (limits | {"warm_start": (warm_start, 0, 10**9)}).items():
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise MorphError(
                    f"{name} of the generator 'inr' must be an integer from {low} to {high}, not {value!r}"
                )
        if precision not in PRECISIONS:
            raise MorphError(f"unknown precision '{precision}'. {did_you_mean(precision, PRECISIONS)}")
        self._settings = {"layers": layers, "hidden": hidden, "frequencies": frequencies, "precision": precision}
        self._settings["seed"] = seed
        self.count, self.dtype = frequencies, PRECISIONS[precision]
        by_kernel: dict[int, list[View]] = {}
        for v in sorted((view(s) for s in self.slots), key=lambda v: v.rows):
            by_kernel.setdefault(v.kernel, []).append(v)
        self.views = tuple(by_kernel.values())
        values = len(self.slots) * hidden * (8 * frequencies + (layers - 1) * hidden)
        if 4 * values > memory():
            raise MorphError(
                f"a generator 'inr' with {layers} layers of {hidden} for each of {len(self.slots)} tensors takes "
                f"{amount(4 * values)}, more than the memory of this machine ({amount(memory())})"
            )
        rng = torch.Generator().manual_seed(seed)
        self.banks = nn.ModuleList(
            Bank([target(v, tensors) for v in views], 2 * frequencies + 1, layers, hidden, rng) for views in self.views
        )
        self._plans = Plans()
        self._warm_start = warm_start

    @classmethod
    def defaults(
        cls, settings: Mapping[str, Any], model: nn.Module, space: MorphSpace, chain: Chain | None
    ) -> dict[str, Any]:
        """Start warm, unless the settings say otherwise."""
        return {"warm_start": WARM_START, **settings}

    @classmethod
    def check_saved(cls, settings: Mapping[str, Any]) -> None:
        """See `Generator.check_saved`."""
        if "warm_start" in settings:
            raise ValueError("warm_start is never saved: its result is in the tensors")

    def begin(
        self,
        tensors: Mapping[str, Tensor],
        ends: Mapping[str, tuple[int, int]],
        progress: Progress | None = None,
        checkpoints: Path | None = None,
    ) -> None:
        """Start warm, if asked for. See `Generator.begin`."""
        if self._warm_start:
            self.warm_start(tensors, self._warm_start, ends, progress=progress, checkpoints=checkpoints)

    def settings(self) -> dict[str, Any]:
        """All but `warm_start`: its result is in the tensors."""
        return dict(self._settings)

    def forward(self, widths: Mapping[str, int], noise: Noise | None = None, coarse: bool = False) -> dict[str, Tensor]:
        """See `Generator.forward`. Noise moves each channel of each tensor by itself, along outputs and inputs."""
        found: dict[str, Tensor] = {}
        for views, one, values, mean, std in self._values(widths, noise):
            scaled = torch.addcmul(mean * one.scale, values, std * one.scale)
            for v, value, shape, (n_out, n_in) in zip(views, scaled.unbind(), one.shapes, one.sizes, strict=True):
                rows = value[: n_out * n_in]
                found[v.slot.name] = v.tensor(rows.exp() if positive(v) else rows, shape)
        return {s.name: found[s.name] for s in self.slots}

    def _values(
        self, widths: Mapping[str, int], noise: Noise | None = None
    ) -> Iterator[tuple[Sequence[View], Part, Tensor, Tensor, Tensor]]:
        """Normalised values of each part, with its views, and mean and deviation of the tensors."""
        device = self.device
        plan = self._plan(widths, device)
        total = sum(p.rows for parts in plan for p in parts)
        again = total > ROWS and torch.is_grad_enabled()
        with torch.autocast(device.type, enabled=False):
            for views, bank, parts in zip(self.views, self.banks, plan, strict=True):
                start = 0
                for one, values, mean, std in bank(parts, noise, self.dtype, again):
                    yield views[start : start + len(one.sizes)], one, values, mean, std
                    start += len(one.sizes)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def _plan(self, widths: Mapping[str, int], device: torch.device) -> list[list[Part]]:
        def make() -> list[list[Part]]:
            plan: list[list[Part]] = []
            for views in self.views:
                rows = [math.prod(v.slot.sized(self.base, widths)[:2]) for v in views]
                stops = list(accumulate(runs(rows)))
                pairs = pairwise([0, *stops])
                plan.append([part(views[a:b], self.base, widths, self.count).to(device) for a, b in pairs])
            return plan

        return self._plans.get_or((*(widths[name] for name in self.base), device), make)

    def coordinates(self, widths: Mapping[str, int], noise: Noise | None = None) -> dict[str, Tensor]:
        """The coordinates (m, 4) of every tensor's entries as a read with this noise sees them."""
        found: dict[str, Tensor] = {}
        for views, parts in zip(self.views, self._plan(widths, torch.device("cpu")), strict=True):
            rest = iter(views)
            for one in parts:
                o, i = one.positions if noise is None else one.moved(noise)
                for k, (n_out, n_in) in enumerate(one.sizes):
                    pairs = torch.cartesian_prod(o[k, :n_out], i[k, :n_in])
                    found[next(rest).slot.name] = torch.cat([pairs, one.relative[k].expand(len(pairs), 2)], dim=1)
        return {s.name: found[s.name] for s in self.slots}

    def warm_start(
        self,
        tensors: Mapping[str, Tensor],
        steps: int,
        ends: Mapping[str, tuple[int, int]] | None = None,
        lr: float = 1e-3,
        progress: Progress | None = None,
        checkpoints: Path | None = None,
    ) -> float:
        """Regress on the base network's tensors: `steps` steps of Adam on the relative squared error.

        Every second step is at the base's widths. The others are at a random ratio between the `ends` of every group,
        where the base's tensors are interpolated along their channels (`netsmith.morphing.coordinates.cells`), as
        neighbours are alike: a network that knows nothing of other widths gives noise there, and unlearns the base's
        while it is fitted to them.

        The error is each tensor's mean square error over its variance, averaged over the tensors; the rate falls
        linearly to zero.

        Args:
            tensors: the base network's.
            steps: how many.
            ends: lowest and highest width of every group; None for the base's alone.
            lr: the first rate.
            progress: told step and error.
            checkpoints: folder that keeps the state when a signal stops this, every ten minutes, and at the end: a
                later call goes on from there, and ends as if it had not been stopped.

        Returns:
            The error before the last step.

        Raises:
            Stopped: a signal asked to stop, after a step.
            TrainingError: the state in `checkpoints` is of another run.
        """
        base = {s.name: tensors[s.name].detach().float().to(self.device) for s in self.slots}
        rng = torch.Generator().manual_seed(derived_seed(self._settings["seed"], 3))
        optimizer = torch.optim.Adam(self.parameters(), lr=lr, foreach=True)
        error, saved = math.nan, time.monotonic()
        run = digest("warm start", self._settings, steps, lr, dict(ends or {}), base)
        file = None if checkpoints is None else checkpoints / WARM
        begin = 0
        if file is not None and file.is_file():
            begin, error = self._resumed(file, run, optimizer, rng)
        for step in range(begin, steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            widths = self.base
            if ends is not None and step % 2:
                way = float(torch.rand((), generator=rng))
                widths = {name: low + round(way * (high - low)) for name, (low, high) in ends.items()}
            with torch.enable_grad():
                loss = self._distance(self._interpolated(base, widths), widths)
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            error = float(loss.detach())
            if progress is not None:
                progress("warm start", step + 1, steps, f"error {error:.3f}")
            last, stop = step + 1 == steps, stopping.asked()
            if file is not None and (last or stop or time.monotonic() - saved > SAVE_EVERY):
                self._keep(file, {"run": run, "step": step + 1, "error": error}, optimizer, rng)
                saved = time.monotonic()
            if stop and not last:
                raise stopping.stop(f"the warm start stopped after step {step + 1} of {steps}")
        return error

    def _keep(
        self, file: Path, state: Mapping[str, Any], optimizer: torch.optim.Optimizer, rng: torch.Generator
    ) -> None:
        """Write the state of the warm start."""
        if processes.first():
            file.parent.mkdir(parents=True, exist_ok=True)
            tensors = prefixed("model", self.state_dict()) | prefixed("optimizer", optimizer_tensors(optimizer))
            write_state(file, {**tensors, "rng": rng.get_state()}, state)

    def _resumed(
        self, file: Path, run: str, optimizer: torch.optim.Optimizer, rng: torch.Generator
    ) -> tuple[int, float]:
        """Take up the state of a warm start that was stopped; returns the steps that are done, and the error."""
        tensors, state = read_state(file)
        if state.get("run") != run:
            raise TrainingError(another_run(file.parent, {}, {}))
        self.load_state_dict(unprefixed("model", tensors))
        load_optimizer(optimizer, unprefixed("optimizer", tensors))
        rng.set_state(tensors["rng"])
        return int(state["step"]), float(state["error"])

    def _interpolated(self, base: Mapping[str, Tensor], widths: Mapping[str, int]) -> dict[str, Tensor]:
        """The base's tensors read at other widths, entry by entry; what is summed over is not corrected."""

        def change(t: Tensor, axis: Axis, group: str) -> Tensor:
            width = self.base[group]
            return along(t, axis, width, cells(widths[group], width).to(t.device))

        if widths == self.base:
            return dict(base)
        return {s.name: s.walk(base[s.name], self.base, self.base, change) for s in self.slots}

    def _distance(self, tensors: Mapping[str, Tensor], widths: Mapping[str, int]) -> Tensor:
        """Mean square error over variance, the mean of all tensors."""
        parts = []
        for views, _, values, mean, std in self._values(widths):
            for k, v in enumerate(views):
                goal = target(v, tensors)
                parts.append((values[k, : len(goal)] - (goal - mean[k]) / std[k]).pow(2).mean())
        return torch.stack(parts).mean()


def positive(v: View) -> bool:
    """Whether a tensor must be positive, and is generated as its logarithm: variances of batch norms."""
    return v.slot.name.rpartition(".")[2] == "running_var"


def target(v: View, tensors: Mapping[str, Tensor]) -> Float[Tensor, "m k"]:
    """What the MLP of a tensor should give at full width, before it is normalised."""
    values = v.rows_of(tensors[v.slot.name].detach().float())
    # below a batch norm's epsilon a variance does not count, and its logarithm would swamp all others
    return values.clamp(min=1e-5).log() if positive(v) else values
