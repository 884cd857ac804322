"""Image generation by a variational autoencoder."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from netsmith.errors import TrainingError
from netsmith.training.task import check_temperature, sum_type

Parts = tuple[Tensor, Tensor, Tensor]


class Generation:
    """A variational autoencoder's task: give every image back through a small code with a known distribution.

    The loss is the negative evidence lower bound (Kingma and Welling, "Auto-encoding variational Bayes", 2014): cross-
    entropy of the image, its values in [0, 1] read as chances, plus the KL divergence of the code's normal distribution
    from the standard one. Both in nats for each number of the image (`c * h * w` of them), so that losses of images of
    different sizes compare; times `c * h * w` they are nats an image.

    A network for it gives one row an image, `(n, c * h * w + 2 * latent)`: the logits of the reconstructed image, the
    code's means, the logarithms of its variances. In evaluation mode it decodes the means, so that metrics have
    nothing random in them (and `elbo` is taken at the mean of the code, not over samples of it).

    Args:
        shape: `(c, h, w)` of the images.

    Examples:
        >>> netsmith.Generation((3, 64, 64)).images(torch.zeros(2, 3 * 64 * 64 + 2 * 16)).shape  # a code of 16 numbers
        torch.Size([2, 3, 64, 64])
    """

    name = "generation"
    primary = "elbo"
    higher_is_better = True
    soft_targets = False
    num_classes = 0

    def __init__(self, shape: tuple[int, int, int]) -> None:
        if min(shape) < 1:
            raise TrainingError(f"generation needs the shape of the images, (channels, height, width), not {shape}")
        self.shape = shape
        self.numbers = math.prod(shape)

    def check(self, classes: tuple[str, ...], outputs: Tensor, targets: Tensor | None = None) -> None:
        """Raise TrainingError unless a network's outputs hold an image of the right size and a code."""
        size = "x".join(str(s) for s in self.shape)
        latent = outputs.shape[-1] - self.numbers
        if outputs.ndim != 2 or latent < 2 or latent % 2:
            raise TrainingError(
                f"the network gives outputs of shape {tuple(outputs.shape)}, ({len(outputs)}, {self.numbers} + 2 * "
                f"latent) was expected: an image of {size}, means and logarithms of variances of a code. Take a "
                f"variational autoencoder for images of {size}, such as netsmith:conv_vae"
            )
        if targets is not None and tuple(targets.shape[1:]) != self.shape:
            raise TrainingError(f"images of {size} were expected, these are {tuple(targets.shape[1:])}")

    def targets_of(self, images: Tensor, targets: Tensor) -> Tensor:
        """The images themselves."""
        return images

    def split(self, outputs: Float[Tensor, "n k"]) -> Parts:
        """Logits of the image `(n, c, h, w)`, means and logarithms of variances of the code, `(n, latent)` each."""
        logits, code = outputs.float().split([self.numbers, outputs.shape[1] - self.numbers], dim=1)
        mean, log_variance = code.chunk(2, dim=1)
        return logits.reshape(-1, *self.shape), mean, log_variance

    def images(self, outputs: Float[Tensor, "n k"]) -> Float[Tensor, "n c h w"]:
        """The reconstructed images, in [0, 1]."""
        return self.split(outputs)[0].sigmoid()

    def loss(
        self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n c h w"], smoothing: float = 0.0
    ) -> Float[Tensor, ""]:
        """The negative evidence lower bound, nats a number, the mean over the images.

        Raises:
            TrainingError: label smoothing was asked for.
        """
        if smoothing:
            raise TrainingError("label_smoothing means nothing for image generation: leave it 0")
        return self._bounds(outputs, targets).mean().neg()

    def _bounds(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """The evidence lower bound of each image, nats a number."""
        logits, mean, log_variance = self.split(outputs)
        entropy = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").flatten(1).sum(dim=1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
        return -(entropy + divergence) / self.numbers

    def distil(
        self, outputs: Float[Tensor, "n k"], teacher_outputs: Float[Tensor, "n k2"], temperature: float = 1.0
    ) -> Float[Tensor, ""]:
        """KL divergence of the teacher's pixels (softened, times the squared temperature) and codes, nats a number.

        Raises:
            TrainingError: the codes differ in length, or the temperature is not positive.
        """
        check_temperature(temperature)
        if outputs.shape != teacher_outputs.shape:
            raise TrainingError(
                f"outputs of shape {tuple(outputs.shape)} cannot be compared with a teacher's of "
                f"{tuple(teacher_outputs.shape)}: both need images and codes of the same length"
            )
        logits, mean, log_variance = self.split(outputs)
        teacher, teacher_mean, teacher_log_variance = self.split(teacher_outputs)
        softened = teacher / temperature
        chances = softened.sigmoid()
        pixels = F.binary_cross_entropy_with_logits(logits / temperature, chances, reduction="sum")
        pixels = pixels - F.binary_cross_entropy_with_logits(softened, chances, reduction="sum")
        gap = (teacher_mean - mean).square() / log_variance.exp()
        ratio = teacher_log_variance - log_variance
        codes = 0.5 * (ratio.exp() + gap - 1 - ratio).sum()
        return (pixels * temperature**2 + codes) / (self.numbers * len(outputs))

    def metrics(self, outputs: Float[Tensor, "n k"], targets: Float[Tensor, "n c h w"]) -> dict[str, Tensor]:
        """Sums of the bound and of the squared error (its mean over an image's numbers), number of images."""
        exact = sum_type(outputs.device)
        error = (self.images(outputs) - targets).square().flatten(1).mean(dim=1)
        return {
            "elbo": self._bounds(outputs, targets).sum().to(exact),
            "error": error.sum().to(exact),
            "count": torch.tensor(len(targets), dtype=exact, device=outputs.device),
        }

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """`elbo` (nats a number, higher is better), `reconstruction` (mean squared error), `loss` (minus `elbo`)."""
        count = float(sums["count"])
        elbo = float(sums["elbo"]) / count
        return {"elbo": elbo, "reconstruction": float(sums["error"]) / count, "loss": -elbo}
