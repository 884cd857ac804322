"""Small pictures drawn by code, with masks: background (0), a bright square (1), a dark disc (2), an unknown rim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("background", "square", "disc")


def draw(seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A picture `(size, size, 3)` and its mask `(size, size)`, both uint8."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(90, 130, (size, size, 3))
    mask = np.zeros((size, size), np.uint8)
    rows, columns = np.mgrid[:size, :size]
    for label, value in ((1, 220), (2, 20)):
        side = rng.integers(size // 5, size // 3)
        top, left = rng.integers(1, size - 2 * side, 2)
        if label == 1:
            inside = (abs(rows - top - side // 2) <= side // 2) & (abs(columns - left - side // 2) <= side // 2)
        else:
            inside = (rows - top - side) ** 2 + (columns - left - side) ** 2 <= side**2
        picture[inside] = value + rng.integers(-20, 20, 3)
        mask[inside] = label
    mask[0] = 255
    return picture.clip(0, 255).astype(np.uint8), mask


def write_masks(folder: Path, counts: dict[str, int], *, size: int = 32, names: bool = True) -> None:
    """`counts` pictures of each part as `masks:FOLDER` reads them."""
    seed = 0
    for part, count in counts.items():
        for kind in ("images", "masks"):
            (folder / part / kind).mkdir(parents=True)
        for i in range(count):
            picture, mask = draw(seed, size)
            Image.fromarray(picture).save(folder / part / "images" / f"{i:03}.png")
            Image.fromarray(mask).save(folder / part / "masks" / f"{i:03}.png")
            seed += 1
    if names:
        (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
