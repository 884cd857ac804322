"""Artifacts to and from a folder and the Hugging Face Hub, which is a stand-in here: a folder, no network."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from torch import nn

import netsmith
from netsmith.artifacts import artifact
from netsmith.artifacts.artifact import loader, read_manifest, read_tensors, save_artifact
from netsmith.errors import ArtifactError, HubError, OutputError
from netsmith.networks import hub
from netsmith.networks.pretrained import Pretrained, from_pretrained, push_to_hub, save_pretrained


class Toy(Pretrained, nn.Linear):
    """A module that only what made it can save."""

    how_to_save = "Save it with save_toy."


@pytest.fixture(autouse=True)
def _kinds(monkeypatch):
    monkeypatch.setattr(artifact, "_loaders", dict(artifact._loaders))

    @loader("toy")
    def _load(folder: Path) -> nn.Module:
        module = Toy(3, 4)
        module.load_state_dict(read_tensors(folder))
        return module


def save(folder, **more):
    manifest = {"name": "toy", "licence": "apache-2.0", "task": "classification", **more}
    tensors = {"weights.safetensors": nn.Linear(3, 4).state_dict()}
    return save_artifact(folder, kind="toy", tensors=tensors, manifest=manifest, card="# A toy\n")


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path / "toy")


@pytest.fixture
def online(monkeypatch, tmp_path):
    """A Hub in a folder: what is committed there can be fetched."""
    home = tmp_path / "hub"
    home.mkdir()
    calls = []

    def create_repo(self, repo_id, **named):
        calls.append(("create", repo_id, named["private"], self.token))
        (home / repo_id).mkdir(parents=True, exist_ok=True)

    def create_commit(self, repo_id, operations, *, commit_message, revision):
        calls.append(("commit", repo_id, commit_message, revision))
        for operation in operations:
            with operation.as_file() as file:
                (home / repo_id / operation.path_in_repo).write_bytes(file.read())

    def snapshot_download(repo_id, **named):
        calls.append(("fetch", repo_id, named["revision"], named["local_files_only"]))
        return str(home / repo_id)

    monkeypatch.setattr(hub, "unreachable", lambda url: "")
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return home, calls


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_loaded_and_saved_again_byte_by_byte(saved, tmp_path):
    module = from_pretrained(saved)
    assert save_pretrained(module, tmp_path / "copy") == tmp_path / "copy"
    for path in saved.iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(OutputError, match="exists and is not empty"):
        save_pretrained(module, tmp_path / "copy")
    assert save_pretrained(module, tmp_path / "copy", overwrite=True)
    assert save_pretrained(module, saved) == saved, "saving where it came from changes nothing"


def test_the_methods_do_the_same(saved, tmp_path):
    module = Toy.from_pretrained(str(saved))
    assert torch.equal(module.weight, read_tensors(saved)["weight"])
    module.save_pretrained(tmp_path / "copy")
    assert Toy.from_pretrained(tmp_path / "copy").artifact_folder == tmp_path / "copy"


def test_an_artifact_of_another_kind_is_refused(saved):
    class Other(Pretrained, nn.Module):
        pass

    with pytest.raises(ArtifactError, match=r"holds a Toy, expected a Other: netsmith.from_pretrained takes any"):
        Other.from_pretrained(saved)


def test_a_module_that_was_never_saved_says_how(tmp_path):
    with pytest.raises(
        ArtifactError, match=r"This Toy was never saved, so there is no artifact of it. Save it with save_t"
    ):
        Toy(3, 4).push_to_hub("you/toy")
    with pytest.raises(ArtifactError, match=r"This Linear was never saved.* Only artifacts can be"):
        save_pretrained(nn.Linear(3, 4), tmp_path / "a")


def test_a_changed_module_is_no_copy_of_its_artifact(saved, tmp_path):
    module = from_pretrained(saved)
    with torch.no_grad():
        module.weight[0, 0] += 1
    with pytest.raises(ArtifactError, match=r"This Toy was changed since it was loaded from .*toy"):
        save_pretrained(module, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_no_folder_and_no_name_of_the_hub_is_said_at_once(tmp_path):
    with pytest.raises(ArtifactError, match="There is no folder nothing"):
        from_pretrained("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"is no artifact: it has no manifest.json"):
        from_pretrained(tmp_path / "empty")


# --- the Hub ----------------------------------------------------------------------------------------------------------


def test_what_is_pushed_comes_back(saved, online):
    home, calls = online
    assert push_to_hub(saved, "you/toy", private=True, token="secret") == "https://huggingface.co/you/toy"
    module = from_pretrained("you/toy", revision="main")
    assert torch.equal(module.weight, read_tensors(saved)["weight"])
    assert calls == [
        ("create", "you/toy", True, "secret"),
        ("commit", "you/toy", "Upload with Netsmith", None),
        ("fetch", "you/toy", "main", False),
    ]
    assert {p.name for p in (home / "you/toy").iterdir()} == {p.name for p in saved.iterdir()}
    assert (saved / "README.md").read_text() == "# A toy\n", "the folder stays as it is"


def test_a_module_is_pushed_by_its_method(saved, online):
    Toy.from_pretrained(saved).push_to_hub("you/toy", message="first")
    assert read_manifest(online[0] / "you/toy") == read_manifest(saved)


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("apache-2.0 AND cc-by-nc-4.0", {"license": "other", "license_name": "apache-2.0 AND cc-by-nc-4.0"}),
        (None, {}),
    ],
)
def test_the_card_on_the_hub_names_licence_and_library(tmp_path, online, licence, expected):
    push_to_hub(save(tmp_path / "toy", licence=licence), "you/toy")
    _, head, text = (online[0] / "you/toy" / "README.md").read_text().split("---\n")
    found = yaml.safe_load(head)
    assert found.pop("library_name") == "netsmith"
    assert found.pop("tags") == ["netsmith", "toy"]
    assert found.pop("pipeline_tag") == "image-classification"
    assert found == expected
    assert text == "# A toy\n"


def test_a_card_with_a_header_of_its_own_keeps_it(saved, online):
    (saved / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    push_to_hub(saved, "you/toy")
    assert (online[0] / "you/toy" / "README.md").read_text() == "---\nlicense: mit\n---\n# Mine\n"


def test_a_damaged_artifact_is_not_pushed(saved, online):
    weights = saved / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        push_to_hub(saved, "you/toy")
    assert online[1] == []


@pytest.mark.parametrize("name", ["toy", "a/b/c", "you/..", "you/toy--x", ""])
def test_a_name_that_is_none_is_refused(saved, name):
    with pytest.raises(HubError, match="is named ORG/NAME, such as you/small-net"):
        push_to_hub(saved, name)


def test_a_repository_without_an_artifact_is_refused(online):
    (online[0] / "you/other").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="'you/other' of the Hub holds no artifact of Netsmith"):
        from_pretrained("you/other")


def test_code_is_not_run_unless_asked(tmp_path, online):
    push_to_hub(save(tmp_path / "toy", base={"networks": [{"source": "py:evil.py:build"}]}), "you/toy")
    with pytest.raises(ArtifactError, match=r"'you/toy' of the Hub is built by running code: py:evil.py:build"):
        from_pretrained("you/toy")
    assert isinstance(from_pretrained("you/toy", run_code=True), Toy)
    assert isinstance(from_pretrained(tmp_path / "toy"), Toy), "a folder of one's own is trusted"


def _raise(kind, text="it said", status=None):
    error = type(kind, (Exception,), {})(text)
    if status is not None:
        error.response = type("Response", (), {"status_code": status})()

    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("LocalEntryNotFoundError", "neither a folder here nor downloaded before, .* out of reach .it said.. Connect"),
        ("RepositoryNotFoundError", "nor a repository of the Hugging Face Hub that you may read.* `hf auth login`"),
        ("RevisionNotFoundError", "'you/toy' of the Hugging Face Hub has no revision 'v2'"),
        ("SomethingElse", "'you/toy' at revision 'v2' cannot be fetched from the Hugging Face Hub: it said"),
    ],
)
def test_each_failure_to_fetch_says_what_to_do(online, monkeypatch, kind, message):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _raise(kind))
    with pytest.raises(HubError, match=message):
        from_pretrained("you/toy", revision="v2")


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        ("HfHubHTTPError", 403, "does not let you write to 'you/toy'. Log in with `hf auth login`"),
        ("LocalTokenNotFoundError", None, "does not let you write"),
        ("HfHubHTTPError", 500, "cannot be put to 'you/toy' of the Hugging Face Hub: it said"),
    ],
)
def test_each_failure_to_push_says_what_to_do(saved, online, monkeypatch, kind, status, message):
    monkeypatch.setattr(HfApi, "create_commit", _raise(kind, status=status))
    with pytest.raises(HubError, match=message):
        push_to_hub(saved, "you/toy")


def test_without_a_network_one_message_says_what_to_do(saved, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = (
        "'you/toy' is neither a folder here nor downloaded before, and the Hugging Face Hub is out of reach "
        r"\(HF_HUB_OFFLINE is set\). Connect and try again; or copy the artifact's folder"
    )
    with pytest.raises(HubError, match=message):
        netsmith.from_pretrained("you/toy", cache_dir=tmp_path / "cache")
    with pytest.raises(HubError, match="toy cannot be put to the Hugging Face Hub, which is out of reach"):
        netsmith.push_to_hub(saved, "you/toy")


def test_an_earlier_download_serves_without_a_network(saved, monkeypatch, tmp_path):
    """The Hub's own cache: what `snapshot_download` leaves behind, made by hand."""
    commit = "0" * 40
    place = tmp_path / "cache" / "models--you--toy"
    (place / "snapshots").mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    saved.rename(place / "snapshots" / commit)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert isinstance(from_pretrained("you/toy", cache_dir=tmp_path / "cache"), Toy)


def test_the_manifest_that_is_fetched_is_verified(saved, online):
    push_to_hub(saved, "you/toy")
    path = online[0] / "you/toy" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": "other"}))
    with pytest.raises(ArtifactError, match="was altered"):
        from_pretrained("you/toy")
