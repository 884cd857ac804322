"""What torch functions that move entries, or combine tensors entry by entry, do to channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netsmith.widths.follow import Args, Flow, Kwargs, Operand, RuleBook, argument, derived, last_places, tensors_of
from netsmith.widths.labels import BARE, PADDED, compress, varying

ENTRIES = RuleBook()


# -- entry by entry ---------------------------------------------------------------------------------------------------


@ENTRIES.rule(
    "add iadd radd sub isub rsub mul imul rmul div truediv itruediv rtruediv pow ipow rpow neg abs exp expm1 log "
    "log1p log2 sqrt rsqrt square reciprocal sigmoid tanh relu relu6 gelu silu mish elu selu celu leaky_relu "
    "hardswish hardtanh hardsigmoid softplus softsign logsigmoid erf sin cos clamp clip clamp_min clamp_max "
    "minimum maximum where masked_fill addcmul addcdiv lerp sign floor ceil round fmod remainder nan_to_num lt "
    "le gt ge eq ne and or invert logical_not logical_and logical_or threshold atan atan2 sgn isnan logit xlogy "
    "floor_divide rdiv bitwise_and bitwise_not copy fill positive trunc"
)
def entrywise(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
    """Entries at the same place meet."""
    given = tensors_of((args, kwargs))
    if not isinstance(out, Tensor):  # where with one argument: the places of what is not zero
        flow.lost(given, "its channels are picked by their values")
        for t in tensors_of(out):
            flow.mark(t, (), derived=True)
        return
    operands = [flow.operand(t, last_places(t, out.ndim), out.ndim) for t in given]
    layers = flow.join(operands)
    streams = [o for o in operands if o.derived and o.layers]
    if len(streams) > 1 and getattr(func, "__name__", "").strip("_") in ("add", "iadd", "radd", "sub"):
        for layer in layers:
            if sum(any(varying(layer) == varying(other) for other in o.layers) for o in streams) > 1:
                flow.labels.added.update(layer.flatten().tolist())
    flow.mark(out, layers, derived=derived(flow, given))


@ENTRIES.rule(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout detach clone "
    "contiguous float double half bfloat16 to type type_as cpu requires_grad .data"
)
def unchanged(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """The same entries (in eval mode)."""
    marks = flow.marks(args[0] if args else kwargs["input"])
    flow.mark(out, marks.layers, derived=marks.derived)


@ENTRIES.rule("new_zeros new_ones new_empty new_full new_tensor")
def made(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """New entries that owe only their number to the input."""
    flow.mark(out, (), derived=False)


@ENTRIES.rule("zeros_like ones_like full_like empty_like rand_like randn_like bernoulli normal uniform")
def alike(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """New entries, equal or random, that suit any order: they belong to the channels that they are made for."""
    flow.mark(out, flow.marks(args[0] if args else kwargs["input"]).layers, derived=False)


@ENTRIES.rule("batch_norm instance_norm prelu")
def along_channels(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Statistics, weight and bias meet dimension 1."""
    x, *others = tensors_of((args, kwargs))
    operands = [flow.operand(x, range(x.ndim), x.ndim), *(flow.operand(t, (1,)[: t.ndim], x.ndim) for t in others)]
    layers = flow.join(operands)
    if not others:
        for layer in layers:
            if varying(layer) == {1}:
                flow.number("num_features", layer)
    flow.mark(out, layers, derived=derived(flow, [x, *others]))


# -- moving entries ----------------------------------------------------------------------------------------------------


@ENTRIES.rule(
    "view reshape permute transpose swapaxes swapdims flatten unflatten unsqueeze squeeze expand expand_as "
    "repeat chunk split split_with_sizes tensor_split unbind narrow select __getitem__ movedim moveaxis roll "
    "flip tile view_as reshape_as index_select repeat_interleave pixel_shuffle pixel_unshuffle t .T .mT rot90 "
    "diagonal channel_shuffle ravel hsplit vsplit broadcast_to fliplr flipud"
)
def moved(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
    """The labels go the way of the entries."""
    x = args[0] if args else kwargs["input"]
    marks = flow.marks(x)
    outs = tensors_of(out)
    found: list[list[Tensor]] = [[] for _ in outs]
    if getattr(func, "__name__", "") == "view":
        func = Tensor.reshape  # the labels' strides are others than those of the values
    for layer in marks.layers:
        there = func(layer.expand(x.shape), *args[1:], **kwargs)
        for i, part in enumerate(tensors_of(there)):
            small = compress(part)
            if not varying(small) and small.numel():
                flow.labels.pin(small, "one of its channels is picked by its place")
            found[i].append(small)
    for t, layers in zip(outs, found, strict=True):
        flow.mark(t, layers, derived=marks.derived)
    module = flow.module()[1]
    if isinstance(module, nn.Unflatten) and module.unflattened_size[0] > 0:  # a number that follows the width
        place = int(module.dim) % x.ndim
        for layer in flow.marks(out).layers:
            if place in varying(layer):
                (counted,) = flow.contract([flow.alone(layer)], sorted(varying(layer) - {place}))
                flow.number("unflattened_size[0]", counted)


@ENTRIES.rule("embedding")
def looked_up(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Rows of a table."""
    index, table = tensors_of((args, kwargs))[:2]
    marks = flow.marks(table)
    for layer in marks.layers:
        if varying(layer) == {table.ndim - 1}:
            flow.note_use(layer)
    flow.mark(out, [layer.expand(table.shape)[index] for layer in marks.layers], derived=flow.marks(index).derived)


@ENTRIES.rule("pad")
def padded(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Where channels are padded there are entries without a channel."""
    x = args[0]
    pads = argument(args, kwargs, 1, "pad")
    wide = {x.ndim - 1 - i // 2 for i, p in enumerate(pads) if p}
    layers = []
    for layer in flow.marks(x).layers:
        if varying(layer) & wide and varying(layer) - wide:  # padded within each head, say
            (layer,) = flow.contract([Operand((layer,), tuple(x.shape), True)], sorted(wide))
        elif varying(layer) & wide:
            layer = F.pad(layer.expand(x.shape), pads, value=PADDED)
        layers.append(layer)
    flow.mark(out, layers, derived=flow.marks(x).derived)


@ENTRIES.rule("cat concat concatenate")
def concatenated(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Side by side along one dimension; along the others the entries must agree."""
    parts = [t for t in tensors_of(argument(args, kwargs, 0, "tensors")) if t.numel()]
    dim = argument(args, kwargs, 1, "dim", "axis", default=0) % out.ndim
    flow.mark(out, _beside(flow, parts, dim), derived=derived(flow, parts))


@ENTRIES.rule("stack")
def stacked(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Side by side along a new dimension."""
    parts = tensors_of(argument(args, kwargs, 0, "tensors"))
    dim = argument(args, kwargs, 1, "dim", default=0) % out.ndim
    lifted = []
    for t in parts:
        new = t.unsqueeze(dim)
        flow.mark(new, [layer.unsqueeze(dim) for layer in flow.marks(t).layers], derived=flow.marks(t).derived)
        lifted.append(new)
    flow.mark(out, _beside(flow, lifted, dim), derived=derived(flow, parts))


def _beside(flow: Flow, parts: Sequence[Tensor], dim: int) -> list[Tensor]:
    slots: dict[tuple[frozenset[int], int], dict[int, Tensor]] = {}
    for i, t in enumerate(parts):
        seen: dict[frozenset[int], int] = {}
        for layer in flow.marks(t).layers:
            key = varying(layer) - {dim}
            seen[key] = seen.get(key, -1) + 1
            slots.setdefault((key, seen[key]), {})[i] = layer
    layers = []
    for (key, _), there in slots.items():
        first = next(iter(there.values()))
        for i, t in enumerate(parts):
            if not key or (i in there and there[i] is first):
                continue
            like = (
                there[i] if i in there else next((x for x in flow.marks(t).layers if varying(x) - {dim} == key), None)
            )
            if like is None and any(t.shape[d] > 1 and t.stride(d) for d in key):
                for layer in there.values():
                    flow.labels.pin(layer, "its channels are put beside values at fixed places")
            elif like is not None and dim not in varying(like) | varying(first):
                flow.labels.relate(first, like)
        if key and dim not in varying(first):  # the same along the dimension, now that the others were compared
            layers.append(first)
            continue
        filled = [there[i] if i in there else _filler(flow, t, key, first, dim) for i, t in enumerate(parts)]
        full = [flow.labels.find(layer).expand(t.shape) for layer, t in zip(filled, parts, strict=True)]
        layers.append(torch.cat(full, dim=dim))
    return layers


def _filler(flow: Flow, t: Tensor, key: frozenset[int], first: Tensor, dim: int) -> Tensor:
    """What stands beside a layer where a tensor has none of that kind."""
    if key:  # constant along the dimension of the concatenation
        return first.narrow(dim, 0, 1)
    own = [layer for layer in flow.marks(t).layers if varying(layer) == {dim}]
    return own[0] if own else torch.full([1] * t.ndim, BARE)
