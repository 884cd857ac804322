"""Batch norms: folded into the layers before them, or estimated anew."""

from __future__ import annotations

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from netsmith.errors import ChannelError
from netsmith.records.architecture import note, note_made
from netsmith.trace.checks import original
from netsmith.trace.coverage import READS_VALUES, Coverage
from netsmith.trace.trial import check_arguments, run_whole, trial_batches, untouched
from netsmith.widths.follow import tensors_of, weight_remedy
from netsmith.widths.proof import MISFIT, same, sift

_LAYERS = frozenset(f"{kind}{n}d" for kind in ("conv", "conv_transpose") for n in (1, 2, 3)) | {"linear"}
_BatchNorm = nn.modules.batchnorm._BatchNorm
_Pair = tuple[str, str]  # a layer and the batch norm after it
_MADE_BY = "_netsmith_made_by"
# Relative to the largest output.
_TOLERANCE = 1e-5


class FoldedNormAct(nn.Module):
    """What is left of a batch norm with an activation of its own once it was folded."""

    def __init__(self, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.drop = drop
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """The activation of `x`."""
        return self.act(self.drop(x))


def fold_batch_norms(model: nn.Module, example_input: Tensor, *, name: str = "") -> nn.Module:
    """A copy in eval mode whose batch norms directly after a convolution or linear layer are folded into it.

    Folded are norms with running statistics whose input is the output of one layer that nothing else reads: grouped,
    depthwise, dilated and transposed convolutions too. The norm becomes an identity (or its activation), the layer
    gets a bias. `example_input` is a batch `(n, ...)` as the network takes it. The copy was seen to give the network's
    output to 1e-5 of the largest value; norms for which it does not are kept, and a warning names them. Batch norms
    elsewhere (before a convolution, after a concatenation) stay, and so do those of layers whose weights are computed
    from others (weight norm, spectral norm) or whose outputs pass code around a part that the run did not reach, or
    code that decides by values.

    Raises DissectionError for a network that does not run on the example.

    Examples:
        >>> folded = netsmith.fold_batch_norms(zoo[1].model, torch.rand(2, 1, 8, 8))
        >>> any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
        False
    """
    model = original(model)
    label = name or type(model).__name__
    good, bad = _tried(model, example_input, label)
    folded = _folded(copy.deepcopy(model).eval(), good)
    if example_input.is_floating_point():
        note_made(folded, model, folded=True, input_size=list(example_input.shape[1:]))
    else:
        note(folded, {})
    if bad:
        named = ", ".join(norm for _, norm in bad)
        warnings.warn(f"{label}: folding {named} changes the output, so it is kept", stacklevel=2)
    return folded


def foldable(model: nn.Module, example_input: Tensor, *, name: str = "") -> dict[str, str]:
    """The batch norms that `fold_batch_norms` folds: by the layer each goes into, its name."""
    model = original(model)
    return dict(_tried(model, example_input, name or type(model).__name__)[0])


def _tried(model: nn.Module, example_input: Tensor, label: str) -> tuple[list[_Pair], list[_Pair]]:
    """Layers and the norms after them: those that can be folded, and those that change the output."""
    check_arguments(model, example_input, label)
    with untouched(model):
        model.eval()
        x, batch = trial_batches(example_input)
        run_whole(model, x, label)
        precise, x = _precise(model, x)
        pairs = _pairs(precise, x[:1], batch.to(x.dtype))
        with torch.no_grad():
            expected = precise(x.clone())

            def holds(some: Sequence[_Pair]) -> bool:
                return same(_folded(precise, some)(x.clone()), expected, _TOLERANCE)

            return sift(pairs, holds)


def _precise(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy in double precision, so that what differs is no rounding; as it is where the network's code objects."""
    if not x.is_floating_point():
        return copy.deepcopy(model), x
    twin = copy.deepcopy(model).double()
    try:
        with torch.no_grad():
            twin(x.double())
    except MISFIT:
        return copy.deepcopy(model), x
    return twin, x.double()


class _Watch(TorchFunctionMode):
    """Which batch norm reads the output of which layer, how often each output is read, and in whose code it is."""

    def __init__(self, model: nn.Module, coverage: Coverage) -> None:
        super().__init__()
        self.layers = _owners(model, "weight", (nn.modules.conv._ConvNd, nn.Linear))
        self.norms = _owners(model, "running_mean", (_BatchNorm,))
        self.read: dict[str, list[str]] = defaultdict(list)  # layer -> what read its output: a norm's name, or ""
        self.calls: Counter[str] = Counter()
        self.passed: dict[str, set[str]] = defaultdict(set)  # layer -> modules whose code has its output
        self.coverage = coverage
        self.state = {id(t) for t in [*model.parameters(), *model.buffers()]}

    def run(self, x: Tensor) -> None:
        """Run the network on `x`."""
        with torch.no_grad(), self.coverage.watching(self._pass), self:
            self.coverage.model(x.clone())

    def _pass(self, name: str, values: Any) -> None:
        for t in tensors_of(values):
            if (layer := getattr(t, _MADE_BY, None)) is not None:
                self.passed[layer].add(name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and note what it read and made."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        given, made = tensors_of((args, kwargs)), tensors_of(out)
        reader = ""
        if name == "batch_norm":
            reader = next((self.norms[id(t)] for t in given if id(t) in self.norms), "")
            self.calls[reader] += 1
        if not made and name.strip("_") in READS_VALUES and not any(id(t) in self.state for t in given):
            self.coverage.decides.add(self.coverage.inside[-1])
        if made:
            self.coverage.touch(given)
            for t in given:
                if (layer := getattr(t, _MADE_BY, None)) is not None:
                    self.read[layer].append(reader)
        made_here = name in _LAYERS and isinstance(out, Tensor) and (name != "linear" or out.ndim == 2)
        if made_here and (layer := next((self.layers[id(t)] for t in given if id(t) in self.layers), None)) is not None:
            self.calls[layer] += 1
            setattr(out, _MADE_BY, layer)
        return out


def _owners(model: nn.Module, tensor: str, kinds: tuple[type, ...]) -> dict[int, str]:
    """The module that holds each tensor of a name, by the tensor's identity; those that several hold are left out.

    Left out, too, are modules whose weights are computed from others: they have no such tensor of their own, and what
    they compute lives as long as one call.
    """
    found: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        value = getattr(module, tensor, None) if isinstance(module, kinds) and not weight_remedy(module) else None
        if isinstance(value, Tensor):
            found[id(value)].append(name)
    return {i: names[0] for i, names in found.items() if len(names) == 1}


def _pairs(model: nn.Module, x: Tensor, batch: Tensor) -> list[_Pair]:
    """Layers and the norms that alone read them, in every way of the network through its code that was seen."""
    coverage = Coverage(model)
    watch, training = _Watch(model, coverage), _Watch(model, coverage)
    watch.run(x)
    with untouched(model), suppress(Exception):  # in train mode it may want targets: what only that mode uses is unseen
        model.train()
        training.run(batch)
    blind = set(coverage.unseen().values()) | coverage.decides

    def alone(run: _Watch, layer: str, norm: str) -> bool:
        return run.read[layer] == [norm] and run.calls[layer] == run.calls[norm] == 1 and not run.passed[layer] & blind

    return [
        (layer, norms[0])
        for layer, norms in watch.read.items()
        if norms[0]
        and alone(watch, layer, norms[0])
        and (layer not in training.read or alone(training, layer, norms[0]))
        and _remains(model.get_submodule(norms[0])) is not None
    ]


def _remains(norm: nn.Module) -> nn.Module | None:
    """What takes the place of a folded norm; nothing where its class does more than is known."""
    if not any(True for _ in norm.children()):
        return nn.Identity() if type(norm).__module__.startswith("torch.nn.") else None
    parts = dict(norm.named_children())
    if set(parts) <= {"drop", "act"} and "act" in parts:
        return FoldedNormAct(parts.get("drop", nn.Identity()), parts["act"])
    return None


def _folded(model: nn.Module, pairs: Sequence[_Pair]) -> nn.Module:
    new = copy.deepcopy(model)
    for layer, norm in pairs:
        module: Any = new.get_submodule(norm)
        _fold(new.get_submodule(layer), module)
        parent, _, own = norm.rpartition(".")
        remains = _remains(module)
        assert remains is not None
        setattr(new.get_submodule(parent), own, remains.train(module.training))
    return new


def _fold(layer: Any, norm: Any) -> None:
    """Write `norm(layer(x))` into the layer's weight and bias."""
    with torch.no_grad():
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        if layer.bias is not None:
            shift = shift + layer.bias.double() * scale
        weight = layer.weight
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):  # (in, out / groups, ...)
            grouped = weight.double().unflatten(0, (layer.groups, -1))
            factor = scale.view(layer.groups, 1, -1, *[1] * (weight.ndim - 2))
            new = (grouped * factor).flatten(0, 1)
        else:
            new = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
        layer.weight = nn.Parameter(new.to(weight), requires_grad=weight.requires_grad)
        layer.bias = nn.Parameter(shift.to(weight), requires_grad=weight.requires_grad)


def recalibrate(
    model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]], *, only: Collection[str] | None = None
) -> int:
    """Estimate the running statistics of all batch norms anew, in place: the average over the batches.

    A batch is a tensor `(n, ...)` as the network takes it, or a sequence that begins with one (images and labels). Only
    the statistics change; modes are left as they were. A network without batch norms is left alone, and so are norms
    that the network does not run, or that `only` does not name.

    Returns how many norms have new statistics.
    Raises ChannelError when there are no batches, or one is too small for a statistic.
    """
    norms = [
        m
        for name, m in model.named_modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None and (only is None or name in only)
    ]
    if not norms:
        return 0
    modes = [(m, m.training) for m in model.modules()]
    momenta = [m.momentum for m in norms]
    before = [{k: b.clone() for k, b in m.named_buffers(recurse=False)} for m in norms]
    seen, ran = 0, [False] * len(norms)
    try:
        model.eval()
        for m in norms:
            m.training = True
            m.momentum = None  # the plain average
            m.reset_running_stats()
        with torch.no_grad():
            for batch in batches:
                model(batch if isinstance(batch, Tensor) else batch[0])
                seen += 1
        ran = [m.num_batches_tracked is None or bool(m.num_batches_tracked) for m in norms]
    except ValueError as error:  # torch: more than 1 value per channel
        raise ChannelError(f"a batch is too small to estimate statistics from: {error}; give larger batches") from error
    finally:
        for m, mode in modes:
            m.training = mode
        for m, momentum, buffers, new in zip(norms, momenta, before, ran, strict=True):
            m.momentum = momentum
            if not new:
                for key, value in buffers.items():
                    getattr(m, key).copy_(value)
    if not seen:
        raise ChannelError("batch norms cannot be recalibrated without data: expected at least one batch")
    return sum(ran)
