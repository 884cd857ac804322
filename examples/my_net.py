"""A network of your own: plain PyTorch, nothing of Netsmith in it. `py:my_net.py:build` is its source."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Wider inside than outside: expand, mix each channel on its own, weigh the channels, project; and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * width
        self.expand = nn.Sequential(nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self.mix = nn.Sequential(nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False), nn.BatchNorm2d(inner))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, inner, 1), nn.Sigmoid())
        self.project = nn.Sequential(nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.mix(self.expand(x)))
        return torch.relu(x + self.project(y * self.gate(y)))


class MyNet(nn.Module):
    """Three stages of blocks."""

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages: list[nn.Module] = []
        for stage in range(3):
            stages += [Block(width), Block(width)]
            if stage < 2:
                stages.append(nn.Sequential(nn.Conv2d(width, 2 * width, 2, stride=2), nn.BatchNorm2d(2 * width)))
                width *= 2
        self.body = nn.Sequential(*stages)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean(dim=(2, 3)))


def build(num_classes: int = 4) -> nn.Module:
    """What `py:my_net.py:build` calls."""
    return MyNet(num_classes)
