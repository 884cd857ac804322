"""The small networks of the two papers, in plain torch.

`BUILDERS` maps the NAME of a source `netsmith:NAME` to what builds it. Every builder takes at least `num_classes`,
`in_channels` and `image_size`, and what it builds says in `input_size` which images `(C, H, W)` it was built for.
A builder for another task than classification names it in `task`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .cifar_resnet import DEPTHS, BasicBlock, CifarResNet, PaddedShortcut, cifar_resnet
from .lenet import LeNet
from .plain import PlainCNN
from .separable import SeparableCNN
from .vae import ConvVAE
from .vit import SmallViT

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "conv_vae": ConvVAE,
    **{f"cifar_resnet{depth}": cifar_resnet(depth) for depth in DEPTHS},
    "lenet": LeNet,
    "plain_cnn": PlainCNN,
    "separable_cnn": SeparableCNN,
    "small_vit": SmallViT,
}

__all__ = [
    "BUILDERS",
    "BasicBlock",
    "CifarResNet",
    "ConvVAE",
    "LeNet",
    "PaddedShortcut",
    "PlainCNN",
    "SeparableCNN",
    "SmallViT",
]
