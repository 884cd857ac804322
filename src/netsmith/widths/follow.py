"""Follow channels through one run of a network: which entries of which weights meet in which channel.

The network runs as it is. Beside every tensor goes a set of layers: tensors of labels that say, for each entry, which
channel it belongs to. Operations that move entries (views, slices, concatenations) move the labels in the same way;
operations that combine tensors entry by entry unite the labels that meet; operations that sum over channels (layers,
matrix products) let the labels of the weights' outputs take over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from netsmith.trace.coverage import READS_VALUES, Coverage
from netsmith.widths.labels import BARE, PADDED, Labels, compress, varying

_MARK = "_netsmith_channels"
_REASONS = {
    PADDED: "its channels are padded with zeros on their way (a shortcut of fixed padding)",
    BARE: "its channels meet values at fixed places (the network's input, positions or numbers in its code)",
}


@dataclass(frozen=True)
class Marks:
    """What is known of a tensor: its layers (each with as many dimensions as the tensor, of full size or 1), whether
    it depends on the network's input."""

    layers: tuple[Tensor, ...] = ()
    derived: bool = False


@dataclass(frozen=True)
class Operand:
    """A tensor seen in the dimensions of an operation: layers and sizes, 1 where it does not have the dimension."""

    layers: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    derived: bool


Args = tuple[Any, ...]
Kwargs = dict[str, Any]
# What a torch function does to labels: called with the function, its arguments and its output.
Rule = Callable[["Flow", Any, Args, Kwargs, Any], None]


def weight_remedy(module: nn.Module) -> str:
    """That the weights of a module are computed from others, and what makes them plain ones; "" where they are."""
    if is_parametrized(module):
        assert isinstance(module.parametrizations, nn.ModuleDict)
        names = list(module.parametrizations)
        remedy = f"torch.nn.utils.parametrize.remove_parametrizations(module, '{names[0]}')"
        return f"its {', '.join(names)} is computed by a parametrization. Make it a plain one: {remedy}"
    for hook in module._forward_pre_hooks.values():
        remedy = _OLD_HOOKS.get(type(hook).__name__)
        if remedy is not None:
            return f"its {getattr(hook, 'name', 'weight')} is computed by a hook. Make it a plain one: {remedy}"
    return ""


_OLD_HOOKS = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm(module)",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm(module)",
}


class RuleBook(dict[str, Rule]):
    """Rules by the names of the torch functions that they are for."""

    def rule(self, names: str) -> Callable[[Rule], Rule]:
        """Register a rule for functions of these names, apart by spaces."""

        def register(function: Rule) -> Rule:
            for name in names.split():
                assert name not in self, name
                self[name] = function
            return function

        return register


def argument(args: Args, kwargs: Kwargs, place: int, *names: str, default: Any = None) -> Any:
    """An argument that may be given by place or by one of several names."""
    for name in names:
        if name in kwargs:
            return kwargs[name]
    return args[place] if len(args) > place else default


def last_places(t: Tensor, ndim: int) -> range:
    """Places of a tensor's dimensions when it is broadcast to `ndim` dimensions."""
    return range(ndim - t.ndim, ndim)


def derived(flow: Flow, given: Sequence[Tensor]) -> bool:
    """Whether one of these tensors depends on the network's input."""
    return any(flow.marks(t).derived for t in given)


class Flow(TorchFunctionMode):
    """Runs of `model` with a rule for each torch function by name; `labels` holds all that was seen."""

    def __init__(self, model: nn.Module, rules: Mapping[str, Rule]) -> None:
        super().__init__()
        self._rules = rules
        self.labels = Labels()
        self.step = 0
        self._noted = 0
        self._weights: dict[int, Marks] = {}
        state = [
            *model.named_parameters(),
            *((n, b) for n, b in model.named_buffers() if b.is_floating_point()),
        ]
        for name, t in state:
            layers = [
                self.labels.fresh((s,), tensor=name, dim=d).view([-1 if e == d else 1 for e in range(t.ndim)])
                for d, s in enumerate(t.shape)
                if s > 1
            ]
            self._weights[id(t)] = Marks(tuple(layers))
        self._coverage = Coverage(model)  # it holds the model, so that no other tensor has the id of a weight
        self._passed: dict[str, dict[int, Tensor]] = defaultdict(dict)  # layers in the code of each module

    def run(self, x: Tensor) -> Any:
        """The network's output for `x`, with what the run shows noted."""
        x = x.clone()
        self.mark(x, (), derived=True)
        with torch.no_grad(), self._coverage.watching(self._pass), self:
            return self._coverage.model(x)

    def _pass(self, name: str, values: Any) -> None:
        for t in tensors_of(values):
            self._passed[name].update((id(layer), layer) for layer in self.marks(t).layers)

    def pin_unseen(self) -> None:
        """Pin all channels that a part of the network could get, or stand in for, that no run saw.

        So are those that pass code which decides by values: for others it may use what it used in another way.
        """
        for part, around in self._coverage.unseen().items():
            reason = (
                f"they pass the code around {part}, which the trial run did not reach, so that nothing is known of what"
                " it does with them. If the network never uses it, put torch.nn.Identity() in its place"
            )
            for layer in self._passed[around].values():
                self.labels.pin(layer, reason)
        for name in self._coverage.decides:
            for layer in self._passed[name].values():
                self.labels.pin(
                    layer,
                    f"they pass the code of {name or 'the network itself'}, which reads values of a tensor and may do"
                    " something else for others",
                )

    # -- what rules use ----------------------------------------------------------------------------------------------

    def marks(self, t: Any) -> Marks:
        """What is known of a tensor."""
        if id(t) in self._weights:
            return self._weights[id(t)]
        flow, marks = getattr(t, _MARK, (None, None))
        return marks if flow is self and marks else Marks()

    def mark(self, t: Tensor, layers: Iterable[Tensor], *, derived: bool) -> None:
        """Note the layers of a tensor that an operation gave."""
        kept: list[Tensor] = []
        for layer in layers:
            assert layer.ndim == t.ndim, (layer.shape, t.shape)
            layer = compress(layer)
            if varying(layer):
                kept.append(layer)
                self._noted += 1
                self.labels.colour(layer, self._noted)
        setattr(t, _MARK, (self, Marks(tuple(kept), derived)))

    def module(self) -> tuple[str, nn.Module]:
        """The module whose code is running, with its name."""
        name = self._coverage.inside[-1]
        return name, self._coverage.model.get_submodule(name)

    def operand(self, t: Tensor, places: Sequence[int], ndim: int) -> Operand:
        """`t` seen in an operation of `ndim` dimensions, its dimension `d` being `places[d]` there."""
        marks = self.marks(t)
        sizes = [1] * ndim
        for d, p in enumerate(places):
            sizes[p] = t.shape[d] if t.stride(d) else 1  # expanded: the same along it

        return Operand(tuple(_lifted(layer, places, ndim) for layer in marks.layers), tuple(sizes), marks.derived)

    def join(self, operands: Sequence[Operand]) -> list[Tensor]:
        """The layers of operands that meet entry by entry, what they say about each other being noted."""
        kept: list[Tensor] = []
        for operand in operands:
            kept += [layer for layer in operand.layers if not self._meets(kept, layer)]
        for operand in operands:
            for layer in operand.layers:
                self._check_bare(layer, operands)
        return kept

    def _meets(self, kept: Sequence[Tensor], layer: Tensor) -> bool:
        """Note what a layer says about those of another tensor; whether it says the same as one of them."""
        for other in kept:
            if not varying(other) & varying(layer):
                continue
            for value, reason in _REASONS.items():
                if bool((other == value).any()) or bool((layer == value).any()):
                    self.labels.pin(other, reason)
                    self.labels.pin(layer, reason)
            relation = self.labels.relate(other, layer)
            if relation == "same" and varying(other) == varying(layer):
                return True
            if relation == "crossed" and varying(other) == varying(layer):
                reason = "its channels meet others in another arrangement"
                self.labels.pin(other, reason)
                self.labels.pin(layer, reason)
        return False

    def _check_bare(self, layer: Tensor, operands: Sequence[Operand]) -> None:
        places = varying(layer)
        for operand in operands:
            full = {d for d in places if operand.sizes[d] > 1}
            if not full or any(varying(other) & full for other in operand.layers):
                continue
            if places - full:  # fixed within each head, say; the heads are not
                self._bundled(layer, frozenset(full), "")
            else:
                self.labels.pin(layer, self._computed() or _REASONS[BARE])

    def _computed(self) -> str:
        """That the layer whose code is running reads with weights that are computed from others, or ""."""
        name = self._coverage.inside[-1].partition(".parametrizations")[0]
        remedy = weight_remedy(self._coverage.model.get_submodule(name))
        return remedy and f"{name} reads them, and {remedy}"

    def contract(
        self, operands: Sequence[Operand], summed: Sequence[int], *, bundle: str = "", weight: Operand | None = None
    ) -> list[Tensor]:
        """The layers of the operands' product summed over the dimensions `summed` (which stay, with size 1).

        A layer that varies along summed and other dimensions is bundled: each entry of the others stands for the set of
        labels that was summed there. `weight` is the operand whose use as a layer's weight is to be noted.
        """
        gone = frozenset(summed)
        joined = self.join(operands)
        for layer in weight.layers if weight else ():
            self.note_use(layer, gone)
        out: list[Tensor] = []
        for layer in joined:
            there = varying(layer)
            if there & gone and there - gone:
                layer = self._bundled(layer, there & gone, bundle)
            elif there & gone:
                continue
            if not self._meets(out, layer):
                out.append(layer)
        return out

    def note_use(self, layer: Tensor, gone: frozenset[int] = frozenset()) -> None:
        """Note that the dimension of a weight that a layer is about was summed over, or handed on."""
        for family in self.labels.owners(layer):
            if varying(layer) <= gone:
                family.summed = True
            elif not varying(layer) & gone:
                family.given = True
                family.first = self.step if family.first < 0 else family.first

    def _bundled(self, layer: Tensor, gone: frozenset[int], kind: str) -> Tensor:
        shape = tuple(1 if d in gone else s for d, s in enumerate(layer.shape))
        sets = self.labels.find(layer).movedim(sorted(gone), list(range(-len(gone), 0))).flatten(-len(gone))
        sets = sets.reshape(-1, sets.shape[-1]).sort(dim=1).values
        distinct, which = torch.unique(sets, dim=0, return_inverse=True)  # heads may share keys, groups a weight
        bundles = self.labels.fresh((len(distinct),), bundle=kind or "bundle")[which].view(shape)
        if self.labels.relate(layer, bundles) not in ("within", "same"):
            self.labels.pin(layer, "its channels are summed in overlapping sets")
        return bundles

    def number(self, attribute: str, layer: Tensor) -> None:
        """Note that a number of the running module counts the channels of a layer."""
        name, module = self.module()
        if hasattr(module, attribute.partition("[")[0]):
            new = self.labels.fresh((layer.numel(),), setting=(name, attribute))
            self.labels.relate(new, layer.flatten())

    def alone(self, layer: Tensor) -> Operand:
        """A layer as the only one of an operand."""
        return Operand((layer,), tuple(layer.shape), derived=True)

    def by_channel(self, layer: Tensor, problem: str) -> Tensor | None:
        """A layer of an image's channels where each is moved as a whole, with all its positions.

        Each channel holds several labels where positions were made of channels (by a shuffle of pixels, by a view of a
        linear layer's outputs as maps). Nothing, and pinned, where the positions alone are channels.
        """
        space = varying(layer) - {0, 1}
        if space and 1 not in varying(layer):
            self.labels.pin(layer, problem)
            return None
        return self.contract([self.alone(layer)], sorted(space))[0] if space else layer

    def _written(self, x: Tensor, index: Any, value: Any) -> None:
        """A part of `x` was overwritten: fine where both have the same layers."""
        reason = "its channels are written to by index"
        layers = self.marks(x).layers
        parts = [compress(layer.expand(x.shape)[index]) for layer in layers]
        for layer, part in zip(layers, parts, strict=True):
            if len(torch.unique(layer)) != len(torch.unique(part)):  # some of its channels
                self.labels.pin(layer, reason)
        if not isinstance(value, Tensor):
            return
        there = x[index]
        given = self.operand(value, range(there.ndim - value.ndim, there.ndim), there.ndim).layers
        for layer in given:
            if not self._meets(parts, layer):
                self.labels.pin(layer, reason)
        for part in parts:
            if not any(varying(part) == varying(other) for other in given):
                self.labels.pin(part, reason)

    def lost(self, tensors: Iterable[Any], reason: str) -> None:
        """Pin all channels of these tensors."""
        for t in tensors:
            for layer in self.marks(t).layers:
                self.labels.pin(layer, reason)

    # -- every torch function ----------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, then its rule on the labels."""
        kwargs = kwargs or {}
        name = name_of(func)
        out = func(*args, **kwargs)
        if name == "__setitem__":
            self._written(*args)
        made, given = tensors_of(out), tensors_of((args, kwargs))
        if not made and name in READS_VALUES and any(self.marks(t).derived for t in given):
            self._coverage.decides.add(self._coverage.inside[-1])
        if made or name == "__setitem__":  # a look at a shape or a type shows nothing of a part
            self._coverage.touch(given)
        if not made or not any(self.marks(t).layers or self.marks(t).derived for t in given):
            return out
        self.step += 1
        rule = self._rules.get(name)
        try:
            if rule is None:
                self._lose_track(name, given, made)
            else:
                rule(self, func, args, kwargs, out)
        except Exception as error:  # a use of the function that its rule does not foresee
            problem = str(error).partition("\n")[0]
            self._lose_track(name, given, made, f" when it is used like this ({type(error).__name__}: {problem})")
        self._pass(self._coverage.inside[-1], (given, made))
        return out

    def _lose_track(self, what: str, given: Sequence[Tensor], made: Sequence[Tensor], why: str = "") -> None:
        if any(self.marks(t).layers for t in given):
            self.lost(given, self._computed() or f"its channels pass {what}, which is not followed{why}")
        for t in made:
            self.mark(t, (), derived=True)


def _lifted(layer: Tensor, places: Sequence[int], ndim: int) -> Tensor:
    """A layer whose dimension `d` is put at `places[d]` of `ndim` dimensions."""
    shape = [1] * ndim
    for d, p in enumerate(places):
        shape[p] = layer.shape[d]
    return layer.permute(sorted(range(len(places)), key=lambda d: places[d])).reshape(shape)


def name_of(func: Any) -> str:
    """The name of a torch function, the same for functions, methods, operators and in-place forms."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return "." + func.__self__.__name__
    if name.startswith("__") and name.endswith("__"):
        inner = name[2:-2]
        return name if inner in ("getitem", "setitem") else inner
    return name.rstrip("_")


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in arguments or outputs."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in tensors_of(v)]
    return []
