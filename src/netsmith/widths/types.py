"""What a width group is: all tensor axes that must share one channel order and one width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netsmith.errors import ChannelError, did_you_mean


@dataclass(frozen=True)
class Axis:
    """Where a group's channels lie in one dimension of one tensor of the state dict (parameters and buffers).

    Channel `j` of width `n` holds the indices `start + t * n * repeat + j * repeat + r` for `t < tiles`, `r < repeat`.
    `repeat` is the number of neighbouring entries of a channel (height times width after flattening NCHW, the size of
    an attention head), `tiles` how often the whole run of channels comes (height times width after flattening NHWC, 3
    for a fused query-key-value projection). `fan_in` is true where the dimension is summed over (the input side of a
    convolution or linear layer) and false where it indexes outputs. `start` is where the channels begin in the network
    as it was found: behind another group that was resized they begin elsewhere (`relocate`).
    """

    tensor: str
    dim: int
    start: int = 0
    repeat: int = 1
    tiles: int = 1
    fan_in: bool = False

    def span(self, width: int) -> int:
        """How many indices `width` channels take."""
        return self.tiles * width * self.repeat


@dataclass(frozen=True)
class Setting:
    """A number in a module's attributes that follows the width: `fixed + per_channel * width`.

    Such as `in_channels`, `out_channels` and `groups` of a convolution, `num_features` of a batch norm, `num_heads` of
    an attention; in `normalized_shape` the number is the last of a tuple, and `sizes[2]` is an
    entry of a tuple or list. Where several groups share one attribute
    (after a concatenation), `fixed` is what the others hold at their own width.
    """

    module: str
    attribute: str
    per_channel: int
    fixed: int


@dataclass(frozen=True)
class WidthGroup:
    """Channels that can be reordered, removed and repeated together, proven on the network.

    `name` is the module whose output opens the group. `kind` is "inner" (never leaves one block), "stream" (a residual
    stream, shared by blocks), "mlp" (the hidden width between linear layers) or "heads" (of attention).
    """

    name: str
    width: int
    kind: str
    axes: tuple[Axis, ...]
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Refused:
    """Channels that were found but not proven, and why."""

    name: str
    width: int
    reason: str


@dataclass(frozen=True)
class WidthGroups:
    """The groups of a network, in the order in which it computes them; iterates over the accepted ones.

    Examples:
        >>> groups = netsmith.width_groups(zoo[1].model, torch.rand(2, 1, 8, 8))
        >>> [group.width for group in groups.accepted][:3]
        [16, 16, 32]
    """

    accepted: tuple[WidthGroup, ...]
    refused: tuple[Refused, ...]

    def __getitem__(self, name: str) -> WidthGroup:
        """The group of that name; raises ChannelError with the nearest names, or with the reason of a refusal."""
        for group in self.accepted:
            if group.name == name:
                return group
        for refused in self.refused:
            if refused.name == name:
                raise ChannelError(f"the width group '{name}' was refused: {refused.reason}")
        known = [g.name for g in self.accepted]
        raise ChannelError(f"no width group is called '{name}'. {did_you_mean(name, known)}")

    def __iter__(self) -> Iterator[WidthGroup]:
        return iter(self.accepted)

    def __len__(self) -> int:
        return len(self.accepted)

    @property
    def inner(self) -> tuple[WidthGroup, ...]:
        """The accepted groups that are no residual stream."""
        return tuple(g for g in self.accepted if g.kind != "stream")
