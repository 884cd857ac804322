"""A small morphable artifact, and the page that shows it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import netsmith


def saved(folder: Path) -> Path:
    """An unfitted artifact of a plain CNN on digits."""
    network = netsmith.load_source(
        "netsmith:plain_cnn", input_size=(1, 8, 8), num_classes=10, options={"widths": [8, 12], "depth": 2}
    )
    result = netsmith.morph(network, netsmith.open_data("digits"), space={"widths": (0.5, 1.0)}, ratios=(1.0, 0.5))
    return netsmith.save_morphed(result, folder)


def saved_autoencoder(folder: Path) -> Path:
    """An unfitted artifact of an autoencoder of digits."""
    network = netsmith.load_source(
        "netsmith:conv_vae", input_size=(1, 8, 8), options={"width": 4, "latent": 2, "image_size": 8}
    )
    result = netsmith.morph(network, netsmith.open_data("digits"), ratios=(1.0, 0.5), generator="nested")
    return netsmith.save_morphed(result, folder)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the page of an artifact, from a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "netsmith", "explore", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _wait(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.communicate(timeout=30)


def _wait(port: int, server: subprocess.Popen[str], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, server.communicate()[1]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("the page did not come up")
