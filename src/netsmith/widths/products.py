"""What torch functions that sum over channels or positions do to channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from netsmith.widths.entries import entrywise, moved
from netsmith.widths.follow import Args, Flow, Kwargs, Operand, RuleBook, argument, derived, last_places, tensors_of
from netsmith.widths.labels import varying

PRODUCTS = RuleBook()


# -- summing over entries ----------------------------------------------------------------------------------------------


@PRODUCTS.rule(
    "sum mean amax amin max min var std norm logsumexp prod var_mean std_mean any all vector_norm nansum median"
)
def reduced(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
    """Sums and the like treat all entries alike."""
    x = args[0] if args else kwargs["input"]
    if len(args) > 1 and isinstance(args[1], Tensor):
        return entrywise(flow, func, args, kwargs, out)
    place = 2 if getattr(func, "__name__", "").endswith("norm") else 1
    dims = argument(args, kwargs, place, "dim", "axis")
    if dims is None:
        dims = range(x.ndim)
    gone = {int(d) % x.ndim for d in (dims if isinstance(dims, (list, tuple, range)) else [dims])} if x.ndim else set()
    layers = flow.contract([flow.operand(x, range(x.ndim), x.ndim)], sorted(gone))
    for t in tensors_of(out):
        kept = layers
        if t.ndim != x.ndim:
            rest = [d for d in range(x.ndim) if d not in gone]
            kept = [layer.permute(*rest, *sorted(gone)).reshape([layer.shape[d] for d in rest]) for layer in layers]
        flow.mark(t, kept, derived=flow.marks(x).derived)
    return None


@PRODUCTS.rule("softmax log_softmax normalize softmin")
def normalised(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Each entry depends on the sum along a dimension."""
    x = args[0] if args else kwargs["input"]
    place = 2 if getattr(func, "__name__", "") == "normalize" else 1
    dim = argument(args, kwargs, place, "dim", default=1)
    layers = _with_sums(flow, flow.marks(x).layers, {int(dim) % x.ndim})
    flow.mark(out, layers, derived=flow.marks(x).derived)


def _with_sums(flow: Flow, layers: Sequence[Tensor], gone: set[int]) -> list[Tensor]:
    """The layers, and the bundles of those that vary along summed and other dimensions."""
    ndim = layers[0].ndim if layers else 0
    out = list(layers)
    for layer in layers:
        if varying(layer) & gone and varying(layer) - gone:
            sums = flow.contract([flow.alone(layer)], sorted(gone & set(range(ndim))))
            out += sums
    return out


@PRODUCTS.rule("layer_norm rms_norm")
def layer_normed(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Normalised over the last dimensions; weight and bias meet those."""
    x, *others = tensors_of((args, kwargs))
    count = len(argument(args, kwargs, 1, "normalized_shape"))
    gone = set(range(x.ndim - count, x.ndim))
    if count > 1 and any(varying(layer) & gone for layer in flow.marks(x).layers):
        flow.lost([x, *others], "it is normalised over several dimensions at once")
    operands = [
        flow.operand(x, range(x.ndim), x.ndim),
        *(flow.operand(t, last_places(t, x.ndim), x.ndim) for t in others),
    ]
    layers = _with_sums(flow, flow.join(operands), gone)
    if not others:
        for layer in layers:
            if varying(layer) == {x.ndim - 1}:
                flow.number("normalized_shape", layer)
    flow.mark(out, layers, derived=derived(flow, [x, *others]))


@PRODUCTS.rule("group_norm")
def group_normed(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Normalised within groups of channels: the groups can be reordered, with all that is in them."""
    x, *others = tensors_of((args, kwargs))
    groups = int(argument(args, kwargs, 1, "num_groups"))
    operands = [flow.operand(x, range(x.ndim), x.ndim), *(flow.operand(t, (1,), x.ndim) for t in others)]
    layers = flow.join(operands)
    for layer in list(layers):
        if varying(layer) != {1}:
            continue
        if not others:
            flow.number("num_channels", layer)
        if groups > 1:
            split = layer.flatten().view(groups, -1)
            bundle = flow.contract([flow.alone(split)], [1])
            for b in bundle:
                flow.number("num_groups", b)
                layers.append(b.expand_as(split).reshape(layer.shape))
    flow.mark(out, layers, derived=derived(flow, [x, *others]))


@PRODUCTS.rule("linear")
def linear(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """The input's last dimension is summed over, the weight's first comes out."""
    x, weight, *bias = tensors_of((args, kwargs))
    n = x.ndim
    of_weight = flow.operand(weight, (n, n - 1), n + 1)
    layers = flow.contract([flow.operand(x, range(n), n + 1), of_weight], [n - 1], weight=of_weight)
    layers = [layer.squeeze(n - 1) for layer in layers]
    flow.mark(out, _biased(flow, layers, out, bias, n - 1), derived=derived(flow, [x, weight]))


def _biased(flow: Flow, layers: list[Tensor], out: Tensor, bias: Sequence[Tensor], place: int) -> list[Tensor]:
    """The layers of a layer's output once its bias was added at a dimension."""
    product = Operand(tuple(layers), tuple(out.shape), True)
    for b in bias:
        for layer in flow.marks(b).layers:
            flow.note_use(layer)
    return flow.join([product, *(flow.operand(b, (place,), out.ndim) for b in bias)])


@PRODUCTS.rule("matmul bmm mm rmatmul")
def matmul(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Rows times columns."""
    a, b = tensors_of((args, kwargs))[:2]
    if a.ndim < 2 or b.ndim < 2:
        flow.lost([a, b], "its channels pass a product of vectors, which is not followed")
        return flow.mark(out, (), derived=derived(flow, [a, b]))
    flow.mark(out, _product(flow, a, b), derived=derived(flow, [a, b]))
    return None


def _product(flow: Flow, a: Tensor, b: Tensor) -> list[Tensor]:
    n = max(a.ndim, b.ndim)
    left = [*range(n - a.ndim, n - 2), n - 2, n - 1]
    right = [*range(n - b.ndim, n - 2), n - 1, n]
    bundle = "heads" if flow.marks(a).derived and flow.marks(b).derived else ""
    operands = [flow.operand(a, left, n + 1), flow.operand(b, right, n + 1)]
    weight = next((o for o in operands if not o.derived), None)
    layers = flow.contract(operands, [n - 1], bundle=bundle, weight=weight)
    return [layer.squeeze(n - 1) for layer in layers]


@PRODUCTS.rule("einsum")
def einsum(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Letters that the output lacks are summed over."""
    given = tensors_of(args[1:])
    inputs, arrow, output = args[0].replace(" ", "").partition("->")
    if not arrow or "." in inputs:
        flow.lost(given, "its channels pass einsum without an explicit output, which is not followed")
        return flow.mark(out, (), derived=derived(flow, given))
    letters = list(dict.fromkeys([*output, *inputs.replace(",", "")]))
    operands = [
        flow.operand(t, [letters.index(c) for c in term], len(letters))
        for t, term in zip(given, inputs.split(","), strict=True)
    ]
    kind = "heads" if sum(o.derived for o in operands) > 1 else ""
    weight = next((o for o in operands if not o.derived), None)
    layers = flow.contract(operands, range(len(output), len(letters)), bundle=kind, weight=weight)
    shapes = [layer.reshape(layer.shape[: len(output)]) for layer in layers]
    flow.mark(out, shapes, derived=derived(flow, given))
    return None


@PRODUCTS.rule("scaled_dot_product_attention")
def attention(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """softmax(q kT + mask) v."""
    q, k, v = (argument(args, kwargs, i, n) for i, n in enumerate(("query", "key", "value")))
    mask = argument(args, kwargs, 3, "attn_mask")
    if argument(args, kwargs, 8, "enable_gqa"):
        k, v = (_for_each_query(flow, t, q) for t in (k, v))
    keys = k.transpose(-2, -1)
    flow.mark(keys, [layer.transpose(-2, -1) for layer in flow.marks(k).layers], derived=flow.marks(k).derived)
    scores = torch.matmul(q, keys)
    layers = _product(flow, q, keys)
    if mask is not None:
        n = scores.ndim
        layers = flow.join(
            [Operand(tuple(layers), tuple(scores.shape), True), flow.operand(mask, last_places(mask, n), n)]
        )
    flow.mark(scores, layers, derived=True)
    flow.mark(out, _product(flow, scores, v), derived=True)


def _for_each_query(flow: Flow, t: Tensor, q: Tensor) -> Tensor:
    """Keys or values of heads that several heads of queries share, repeated for each."""
    times = q.shape[-3] // t.shape[-3]
    repeated = t.repeat_interleave(times, dim=-3)
    moved(flow, torch.repeat_interleave, (t, times), {"dim": -3}, repeated)
    return repeated


# -- images ------------------------------------------------------------------------------------------------------------


@PRODUCTS.rule("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
def convolution(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Channels are summed over within each group; positions move."""
    x, weight, *bias = tensors_of((args, kwargs))
    turned = "transpose" in func.__name__
    groups = int(argument(args, kwargs, 6, "groups", default=1))
    space = x.ndim - 2
    pointwise = all(k == 1 for k in weight.shape[2:]) and out.shape[2:] == x.shape[2:]
    layers = []
    for layer in flow.marks(x).layers:
        if not pointwise:
            layer = flow.by_channel(layer, "a convolution runs along its channels")
        if layer is None:
            continue
        layers.append(_split(layer, 1, groups).unsqueeze(3))  # batch, group, channel in, channel out, positions
    sizes = (x.shape[0], groups, x.shape[1] // groups, 1, *(x.shape[2:] if pointwise else [1] * space))
    given = []
    for layer in flow.marks(weight).layers:
        if any(d > 1 for d in varying(layer)):
            continue  # labels of kernel positions
        inner, outer = (layer.flatten() if layer.shape[d] > 1 else None for d in ((1, 0) if not turned else (0, 1)))
        if turned and groups > 1 and outer is not None:  # a group moves with its outputs, in the order they have
            flow.labels.pin(outer, "all groups of a transposed convolution share one dimension of its weight for them")
            continue
        given.append(_weight_layer(inner, outer, groups, space, turned=turned))
    wide = weight.shape[0] // groups if not turned else weight.shape[1]
    tall = weight.shape[1] if not turned else weight.shape[0] // groups
    of_weight = Operand(tuple(given), (1, groups, tall, wide, *[1] * space), flow.marks(weight).derived)
    summed = flow.contract([Operand(tuple(layers), sizes, flow.marks(x).derived), of_weight], [2], weight=of_weight)
    merged = [_merged(layer, groups, wide) for layer in summed]
    flow.mark(out, _biased(flow, merged, out, bias, 1), derived=derived(flow, [x, weight]))


def _split(layer: Tensor, dim: int, groups: int) -> Tensor:
    return layer.unsqueeze(dim) if layer.shape[dim] == 1 else layer.unflatten(dim, (groups, -1))


def _weight_layer(inner: Tensor | None, outer: Tensor | None, groups: int, space: int, *, turned: bool) -> Tensor:
    """A layer of a convolution's weight among (batch, group, channel in, channel out, positions)."""
    assert (inner is None) != (outer is None)
    tail = [1] * space
    if outer is not None:
        return outer.view(1, *((1, 1, -1) if turned else (groups, 1, -1)), *tail)
    assert inner is not None
    return inner.view(1, *((groups, -1, 1) if turned else (1, -1, 1)), *tail)


def _merged(layer: Tensor, groups: int, wide: int) -> Tensor:
    """A layer of the product with group and output channel as one dimension."""
    layer = layer.squeeze(2)
    if layer.shape[1] > 1 or layer.shape[2] > 1:
        layer = layer.expand(-1, groups, wide, *layer.shape[3:])
    return layer.flatten(1, 2)


@PRODUCTS.rule(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d lp_pool2d interpolate upsample grid_sample "
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d"
)
def pooled(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Any) -> None:
    """Positions move, channels stay."""
    x = args[0] if args else kwargs["input"]
    for t in tensors_of(out):
        layers = []
        for layer in flow.marks(x).layers:
            if all(t.shape[d] == 1 for d in range(2, t.ndim)):
                layers += flow.contract([flow.alone(layer)], range(2, x.ndim))
            elif (whole := flow.by_channel(layer, "pooling or resampling runs along its channels")) is not None:
                layers.append(whole)
        flow.mark(t, layers, derived=flow.marks(x).derived)


@PRODUCTS.rule("unfold")
def unfolded(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Each channel becomes as many as the window has pixels (Tensor.unfold is a view)."""
    x = args[0] if args else kwargs["input"]
    if out.ndim != 3 or x.ndim != 4:
        return moved(flow, func, args, kwargs, out)
    layers = []
    for layer in flow.marks(x).layers:
        if any(d > 1 for d in varying(layer)):
            flow.labels.pin(layer, "windows run along its channels")
        else:
            layers.append(layer.repeat_interleave(out.shape[1] // x.shape[1], dim=1).flatten(2))
    flow.mark(out, layers, derived=flow.marks(x).derived)
    return None


@PRODUCTS.rule("fold")
def folded(flow: Flow, func: Any, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """The pixels of overlapping windows are added up."""
    x = args[0] if args else kwargs["input"]
    window = x.shape[1] // out.shape[1]
    layers = []
    for layer in flow.marks(x).layers:
        if varying(layer) == {1}:
            split = layer.unflatten(1, (-1, window))
            layers += [s.squeeze(2).unsqueeze(-1) for s in flow.contract([flow.alone(split)], [2])]
        else:
            flow.labels.pin(layer, "windows run along its channels")
    flow.mark(out, layers, derived=flow.marks(x).derived)
