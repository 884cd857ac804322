"""What a network that generates images makes of some and draws by itself, as small PNG pictures."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from netsmith.data.images import ImageSet
from netsmith.networks.preprocess import Preprocess
from netsmith.trace.checks import eval_mode
from netsmith.training.generation import Generation

COUNT = 8
"""Images of a row."""
_SIDE = 64  # pixels: larger images are shrunk, so that a report of many sizes stays small


@torch.no_grad()
def generated(
    network: nn.Module, task: Generation, inputs: Float[Tensor, "n c h w"], seed: int = 0
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "m c h w"] | None]:
    """Return the reconstructions of preprocessed images, and as many images as a row holds, drawn from fixed codes.

    The codes are of a standard normal distribution, the same for the same seed. A network without a method `decode`
    that takes codes `(n, latent)` and gives logits of images draws nothing.
    """
    with eval_mode(network):
        outputs = network(inputs)
        latent = (outputs.shape[1] - task.numbers) // 2
        codes = torch.randn(COUNT, latent, generator=torch.Generator().manual_seed(seed)).to(outputs)
        try:
            drawn = network.decode(codes).float().reshape(COUNT, *task.shape).sigmoid()  # pyright: ignore[reportCallIssue]
        except (AttributeError, RuntimeError, TypeError, ValueError):  # none, or one that means something else
            drawn = None
    return task.images(outputs), drawn


def row(images: Float[Tensor, "n c h w"]) -> UInt8[np.ndarray, "h w_all *channels"]:
    """Return images with values in [0, 1] beside each other, as pixels in grey or, of three channels, in colour."""
    images = images if images.shape[1] == 3 else images.mean(dim=1, keepdim=True)
    pixels = torch.cat(list(images), dim=2).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels if images.shape[1] == 3 else pixels[..., 0]


def png(images: Float[Tensor, "n c h w"]) -> str:
    """Return a row of images as PNG in base64."""
    height, width = images.shape[2:]
    if max(height, width) > _SIDE:
        size = [max(1, round(side * _SIDE / max(height, width))) for side in (height, width)]
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    file = io.BytesIO()
    Image.fromarray(row(images)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def pictures(
    network: nn.Module, task: Generation, preprocess: Preprocess, images: ImageSet, seed: int
) -> dict[str, str]:
    """Return `originals`, their `reconstructions` and, where the network can draw, `draws`, as PNG in base64.

    The seed picks the originals and draws the codes, so that networks of different sizes show the same.
    """
    picks = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:COUNT]
    originals = images.images(picks)
    device = next(network.parameters()).device
    rebuilt, drawn = generated(network, task, preprocess(originals.to(device)), seed)
    rows = {"originals": originals, "reconstructions": rebuilt, "draws": drawn}
    return {name: png(value) for name, value in rows.items() if value is not None}
