"""LeNet-5 (LeCun et al., "Gradient-based learning applied to document recognition"), with ReLU and max pooling."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Module):
    """Two 5x5 convolutions (6 and 16 channels), each pooled, and three linear layers (120, 84, classes).

    The convolutions are padded only as far as the image needs: not at all from 32 pixels on, the first one from 28 on
    (both sizes end on the paper's 5x5 map: 61,706 parameters for one channel and ten classes), both below that, so that
    8x8 digits fit.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        image_size: side of the square images in pixels, from 4. The linear layers depend on it.

    Raises:
        ValueError: the images are smaller than 4 pixels.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> None:
        super().__init__()
        if image_size < 4:
            raise ValueError(f"LeNet needs images of at least 4x4 pixels, not {image_size}x{image_size}")
        self.input_size = (in_channels, image_size, image_size)
        first = 0 if image_size >= 32 else 2
        second = 0 if image_size >= 28 else 2
        side = ((image_size + 2 * first - 4) // 2 + 2 * second - 4) // 2
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(in_channels, 6, 5, padding=first), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(6, 16, 5, padding=second), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Sequential(nn.Linear(16 * side * side, 120), nn.ReLU()),
            nn.Sequential(nn.Linear(120, 84), nn.ReLU()),
            nn.Linear(84, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """From images `(n, in_channels, image_size, image_size)` to logits `(n, num_classes)`."""
        return self.classifier(self.features(x))
