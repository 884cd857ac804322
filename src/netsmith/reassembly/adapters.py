"""Adapters: the small pieces between two blocks that bring channels, grid and layout to what the next block expects.

An adapter first brings the source to a map `(n, c, h, w)`, resizes it to the grid that the next block saw in its own
network (adaptive average pooling down, bilinear interpolation up), maps the channels, and lays the result out for the
target. Nothing about it is drawn at random but the weights of `init="random"`.

Styles:
    identity: nothing; the two blocks follow each other in one network.
    linear: a 1x1 convolution with bias. Token targets get a learned bias a position instead of one bias, and every
        prefix token (class token, registers) gets a linear map of its own.
    conv3: as `linear` with a 3x3 kernel; nine times the parameters, and it sees the neighbours.
    auto: `conv3` where that costs at most `CONV3_PARAMS` parameters and both sides have a grid, otherwise `linear`. A
        spec never says "auto": it holds what was chosen.
    dery: batch norm, 1x1 convolution, leaky ReLU: the adapter of "Deep Model Reassembly" (Yang et al., NeurIPS 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from netsmith.errors import RecipeError, did_you_mean
from netsmith.reassembly.names import STYLES, Style
from netsmith.trace.chain import Cut, Layout

Resize = Literal["none", "pool", "bilinear", "mixed", "sequence"]

CONV3_PARAMS = 1 << 16
"""Most weights of a 3x3 kernel that style "auto" takes: 85 channels to 85. Where blocks are wider, 1x1 is used."""
RESIZES: tuple[str, ...] = get_args(Resize)
_LEAK = 0.01


@dataclass(frozen=True)
class AdapterSpec:
    """Everything that decides an adapter's shape. Shapes are without the batch.

    Attributes:
        style: one of `STYLES`, never "auto".
        source: layout of what comes in.
        source_shape: its shape.
        target: layout of what goes out.
        target_shape: its shape.
        resize: how the grid is matched.
        kernel: side of the convolution; 0 for the identity.
    """

    style: Style
    source: Layout
    source_shape: tuple[int, ...]
    target: Layout
    target_shape: tuple[int, ...]
    resize: Resize
    kernel: int

    @property
    def source_grid(self) -> tuple[int, int]:
        """Positions of the source as `(h, w)`; a token sequence without a grid is `(length, 1)`."""
        return _grid(self.source, self.source_shape)

    @property
    def target_grid(self) -> tuple[int, int]:
        """Positions of the target as `(h, w)`; a token sequence without a grid is `(length, 1)`."""
        return _grid(self.target, self.target_shape)

    @property
    def positional(self) -> bool:
        """Whether every target position has a bias of its own (token targets; not the paper's style)."""
        return self.target.kind == "NLC" and self.style in ("linear", "conv3")

    @property
    def prefix_source(self) -> Literal["none", "tokens", "mean"]:
        """What the target's prefix tokens are made of: the source's own, when there are as many, or the mean."""
        if self.target.prefix == 0 or self.style == "identity":
            return "none"
        return "tokens" if self.source.prefix == self.target.prefix else "mean"

    def __str__(self) -> str:
        if self.style == "identity":
            return "identity"
        source, target = _shape_text(self.source, self.source_shape), _shape_text(self.target, self.target_shape)
        resize = "" if self.resize == "none" else f", {self.resize}"
        return f"{self.style} {source} -> {target} ({self.kernel}x{self.kernel}{resize})"


def adapter_spec(before: Cut, after: Cut, style: str = "auto") -> AdapterSpec:
    """The adapter from the cut `before` of one network to the cut `after` of another.

    Raises:
        RecipeError: the style is not one of `STYLES`, or a flat vector would have to become a map by the identity.
    """
    if style not in STYLES:
        raise RecipeError(
            f"adapter style must be one of {', '.join(STYLES)}, not {style!r}. {did_you_mean(style, STYLES)}"
        )
    if style != "identity" and "NCDHW" in (before.layout.kind, after.layout.kind):
        raise RecipeError(
            f"no adapter joins volumes (N, C, D, H, W) yet: expected maps, tokens, signals or vectors at both ends, not"
            f" {_shape_text(before.layout, before.shape)} -> {_shape_text(after.layout, after.shape)}"
        )
    if style == "auto":
        flat = before.layout.kind == "NC" or after.layout.kind == "NC"
        grids = not flat and not _gridless(before.layout) and not _gridless(after.layout)
        cheap = 9 * before.layout.channels * after.layout.channels <= CONV3_PARAMS
        style = "conv3" if grids and cheap else "linear"
    kind = cast(Style, style)
    resize = "none" if kind == "identity" else _resize_mode(before, after)
    kernel = {"identity": 0, "conv3": 3}.get(style, 1)
    return AdapterSpec(kind, before.layout, tuple(before.shape), after.layout, tuple(after.shape), resize, kernel)


def adapter_cost(before: Cut, after: Cut, style: str = "auto") -> tuple[int, int]:
    """Parameters and MACs (one image) of the adapter between two cuts, without building it."""
    return spec_cost(adapter_spec(before, after, style))


def spec_cost(spec: AdapterSpec) -> tuple[int, int]:
    """Parameters and MACs (one image) of an adapter; additions, pooling and interpolation are no MACs."""
    if spec.style == "identity":
        return 0, 0
    c, d = spec.source.channels, spec.target.channels
    places = math.prod(spec.target_grid)
    weights = c * d * spec.kernel**2
    params = weights + (places * d if spec.positional else d)
    if spec.style == "dery":
        params += 2 * c
    macs = weights * places
    if spec.prefix_source != "none":
        params += spec.target.prefix * (c * d + d)
        macs += spec.target.prefix * c * d
    return params, macs


class Adapter(nn.Module):
    """One adapter, built from its spec.

    The weights are uninitialised zeros until `reset` (random) or a closed-form fit sets them.
    """

    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__()
        self.spec = spec
        c, d = spec.source.channels, spec.target.channels
        self.norm = nn.BatchNorm2d(c) if spec.style == "dery" else nn.Identity()
        self.conv = nn.Conv2d(c, d, spec.kernel, padding=spec.kernel // 2, bias=not spec.positional)
        self.positions = nn.Parameter(torch.zeros(d, *spec.target_grid)) if spec.positional else None
        if spec.prefix_source != "none":
            self.prefix_weight = nn.Parameter(torch.zeros(spec.target.prefix, c, d))
            self.prefix_bias = nn.Parameter(torch.zeros(spec.target.prefix, d))
        with torch.no_grad():
            for parameter in self.conv.parameters():
                parameter.zero_()

    def reset(self, generator: torch.Generator) -> None:
        """Draw all weights anew: uniform in ±1/sqrt(fan in), as torch's own convolutions; biases by position zero."""
        with torch.no_grad():
            bound = 1 / math.sqrt(self.spec.source.channels * self.spec.kernel**2)
            for parameter in self.conv.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
            if self.spec.prefix_source != "none":
                bound = 1 / math.sqrt(self.spec.source.channels)
                self.prefix_weight.uniform_(-bound, bound, generator=generator)
                self.prefix_bias.zero_()
            if self.positions is not None:
                self.positions.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """From the source's layout `(n, *source_shape)` to the target's `(n, *target_shape)`."""
        spec = self.spec
        features, tokens = self.inputs(x)
        y = self.conv(self.norm(features))
        if spec.style == "dery":
            y = F.leaky_relu(y, _LEAK)
        if self.positions is not None:
            y = y + self.positions
        prefix = None
        if tokens is not None:
            prefix = torch.einsum("npc,pcd->npd", tokens, self.prefix_weight) + self.prefix_bias
        return from_map(y, prefix, spec.target)

    def inputs(self, x: Tensor) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n p c"] | None]:
        """What the maps are applied to: the source on the target's grid, and what each prefix token is made of."""
        features, prefix = to_map(x, self.spec.source)
        tokens = None
        if self.spec.prefix_source == "tokens":
            tokens = prefix
        elif self.spec.prefix_source == "mean":
            tokens = features.mean((2, 3)).unsqueeze(1).expand(-1, self.spec.target.prefix, -1)
        return resize_map(features, self.spec.target_grid, self.spec.resize), tokens

    def rows(self, features: Float[Tensor, "n c h w"], positions: Int[Tensor, " p"]) -> Float[Tensor, "n p q"]:
        """What the convolution sees, before any norm, at some positions (row-major over the target's grid)."""
        return patches(features, positions, self.spec.kernel)

    def set_linear(self, weight: Float[Tensor, "q d"], bias: Float[Tensor, "places d"]) -> None:
        """Install a fitted map: `weight` over the rows of `rows`, `bias` one for all places (1, d) or one a place.

        A norm in front is folded in: the map holds for the rows before it.
        """
        spec = self.spec
        d, (h, w) = spec.target.channels, spec.target_grid
        if isinstance(self.norm, nn.BatchNorm2d):
            assert self.norm.running_mean is not None
            assert self.norm.running_var is not None
            bias = bias + self.norm.running_mean.to(weight) @ weight
            weight = weight * (self.norm.running_var.to(weight) + self.norm.eps).sqrt()[:, None]
        with torch.no_grad():
            self.conv.weight.copy_(weight.T.reshape(self.conv.weight.shape))
            if self.positions is not None:
                self.positions.copy_(bias.T.reshape(d, 1, 1) if len(bias) == 1 else bias.T.reshape(d, h, w))
            else:
                assert self.conv.bias is not None
                assert len(bias) == 1
                self.conv.bias.copy_(bias[0])

    def set_norm(self, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"]) -> None:
        """Give the norm of style "dery" the statistics of its inputs; nothing in the other styles."""
        if isinstance(self.norm, nn.BatchNorm2d):
            assert self.norm.running_mean is not None
            assert self.norm.running_var is not None
            with torch.no_grad():
                self.norm.running_mean.copy_(mean)
                self.norm.running_var.copy_(variance)

    def set_prefix(self, index: int, weight: Float[Tensor, "c d"], bias: Float[Tensor, " d"]) -> None:
        """Install the fitted map of one prefix token."""
        with torch.no_grad():
            self.prefix_weight[index].copy_(weight)
            self.prefix_bias[index].copy_(bias)


def build_adapter(spec: AdapterSpec) -> nn.Module:
    """The adapter of a spec; `nn.Identity` for the identity."""
    return nn.Identity() if spec.style == "identity" else Adapter(spec)


def to_map(x: Tensor, layout: Layout) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n p c"] | None]:
    """A tensor of any layout as a map `(n, c, h, w)`, and its prefix tokens if it has any."""
    if layout.kind == "NCHW":
        return x, None
    if layout.kind == "NHWC":
        return x.permute(0, 3, 1, 2), None
    if x.ndim == 2:
        return x[:, :, None, None], None
    if layout.kind == "NCL":
        return x[..., None], None
    tokens = x[:, layout.prefix :]
    h, w = layout.grid or (tokens.shape[1], 1)
    features = tokens.transpose(1, 2).reshape(x.shape[0], x.shape[2], h, w)
    return features, (x[:, : layout.prefix] if layout.prefix else None)


def from_map(features: Float[Tensor, "n c h w"], prefix: Float[Tensor, "n p c"] | None, layout: Layout) -> Tensor:
    """The inverse of `to_map`."""
    if layout.kind == "NCHW":
        return features
    if layout.kind == "NHWC":
        return features.permute(0, 2, 3, 1)
    if layout.kind == "NCL":
        return features.flatten(2)
    if layout.kind != "NLC":
        return features.flatten(1)
    tokens = features.flatten(2).transpose(1, 2)
    return tokens if prefix is None else torch.cat([prefix, tokens], dim=1)


def resize_map(x: Float[Tensor, "n c h w"], grid: tuple[int, int], mode: Resize) -> Float[Tensor, "n c h2 w2"]:
    """A map on another grid: averages where there are more pixels than places, bilinear where there are fewer."""
    if mode == "none":
        return x
    if mode == "sequence":
        length = grid[0] * grid[1]
        line = x.flatten(2)
        if line.shape[2] >= length:
            line = F.adaptive_avg_pool1d(line, length)
        else:
            line = F.interpolate(line, size=length, mode="linear", align_corners=False)
        return line.reshape(*line.shape[:2], *grid)
    h, w = x.shape[2:]
    smaller = (min(h, grid[0]), min(w, grid[1]))
    if smaller != (h, w):
        x = F.adaptive_avg_pool2d(x, smaller)
    return x if smaller == grid else F.interpolate(x, size=grid, mode="bilinear", align_corners=False)


def patches(x: Float[Tensor, "n c h w"], positions: Int[Tensor, " p"], kernel: int) -> Float[Tensor, "n p q"]:
    """The `kernel x kernel` neighbourhoods (zeros outside) of some positions, `q = c * kernel ** 2` as in a weight."""
    if kernel == 1:
        return x.flatten(2)[:, :, positions].transpose(1, 2)
    reach = kernel // 2
    width = x.shape[3]
    padded = F.pad(x, (reach, reach, reach, reach))
    row, column = positions // width, positions % width
    seen = [padded[:, :, row + i, column + j] for i in range(kernel) for j in range(kernel)]
    return torch.stack(seen, dim=2).flatten(1, 2).transpose(1, 2)


def _grid(layout: Layout, shape: tuple[int, ...]) -> tuple[int, int]:
    if layout.kind == "NCHW":
        return shape[1], shape[2]
    if layout.kind == "NHWC":
        return shape[0], shape[1]
    if layout.kind == "NLC":
        return layout.grid or (shape[0] - layout.prefix, 1)
    return (shape[1], 1) if layout.kind == "NCL" else (1, 1)


def _gridless(layout: Layout) -> bool:
    return layout.kind == "NCL" or (layout.kind == "NLC" and layout.grid is None)


def _resize_mode(before: Cut, after: Cut) -> Resize:
    source, target = _grid(before.layout, before.shape), _grid(after.layout, after.shape)
    if _gridless(before.layout) or _gridless(after.layout):
        return "none" if source == target else "sequence"
    if source == target:
        return "none"
    if source[0] >= target[0] and source[1] >= target[1]:
        return "pool"
    return "bilinear" if source[0] <= target[0] and source[1] <= target[1] else "mixed"


def _shape_text(layout: Layout, shape: tuple[int, ...]) -> str:
    return f"{layout.kind} {'x'.join(map(str, shape))}"
