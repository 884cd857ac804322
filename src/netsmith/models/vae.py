"""A convolutional variational autoencoder (Kingma and Welling, "Auto-encoding variational Bayes", 2014)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvVAE(nn.Module):
    """Strided convolutions down to a small map, a code, transposed convolutions back up; batch norms in between.

    Every stage halves the size, from the image's down to an odd one or at most 4; its channels are `width`, 2, 4 and
    then always 8 times `width`. Every inner width may change: nothing but the shapes of the weights knows it.

    Args:
        num_classes: 0, as there are none; here so that it is built like every network.
        in_channels: channels of the images.
        image_size: side of the square images in pixels, an even number.
        latent: numbers in the code.
        width: channels of the first stage.

    Raises:
        ValueError: classes were asked for, or the size is odd, or something is below 1.
    """

    task = "generation"
    num_classes = 0

    def __init__(
        self, num_classes: int = 0, in_channels: int = 3, image_size: int = 64, latent: int = 64, width: int = 32
    ) -> None:
        super().__init__()
        if num_classes:
            raise ValueError(f"an autoencoder has no classes, {num_classes} were asked for (task: generation)")
        if image_size < 4 or image_size % 2:
            raise ValueError(f"an autoencoder needs images of an even size from 4 pixels on, not {image_size}")
        if min(in_channels, latent, width) < 1:
            raise ValueError(f"in_channels, latent and width are at least 1, not {in_channels}, {latent} and {width}")
        self.input_size = (in_channels, image_size, image_size)
        side, stages = image_size, 0
        while side % 2 == 0 and (side > 4 or not stages):
            side, stages = side // 2, stages + 1
        widths = [width * min(8, 2**i) for i in range(stages)]
        self.encoder = nn.Sequential(*(_down(a, b) for a, b in zip([in_channels, *widths[:-1]], widths, strict=True)))
        self.mean = nn.Linear(widths[-1] * side * side, latent)
        self.log_variance = nn.Linear(widths[-1] * side * side, latent)
        back = widths[::-1]
        # from one pixel to the whole map: a linear layer that knows its channels, as no reshaping of its output would
        self.decoder = nn.Sequential(
            _up(latent, back[0], kernel=side, stride=1, padding=0),
            *(_up(a, b) for a, b in zip(back, [*back[1:], width], strict=True)),
        )
        self.image = nn.Conv2d(width, in_channels, 3, padding=1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From images `(n, in_channels, h, w)` to means and logarithms of variances of the code, `(n, latent)` each."""
        features = self.encoder(x).flatten(1)
        # bounds far beyond what is learnt, so that a wild step does not overflow
        return self.mean(features), self.log_variance(features).clamp(-30.0, 20.0)

    def decode(self, code: Tensor) -> Tensor:
        """From codes `(n, latent)` to the logits of images `(n, in_channels, h, w)`."""
        return self.image(self.decoder(code[:, :, None, None]))

    def forward(self, x: Tensor) -> Tensor:
        """From images to `(n, in_channels * h * w + 2 * latent)`: logits of the image, means, logarithms of variances.

        In training mode the decoded code is drawn from its distribution, otherwise it is the mean.
        """
        mean, log_variance = self.encode(x)
        code = mean
        if self.training:
            code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return torch.cat([self.decode(code).flatten(1), mean, log_variance], dim=1)


def _down(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _up(in_channels: int, out_channels: int, *, kernel: int = 4, stride: int = 2, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
