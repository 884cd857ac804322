"""Numbers in modules that follow a width: those of standard layers, and those found by trying."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from torch import nn

from netsmith.widths.types import Axis, Setting, WidthGroup

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Attributes of norms and the like that count the entries of their weights.
_COUNTS = ("num_features", "num_channels", "normalized_shape", "num_parameters")
# Layers, and what is derived from them, whose numbers `layer_settings` knows.
_STANDARD = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
# A choice: (what the module does with the channels, its class, the attribute), for all modules of that kind.
Key = tuple[str, str, str]
# Groups that pass and groups that fail.
Parted = tuple[list[WidthGroup], list[WidthGroup]]
# How many groups of one kind are tried in vain before the others are given up.
_PATIENCE = 2


def layer_settings(
    model: nn.Module, axes: Sequence[Axis], width: int, counted: dict[tuple[str, str], int]
) -> list[Setting]:
    """The numbers of standard layers that follow the width; `counted` are those that the run showed."""
    per_tensor: Counter[tuple[str, str, str]] = Counter()
    for axis in axes:
        path, _, tensor = axis.tensor.rpartition(".")
        for attribute, share in _numbers(model.get_submodule(path), tensor, axis):
            per_tensor[path, attribute, tensor] += share
    shares = dict(counted)
    for (path, attribute, _), share in per_tensor.items():
        shares.setdefault((path, attribute), share)
    return [_setting(model, path, attribute, share, width) for (path, attribute), share in shares.items()]


def _setting(model: nn.Module, path: str, attribute: str, share: int, width: int) -> Setting:
    return Setting(path, attribute, share, number(model.get_submodule(path), attribute) - share * width)


def number(module: nn.Module, attribute: str) -> int:
    """The number that a setting is about."""
    name, _, index = attribute.partition("[")
    value = getattr(module, name)
    return value[int(index[:-1]) if index else -1] if isinstance(value, (tuple, list)) else value


def _numbers(module: nn.Module, tensor: str, axis: Axis) -> list[tuple[str, int]]:
    """Attributes of the layer that count what the axis holds, with how much a channel adds."""
    share = axis.repeat * axis.tiles
    if isinstance(module, nn.modules.conv._ConvNd):
        names = ("in_channels", "out_channels") if isinstance(module, _TRANSPOSED) else ("out_channels", "in_channels")
        if tensor != "weight" or (axis.dim == 1 and module.groups > 1):
            return []
        if module.groups == 1:
            return [(names[axis.dim], share)]
        first, second = names
        groups = share // (getattr(module, first) // module.groups)
        return [(first, share), (second, groups * (getattr(module, second) // module.groups)), ("groups", groups)]
    if isinstance(module, nn.Linear):
        return [("in_features" if axis.dim else "out_features", share)] if tensor == "weight" else []
    size = getattr(module, tensor).shape[axis.dim]
    return [(name, share) for name in _COUNTS if hasattr(module, name) and number(module, name) == size > 1]


def complete(
    model: nn.Module, groups: Sequence[WidthGroup], fitting: Callable[[Sequence[WidthGroup]], Parted]
) -> Parted:
    """Give groups the attributes of custom modules without which the network does not run when they are resized.

    What a module keeps as `num_heads` or `split_sizes` is seen from its value alone, so the choice is tried: `fitting`
    parts groups into those with which the network can be resized and the others. Returns those that fit and those for
    which no choice does.
    """
    plain = [g for g in groups if g.kind != "heads"]
    done, failed = fitting(plain)
    left = [*failed, *(g for g in groups if g.kind == "heads")]
    hopeless: list[WidthGroup] = []
    failures: Counter[tuple[Any, ...]] = Counter()
    while left:
        options = attributes(model, left[0])
        sort = (tuple(options), left[0].kind, len(left[0].axes))
        if failures[sort] == _PATIENCE:
            hopeless.append(left.pop(0))
            continue
        keys = next((k for k in _choices(options) if fitting([_with(left[0], options, k)])[0]), None)
        if keys is None:
            failures[sort] += 1
            hopeless.append(left.pop(0))
            continue
        alike = [_with(g, offered, keys) for g in left if set(keys) <= set(offered := attributes(model, g))]
        good, _ = fitting(alike)
        done += good
        names = {g.name for g in good}
        left = [g for g in left if g.name not in names]
    order = [g.name for g in groups]
    return sorted(done, key=lambda g: order.index(g.name)), hopeless


def _with(group: WidthGroup, options: dict[Key, list[Setting]], keys: Iterable[Key]) -> WidthGroup:
    known = {(s.module, s.attribute) for s in group.settings}
    more = [s for k in keys for s in options[k] if (s.module, s.attribute) not in known]
    return replace(group, settings=(*group.settings, *more))


def _choices(options: dict[Key, list[Setting]]) -> list[tuple[Key, ...]]:
    """Sets of attributes to try: none, those named after heads, all, one or two, all but one."""
    keys = sorted(options)
    heads = tuple(k for k in keys if "head" in k[2])
    alone = [(k,) for k in keys]
    pairs = [p for p in combinations(keys, 2) if p[0][:2] == p[1][:2]][:6]  # of one class
    rest = [tuple(k for k in keys if k != out) for out in keys] if len(keys) > 3 else []
    return list(dict.fromkeys([(), heads, tuple(keys), *alone, *pairs, *rest]))


def attributes(model: nn.Module, group: WidthGroup) -> dict[Key, list[Setting]]:
    """Attributes of the custom modules around a group that may follow its width.

    Their values are multiples of the width that occur in it, or sizes of dimensions that it shares with others.
    """
    spans: Counter[tuple[str, int]] = Counter()
    for a in group.axes:
        spans[a.tensor, a.dim] += a.repeat * a.tiles
    shares = {1, *(a.repeat for a in group.axes), *spans.values()}
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    follows = {state[tensor].shape[dim]: share for (tensor, dim), share in spans.items()}
    follows |= {share * group.width: share for share in sorted(shares, reverse=True)}
    found: dict[Key, list[Setting]] = defaultdict(list)
    makers = {p for a in group.axes if not a.fan_in for p in _prefixes(a.tensor)}
    readers = {p for a in group.axes if a.fan_in for p in _prefixes(a.tensor)}
    for path in _blocks(model, group.axes):
        module = model.get_submodule(path)
        if type(module).__module__.startswith("torch.nn.") or isinstance(module, _STANDARD):
            continue
        for name, value in _integers(module):
            if (share := follows.get(value)) is not None:
                role = "makes" if path in makers else "reads" if path in readers else "beside"
                fixed = value - share * group.width
                key = (f"{role} with others" if fixed else role, type(module).__name__, name)
                found[key].append(Setting(path, name, share, fixed))
    return found


def around(axes: Sequence[Axis]) -> list[str]:
    """The modules that hold the axes' tensors, and those around them up to the innermost that holds all."""
    owners = [a.tensor.rpartition(".")[0].split(".") for a in axes]
    common = 0
    while all(len(o) > common for o in owners) and len({o[common] for o in owners}) == 1:
        common += 1
    paths = {".".join(o[:n]) for o in owners for n in range(common, len(o) + 1)}
    return sorted(paths)


def _prefixes(tensor: str) -> Iterable[str]:
    parts = tensor.split(".")[:-1]
    return (".".join(parts[:n]) for n in range(len(parts) + 1))


def _blocks(model: nn.Module, axes: Sequence[Axis]) -> list[str]:
    """The modules around the axes and everything in the blocks (elements of a sequence) that they lie in."""
    paths = set(around(axes))
    for axis in axes:
        parts = axis.tensor.split(".")[:-1]
        for n in range(len(parts) - 1, -1, -1):
            if isinstance(model.get_submodule(".".join(parts[:n])), (nn.Sequential, nn.ModuleList)):
                block = ".".join(parts[: n + 1])
                paths |= {f"{block}.{p}".rstrip(".") for p, _ in model.get_submodule(block).named_modules()}
                break
    return sorted(paths)


def _integers(module: nn.Module) -> Iterable[tuple[str, int]]:
    for name, value in vars(module).items():
        if name.startswith("_") or name == "training":
            continue
        if _is_integer(value):
            yield name, value
        elif type(value) in (tuple, list) and all(_is_integer(v) for v in value):
            yield from ((f"{name}[{i}]", v) for i, v in enumerate(value))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
