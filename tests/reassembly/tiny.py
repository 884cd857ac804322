"""A zoo of three tiny networks with different layouts, dissected, and probe images for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from netsmith.models import CifarResNet, SmallViT
from netsmith.reassembly.probe import Probe
from netsmith.reassembly.recipe import InputSpec, NetworkRef
from netsmith.trace.chain import Chain, dissect

SIDE = 16
INPUT = InputSpec((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), (3, SIDE, SIDE))


def preprocess(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.25


def _settle(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def build() -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return {
            "small": _settle(CifarResNet(8, num_classes=4, image_size=SIDE, widths=(4, 6, 8))),
            "deep": _settle(CifarResNet(14, num_classes=4, image_size=SIDE, widths=(5, 6, 10))),
            "tokens": _settle(
                SmallViT(4, image_size=SIDE, patch=4, dim=12, depth=3, heads=2, pool="token", conv_stem=False)
            ),
        }


def chains() -> dict[str, Chain]:
    return {name: dissect(model, torch.rand(2, 3, SIDE, SIDE), name=name) for name, model in build().items()}


def references() -> dict[str, NetworkRef]:
    return {name: NetworkRef(name, f"test:{name}", None, 4, INPUT) for name in ("small", "deep", "tokens")}


def images(count: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Images of four classes: a bright quadrant on noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    found = 0.6 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
    half = SIDE // 2
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        found[i, :, row * half : (row + 1) * half, column * half : (column + 1) * half] += 0.4
    return found, labels


def probe(count: int = 48) -> Probe:
    return Probe(*images(count), dict.fromkeys(("small", "deep", "tokens"), preprocess))
