"""A small morphable artifact for the page."""

from __future__ import annotations

from pathlib import Path

import netsmith


def saved(folder: Path) -> Path:
    """An unfitted artifact of a plain CNN on digits."""
    network = netsmith.load_source(
        "netsmith:plain_cnn", input_size=(1, 8, 8), num_classes=10, options={"widths": [8, 12], "depth": 2}
    )
    result = netsmith.make_morphable(network, netsmith.open_data("digits"), widths=(0.5, 1.0), ratios=(1.0, 0.5))
    return netsmith.save_morphed(result, folder)
