"""How a network is built, noted on its module, so that what is made of it can be saved and built again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

NOTE = "netsmith_architecture"
"""The attribute that holds it: plain values, so that copies and pickles of a module need no Netsmith."""

_OF_ONE_FOLDER = ("files", "sha256", "versions", "schema", "config", "metrics", "validation", "validation_images")
_INHERITED = ("name", "num_classes", "task", "classes", "preprocess", "provenance", "licence", "commercial", "hashes")
_INHERITED += ("input_size",)


@runtime_checkable
class Described(Protocol):
    """A module of Netsmith's own that tells how it is built."""

    def netsmith_manifest(self) -> dict[str, Any]:
        """Return the manifest, without weights, that builds it again."""
        ...


def architecture(module: nn.Module) -> dict[str, Any]:
    """Return the manifest, without weights, that builds a module again.

    One that Netsmith did not make has the kind `module`: nothing but its own class builds it.
    """
    found = vars(module).get(NOTE)
    if not found and isinstance(module, Described):
        return module.netsmith_manifest()
    return dict(found) if found else {"kind": "module", "source": f"module:{type(module).__name__}"}


def is_noted(module: nn.Module) -> bool:
    """Return whether it is known how to build this module."""
    return bool(vars(module).get(NOTE))


def note(module: nn.Module, manifest: Mapping[str, Any]) -> None:
    """Note on a module the manifest that builds it; what belongs to the files of one folder is left out."""
    object.__setattr__(module, NOTE, {k: v for k, v in manifest.items() if k not in _OF_ONE_FOLDER})


def note_made(module: nn.Module, before: nn.Module, **how: Any) -> None:
    """Note on a module how it was made of another: `folded` with `input_size`, or `groups` resized to `widths`."""
    base = architecture(before)
    if "groups" in how and base["kind"] == "sampled" and not base["groups"]:
        note(module, {**base, **how})  # folded, then resized: one step
        return
    inherited = {key: base[key] for key in _INHERITED if key in base}
    note(module, {"kind": "sampled", "base": base, "folded": False, "groups": [], "widths": {}, **inherited, **how})
