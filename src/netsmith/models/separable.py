"""A small network of depthwise-separable convolutions, after MobileNet (Howard et al., 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain import conv_norm_act


class SeparableBlock(nn.Module):
    """One depthwise 3x3 and one pointwise 1x1 convolution, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = conv_norm_act(in_channels, in_channels, 3, stride, groups=in_channels)
        self.pointwise = conv_norm_act(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From `(n, c_in, h, w)` to `(n, c_out, h / stride, w / stride)`."""
        return self.pointwise(self.depthwise(x))


class SeparableCNN(nn.Module):
    """A 3x3 stem, then depthwise 3x3 and pointwise 1x1 convolutions, average pooling and one linear layer.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        image_size: side of the images in pixels; recorded in `input_size`, any side from 4 runs.
        widths: channels of each stage; the stem has the first; every stage but the first halves the size.
        depth: separable blocks a stage.

    Raises:
        ValueError: no stage, or an empty one.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        widths: Sequence[int] = (32, 64, 128),
        depth: int = 2,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or depth < 1:
            raise ValueError(f"a separable CNN needs positive widths and depth, not {tuple(widths)} and {depth}")
        self.input_size = (in_channels, image_size, image_size)
        self.stem = conv_norm_act(in_channels, widths[0])
        blocks: list[nn.Module] = []
        previous = widths[0]
        for stage, width in enumerate(widths):
            for i in range(depth):
                blocks.append(SeparableBlock(previous, width, stride=2 if stage and not i else 1))
                previous = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(previous, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """From images `(n, in_channels, h, w)` to logits `(n, num_classes)`."""
        x = self.blocks(self.stem(x))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
