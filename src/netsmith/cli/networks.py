"""From a SOURCE argument to a network, its chain and its measures: what dissect, compare, evaluate and zoo share."""

from __future__ import annotations

import argparse

import torch

from netsmith.core.graph import Chain, dissect
from netsmith.core.zoo import Network, load_source
from netsmith.errors import DataError, SourceError


def load_network(
    source: str, arguments: argparse.Namespace, *, example_shape: tuple[int, ...] | None = None
) -> Network:
    """The network of a SOURCE argument; `example_shape` (c, h, w) is for networks that know no size of their own."""
    size = arguments.input_size
    network = load_source(source, pretrained=not arguments.random_weights, input_size=size, seed=arguments.seed or 0)
    channels = network.preprocess.input_size[0]
    if example_shape is not None and example_shape[0] != channels:
        raise DataError(
            f"'{network.name}' takes images of {channels} channels, and the data's have {example_shape[0]}. "
            "Choose other data with --data, or another network."
        )
    return network


def format_metric(name: str, value: float) -> str:
    """Shares in per cent, everything else as it is."""
    return f"{100 * value:.2f}%" if name in {"accuracy", "miou", "f1"} else f"{value:.4f}"


def example_input(network: Network) -> torch.Tensor:
    """Two images of noise of the network's own size, the same every time: (2, c, h, w)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *network.preprocess.input_size, generator=generator)


def load_chain(
    source: str,
    arguments: argparse.Namespace,
    *,
    example_shape: tuple[int, ...] | None = None,
    not_named: str | None = None,
) -> tuple[Network, Chain]:
    """The network of a SOURCE argument, and its units; with another name when its own is `not_named`."""
    network = load_network(source, arguments, example_shape=example_shape)
    name = f"{network.name} (2)" if network.name == not_named else network.name
    return network, dissect(network.model, example_input(network), name=name)


def device_of(name: str | None) -> torch.device:
    """The device of --device, checked; the best there is by default.

    Raises:
        SourceError: this machine, or this torch, has no such device.
    """
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(best if name in (None, "auto") else name)
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device.type in there and (device.index or 0) >= there[device.type]:
        raise SourceError(
            f"there is no device '{name}' here: torch {torch.__version__} finds {best}. "
            "Leave --device out, or give cpu."
        )
    return device
