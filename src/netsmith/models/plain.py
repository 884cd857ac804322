"""A small plain convolutional network: convolution, norm, activation, again; nothing skips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm_act(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias (padded to keep the size), batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class PlainCNN(nn.Module):
    """Stages of 3x3 convolutions (VGG's plan, with batch norms), average pooling and one linear layer.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        image_size: side of the images in pixels; recorded in `input_size`, any side from 4 runs.
        widths: channels of each stage; every stage but the first halves the size.
        depth: convolutions a stage.

    Raises:
        ValueError: no stage, or an empty one.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        widths: Sequence[int] = (32, 64, 96),
        depth: int = 2,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or depth < 1:
            raise ValueError(f"a plain CNN needs positive widths and depth, not {tuple(widths)} and {depth}")
        self.input_size = (in_channels, image_size, image_size)
        layers: list[nn.Module] = []
        previous = in_channels
        for stage, width in enumerate(widths):
            for i in range(depth):
                layers.append(conv_norm_act(previous, width, stride=2 if stage and not i else 1))
                previous = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(previous, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """From images `(n, in_channels, h, w)` to logits `(n, num_classes)`."""
        x = self.features(x)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
