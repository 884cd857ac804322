"""A trained network made smaller at once: channels leave, and what reads them is refitted in closed form."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from netsmith.data.splits import Splits, open_data
from netsmith.errors import BudgetError, ChannelError, ConfigError, did_you_mean
from netsmith.exporting.export import Exported, export
from netsmith.networks.network import Network, load_source
from netsmith.networks.pretrained import save_pretrained
from netsmith.search.budget import format_count
from netsmith.shrinking.calibration import Calibration, Data, calibration
from netsmith.shrinking.readers import readers
from netsmith.shrinking.sizes import Amount, Cost, Sizes
from netsmith.shrinking.walk import Method, Walk, divergence
from netsmith.training.engine import Progress, TrainResult
from netsmith.training.finetuning import finetuned, optimizer_steps
from netsmith.training.settings import TrainSettings
from netsmith.training.tasks import make_task
from netsmith.widths.folding import fold_batch_norms
from netsmith.widths.groups import WidthGroup, resize, width_groups

METHODS = get_args(Method)

JUDGED = 200
"""Inputs on which the cost of a width is measured: each width of each group runs them through what follows it."""


@dataclass(frozen=True)
class Shrunk:
    """A network made smaller, and what became of it.

    Attributes:
        model: the smaller network, a plain module in eval mode.
        network: the original, with its preprocessing and provenance; not changed.
        widths: for each narrowed group, its channels now and in the original.
        losses: for each, what the worst of its readers misses of its target, as a share of the target's variance.
        before: what the original takes.
        after: what `model` takes.
        agreement: share of the held-out inputs on which the first answer is the original's, 0 to 1.
        held: how many inputs that was seen on; no fit saw them.
        images: how many inputs the fits saw.
        method: how it was made.
        seconds: how long it took.
        tuned: how it was trained, where it was.

    Examples:
        >>> small = netsmith.shrink(zoo[1], data, widths=0.5)
        >>> small.widths["features.0.0"]  # channels now, and in the original
        (8, 16)
        >>> folder = small.save("half")  # netsmith.load("half") gives it back
    """

    model: nn.Module
    network: Network
    widths: Mapping[str, tuple[int, int]]
    losses: Mapping[str, float]
    before: Cost
    after: Cost
    agreement: float
    held: int
    images: int
    method: str
    seconds: float
    tuned: TrainResult | None = None

    def __str__(self) -> str:
        """Return a table: sizes before and after, agreement, and the width of every group."""
        how = f"{self.method.replace('_', ' ')}, {self.images} inputs, {self.seconds:.0f} s"
        if self.tuned is not None:
            best = self.tuned.best_epoch
            how += f", tuned for {best} of {len(self.tuned.history)} epochs" if best else ", tuning did not help"
        lines = [f"{self.network.name}, made smaller ({how})"]
        for name, label in (("params", "params"), ("macs", "MACs")):
            before, after = getattr(self.before, name), getattr(self.after, name)
            lines.append(f"  {label:10} {format_count(after):>8} of {format_count(before):>8}  {after / before:.0%}")
        lines.append(f"  agreement  {self.agreement:.1%} of {self.held} held-out inputs: the original's first answer")
        longest = max(map(len, self.widths), default=0)
        for name, (now, full) in self.widths.items():
            misses = f"  misses {self.losses[name]:.1%}" if self.method == "closed_form" else ""
            lines.append(f"  {name:{longest}}  {now:>5} of {full:>5}{misses}")
        return "\n".join(lines)

    __repr__ = __str__

    def save(self, folder: Path | str, *, overwrite: bool = False) -> Path:
        """Write the smaller network as an artifact, which `netsmith.load` and every verb takes."""
        return save_pretrained(self.model, folder, overwrite=overwrite)

    def finetune(
        self,
        data: str | Splits,
        training: TrainSettings | None = None,
        *,
        distillation: float = 0.5,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Shrunk:
        """Train the smaller network with the original as its teacher; it is another one, this one stays as it is.

        It ends as its best epoch on validation, or as it began where none was better; `agreement` is measured anew.

        Args:
            data: with labels: a data source, or splits, whose test part is read for the agreement alone.
            training: epochs, rate and the rest; default: three epochs of SGD at 0.005 with gradients clipped, as there
                are no batch norms left.
            distillation: share of the teacher in the loss, 0 to 1.
            device: where to compute.
            progress: told how far it is.

        Raises:
            TrainingError: a loss that is not finite, or data of other classes.
        """
        data = open_data(data) if isinstance(data, str) else data
        settings = training or TrainSettings(epochs=3, lr=0.005, clip_grad=1.0)
        task = make_task(self.network.task, self.network.num_classes, shape=self.network.preprocess.input_size)
        model = copy.deepcopy(self.model)
        result = finetuned(
            model, self.network, data, task, settings, settings.epochs * optimizer_steps(len(data.train), settings),
            distillation=distillation, called=f"tuning {self.network.name}", progress=progress, device=device,
        )  # fmt: skip
        inputs = calibration(self.network, data, self.images, 0, torch.device("cpu"))
        agreement, held = agreed(self.network.model, model, inputs.held)
        return replace(
            self,
            model=model.eval(),
            agreement=agreement,
            held=held,
            tuned=result,
            seconds=self.seconds + result.seconds,
        )

    def export(self, out: Path | str, *, overwrite: bool = False) -> Exported:
        """Write it as ONNX, `.pt2` or safetensors, which run without Netsmith."""
        described = replace(self.network, model=self.model, name=f"{self.network.name}_small")
        return export(described, out, overwrite=overwrite)


def shrink(
    network: Network | nn.Module | str,
    data: Data,
    *,
    params: Amount | None = None,
    macs: Amount | None = None,
    latency_ms: float | None = None,
    widths: float | Mapping[str, int | float] | None = None,
    method: str = "closed_form",
    search: bool = True,
    streams: bool = False,
    images: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
    **source: Any,
) -> Shrunk:
    """Make a trained network smaller at once, without labels and without a gradient step.

    Batch norms are folded, then channels leave the width groups: those whose loss costs the layers that read them
    least. These layers are refitted by ridge regression towards the original's outputs, in the order of data flow, each
    on what really reaches it.

    Args:
        network: a network, a module, or a source string.
        data: calibration inputs without labels, some hundreds: a data source (`folder:photos`), splits, a tensor, or
            batches. Tensors are taken as preprocessed.
        params: at most so many parameters: a number, a text such as "5M", or a share of the original's ("50%", 0.5).
        macs: likewise for the multiply-adds of one input.
        latency_ms: at most so many milliseconds for one input, measured on `device`.
        widths: in place of a budget, one ratio for all groups, or widths by group (a float is a ratio).
        method: "closed_form"; or "importance" or "l1", which choose channels and fit nothing.
        search: let groups have uneven widths where a budget on params or MACs is given. What each costs alone is
            measured at the network's answer, the cheapest widths are found exactly, and they are taken where the
            result diverges less from the original than with uniform widths, by more than a standard error.
        streams: narrow residual streams too.
        images: how many calibration inputs to take (default: 1000, or all).
        device: where to compute.
        seed: of the inputs that are drawn.
        progress: told how far it is.
        **source: further arguments of `load_source`, where `network` is a module or a string: mean, std, input_size.

    Raises:
        BudgetError: nothing keeps the budget, the original does already, or none is given, or several.
        ChannelError: no width group can be proved, or nothing that reads one can be refitted.
        DataError: calibration inputs are too few, not finite, or of another shape.

    Examples:
        >>> small = netsmith.shrink(zoo[1], data, params=0.5)
        >>> small.after.params <= 0.5 * small.before.params
        True
        >>> small.model(torch.rand(2, 1, 8, 8)).shape  # a plain torch.nn.Module
        torch.Size([2, 10])
    """
    began = time.perf_counter()
    if method not in METHODS:
        raise ConfigError(f"there is no method '{method}'. {did_you_mean(str(method), METHODS)}")
    asked = {"params": params, "macs": macs, "latency_ms": latency_ms}
    budget = {name: value for name, value in asked.items() if value is not None}
    if widths is not None and budget:
        raise BudgetError(f"give widths or a budget ({', '.join(budget)}), not both")
    if widths is None and not budget:
        raise BudgetError("say how small: params=, macs= or latency_ms= (0.5: half of the original's), or widths=")
    network = _network(network, data, source)
    inputs = calibration(network, data, images, seed, torch.device(device))
    original = copy.deepcopy(network.model).to(device)
    folded = fold_batch_norms(original, inputs.fit[0][:2], name=network.name)
    found = width_groups(folded, inputs.fit[0][:2], name=network.name)
    groups = _fitting(folded, found.accepted if streams else found.inner, inputs, network.name)
    work = _Work(original, folded, groups, inputs, cast(Method, method), progress)
    sizes = Sizes(original, folded, groups, inputs.fit[0])
    if widths is not None:
        candidates = [sizes.asked(widths)]
    else:
        limits = sizes.limits(budget)
        candidates = [sizes.uniform(limits)]
        if search and method == "closed_form" and "latency_ms" not in limits:
            uneven = sizes.cheapest(work.costs(sizes.levels()), limits)
            candidates += [] if uneven is None or uneven == candidates[0] else [uneven]
    made = [work.narrowed(widths) for widths in candidates]
    best = 1 if len(made) > 1 and work.clearly_nearer(made[1][0], made[0][0]) else 0
    (model, losses), taken = made[best], candidates[best]
    agreement, held = agreed(original, model, inputs.held)
    after = sizes.cost(model)
    return Shrunk(
        model=model.cpu(),
        network=network,
        widths={g.name: (taken[g.name], g.width) for g in groups if taken[g.name] != g.width},
        losses=losses,
        before=sizes.before,
        after=after,
        agreement=agreement,
        held=held,
        images=inputs.images,
        method=method,
        seconds=time.perf_counter() - began,
    )


def _fitting(folded: nn.Module, groups: Sequence[WidthGroup], inputs: Calibration, name: str) -> tuple[WidthGroup, ...]:
    """Return the groups whose readers can be refitted; ChannelError where there is none."""
    fitting = readers(folded, groups, inputs.fit[0][:1])
    if not any(fitting.values()):
        raise ChannelError(
            f"{name}: no layer that reads a width group can be refitted. Its {len(groups)} groups are read by grouped "
            "convolutions, or by layers that run more than once or whose weights are used without calling them"
        )
    return tuple(g for g in groups if fitting[g.name])


def _network(network: Network | nn.Module | str, data: Data, source: Mapping[str, Any]) -> Network:
    if isinstance(network, Network):
        if source:
            raise ConfigError(f"{', '.join(source)}: a network that is loaded already takes no arguments of its source")
        return network
    given = dict(source)
    if isinstance(network, nn.Module) and "input_size" not in given:
        shape = tuple(data.shape[1:]) if isinstance(data, Tensor) else data.shape if isinstance(data, Splits) else None
        if shape is not None and len(shape) == 3:
            given["input_size"] = shape
    return load_source(network, **given)


@dataclass
class _Work:
    """What all candidates share: the network and its inputs."""

    original: nn.Module
    folded: nn.Module
    groups: Sequence[WidthGroup]
    inputs: Calibration
    method: Method
    progress: Progress | None

    def costs(self, levels: Mapping[str, Sequence[int]]) -> dict[str, list[float]]:
        """Measure what each group alone costs at some widths."""
        walk = Walk(self.folded, copy.deepcopy(self.folded), self.inputs.fit, self.method)
        return walk.costs(self.groups, levels, JUDGED, self._tell("costs of widths"))

    def narrowed(self, widths: Mapping[str, int]) -> tuple[nn.Module, dict[str, float]]:
        """Return the network of these widths, and what the readers of each group miss."""
        student = copy.deepcopy(self.folded)
        walk = Walk(self.folded, student, self.inputs.fit, self.method)
        walk.run(self.groups, widths, self._tell("narrowing"))
        kept = {name: narrowed.kept for name, narrowed in walk.narrowed.items()}
        model = resize(student, self.groups, {name: len(k) for name, k in kept.items()}, keep=kept)
        return model.eval(), {name: narrowed.loss for name, narrowed in walk.narrowed.items()}

    def _tell(self, what: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda done, total: progress(what, done, total)

    @torch.no_grad()
    def clearly_nearer(self, one: nn.Module, other: nn.Module) -> bool:
        """Whether a network diverges less from the original than another on inputs that no fit saw.

        It does where the mean difference is more than its standard error: on CIFAR-10 what was less was noise.
        """
        gains = []
        for x in self.inputs.choose:
            answer = self.original(x)
            gains.append(divergence(answer, other(x)) - divergence(answer, one(x)))
        gain = torch.cat(gains)
        return float(gain.mean()) > float(gain.std()) / len(gain) ** 0.5


@torch.no_grad()
def agreed(original: nn.Module, model: nn.Module, held: Sequence[Tensor]) -> tuple[float, int]:
    """Return the share of inputs (or of their pixels) with the same first answer, and how many inputs there are."""
    same = [original(x).argmax(1) == model(x).argmax(1) for x in held]
    return float(torch.cat([s.flatten() for s in same]).double().mean()), sum(map(len, same))
