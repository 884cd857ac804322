"""What building a network shares, whatever the library: its complaints about options, and downloads that fail."""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlparse

from torch import nn
from torch.nn.modules import module as hooks

from netsmith import limits
from netsmith.errors import NetsmithError, SourceError, first_line
from netsmith.networks.sources import Facts, Source

_COMPLAINTS = (
    TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError, AttributeError, NameError,
    MemoryError,
)  # fmt: skip
"""What builders raise for options that they do not check; what goes wrong with a download is none of them."""


class TooLargeError(SourceError):
    """A network has too many modules, or takes more than the memory of this machine."""


def call(builder: Callable[..., nn.Module], what: str, options: Mapping[str, Any]) -> nn.Module:
    """Call a builder; its complaints about options become ours, and TooLargeError says of what."""
    try:
        return builder(**options)
    except _COMPLAINTS as error:
        allowed = [p for p in inspect.signature(builder).parameters if p not in {"kwargs", "args"}]
        given = ", ".join(f"{k}={v!r:.80}" for k, v in options.items()) or "no options"
        if isinstance(error, TooLargeError):
            raise TooLargeError(f"{what} cannot be built with {given}: {error}.") from error
        hint = f" Its options: {', '.join(allowed)}." if allowed and isinstance(error, TypeError) else ""
        raise SourceError(f"{what} cannot be built with {given}: {error}.{hint}") from error


_READS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained", "cache_dir")
"""Options by which a library would read files in its own way."""


def check_options(what: object, options: Mapping[str, Any]) -> None:
    """That the options of a builder are no absurd numbers, and none by which it would read files.

    Raises:
        SourceError: names the option, what came and what is allowed.
    """
    for name, value in options.items():
        if name in _READS:
            raise SourceError(
                f"{what}: the option '{name}' reads files unchecked. Name weights behind a #: SOURCE#FILE."
            )
        _check_number(f"{what}: the option '{name[:80]}'", value, 0)


def _check_number(what: str, value: Any, depth: int) -> None:
    if depth > 16:
        raise SourceError(f"{what} is nested more than 16 levels deep.")
    if isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            _check_number(what, inner, depth + 1)
    elif isinstance(value, int | float) and not -limits.OPTION <= value <= limits.OPTION:
        raise SourceError(f"{what} is {str(value)[:40]}, expected at most {limits.OPTION}.")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Networks built meanwhile are refused as soon as they have too many modules or too large tensors.

    Raises:
        TooLargeError: more than `limits.MODULES` modules, or tensors beyond `limits.memory()` bytes.
    """
    most, modules, size = limits.memory(), 0, 0

    def count_module(*_: Any) -> None:
        nonlocal modules
        modules += 1
        if modules > limits.MODULES:
            raise TooLargeError(f"it has more than {limits.MODULES} modules")

    def count_tensor(_module: nn.Module, _name: str, tensor: Any) -> None:
        nonlocal size
        size += 0 if tensor is None else tensor.numel() * tensor.element_size()
        if size > most:
            raise TooLargeError(
                f"it takes more than the memory of this machine ({limits.amount(most)}). If that is wrong, set "
                "NETSMITH_MEMORY to its GiB"
            )

    handles = [
        hooks.register_module_module_registration_hook(count_module),
        hooks.register_module_parameter_registration_hook(count_tensor),
        hooks.register_module_buffer_registration_hook(count_tensor),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def downloading(source: Source, known: Facts) -> Iterator[None]:
    """Around code that may download: fail at once when offline, and say what was wanted and what to do instead."""
    if known.download_bytes:
        offline = unreachable(known.url or "")
        if offline:
            raise SourceError(_cannot_download(source, known, offline))
    try:
        yield
    except NetsmithError:
        raise
    except Exception as error:  # each library and each of its versions has its own errors for a broken connection
        if not known.url:
            raise SourceError(f"'{source}' cannot be built: {type(error).__name__}: {first_line(error)}") from error
        raise SourceError(_cannot_download(source, known, first_line(error))) from error


def _cannot_download(source: Source, known: Facts, why: str) -> str:
    size = f"{known.download_bytes / 1e6:.1f} MB" if known.download_bytes else "the weights"
    return (
        f"'{source}' needs weights that are not on this machine: {size} from {known.url} ({why}). Connect and try "
        f"again, name a local file ('{source.scheme}:{source.name}#/path/to/weights.safetensors'), or take random "
        "weights (pretrained: false)."
    )


def unreachable(url: str) -> str:
    """Why a host cannot be reached, or `""`; the libraries themselves would try for most of a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"} and "huggingface" in url:
        return "HF_HUB_OFFLINE is set"
    if urllib.request.getproxies():
        return ""  # names are resolved by the proxy
    at_hub = "huggingface.co" in url
    host = urlparse(os.environ.get("HF_ENDPOINT", url) if at_hub else url).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return f"{host} cannot be reached"
    return ""
