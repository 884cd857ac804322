"""Modules and artifacts, as on the Hugging Face Hub: `save_pretrained`, `from_pretrained`, `push_to_hub`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from netsmith.artifacts.artifact import is_artifact, load, saver_of, staged, verify
from netsmith.errors import ArtifactError, NetsmithError
from netsmith.files.output import named_os_errors
from netsmith.files.paths import as_path
from netsmith.networks.hub import code_sources, fetch, is_hub_id, upload
from netsmith.records.architecture import architecture, is_noted
from netsmith.trace.checks import original

_P = TypeVar("_P", bound="Pretrained")


def save_pretrained(module: nn.Module, folder: Path | str, *, overwrite: bool = False) -> Path:
    """Write a module as an artifact: as it was loaded, or, where its kind can, anew.

    Args:
        module: loaded from an artifact, or made by Netsmith: what `resize`, `fold_batch_norms` and `.at()` give, and
            what a reassembly gives. One that began as a module of your own class needs `netsmith.load(..., into=...)`.
        folder: where it goes.
        overwrite: replace an artifact that is there already.

    Raises:
        ArtifactError: the module was never saved and does not know how, or was changed since it was loaded.
        OutputError: the folder exists, or cannot be written.

    Examples:
        >>> network = netsmith.load_source("netsmith:plain_cnn", num_classes=10, input_size=(1, 8, 8))
        >>> folded = netsmith.fold_batch_norms(network.model, torch.rand(2, 1, 8, 8))
        >>> folder = netsmith.save_pretrained(folded, "folded")
        >>> netsmith.load("folded")(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    module, folder = original(module), Path(folder)
    origin = getattr(module, "artifact_folder", None)
    if isinstance(origin, Path) and is_artifact(origin) and _unchanged(module, origin):
        return _copy(origin, folder, overwrite)
    kind = architecture(module)["kind"] if is_noted(module) else ""
    write = saver_of(kind) or saver_of(str(getattr(module, "artifact_kind", "")))
    if write is not None:
        return write(module, folder, overwrite)
    how = getattr(module, "how_to_save", "Only artifacts can be: load one, or save what made this module.")
    if isinstance(origin, Path):
        fault = f"was changed since it was loaded from {origin} (or that is gone), so that is no copy of it"
    else:
        fault = "was never saved, so there is no artifact of it"
    raise ArtifactError(f"This {type(module).__name__} {fault}. {how}")


def _unchanged(module: nn.Module, origin: Path) -> bool:
    """Whether a module still holds what its artifact gives."""
    try:
        fresh = load(origin, run_code=True).state_dict()  # what made the module runs again
    except NetsmithError:
        return False  # damaged meanwhile, or made of modules that loading has to be given
    own = module.state_dict()
    return fresh.keys() == own.keys() and all(
        value.dtype == own[name].dtype and torch.equal(value, own[name].cpu()) for name, value in fresh.items()
    )


def _copy(origin: Path, folder: Path, overwrite: bool) -> Path:
    names = [*verify(origin)["files"], "manifest.json"]
    if folder.resolve() == origin.resolve():
        return folder
    with staged(folder, overwrite) as temporary, named_os_errors(folder):
        for name in names:
            if (origin / name).is_file():  # the card may have been taken away
                shutil.copyfile(origin / name, temporary / name)
    return folder


def from_pretrained(
    folder_or_id: Path | str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | str | None = None,
    into: nn.Module | None = None,
    run_code: bool = False,
) -> nn.Module:
    """The module of an artifact, from a folder or from the Hugging Face Hub, in eval mode, on the CPU.

    Args:
        folder_or_id: a folder, or `ORG/NAME` of the Hub. What is a folder here is not looked for there.
        revision: of the Hub: a branch, tag or commit.
        token: of the Hub, for what is not public; default: the one of `hf auth login`.
        cache_dir: where downloads are kept; default: the Hub's own cache.
        into: see `netsmith.load`.
        run_code: whether it may run files of yours (sources `py:PATH.py:FUNCTION`) to be built.

    Raises:
        ArtifactError: no artifact, a damaged one, or one that would run code and may not.
        HubError: the Hub has nothing of that name, does not let you in, or is out of reach.

    Examples:
        >>> network = netsmith.load_source("netsmith:plain_cnn", num_classes=10, input_size=(1, 8, 8))
        >>> folded = netsmith.fold_batch_norms(network.model, torch.rand(2, 1, 8, 8))
        >>> folder = netsmith.save_pretrained(folded, "folded")
        >>> model = netsmith.from_pretrained(folder)  # or "ORG/NAME" of the Hugging Face Hub
    """
    text = str(folder_or_id)
    if not is_hub_id(text) or as_path(text).exists():
        return load(as_path(text, ArtifactError), into=into, run_code=run_code)
    folder = fetch(text, revision=revision, token=token, cache_dir=cache_dir)
    code = code_sources(folder)
    if code and not run_code:
        raise ArtifactError(
            f"'{text}' of the Hub is built by running code: {', '.join(code)}. If those files are yours and you trust "
            "them, pass run_code=True."
        )
    return load(folder, into=into, run_code=run_code)


def push_to_hub(
    folder: Path | str | nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Upload with Netsmith",
) -> str:
    """Put an artifact to the Hugging Face Hub; returns its address there. Anyone gets it by `from_pretrained(repo_id)`.

    Args:
        folder: of the artifact, or a module that `save_pretrained` can write.
        repo_id: `ORG/NAME`; made if it does not exist.
        private: whether a new repository is private; default: as your organisation has it.
        token: of the Hub; default: the one of `hf auth login`.
        revision: an existing branch; default: the main one.
        message: of the commit.

    Raises:
        ArtifactError: no artifact, a damaged one, or a module that was never saved.
        HubError: the Hub is out of reach, or does not let you write there.

    Examples:
        >>> netsmith.push_to_hub("reassembled", "ORG/NAME", private=True)  # doctest: +SKIP
    """
    if not isinstance(folder, nn.Module):
        return upload(folder, repo_id, private=private, token=token, revision=revision, message=message)
    with tempfile.TemporaryDirectory() as scratch:
        written = save_pretrained(folder, Path(scratch) / "artifact")
        return upload(written, repo_id, private=private, token=token, revision=revision, message=message)


class Pretrained:
    """Methods of a module that is kept as an artifact.

    `artifact_kind` names the function that writes it (see `artifact.saver`); without one, it can be written only as the
    artifact it was loaded from, and `how_to_save` says how to make that.
    """

    artifact_kind: str = ""
    how_to_save: str = ""

    def save_pretrained(self, folder: Path | str, *, overwrite: bool = False) -> Path:
        """Write it as an artifact; returns the folder. Raises as `netsmith.networks.pretrained.save_pretrained`."""
        assert isinstance(self, nn.Module)
        return save_pretrained(self, folder, overwrite=overwrite)

    def push_to_hub(self, repo_id: str, **named: Any) -> str:
        """Put it to the Hugging Face Hub; returns its address. Keywords and errors are `netsmith.push_to_hub`'s."""
        assert isinstance(self, nn.Module)
        return push_to_hub(self, repo_id, **named)

    @classmethod
    def from_pretrained(cls: type[_P], folder_or_id: Path | str, **named: Any) -> _P:
        """The module of an artifact of this kind. Keywords and errors are `netsmith.from_pretrained`'s."""
        module = from_pretrained(folder_or_id, **named)
        if not isinstance(module, cls):
            raise ArtifactError(
                f"{folder_or_id} holds a {type(module).__name__}, expected a {cls.__name__}: "
                "netsmith.from_pretrained takes any."
            )
        return module
