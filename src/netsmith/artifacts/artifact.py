"""Artifacts: a folder with a manifest, safetensors files and a readable card. No pickle is ever written or loaded."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn

from netsmith import limits
from netsmith.artifacts.consent import code_allowed, origin, recorded
from netsmith.artifacts.contents import AGAIN, CARD, MANIFEST, check_file, check_inside, plain_name
from netsmith.artifacts.manifest import ManifestFields, check_fields
from netsmith.errors import ArtifactError, OutputError, did_you_mean
from netsmith.files.cache import Cache, CacheEntry, digest, independent
from netsmith.files.output import (
    check_output,
    holds_something,
    is_own,
    named_os_errors,
    prepare_output,
    temporary,
    to_json,
    write_json,
    write_text,
)
from netsmith.files.paths import portable
from netsmith.records.architecture import note

__all__ = [
    "SCHEMA",
    "Cache",
    "CacheEntry",
    "Sized",
    "build",
    "builder",
    "digest",
    "is_artifact",
    "library_versions",
    "load",
    "loader",
    "prepare_output",
    "read_manifest",
    "read_tensors",
    "save_artifact",
    "saver",
    "saver_of",
    "staged",
    "verify",
    "write_json",
    "write_text",
]

SCHEMA = 1
"""Version of the manifest's layout that is written, and the newest that can be read."""

_RESERVED = ("schema", "kind", "files", "versions", "sha256")
_LIBRARIES = ("netsmith", "torch", "torchvision", "timm", "accelerate", "fast-tsp", "numpy", "scipy")
_LIBRARIES += ("scikit-learn", "pillow", "safetensors", "segmentation-models-pytorch", "datasets")

Loader = Callable[[Path], nn.Module]
Builder = Callable[[Mapping[str, Any]], nn.Module]
Saver = Callable[[nn.Module, Path, bool], Path]
_L = TypeVar("_L", bound=Callable[..., nn.Module])
_S = TypeVar("_S", bound=Callable[..., Path])
_loaders: dict[str, Loader] = {}
_builders: dict[str, Builder] = {}
_savers: dict[str, Saver] = {}

LOADERS = "netsmith.loaders"
"""Entry point group; an entry is called like the kind, and its module registers the loader with `loader`."""


@runtime_checkable
class Sized(Protocol):
    """What the loader of a morphable artifact gives: networks at a ratio of its widths."""

    def at(self, size: float) -> nn.Module:
        """A plain network at this ratio."""
        ...


def loader(kind: str) -> Callable[[_L], _L]:
    """Decorator that registers the function which turns an artifact folder of `kind` into a module.

    The module remembers the folder as `artifact_folder`, so that it can be saved or pushed again as it is.
    """

    def register(function: _L) -> _L:
        @functools.wraps(function)
        def loading(folder: Path | str, *arguments: Any, **named: Any) -> nn.Module:
            with recorded(str(folder)):
                module = function(folder, *arguments, **named)
            module.artifact_folder = Path(folder)  # pyright: ignore[reportArgumentType]  no tensor, no module
            return module

        _loaders[kind] = loading
        return loading  # pyright: ignore[reportReturnType]  of the same signature

    return register


def saver(kind: str) -> Callable[[_S], _S]:
    """Decorator that registers the function which writes a module whose `artifact_kind` is `kind` to a folder.

    It is called with the module, the folder, and whether an artifact there may be replaced.
    """

    def register(function: _S) -> _S:
        _savers[kind] = function
        return function

    return register


def builder(kind: str) -> Callable[[_L], _L]:
    """Decorator that registers the function which builds the network of a manifest of `kind`, with random weights."""

    def register(function: _L) -> _L:
        @functools.wraps(function)
        def building(manifest: Mapping[str, Any], *arguments: Any, **named: Any) -> nn.Module:
            module = function(manifest, *arguments, **named)
            note(module, manifest)
            return module

        _builders[kind] = building
        return building  # pyright: ignore[reportReturnType]  of the same signature

    return register


def build(manifest: Mapping[str, Any]) -> nn.Module:
    """The network that a manifest describes, with random weights, in eval mode.

    Raises:
        ArtifactError: of a kind that no builder knows, or what describes the network is missing.
    """
    kind = str(manifest.get("kind"))
    _bring(kind, _builders)
    if kind not in _builders:
        raise ArtifactError(f"a network of kind '{kind}' cannot be built. {did_you_mean(kind, _builders)}")
    with torch.random.fork_rng(devices=[]), recorded(origin() or "a manifest"):
        return _builders[kind](manifest).eval()


def saver_of(kind: str) -> Saver | None:
    """The function that writes modules of a kind; None for kinds that only what makes them can write."""
    _bring(kind, _savers)
    return _savers.get(kind)


def _bring(kind: str, known: Mapping[str, object]) -> None:
    """Import what registers a kind: packages say in their metadata which module does, this one knows none of them."""
    if kind not in known:
        for entry in importlib.metadata.entry_points(group=LOADERS, name=kind):
            entry.load()


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def save_artifact(
    folder: Path,
    *,
    kind: str,
    tensors: Mapping[str, Mapping[str, Tensor]],
    manifest: Mapping[str, Any],
    card: str,
    overwrite: bool = False,
) -> Path:
    """Write an artifact folder, whole or not at all: under a temporary name beside it, then renamed.

    Args:
        folder: where it goes.
        kind: what it is; names the loader that reads it back.
        tensors: per file (`weights.safetensors`) the tensors it holds.
        manifest: what else the manifest says (config, seeds, provenance, metrics, `preprocess`, `num_classes`, ...).
        card: text of README.md.
        overwrite: replace an artifact that is there already.

    Raises:
        OutputError: the folder exists, or cannot be written.
    """
    folder = Path(folder)
    clash = sorted(set(_RESERVED) & set(manifest))
    assert not clash, f"the manifest's own keys {clash} cannot be set from outside"
    with staged(folder, overwrite) as half, named_os_errors(folder):
        files = {}
        for name, state in tensors.items():
            assert plain_name(name), f"{name!r} must be a plain *.safetensors file name"
            assert name.endswith(".safetensors"), name
            files[name] = _write(half / name, tensors_to_bytes(independent(state)))
        files[CARD] = _write(half / CARD, portable(card, folder).encode("utf-8"))
        record = {"schema": SCHEMA, "kind": kind, "versions": library_versions(), "files": files, **manifest}
        record = portable(json.loads(to_json(record)), folder)
        record["sha256"] = _manifest_hash(record)
        _write(half / MANIFEST, (to_json(record, indent=2) + "\n").encode("utf-8"))
    return folder


@contextlib.contextmanager
def staged(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A new folder under a temporary name beside `folder`, put in its place when the block ends well, else removed.

    Raises:
        OutputError: `folder` exists and may not be replaced, or cannot be written.
    """
    check_output(folder, overwrite)
    half = temporary(folder)
    try:
        with named_os_errors(folder):
            half.mkdir(parents=True)
        yield half
        with named_os_errors(folder):
            _swap(half, folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _swap(half: Path, folder: Path) -> None:
    """Put `half` in the place of `folder`; what was there goes only once its successor stands."""
    if not folder.exists():
        half.rename(folder)
        return
    if holds_something(folder) and not is_own(folder):
        raise OutputError(f"{folder} is no artifact, so it is not overwritten. Choose a new folder with --out.")
    old = temporary(folder, "old")
    folder.rename(old)
    try:
        half.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _manifest_hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json({k: v for k, v in record.items() if k != "sha256"}).encode()).hexdigest()


def is_artifact(folder: Path | str) -> bool:
    """Whether a folder holds a manifest (which may still turn out damaged)."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: Path | str, kind: str | None = None) -> dict[str, Any]:
    """The verified manifest of an artifact folder.

    Args:
        folder: the artifact.
        kind: the kind that is wanted; None takes any.

    Raises:
        ArtifactError: no artifact, altered, truncated, written by a newer version, or of another kind.
    """
    folder = Path(folder)
    if not is_artifact(folder):
        raise ArtifactError(_no_artifact(folder))
    check_inside(folder, MANIFEST)
    try:
        record = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder / MANIFEST} cannot be read ({error}): it is damaged. {AGAIN}") from error
    if not isinstance(record, dict) or type(record.get("schema")) is not int or not isinstance(record.get("kind"), str):
        raise ArtifactError(f"{folder / MANIFEST} is no manifest of an artifact: 'schema' or 'kind' is missing.")
    if record["schema"] > SCHEMA:
        raise ArtifactError(
            f"{folder} has schema {record['schema']} and this Netsmith reads up to {SCHEMA}: it was written by a newer "
            "version. Upgrade with: pip install --upgrade netsmith"
        )
    if record.get("sha256") != _manifest_hash(record):
        raise ArtifactError(f"{folder / MANIFEST} was altered after it was written: its hash differs. {AGAIN}")
    if kind is not None and record["kind"] != kind:
        raise ArtifactError(f"{folder} is an artifact of kind '{record['kind']}', expected kind '{kind}'.")
    files = record.setdefault("files", {})
    if not isinstance(files, dict):
        raise ArtifactError(f"{folder / MANIFEST} lists its files as {type(files).__name__}, expected names. {AGAIN}")
    for name, entry in files.items():
        check_file(folder, name, entry)
    check_fields(record, ManifestFields, folder)
    return record


def _no_artifact(folder: Path) -> str:
    if not folder.exists():
        beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        hint = did_you_mean(folder.name, beside) if beside else f"{folder.parent} does not exist either."
        return f"There is no folder {folder}, expected an artifact. {hint}".rstrip()
    if not folder.is_dir():
        return f"{folder} is a file, expected an artifact folder (one with {MANIFEST})."
    if is_artifact(folder / "artifact"):
        return f"{folder} is an output folder; the artifact in it is {folder / 'artifact'}: name that."
    return f"{folder} is no artifact: it has no {MANIFEST}."


def read_tensors(folder: Path | str, file: str = "weights.safetensors") -> dict[str, Tensor]:
    """The tensors of one file of an artifact, verified against the manifest's hash.

    Raises:
        ArtifactError: as `read_manifest`, or the file is altered or not listed.
    """
    folder = Path(folder)
    files = read_manifest(folder)["files"]
    if file not in files:
        raise ArtifactError(f"The manifest of {folder} lists no {file}. {did_you_mean(file, files)}")
    if not file.endswith(".safetensors"):
        raise ArtifactError(f"{folder / file} is no *.safetensors file, and nothing else holds tensors. {AGAIN}")
    size = files[file]["bytes"]
    if size > limits.memory():
        raise ArtifactError(
            f"{folder / file} has {limits.amount(size)}, more than the memory of this machine "
            f"({limits.amount(limits.memory())}). If that is wrong, set NETSMITH_MEMORY to its GiB."
        )
    data = (folder / file).read_bytes()
    if hashlib.sha256(data).hexdigest() != files[file]["sha256"]:
        raise ArtifactError(f"{folder / file} was altered after it was written: its hash differs. {AGAIN}")
    try:
        return tensors_from_bytes(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{folder / file} is no safetensors file ({error}). {AGAIN}") from error


def verify(folder: Path | str) -> dict[str, Any]:
    """Check every tensor file of an artifact against its hash; returns the manifest. Raises ArtifactError."""
    record = read_manifest(folder)
    for name in record["files"]:
        if name != CARD:
            read_tensors(folder, name)
    return record


def load(folder: Path | str, *, into: nn.Module | None = None, run_code: bool = False) -> nn.Module:
    """The module held by an artifact folder, in eval mode, on the CPU.

    Args:
        folder: the artifact.
        into: for an artifact that began as a module of your own class: one such module, as it was before anything was
            folded or resized. It is left as it is.
        run_code: whether it may run the code that it names (sources `py:PATH.py:FUNCTION`) to be built.

    Raises:
        ArtifactError: the folder is no artifact, is damaged, of a kind that no loader knows, or would run code and may
            not.

    Examples:
        >>> network = netsmith.load_source("netsmith:plain_cnn", num_classes=10, input_size=(1, 8, 8))
        >>> groups = netsmith.width_groups(network.model, torch.rand(2, 1, 8, 8)).accepted
        >>> folder = netsmith.save_pretrained(netsmith.resize(network.model, groups, 0.5), "half")
        >>> netsmith.load("half")(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    record = read_manifest(folder)
    kind = str(record["kind"])
    _bring(kind, _loaders)
    if kind not in _loaders:
        raise ArtifactError(f"{folder} is of kind '{kind}', which cannot be loaded. {did_you_mean(kind, _loaders)}")
    loading: Callable[..., nn.Module] = _loaders[kind]
    if into is not None and "base" not in inspect.signature(loading).parameters:
        raise ArtifactError(f"{folder} is of kind '{kind}', which is not loaded into a module: leave 'into' out.")
    # building a module draws its initial weights: not from the caller's stream
    with torch.random.fork_rng(devices=[]), code_allowed(run_code):
        return (loading(Path(folder)) if into is None else loading(Path(folder), base=into)).eval()
