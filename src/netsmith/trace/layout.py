"""How the tensor at a cut is laid out: images with channels first or last, tokens, signals, or volumes.

Read from what the network does with the tensor: a convolution says where the channels are, so does a layer norm or a
linear layer over the last axis. Only where nothing speaks do the sizes decide.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from netsmith.trace.tape import Recording, Ref, Step

Kind = Literal["NCHW", "NHWC", "NLC", "NCL", "NCDHW", "NC"]

_SECOND = frozenset(
    {
        "conv2d",
        "conv_transpose2d",
        "batch_norm",
        "group_norm",
        "instance_norm",
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "pixel_shuffle",
        "pixel_unshuffle",
        "interpolate",
        "conv1d",
        "conv_transpose1d",
        "max_pool1d",
        "avg_pool1d",
        "adaptive_avg_pool1d",
        "conv3d",
        "conv_transpose3d",
        "max_pool3d",
        "avg_pool3d",
        "adaptive_avg_pool3d",
    }
)
_LAST = frozenset({"linear", "layer_norm", "rms_norm"})
_FIRST_MODULES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Upsample,
    nn.PixelShuffle,
)
_LAST_MODULES = (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)
_REACH = 60  # how many steps from the cut evidence is looked for


@dataclass(frozen=True)
class Layout:
    """How a tensor at a cut is laid out.

    `kind` names the axes after the batch; `channels` is their C; `grid` is `(h, w)`, None where it is unknown; `prefix`
    counts leading tokens that stand for no position (class and distillation tokens, registers), for NLC only.

    Examples:
        >>> netsmith.dissect(zoo[2].model, torch.rand(2, 1, 8, 8)).cuts[0].layout
        Layout(kind='NLC', channels=24, grid=(4, 4), prefix=0)
    """

    kind: Kind
    channels: int
    grid: tuple[int, int] | None
    prefix: int = 0

    def __str__(self) -> str:
        grid = f" {self.grid[0]}x{self.grid[1]}" if self.grid else ""
        return f"{self.kind} {self.channels}{grid}{f' +{self.prefix}' if self.prefix else ''}"


class Layouts:
    """Finds layouts of the outputs of one recording that looks into every module."""

    def __init__(self, recording: Recording, image: tuple[int, ...]) -> None:
        self.recording = recording
        self.image = image
        self._readers: dict[int, list[Step]] = {}
        for step in recording.steps:
            for ref in step.refs():
                self._readers.setdefault(ref.step, []).append(step)
        found = [getattr(m, "num_prefix_tokens", None) for m in recording.model.modules()]
        self._prefixes = [n for n in dict.fromkeys(found) if isinstance(n, int) and not isinstance(n, bool)]

    def at(self, ref: Ref, shape: tuple[int, ...]) -> Layout | None:
        """Layout of the output `ref` whose shape without batch is `shape`; None for what no layout describes."""
        if len(shape) == 1:
            return Layout("NC", shape[0], None)
        if len(shape) == 2:
            if self._channel_axis(ref, 3) == 1:  # among images, a layer may mix tokens as if they were channels
                return Layout("NCL", shape[0], None) if len(self.image) == 2 else None
            prefix, grid = self._tokens(shape[0])
            return Layout("NLC", shape[1], grid, prefix)
        if len(shape) == 4 and len(self.image) == 4 and self._channel_axis(ref, 5) in (None, 1):
            return Layout("NCDHW", shape[0], None)
        if len(shape) != 3:
            return None
        axis = self._channel_axis(ref, 4)
        if axis is None:
            axis = 1 if self._off(shape[1], shape[2]) <= self._off(shape[0], shape[1]) else 3
        if axis == 1:
            return Layout("NCHW", shape[0], (shape[1], shape[2]))
        return Layout("NHWC", shape[2], (shape[0], shape[1])) if axis == 3 else None

    def _off(self, h: int, w: int) -> float:
        """How far a grid is from the image's own proportions (0 is exact)."""
        if len(self.image) != 3:
            return 0.0
        return abs(h * self.image[2] - w * self.image[1]) / (w * self.image[1])

    def _tokens(self, length: int) -> tuple[int, tuple[int, int] | None]:
        """Prefix tokens and grid of a sequence, from the image's own proportions."""
        if len(self.image) != 3:
            return 0, None
        _, height, width = self.image
        for prefix in dict.fromkeys([*self._prefixes, *range(17)]):
            spots = length - prefix
            if spots < 1:
                continue
            h = round((spots * height / width) ** 0.5)
            if h and spots % h == 0 and abs(h * width - (spots // h) * height) < max(height, width) / max(h, 1):
                return prefix, (h, spots // h)
        return 0, None

    def _channel_axis(self, ref: Ref, rank: int) -> int | None:
        """The axis that the nearest operation treats as channels, after the cut or, failing that, before it."""
        start = self.recording.steps[ref.step]
        axis = _says(self.recording, start, rank)
        if axis is None:
            axis = self._search(start, rank, forward=True)
        return self._search(start, rank, forward=False) if axis is None else axis

    def _search(self, start: Step, rank: int, *, forward: bool) -> int | None:
        """Breadth-first along the tensor's way; `axes[i]` is the axis at the cut of axis `i` at the step looked at."""
        same = tuple(range(rank))
        todo: deque[tuple[Step, tuple[int, ...]]] = deque([(start, same)])
        seen = {start.index}
        for _ in range(_REACH):
            if not todo:
                break
            step, axes = todo.popleft()
            before = axes if forward else _before(step, axes)
            near = self._readers.get(step.index, []) if forward else [self.recording.steps[r.step] for r in step.refs()]
            for other in near if before else []:
                if other.index in seen or not other.derived:
                    continue
                seen.add(other.index)
                axis = _says(self.recording, other, rank)
                if axis is not None:
                    return before[axis]
                after = _moved(other, before) if forward else before
                if after is not None:
                    todo.append((other, after))
        return None


def _before(step: Step, axes: tuple[int, ...]) -> tuple[int, ...]:
    """`axes` of a step's output as axes of its input; empty where they cannot be followed."""
    order = _moved(step, tuple(range(len(axes))))
    if order is None:
        return ()
    return tuple(axes[order.index(i)] for i in range(len(axes)))


def _says(recording: Recording, step: Step, rank: int) -> int | None:
    """The axis that this operation takes for channels, in its input and output alike."""
    shape = step.shapes.get(())
    if shape is None or len(shape) != rank:
        return None
    if step.kind == "module":
        module = recording.model.get_submodule(step.target)
        if isinstance(module, _FIRST_MODULES):
            return 1
        return rank - 1 if isinstance(module, _LAST_MODULES) and rank >= 4 else None
    name = getattr(step.target, "__name__", "")
    if name == "layer_norm" and len(_shape_argument(step)) != 1:
        return None
    if name in _SECOND or name.removeprefix("_") in _SECOND:
        return 1
    # among tokens a linear layer may mix the tokens as well as the channels, so it tells nothing there
    return rank - 1 if name in _LAST and rank >= 4 else None


def _shape_argument(step: Step) -> Sequence[Any]:
    given = step.args[1] if len(step.args) > 1 else step.kwargs.get("normalized_shape", ())
    return given if isinstance(given, (list, tuple)) else (given,)


def _moved(step: Step, axes: tuple[int, ...]) -> tuple[int, ...] | None:
    """Where the axes are after this operation; None where they cannot be followed."""
    shape = step.shapes.get(())
    if shape is None or len(shape) != len(axes):
        return None
    name = getattr(step.target, "__name__", "")
    rest = [*step.args[1:], *step.kwargs.values()]
    if name == "permute":
        order = rest[0] if rest and isinstance(rest[0], (list, tuple)) else rest
        return tuple(axes[int(i)] for i in order)
    if name in ("transpose", "swapaxes"):
        a, b = int(rest[0]), int(rest[1])
        moved = list(axes)
        moved[a], moved[b] = moved[b], moved[a]
        return tuple(moved)
    if name in ("reshape", "view", "unflatten", "flatten", "__get__", "matmul", "__matmul__", "einsum"):
        return None
    return axes
