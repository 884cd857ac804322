"""The Hugging Face Hub: artifacts fetched from it and put there, with one message for each thing that can go wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import CommitOperationAdd

from netsmith.artifacts.artifact import is_artifact, read_manifest, verify
from netsmith.errors import ArtifactError, HubError, SourceError, first_line
from netsmith.networks.building import unreachable
from netsmith.networks.sources import fetcher

HUB = "https://huggingface.co"
FILES = ["manifest.json", "*.safetensors", "README.md"]
"""What an artifact consists of: nothing else is fetched or put there, and no code."""

_brought: dict[str, Path] = {}
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a repository of the Hub, `ORG/NAME`."""
    return _ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def fetch(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None, cache_dir: Path | str | None = None
) -> Path:
    """The folder of an artifact of the Hub, downloaded or from an earlier download.

    Args:
        repo_id: `ORG/NAME`.
        revision: a branch, tag or commit; default: the main branch.
        token: of the Hub, for repositories that are not public; default: the one of `hf auth login`.
        cache_dir: where downloads are kept; default: the Hub's own cache.

    Raises:
        HubError: no such repository or revision, no access, no connection and no earlier download.
        ArtifactError: the repository holds no artifact, or a damaged one.
    """
    offline = unreachable(HUB)
    try:
        folder = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            allow_patterns=FILES,
            local_files_only=bool(offline),
        )
    except Exception as error:  # the library's errors differ between its versions and those of what it calls
        raise HubError(_cannot_fetch(repo_id, revision, offline, error)) from error
    if not is_artifact(folder):
        raise ArtifactError(
            f"'{repo_id}' of the Hub holds no artifact of Netsmith: it has no manifest.json. If it is a network of "
            f"timm, its source is timm:NAME (see `netsmith dissect --help`)."
        )
    return Path(folder)


@fetcher("hf")
def bring(repo_id: str) -> Path:
    """The folder of an artifact that is named as a source, `hf:ORG/NAME`: fetched once while the program runs.

    Raises:
        SourceError: it is not of the form ORG/NAME. HubError, ArtifactError: as `fetch`.
    """
    if not is_hub_id(repo_id):
        raise SourceError(
            f"'hf:{repo_id}' must be hf:ORG/NAME, the name of an artifact on the Hugging Face Hub, or hf:ORG/NAME@0.5, "
            "a morphable one at half its width."
        )
    if repo_id not in _brought:
        _brought[repo_id] = fetch(repo_id)
    return _brought[repo_id]


def _cannot_fetch(repo_id: str, revision: str | None, offline: str, error: Exception) -> str:
    at = f"'{repo_id}'" + (f" at revision '{revision}'" if revision else "")
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if offline or kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError"}:
        why = offline or first_line(error)
        return (
            f"{at} is neither a folder here nor downloaded before, and the Hugging Face Hub is out of reach ({why}). "
            "Connect and try again; or copy the artifact's folder from where it is, and name that folder."
        )
    if "RevisionNotFoundError" in kinds:
        return f"'{repo_id}' of the Hugging Face Hub has no revision '{revision}'. See {HUB}/{repo_id}/tree/main."
    if kinds & {"RepositoryNotFoundError", "GatedRepoError"}:
        return (
            f"{at} is neither a folder here nor a repository of the Hugging Face Hub that you may read. Check the "
            "name; for one that is not public, log in with `hf auth login`, or pass token=..."
        )
    return f"{at} cannot be fetched from the Hugging Face Hub: {first_line(error)}"


def upload(
    folder: Path | str,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Upload with Netsmith",
) -> str:
    """Put an artifact's folder into a repository of the Hub, which is made if it does not exist; returns its address.

    The card gets the header from which the Hub takes licence and library; the folder itself stays as it is.

    Args:
        folder: of an artifact; its files are verified first.
        repo_id: `ORG/NAME`.
        private: whether a new repository is private; default: as your organisation has it.
        token: of the Hub; default: the one of `hf auth login`.
        revision: an existing branch; default: the main one.
        message: of the commit.

    Raises:
        ArtifactError: the folder holds no artifact, or a damaged one.
        HubError: no connection, no token, or no right to write there.
    """
    if not is_hub_id(repo_id):
        raise HubError(f"a repository of the Hub is named ORG/NAME, such as you/small-net; '{repo_id}' came")
    folder = Path(folder)
    manifest = verify(folder)
    offline = unreachable(HUB)
    if offline:
        raise HubError(f"{folder} cannot be put to the Hugging Face Hub, which is out of reach ({offline}).")
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {manifest.get('name', folder.name)}\n"
    try:
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        head = "" if text.startswith("---") else header(manifest)
        contents: dict[str, str | bytes] = {name: str(folder / name) for name in (*manifest["files"], "manifest.json")}
        contents["README.md"] = (head + text).encode()
        added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=what) for name, what in contents.items()]
        api.create_commit(repo_id, added, commit_message=message, revision=revision)
    except Exception as error:  # as in `fetch`
        raise HubError(_cannot_upload(folder, repo_id, error)) from error
    return f"{HUB}/{repo_id}"


def _cannot_upload(folder: Path, repo_id: str, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if status in (401, 403) or kinds & {"LocalTokenNotFoundError", "RepositoryNotFoundError"}:
        return (
            f"The Hugging Face Hub does not let you write to '{repo_id}'. Log in with `hf auth login`, or pass "
            "token=..., of an account that may write there."
        )
    return f"{folder} cannot be put to '{repo_id}' of the Hugging Face Hub: {first_line(error)}"


def header(manifest: Mapping[str, Any]) -> str:
    """The YAML at the head of a card on the Hub: library, licence, tags. A licence it does not know is named beside."""
    licence = manifest.get("licence")
    lines = ["library_name: netsmith", "tags:", "- netsmith", f"- {manifest['kind']}"]
    if isinstance(licence, str) and re.fullmatch(r"[a-z0-9.-]+", licence):
        lines.append(f"license: {licence}")
    elif licence:
        lines += ["license: other", f"license_name: {json.dumps(licence, ensure_ascii=False)}"]
    if manifest.get("task", "classification") == "classification":
        lines.append("pipeline_tag: image-classification")
    return "\n".join(["---", *lines, "---", ""])


def code_sources(folder: Path) -> list[str]:
    """The sources in an artifact's manifest that are code to be run (`py:`)."""
    return list(dict.fromkeys(_code(read_manifest(folder))))


def _code(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "source" and isinstance(inner, str) and inner.startswith("py:"):
                yield inner
            else:
                yield from _code(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _code(inner)
