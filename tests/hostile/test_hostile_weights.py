"""Checkpoints made to do harm: none runs code, and none takes more than the memory that is promised."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from attacks import Canary, refused, safetensors_bytes, tree
from safetensors.torch import save_file

from netsmith.errors import WeightsError
from netsmith.networks.weights import load_weights_file

NETWORK = "netsmith:cifar_resnet20"


def both(capsys, file: Path, match: str) -> None:
    """Refused by the function and by the command line, with the same reason."""
    with pytest.raises(WeightsError, match=match) as caught:
        load_weights_file(file)
    assert str(file) in str(caught.value)
    assert str(file) in refused(capsys, "dissect", f"{NETWORK}#{file}")


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["pt", "pth", "th", "bin", "ckpt", "tar"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_checkpoint_is_named_and_not_run(tmp_path, capsys, ending, legacy):
    canary, file = tmp_path / "canary", tmp_path / f"w.{ending}"
    torch.save({"w": Canary(canary)}, file, _use_new_zipfile_serialization=not legacy)
    both(capsys, file, r"code or objects of classes \((posix|nt)\.system\). It was refused and nothing in it was run")
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_with_code_is_not_run(tmp_path, capsys, protocol):
    canary, file = tmp_path / "canary", tmp_path / "w.pth"
    file.write_bytes(pickle.dumps({"w": Canary(canary)}, protocol=protocol))
    both(capsys, file, r"w\.pth")
    assert not canary.exists()


def test_safetensors_that_are_a_pickle_are_not_read_as_one(tmp_path, capsys):
    canary, file = tmp_path / "canary", tmp_path / "w.safetensors"
    file.write_bytes(pickle.dumps(Canary(canary)))
    both(capsys, file, "cannot be read as safetensors")
    assert not canary.exists()


# --- sizes that lie, in PyTorch's formats -----------------------------------------------------------------------------


def legacy_start() -> bytes:
    """Magic number, version and facts of the system, as `torch.save` wrote them before 1.6."""
    kept = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, kept, _use_new_zipfile_serialization=False)
    place = io.BytesIO(kept.getvalue())
    for _ in range(3):
        pickle.load(place)
    return kept.getvalue()[: place.tell()]


def tensor_pickle(values: int, shape: tuple[int, ...], stride: tuple[int, ...], view: bool) -> bytes:
    """The pickle of `{"w": tensor}` as `torch.save` writes it, with any sizes claimed."""

    class Storage:
        pass

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        def persistent_id(self, obj: object) -> object:
            if isinstance(obj, Storage):
                return ("storage", torch.FloatStorage, "0", "cpu", values, *([None] if view else []))
            return None

    class Tensor:
        def __reduce__(self):
            return (torch._utils._rebuild_tensor_v2, (Storage(), 0, shape, stride, False, {}))

    out = io.BytesIO()
    Pickler(out, protocol=2).dump({"w": Tensor()})
    return out.getvalue()


def write_zip(file: Path, pickled: bytes, data: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in [("data.pkl", pickled), ("byteorder", b"little"), ("data/0", data), ("version", b"3\n")]:
            archive.writestr(f"w/{name}", content)


def test_truncated_checkpoints_are_refused(tmp_path):
    torch.save({"w": torch.zeros(300)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for size in (1, 40, len(whole) // 2, len(whole) - 30):
        (tmp_path / "w.pth").write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"w\.pth .* cannot be read as a PyTorch checkpoint"):
            load_weights_file(tmp_path / "w.pth")


# --- safetensors ------------------------------------------------------------------------------------------------------

F32 = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
HEADERS = {
    "longer than the file": safetensors_bytes({"w": F32}, bytes(12), length=10**9),
    "of 2^63 bytes": safetensors_bytes({"w": F32}, bytes(12), length=2**63),
    "overlap": safetensors_bytes({"a": F32, "b": F32}, bytes(12)),
    "gap": safetensors_bytes({"a": {**F32, "data_offsets": [4, 16]}}, bytes(16)),
    "past the end": safetensors_bytes({"a": F32}, bytes(4)),
    "left over": safetensors_bytes({"a": F32}, bytes(99)),
    "backwards": safetensors_bytes({"a": {**F32, "data_offsets": [12, 0]}}, bytes(12)),
    "10^18 numbers": safetensors_bytes({"a": {**F32, "shape": [10**18]}}, bytes(12)),
    "type": safetensors_bytes({"a": {**F32, "dtype": "F31"}}, bytes(12)),
    "deep": safetensors_bytes(b"[" * 100_000 + b"]" * 100_000),
    "no JSON": safetensors_bytes(b"nonsense"),
    "short": b"\x01\x02",
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie_are_refused(tmp_path, capsys, case):
    (tmp_path / "w.safetensors").write_bytes(HEADERS[case])
    both(capsys, tmp_path / "w.safetensors", "cannot be read as safetensors")


def test_a_file_larger_than_this_machine_is_refused_unread(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NETSMITH_MEMORY", "1")
    file = tmp_path / "w.safetensors"
    with file.open("wb") as out:
        out.truncate(2 << 30)  # of holes: it takes no place on the disk
    both(capsys, file, r"has 2\.1 GB, more than the memory of this machine \(1\.1 GB\)")


def test_devices_and_pipes_are_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "w.safetensors")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    both(capsys, tmp_path / "w.safetensors", "is a device or a pipe")
    both(capsys, tmp_path / "zero.pth", "is a device or a pipe")


def test_reading_leaves_the_folder_as_it_is(tmp_path):
    save_file({"w": torch.zeros(3)}, tmp_path / "w.safetensors")
    torch.save({"w": torch.zeros(3)}, tmp_path / "w.pth")
    torch.save({"w": torch.zeros(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    before = tree(tmp_path)
    for file in ("w.safetensors", "w.pth", "old.pth"):
        assert load_weights_file(tmp_path / file)["w"].tolist() == [0, 0, 0]
    assert tree(tmp_path) == before
