"""The CIFAR ResNets of He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS = (20, 32, 44, 56, 110)
"""Depths that are registered as builders; any `6 n + 2` can be built by calling `CifarResNet` itself."""


class PaddedShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and zero channels padded evenly on both sides. No parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        missing = out_channels - in_channels
        if missing < 0:
            raise ValueError(
                f"a padded (option A) shortcut cannot go from {in_channels} to {out_channels} channels: "
                'zeros can only be added; give widths that do not shrink, or shortcut="B"'
            )
        self.stride = stride
        self.padding = (missing // 2, missing - missing // 2)

    def forward(self, x: Tensor) -> Tensor:
        """From `(n, c_in, h, w)` to `(n, c_out, ceil(h / stride), ceil(w / stride))`."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norms around a shortcut (figure 2 of the paper)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            self.shortcut = PaddedShortcut(in_channels, out_channels, stride)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """From `(n, c_in, h, w)` to `(n, c_out, h / stride, w / stride)`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of `(depth - 2) / 6` basic blocks, average pooling and one linear layer.

    State-dict names are those of the published CIFAR checkpoints: `conv1`, `bn1`,
    `layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}`, `linear`, and `shortcut.{0,1}` for projections.

    Args:
        depth: number of weighted layers, `6 n + 2`.
        num_classes: outputs.
        in_channels: channels of the images.
        image_size: side of the images in pixels; recorded in `input_size`, any side from 4 runs.
        widths: channels of the three stages; the stem has the first.
        shortcut: "A" (padded, no parameters) or "B" (1x1 projection) where a stage changes the shape.

    Raises:
        ValueError: depth is not `6 n + 2`, there are not three widths, or the shortcut has another name.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        widths: Sequence[int] = (16, 32, 64),
        shortcut: str = "A",
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth of a CIFAR ResNet must be 6 n + 2 (8, 14, 20, 32, ...), not {depth}")
        if len(widths) != 3 or min(widths) < 1:
            raise ValueError(f"widths of a CIFAR ResNet are three positive numbers, not {tuple(widths)}")
        if shortcut not in ("A", "B"):
            raise ValueError(f'shortcut must be "A" (padded) or "B" (projection), not {shortcut!r}')
        self.input_size = (in_channels, image_size, image_size)
        blocks = (depth - 2) // 6
        first, second, third = widths
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, blocks, 1, shortcut)
        self.layer2 = _stage(first, second, blocks, 2, shortcut)
        self.layer3 = _stage(second, third, blocks, 2, shortcut)
        self.linear = nn.Linear(third, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """From images `(n, in_channels, h, w)` to logits `(n, num_classes)`."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, stride, shortcut),
        *(BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1)),
    )


def cifar_resnet(depth: int) -> Callable[..., CifarResNet]:
    """The builder of one depth."""

    def build(
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        widths: Sequence[int] = (16, 32, 64),
        shortcut: str = "A",
    ) -> CifarResNet:
        return CifarResNet(depth, num_classes, in_channels, image_size, widths, shortcut)

    return build
