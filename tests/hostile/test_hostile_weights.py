"""Checkpoints made to do harm: none runs code, and none takes more than the memory that is promised."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from attacks import LIMIT_MB, Canary, memory_of, refused, safetensors_bytes, tree
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


@pytest.mark.parametrize("name", ["builtins eval", "os system", "torch._utils _rebuild_sparse_tensor", "builtins exec"])
def test_a_call_behind_the_magic_number_is_refused_by_name(tmp_path, name):
    file = tmp_path / "w.pth"
    body = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\nX\x01\x00\x00\x001\x85R."
    file.write_bytes(legacy_start() + body)
    with pytest.raises(WeightsError, match=name.replace(" ", r"\.")):
        load_weights_file(file)


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


LIES = {
    "storage": (10**10, (10**10,), (1,)),
    "shape": (3, (10**10,), (1,)),
    "expanded": (3, (10**9, 10), (0, 0)),
    "stride": (3, (2,), (10**9,)),
    "everything": (10**18, (10**18,), (1,)),
    "overflow": (3, (2**62, 2**62), (1, 1)),
    "negative": (-1, (3,), (1,)),
    "negative shape": (3, (-3,), (1,)),
    "empty": (3, (0, 2**62, 2**62), (1, 1, 1)),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_tensors_larger_than_their_file_are_refused_before_they_are_made(tmp_path, capsys, lie, legacy):
    pickled, file = tensor_pickle(*LIES[lie], view=legacy), tmp_path / "w.pth"
    if legacy:
        keys = pickle.dumps(["0"], protocol=2)
        file.write_bytes(legacy_start() + pickled + keys + struct.pack("<q", 3) + bytes(12))
    else:
        write_zip(file, pickled, bytes(12))
    both(capsys, file, "claim|more numbers than its storage|torch.save does not")


def test_the_same_file_without_a_lie_is_read(tmp_path):
    """Guards the tests above: what they write is a checkpoint but for the sizes."""
    honest = tensor_pickle(3, (3,), (1,), view=False)
    write_zip(tmp_path / "w.pth", honest, struct.pack("<fff", 1, 2, 3))
    assert load_weights_file(tmp_path / "w.pth")["w"].tolist() == [1, 2, 3]
    old = legacy_start() + tensor_pickle(3, (3,), (1,), view=True) + pickle.dumps(["0"], protocol=2)
    (tmp_path / "old.pth").write_bytes(old + struct.pack("<q", 3) + struct.pack("<fff", 1, 2, 3))
    assert load_weights_file(tmp_path / "old.pth")["w"].tolist() == [1, 2, 3]


def test_a_compressed_archive_is_refused(tmp_path, capsys):
    file = tmp_path / "bomb.pt"
    write_zip(file, tensor_pickle(25_000_000, (25_000_000,), (1,), view=False), bytes(10**8), zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 200_000
    both(capsys, file, "compressed or encrypted; torch.save compresses nothing")


def patched(file: Path, change) -> None:
    data = bytearray(file.read_bytes())
    change(data, data.rindex(b"PK\x05\x06"))
    file.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d, e: d.__setitem__(slice(e + 16, e + 20), struct.pack("<I", 0)), "directory of its archive"),
        (lambda d, e: d.__setitem__(slice(e + 10, e + 12), b"\xff\xff"), "does not end as one of torch.save"),
        (lambda d, e: d.__setitem__(slice(e + 20, e + 22), b"\x05\x00"), "does not end as one of torch.save"),
        (lambda d, e: d.extend(b"PK\x05\x06" + bytes(18)), "directory of its archive"),
        (lambda d, e: d.extend(b"tail"), "does not end as one of torch.save"),
    ],
    ids=["elsewhere", "endless", "comment", "second end", "tail"],
)
def test_an_archive_that_readers_could_see_differently_is_refused(tmp_path, change, match):
    file = tmp_path / "w.pt"
    write_zip(file, tensor_pickle(3, (3,), (1,), view=False), bytes(12))
    patched(file, change)
    with pytest.raises(WeightsError, match=match):
        load_weights_file(file)


def test_overlapping_entries_are_refused(tmp_path):
    """One gigabyte of entries in a small file, all of them the same bytes."""
    file = tmp_path / "w.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w/data.pkl", tensor_pickle(3, (3,), (1,), view=False))
        for i in range(30):
            archive.writestr(f"w/data/{i}", bytes(10_000))
        first = archive.getinfo("w/data/0").header_offset
        for i in range(30):
            archive.getinfo(f"w/data/{i}").header_offset = first
        for i in range(2000):
            twin = zipfile.ZipInfo(f"w/more/{i}")
            twin.file_size = twin.compress_size = 10_000
            twin.header_offset, twin.CRC = first, 0
            archive.filelist.append(twin)
    with pytest.raises(WeightsError, match="overlap"):
        load_weights_file(file)


def test_keys_whose_hash_takes_forever_are_refused(tmp_path):
    """A tuple of two references to a tuple of two references: sixty levels, 2^60 steps to hash."""
    body = b"\x80\x02}K\x01" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60)) + b"K\x01s."
    (tmp_path / "w.pth").write_bytes(legacy_start() + body)
    with pytest.raises(WeightsError, match="a key in it is a tuple"):
        load_weights_file(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_deep_and_truncated_pickles_are_refused(tmp_path, kind):
    bodies = [b"\x80\x02" + b"(" * 20_000, b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".", b"\x80\x02", b"\x80"]
    bodies += [b"\x80\x02" + code + b"\xff\xff\xff\xff\xff\xff\xff\x0f" for code in (b"\x8d", b"X", b"\x8b")]
    bodies.append(b"\x80\x02c" + b"x" * 1_000_000)
    for body in bodies:
        file = tmp_path / "w.pth"
        if kind == "pickle":
            file.write_bytes(legacy_start() + body)
        else:
            write_zip(file, body, b"")
        with pytest.raises(WeightsError, match=r"w\.pth"):
            load_weights_file(file)


# --- safetensors ------------------------------------------------------------------------------------------------------

F32 = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
HEADERS = {
    "longer than the file": (safetensors_bytes({"w": F32}, bytes(12), length=10**9), "claims 1000000000 bytes"),
    "of 2^63 bytes": (safetensors_bytes({"w": F32}, bytes(12), length=2**63), "claims 9223372036854775808 bytes"),
    "large": (safetensors_bytes(b"{}" + b" " * 20_000_000), "expected at most 16777216"),
    "overlap": (safetensors_bytes({"a": F32, "b": F32}, bytes(12)), "overlaps another"),
    "gap": (safetensors_bytes({"a": {**F32, "data_offsets": [4, 16]}}, bytes(16)), "leaves a gap"),
    "past the end": (safetensors_bytes({"a": F32}, bytes(4)), "has room for 4"),
    "left over": (safetensors_bytes({"a": F32}, bytes(99)), "has room for 99"),
    "backwards": (safetensors_bytes({"a": {**F32, "data_offsets": [12, 0]}}, bytes(12)), "needs 12 bytes"),
    "negative": (safetensors_bytes({"a": {**F32, "shape": [-3]}}, bytes(12)), "numbers of at least 0"),
    "10^18 numbers": (safetensors_bytes({"a": {**F32, "shape": [10**18]}}, bytes(12)), "needs 4000000000000000000"),
    "beyond 64 bits": (safetensors_bytes({"a": {**F32, "shape": [10**30]}}, bytes(12)), "does not fit into 64 bits"),
    "overflow": (safetensors_bytes({"a": {**F32, "shape": [2**62, 2**62]}}, bytes(12)), "needs "),
    "empty and huge": (
        safetensors_bytes({"a": {**F32, "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
        "too large numbers",
    ),
    "many dimensions": (safetensors_bytes({"a": {**F32, "shape": [1] * 5000 + [3]}}, bytes(12)), "up to 16 numbers"),
    "type": (safetensors_bytes({"a": {**F32, "dtype": "F31"}}, bytes(12)), "'F31', which is not known"),
    "type is a list": (safetensors_bytes({"a": {**F32, "dtype": ["F32"]}}, bytes(12)), "which is not known"),
    "a float": (safetensors_bytes({"a": {**F32, "shape": [3.0]}}, bytes(12)), "numbers of at least 0"),
    "true": (safetensors_bytes({"a": {**F32, "shape": [True, 3]}}, bytes(12)), "numbers of at least 0"),
    "NaN": (safetensors_bytes(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,12]}}', bytes(12)), "NaN is no"),
    "twice": (
        safetensors_bytes(b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"a":{}}', bytes(12)),
        "'a' is there twice",
    ),
    "deep": (safetensors_bytes(b"[" * 100_000 + b"]" * 100_000), "nested more than 64 levels"),
    "no JSON": (safetensors_bytes(b"nonsense"), "Expecting value"),
    "no Unicode": (safetensors_bytes(b'{"\xff": 1}'), "utf-8"),
    "a list": (safetensors_bytes(b"[]"), "no JSON object"),
    "metadata": (safetensors_bytes({"__metadata__": {"a": 1}}), "not texts by name"),
    "more": (safetensors_bytes({"a": {**F32, "code": "x"}}, bytes(12)), "not described by dtype"),
    "short": (b"\x01\x02", "a header alone takes 8"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie_are_refused_with_the_lie(tmp_path, capsys, case):
    data, match = HEADERS[case]
    (tmp_path / "w.safetensors").write_bytes(data)
    both(capsys, tmp_path / "w.safetensors", match)


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


# --- what is promised of memory ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_refusal_takes_more_memory_than_is_promised(tmp_path):
    for name, (data, _) in HEADERS.items():
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    for name, lie in LIES.items():
        write_zip(tmp_path / f"{name}.zip.pth", tensor_pickle(*lie, view=False), bytes(12))
        keys = pickle.dumps(["0"], protocol=2)
        (tmp_path / f"{name}.pth").write_bytes(legacy_start() + tensor_pickle(*lie, view=True) + keys + bytes(20))
    bomb = tensor_pickle(10**8, (10**8,), (1,), view=False)
    write_zip(tmp_path / "bomb.pth", bomb, bytes(4 * 10**8), zipfile.ZIP_DEFLATED)
    rose, out = memory_of(
        f"""
        from pathlib import Path
        from netsmith.networks.weights import load_weights_file
        from netsmith.errors import WeightsError
        for file in sorted(Path({str(tmp_path)!r}).iterdir()):
            try:
                load_weights_file(file)
                print('read', file)
            except WeightsError:
                pass
        """
    )
    assert "read" not in out
    assert rose < LIMIT_MB / 4, f"{rose} MB"


def test_reading_leaves_the_folder_as_it_is(tmp_path):
    save_file({"w": torch.zeros(3)}, tmp_path / "w.safetensors")
    torch.save({"w": torch.zeros(3)}, tmp_path / "w.pth")
    torch.save({"w": torch.zeros(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    before = tree(tmp_path)
    for file in ("w.safetensors", "w.pth", "old.pth"):
        assert load_weights_file(tmp_path / file)["w"].tolist() == [0, 0, 0]
    assert tree(tmp_path) == before
