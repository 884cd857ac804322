"""Artifacts, the cache, hashes and the output folder: round trips, corruption, and what is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from torch import nn

from netsmith.artifacts import artifact
from netsmith.artifacts.artifact import load, loader, read_manifest, read_tensors, save_artifact, verify
from netsmith.errors import ArtifactError, OutputError
from netsmith.files import output
from netsmith.files.cache import Cache, digest
from netsmith.files.output import check_output, is_own, prepare_output, write_json, write_text
from netsmith.files.paths import portable
from netsmith.networks.network import load_source
from netsmith.networks.trained import save_network


@pytest.fixture(autouse=True)
def _toy_loader(monkeypatch):
    monkeypatch.setattr(artifact, "_loaders", dict(artifact._loaders))

    @loader("toy")
    def _load(folder: Path) -> nn.Module:
        net = nn.Linear(3, 4)
        net.load_state_dict(read_tensors(folder))
        return net


@pytest.fixture
def saved(tmp_path) -> Path:
    net = nn.Linear(3, 4)
    return save_artifact(
        tmp_path / "a",
        kind="toy",
        tensors={"weights.safetensors": net.state_dict()},
        manifest={"config": {"k": (1, 2)}, "metrics": {"accuracy": np.float64(0.5)}},
        card="# A toy\n",
    )


def edit(folder: Path, **changes) -> None:
    """Change the manifest and sign it anew, as somebody with intent would."""
    record = json.loads((folder / "manifest.json").read_text())
    record.update(changes)
    record["sha256"] = artifact._manifest_hash(record)
    (folder / "manifest.json").write_text(json.dumps(record))


def test_round_trip(saved):
    net = load(saved)
    assert not net.training
    assert torch.equal(net.weight, read_tensors(saved)["weight"])
    record = verify(saved)
    assert record["schema"] == 1
    assert record["kind"] == "toy"
    assert record["config"] == {"k": [1, 2]}
    assert record["metrics"] == {"accuracy": 0.5}
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0] or "torch" in record["versions"]
    assert set(record["files"]) == {"weights.safetensors", "README.md"}
    assert sorted(p.name for p in saved.parent.iterdir()) == ["a"]  # no temporary folder is left


def test_loading_leaves_the_random_state(saved):
    state = torch.get_rng_state()
    load(saved)
    assert torch.equal(torch.get_rng_state(), state)


def test_tensors_that_share_memory_or_are_views(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {"a": base, "b": base, "t": base.t(), "row": base[1], "half": base.half().bfloat16(), "none": base[:0]}
    save_artifact(tmp_path / "a", kind="toy", tensors={"weights.safetensors": state}, manifest={}, card="")
    found = read_tensors(tmp_path / "a")
    assert all(torch.equal(found[k], state[k]) for k in state)


def test_an_artifact_is_replaced_only_when_asked_and_only_if_it_is_one(saved, tmp_path):
    again = {"kind": "toy", "tensors": {}, "manifest": {}, "card": "new"}
    with pytest.raises(OutputError, match=r"exists and is not empty. Pass --overwrite"):
        save_artifact(saved, **again)
    save_artifact(saved, **again, overwrite=True)
    assert (saved / "README.md").read_text() == "new"
    assert not (saved / "weights.safetensors").exists()
    other = tmp_path / "photos"
    other.mkdir()
    (other / "me.jpg").touch()
    with pytest.raises(OutputError, match="holds files that Netsmith did not write"):
        save_artifact(other, **again, overwrite=True)
    assert (other / "me.jpg").exists()


def test_a_failure_while_writing_keeps_the_old_one_and_leaves_nothing(saved, monkeypatch):
    before = (saved / "manifest.json").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifact.os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left for .*Free some, or choose a folder on another disk"):
        save_artifact(saved, kind="toy", tensors={}, manifest={}, card="", overwrite=True)
    assert (saved / "manifest.json").read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["a"]


def test_truncated_and_altered_files(saved):
    file = saved / "weights.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-8])
    with pytest.raises(ArtifactError, match=rf"is truncated: {len(data) - 8} bytes, expected {len(data)}. Copy the"):
        read_manifest(saved)
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"weights.safetensors was altered after it was written: its hash differs"):
        load(saved)
    file.write_bytes(data + b"x")
    with pytest.raises(ArtifactError, match="was altered"):
        verify(saved)
    file.unlink()
    with pytest.raises(ArtifactError, match=r"lacks weights\.safetensors, which its manifest lists"):
        load(saved)


def test_an_altered_or_broken_manifest(saved):
    text = (saved / "manifest.json").read_text()
    (saved / "manifest.json").write_text(text.replace("0.5", "0.9"))
    with pytest.raises(ArtifactError, match=r"manifest.json was altered after it was written"):
        load(saved)
    (saved / "manifest.json").write_text(text[:50])
    with pytest.raises(ArtifactError, match=r"manifest.json cannot be read .* it is damaged"):
        load(saved)
    (saved / "manifest.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is no manifest of an artifact"):
        load(saved)


def test_the_card_may_be_edited(saved):
    (saved / "README.md").write_text("# Mine now\n")
    load(saved)


def test_newer_schema_other_kind_unknown_kind(saved):
    with pytest.raises(ArtifactError, match="is an artifact of kind 'toy', expected kind 'morph'"):
        read_manifest(saved, "morph")
    edit(saved, kind="toi")
    with pytest.raises(ArtifactError, match=r"of kind 'toi', which cannot be loaded\. Did you mean 'toy'"):
        load(saved)
    edit(saved, schema=99)
    with pytest.raises(ArtifactError, match=r"schema 99 and this Netsmith reads up to 1.*pip install --upgrade"):
        load(saved)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".hidden", "a\\b"])
def test_names_that_leave_the_folder_are_refused(saved, name):
    edit(saved, files={name: {"sha256": "0" * 64, "bytes": 1}})
    with pytest.raises(ArtifactError, match="is no plain file name: refused"):
        load(saved)


def test_files_without_hash_are_refused(saved):
    edit(saved, files={"weights.safetensors": {"bytes": 1}})
    with pytest.raises(ArtifactError, match=r"no hash and size for weights\.safetensors"):
        load(saved)


def test_folders_that_are_no_artifact(saved, tmp_path):
    with pytest.raises(ArtifactError, match=r"There is no folder .*aa, expected an artifact. Did you mean 'a'"):
        load(tmp_path / "aa")
    with pytest.raises(ArtifactError, match="does not exist either"):
        load(tmp_path / "x" / "y")
    with pytest.raises(ArtifactError, match="is a file, expected an artifact folder"):
        load(saved / "README.md")
    with pytest.raises(ArtifactError, match=r"is no artifact: it has no manifest\.json"):
        load(tmp_path)
    (tmp_path / "out").mkdir()
    saved.rename(tmp_path / "out" / "artifact")
    with pytest.raises(ArtifactError, match=r"is an output folder; the artifact in it is .*out/artifact"):
        load(tmp_path / "out")


def test_a_file_that_is_not_listed(saved):
    with pytest.raises(ArtifactError, match=r"lists no weight\.safetensors\. Did you mean 'weights\.safetensors'"):
        read_tensors(saved, "weight.safetensors")


# --- hashes -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Model(BaseModel):
    x: int = 1


VALUES = [
    None, True, False, 1, -1, 1.0, 0.0, "1", "", b"1", Path("1"), 1j, (), (1,), ((1,),), (1, 2), {}, {"a": 1}, {1: "a"},
    {"a": {"b": 1}},
    {1, 2}, 0, np.float32(2), np.arange(3), np.arange(3.0), np.arange(4).reshape(2, 2), np.arange(4),
    torch.arange(4), torch.arange(4.0), torch.arange(4.0).bfloat16(), torch.arange(4).reshape(2, 2), torch.zeros(0),
    torch.zeros(0, 3), torch.tensor(1), torch.tensor(True), torch.zeros(2, dtype=torch.complex64), Point(1, 2), Model(),
    Model(x=2), ("ab", "c"), ("a", "bc"), {"x": 1, "y": 2},
    "caf\udce9", "caf\xe9", "\udcc3\udca9", "\xe9", "\ud800", Path("caf\udce9"), Path("caf\xe9"),
]  # fmt: skip


def test_different_values_have_different_hashes():
    hashes = [digest(v) for v in VALUES]
    assert len(set(hashes)) == len(VALUES)
    assert digest(1, 2) == digest(1, 2) != digest((1, 2))


def test_equal_content_has_equal_hashes():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) == digest((1, 2))
    assert digest(torch.arange(4).reshape(2, 2).t()) == digest(torch.tensor([[0, 2], [1, 3]]))
    assert digest(np.int64(3)) == digest(3)
    net = nn.Linear(2, 2)
    assert digest(net.state_dict()) == digest({k: v.clone() for k, v in net.state_dict().items()})
    assert digest(net.weight) == digest(net.weight.detach())


def test_what_has_no_content_is_refused():
    with pytest.raises(TypeError, match="cannot hash a object by its content"):
        digest([object()])
    with pytest.raises(TypeError, match="Python objects"):
        digest(np.array([object()]))


def test_the_hash_is_the_same_in_another_process():
    code = (
        "import torch; from netsmith.files.cache import digest; print(digest({'a': {1, 'b'}, 'c': torch.arange(3.)}))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout
    assert found.strip() == digest({"c": torch.arange(3.0), "a": {"b", 1}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(JSON, JSON)
def test_hashes_agree_exactly_when_values_do(a, b):
    # json tells 1, 1.0 and True apart, as the hash does, and -0.0 from 0.0
    alike = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (digest(a) == digest(b)) == alike


# --- cache ------------------------------------------------------------------------------------------------------------


def test_cache_round_trip_and_memory(tmp_path):
    cache = Cache(tmp_path)
    calls = []

    def compute():
        calls.append(1)
        return {"g": torch.eye(3)}, {"cuts": ("a", "b")}

    for _ in range(3):
        entry = cache.get_or_compute("similarity-" + digest(1), compute)
        assert torch.equal(entry["g"], torch.eye(3))
        assert entry.meta == {"cuts": ["a", "b"]}
    assert len(calls) == 1
    assert cache.load("other") is None
    assert cache.path("k").parent == tmp_path
    cache.remove("similarity-" + digest(1))
    cache.remove("similarity-" + digest(1))
    cache.get_or_compute("similarity-" + digest(1), compute)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "json", "meta", "gone", "schema", "empty"])
def test_a_damaged_entry_is_noticed_logged_and_absent(tmp_path, caplog, damage):
    cache = Cache(tmp_path)
    file = cache.store("k", {"g": torch.eye(3)}, {"n": 1})
    note = file.with_suffix(".json")
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "truncate":
        file.write_bytes(data[:-4])
    elif damage == "gone":
        file.unlink()
    elif damage == "json":
        note.write_text(note.read_text()[:20])
    elif damage == "meta":
        note.write_text(note.read_text().replace('"n": 1', '"n": 2'))
    elif damage == "schema":
        note.write_text(note.read_text().replace('"schema": 1', '"schema": 0'))
    else:
        note.write_text("")
    assert cache.load("k") is None
    assert "computing it again" in caplog.text
    cache.store("k", {"g": torch.eye(3)}, {"n": 1})
    assert cache.load("k") is not None


def test_a_killed_writer_leaves_no_entry(tmp_path):
    cache = Cache(tmp_path)
    file = cache.store("k", {"g": torch.eye(3)})
    file.with_suffix(".json").unlink()  # the JSON goes last
    assert cache.load("k") is None


def test_cache_keys_are_file_names(tmp_path):
    for key in ("../x", "", "a/b", ".x"):
        with pytest.raises(ValueError, match="a cache key is letters"):
            Cache(tmp_path).path(key)


# --- output folder ----------------------------------------------------------------------------------------------------


def test_a_new_folder_is_made_and_recognised(tmp_path):
    folder = prepare_output(tmp_path / "runs" / "a")
    assert folder.is_dir()
    assert is_own(folder)
    check_output(folder)  # nothing but its marker
    (folder / "summary.json").touch()
    with pytest.raises(OutputError, match=r"exists and is not empty. Pass --overwrite, or choose a new folder"):
        check_output(folder)


def test_overwriting_removes_results_and_keeps_cache_and_strangers(tmp_path, saved):
    folder = prepare_output(tmp_path / "out")
    for name in ("summary.json", "report.html", "notes.txt"):
        (folder / name).write_text("{}")
    Cache(folder / "cache").store("k", {})
    saved.rename(folder / "artifact")
    prepare_output(folder, overwrite=True)
    assert sorted(p.name for p in folder.iterdir()) == [".netsmith", "cache", "notes.txt"]
    assert Cache(folder / "cache").load("k") is not None


@pytest.mark.parametrize(
    ("name", "text"),
    [("summary.json", '{"kind": "reassembly", "schema": 1}'), ("config.yaml", "# netsmith: the resolved\nseed: 0\n")],
)
def test_folders_of_earlier_runs_are_recognised(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert is_own(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"), [("config.yaml", "seed: 0\n"), ("summary.json", "{}"), ("manifest.json", "no"), ("me.jpg", "")]
)
def test_folders_of_others_are_left_alone(tmp_path, name, text):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / name).write_text(text)
    with pytest.raises(OutputError, match="holds files that Netsmith did not write, so --overwrite leaves it alone"):
        prepare_output(folder, overwrite=True)
    assert (folder / name).read_text() == text


def test_home_and_the_working_folder_are_never_overwritten(tmp_path, monkeypatch):
    (tmp_path / "home" / "work").mkdir(parents=True)
    (tmp_path / "home" / ".netsmith").touch()
    (tmp_path / "home" / "work" / ".netsmith").touch()
    (tmp_path / "home" / "work" / "notes.txt").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home" / "work")
    for folder in (tmp_path / "home", Path(), tmp_path / "home" / "work" / ".." / "work", Path("/")):
        with pytest.raises(OutputError, match="is your home, the root or the folder you are in"):
            prepare_output(folder, overwrite=True)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "f").touch()
    with pytest.raises(OutputError, match="f is a file, expected a folder"):
        prepare_output(tmp_path / "f")
    with pytest.raises(OutputError, match=r"Cannot create .*: .*f is a file"):
        prepare_output(tmp_path / "f" / "sub" / "deep")


def test_no_permission(tmp_path, monkeypatch):
    monkeypatch.setattr(output.os, "access", lambda *_: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(OutputError, match="No permission to write in"):
        prepare_output(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_no_space(tmp_path):
    with pytest.raises(OutputError, match="needs about 1099511627776 MiB"):
        check_output(tmp_path / "new", need_bytes=1 << 60)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left for"),
        (errno.EACCES, "No permission to write"),
        (errno.EROFS, "No permission to write"),
        (errno.ENOTDIR, "a file is in the way"),
        (errno.ENAMETOOLONG, "is too long for the file system"),
        (errno.EIO, "Cannot write"),
    ],
)
def test_refusals_of_the_system_are_explained_and_leave_nothing(tmp_path, monkeypatch, number, message):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(output.os, "fsync", refuse)
    write = tmp_path / "x.txt"
    with pytest.raises(OutputError, match=message):
        write_text(write, "text")
    assert list(tmp_path.iterdir()) == []


def test_json_keeps_order_and_refuses_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": Path("x"), "a": np.arange(2), "c": Model(), "d": Point(1, 2)})
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["b", "a", "c", "d"]
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()


# --- no path of the maker's machine ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}/zoo/net", "../zoo/net"),
        ("py:{}/zoo/net.py:build#{}/zoo/net", "py:../zoo/net.py:build#../zoo/net"),
        ("{}/zoo/net@0.5", "../zoo/net@0.5"),
        (
            "see `{}/zoo` (from {}/zoo/net), and/or /no/such file",
            "see `../zoo` (from ../zoo/net), and/or /no/such file",
        ),
        ("zoo: {{source: {}/zoo, name: x}}", "zoo: {{source: ../zoo, name: x}}"),
        ("timm:resnet18 // 1 / 2", "timm:resnet18 // 1 / 2"),
    ],
)
def test_paths_in_texts_become_relative(text, expected, tmp_path):
    (tmp_path / "zoo").mkdir()
    for name in ("net", "net.py"):
        (tmp_path / "zoo" / name).touch()
    value = {text.format(tmp_path, tmp_path): [1, None, text.format(tmp_path, tmp_path)]}
    assert portable(value, tmp_path / "out") == {expected.format(): [1, None, expected.format()]}


def test_an_artifact_moves_with_the_code_it_is_built_from(tmp_path, monkeypatch):
    home = tmp_path / "maker"
    home.mkdir()
    (home / "nets.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Conv2d(3, 5, 1)\n")
    network = load_source(f"py:{home}/nets.py:build", input_size=(3, 4, 4), mean=(0.5,) * 3, std=(0.5,) * 3)
    save_network(
        home / "runs/a", network, counts={"params": 20, "macs": 240}, metrics={}, config={"data": f"folder:{home}"}
    )
    assert not [f for f in (home / "runs/a").iterdir() if str(tmp_path).encode() in f.read_bytes()]
    home.rename(tmp_path / "taker")
    monkeypatch.chdir(tmp_path / "taker" / "runs")
    again = load("a", run_code=True)
    assert torch.equal(again.weight, network.model.weight)
    assert read_manifest("a")["config"]["data"] == "folder:../.."
