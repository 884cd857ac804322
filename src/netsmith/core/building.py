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

from netsmith.core.sources import Facts, Source
from netsmith.errors import NetsmithError, SourceError


def call(builder: Callable[..., nn.Module], what: str, options: Mapping[str, Any]) -> nn.Module:
    """Call a builder; its complaints about options become ours."""
    try:
        return builder(**options)
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError) as error:
        allowed = [p for p in inspect.signature(builder).parameters if p not in {"kwargs", "args"}]
        given = ", ".join(f"{k}={v!r}" for k, v in options.items()) or "no options"
        hint = f" Its options: {', '.join(allowed)}." if allowed and isinstance(error, TypeError) else ""
        raise SourceError(f"{what} cannot be built with {given}: {error}.{hint}") from error


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
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not known.url:
            raise SourceError(f"'{source}' cannot be built: {type(error).__name__}: {first}") from error
        raise SourceError(_cannot_download(source, known, first)) from error


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
