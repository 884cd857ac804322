"""Small data for the examples: images of squares, discs, crosses and rings, drawn by code, in folders as photos are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cross", "disc", "ring", "square")
SIZE = 32


def draw(name: str, rng: np.random.Generator) -> np.ndarray:
    """One image `(32, 32, 3)`, uint8: a shape of random place, size and colour on a noisy ground."""
    y, x = np.mgrid[:SIZE, :SIZE]
    radius = rng.uniform(5, 11)
    cy, cx = rng.uniform(radius, SIZE - radius, 2)
    away, far = np.hypot(y - cy, x - cx), np.maximum(abs(y - cy), abs(x - cx))
    near = np.minimum(abs(y - cy), abs(x - cx))
    inside = {
        "cross": (near < radius / 4) & (far < radius),
        "disc": away < radius,
        "ring": (away < radius) & (away > 0.55 * radius),
        "square": far < 0.85 * radius,
    }[name]
    ground, colour = rng.uniform(0, 120, 3), rng.uniform(120, 255, 3)
    image = np.where(inside[..., None], colour, ground) + rng.normal(0, 12, (SIZE, SIZE, 3))
    return image.clip(0, 255).astype(np.uint8)


def write(folder: Path, train: int = 150, test: int = 40) -> Path:
    """Write `folder/train/CLASS/*.png` and `folder/test/CLASS/*.png`, so many of each class, once."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for name in CLASSES:
            place = folder / part / name
            if place.exists():
                continue
            place.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(draw(name, rng)).save(place / f"{k}.png")
    return folder


if __name__ == "__main__":
    print(write(Path("shapes")))
