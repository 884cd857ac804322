"""Shapes and types of every annotated function are checked while the tests run; two cores are shared fairly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("netsmith", "beartype.beartype")

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture
def shared_data() -> Path:
    """Folder with the CIFAR-10 parquet files."""
    path = SHARED / "data" / "cifar10_jpeg"
    if not path.is_dir():
        pytest.skip(f"needs the CIFAR-10 images in {path}")
    return path


@pytest.fixture
def shared_zoo() -> Path:
    """Folder with the trained CIFAR ResNets."""
    path = SHARED / "zoo"
    if not path.is_dir():
        pytest.skip(f"needs the trained networks in {path}")
    return path


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
