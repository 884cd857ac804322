"""Images and tables made to do harm: no bomb goes off, nothing outside is read, nothing is waited for."""

from __future__ import annotations

import datetime
import io
import json
import os
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attacks import LIMIT_MB, memory_of, refused, tree
from PIL import Image

from netsmith.data.decoding import open_image
from netsmith.data.splits import open_data
from netsmith.errors import DataError


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A grey PNG that claims a size, whatever its pixels are."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def small(k: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), k, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def folder_of(where: Path, odd: bytes | None = None, name: str = "odd.png") -> Path:
    for label in ("a", "b"):
        (where / label).mkdir(parents=True)
        for k in range(4):
            (where / label / f"{k}.png").write_bytes(small(k))
    if odd is not None:
        (where / "a" / name).write_bytes(odd)
    return where


def both(capsys, source: str, match: str, *, size: int | None = 8) -> None:
    """Refused by the function and by the command line."""
    with pytest.raises(DataError, match=match):
        open_data(source, size=size, validation_fraction=0.3)
    words = [] if size is None else ["--size", size]
    refused(capsys, "evaluate", "netsmith:lenet", "--data", source, *words)


# --- images -----------------------------------------------------------------------------------------------------------

BOMBS = {
    "claims 10^9 pixels": (png(40_000, 40_000), "decompression bomb"),
    "claims 2^62 pixels": (png(2**31 - 1, 2**31 - 1), "decompression bomb|Truncated"),
    "no pixels": (png(0, 0), ""),
    "truncated": (small()[:40], ""),
    "a page of PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "cannot identify"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot identify"),
    "a pickle": (b"\x80\x04\x95", "cannot identify"),
    "empty": (b"", "cannot identify"),
}


@pytest.mark.parametrize("case", BOMBS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_and_other_things_are_no_images(tmp_path, capsys, case):
    data, match = BOMBS[case]
    both(capsys, f"folder:{folder_of(tmp_path / 'images', data)}", f"odd.png' is no readable image.*{match}", size=512)


def test_a_line_becomes_no_plane(tmp_path):
    """Only what is kept of a resized image is computed; all of this one would be 31 million pixels high."""
    splits = open_data(f"folder:{folder_of(tmp_path, png(1, 60_000, bytes(2 * 60_000)))}", size=512)
    assert splits.shape == (1, 512, 512)


@pytest.mark.slow
def test_images_take_no_more_memory_than_is_promised(tmp_path):
    for i, (data, _) in enumerate(BOMBS.values()):
        folder_of(tmp_path / str(i), data)
    rose, out = memory_of(
        f"""
        import warnings
        from netsmith.data.splits import open_data
        from netsmith.errors import DataError
        warnings.simplefilter('ignore')
        for i in range({len(BOMBS)}):
            try:
                open_data(f'folder:{tmp_path}/{{i}}', size=512)
                print('read', i)
            except DataError:
                pass
        """
    )
    assert "read" not in out
    assert rose < LIMIT_MB, f"{rose} MB"


# --- folders of images ------------------------------------------------------------------------------------------------


def test_links_in_a_folder_of_images_are_the_users_own(tmp_path):
    """A data set is often made of links: they are followed, and read as images or not at all."""
    folder = folder_of(tmp_path / "images")
    (tmp_path / "elsewhere.png").write_bytes(small(9))
    (folder / "a" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    assert len(open_data(f"folder:{folder}", size=8, validation_fraction=0.3).train) > 0
    (tmp_path / "passwd").write_text("toor:x:0:0")
    (folder / "a" / "secret.png").symlink_to(tmp_path / "passwd")
    with pytest.raises(DataError, match="no readable image") as caught:
        open_data(f"folder:{folder}", size=8)
    assert "toor" not in str(caught.value)


def test_broken_links_pipes_devices_and_loops_are_refused(tmp_path, capsys):
    folder = folder_of(tmp_path / "images")
    odd = folder / "a" / "odd.png"
    for make in (lambda: odd.symlink_to("nowhere.png"), lambda: os.mkfifo(odd), lambda: odd.symlink_to("/dev/zero"),
                 lambda: odd.symlink_to("odd.png"), odd.mkdir):  # fmt: skip
        make()
        began = time.monotonic()
        both(capsys, f"folder:{folder}", "odd.png")
        assert time.monotonic() - began < 60
        odd.rmdir() if odd.is_dir() else odd.unlink()
    (folder / "a" / "loop").symlink_to(folder, target_is_directory=True)
    open_data(f"folder:{folder}", size=8, validation_fraction=0.3)


NO_UTF8 = os.fsdecode(b"caf\xe9")  # as systems with Latin-1 wrote it
only_bytes = pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names of files are Unicode there")


@only_bytes
def test_a_class_whose_name_is_no_utf8_is_refused(tmp_path, capsys):
    """An artifact could not hold it: better said before the training than behind it."""
    folder = folder_of(tmp_path / "images")
    (folder / "a").rename(folder / NO_UTF8)
    both(capsys, f"folder:{folder}", r"caf\\udce9' has a name that is not UTF-8.*: rename it")


@only_bytes
def test_files_whose_names_are_no_utf8_are_read(tmp_path):
    folder = folder_of(tmp_path / "images", small(9), f"{NO_UTF8}.png")
    one = open_data(f"folder:{folder}", size=8, validation_fraction=0.3)
    (folder / "a" / f"{NO_UTF8}.png").rename(folder / "a" / "caf\xe9.png")
    assert len(one.train) == len(open_data(f"folder:{folder}", size=8, validation_fraction=0.3).train)
    (tmp_path / "tables").mkdir()
    table(tmp_path / "t.parquet", pictures(), [0, 1] * 4).rename(tmp_path / "tables" / f"{NO_UTF8}.parquet")
    assert open_data(f"parquet:{tmp_path / 'tables'}", validation_fraction=0.3).shape == (1, 8, 8)


def test_names_of_classes_of_masks_are_texts(tmp_path, capsys):
    for name in ("images", "masks"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "1.png").write_bytes(small(1))
    (tmp_path / "set" / "classes.txt").write_bytes(b"\xff\xfe")
    both(capsys, f"masks:{tmp_path / 'set'}", "cannot be read as names")


# --- tables -----------------------------------------------------------------------------------------------------------


def table(
    file: Path, images: list | pa.Array, labels: list, *, said: object = None, kind: pa.DataType | None = None
) -> Path:
    columns = pa.table({"image": images, "label": pa.array(labels, type=kind)})
    if said is not None:
        text = said if isinstance(said, bytes) else json.dumps(said).encode()
        columns = columns.replace_schema_metadata({"huggingface": text})
    pq.write_table(columns, file, compression="zstd")
    return file


def rows(path: object, count: int = 8) -> list:
    return [{"bytes": None, "path": path}] * count


def pictures(count: int = 8) -> list:
    return [{"bytes": small(), "path": None}] * count


def declared() -> dict:
    """What Hugging Face's library writes of two columns."""
    return {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "a/../../secret.png", "link.png", "x" * 300, "a\0b", "~/x.png"]
)
def test_tables_name_no_images_elsewhere(tmp_path, capsys, path):
    (tmp_path / "set").mkdir()
    (tmp_path / "secret.png").write_bytes(small())
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    file = table(tmp_path / "set" / "t.parquet", rows(path), [0, 1] * 4)
    before = tree(tmp_path)
    both(capsys, f"parquet:{file}", "not in the folder of the table|too long|holds the character|is no file")
    assert tree(tmp_path) == before


def test_images_beside_a_table_are_read(tmp_path):
    """Guards the test above."""
    (tmp_path / "x.png").write_bytes(small())
    file = table(tmp_path / "t.parquet", rows("x.png"), [0, 1] * 4)
    assert open_data(f"parquet:{file}", validation_fraction=0.3).shape == (1, 8, 8)


@pytest.mark.parametrize("said", [None, declared()], ids=["undeclared", "declared"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.list_(pa.string())], ids=str)
def test_texts_in_the_place_of_bytes_are_no_paths(tmp_path, capsys, kind, said):
    """Pillow opens a text as a path: a table could have had any image of the disk shown, or a pipe waited for."""
    (tmp_path / "secret.png").write_bytes(small())
    (tmp_path / "set").mkdir()
    path = str(tmp_path / "secret.png")
    fields = pa.struct([("bytes", kind), ("path", pa.string())])
    images = pa.array([{"bytes": [path] if pa.types.is_list(kind) else path, "path": "x.png"}] * 8, fields)
    file = table(tmp_path / "set" / "t.parquet", images, [0, 1] * 4, said=said)
    both(capsys, f"parquet:{file}", "column 'image' is of type struct<bytes: .*images are a struct of bytes")


def test_only_paths_and_bytes_are_opened_as_images(tmp_path):
    (tmp_path / "x.png").write_bytes(small())
    for data in (tmp_path / "x.png", small()):
        with open_image(data, "x") as image:
            assert image.size == (8, 8)
    _, out = memory_of(  # in a process of its own: in this one, jaxtyping is stricter than what users have
        f"""
        from netsmith.data.decoding import open_image
        from netsmith.errors import DataError
        for other in ({str(tmp_path / "x.png")!r}, None):
            try:
                print('opened', open_image(other, 'x'))
            except DataError as error:
                print(error)
        """
    )
    assert out.splitlines() == [
        f"x is of type {kind}; give a Path, or the bytes of an image's file" for kind in ("str", "NoneType")
    ]


def test_pipes_devices_and_folders_are_no_tables(tmp_path, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    odd = folder / "odd.parquet"
    os.mkfifo(tmp_path / "pipe")
    for make in (lambda: os.mkfifo(odd), lambda: odd.symlink_to(tmp_path / "pipe"), lambda: odd.symlink_to("/dev/zero"),
                 lambda: odd.symlink_to("nowhere"), lambda: odd.symlink_to("odd.parquet"), odd.mkdir):  # fmt: skip
        make()
        both(capsys, f"parquet:{folder}", "odd.parquet' is no file")
        odd.rmdir() if odd.is_dir() else odd.unlink()
    both(capsys, f"parquet:{tmp_path / 'pipe'}", "pipe' is no file")


def test_links_to_tables_are_followed_and_what_they_name_is_not(tmp_path, capsys):
    """The Hub's cache is made of links to tables; the folder of a table is still the one that the user named."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "blobs" / "x.png").write_bytes(small())
    link = tmp_path / "set" / "t.parquet"
    link.symlink_to(table(tmp_path / "blobs" / "1", pictures(), [0, 1] * 4))
    assert open_data(f"parquet:{link}", validation_fraction=0.3).shape == (1, 8, 8)
    table(tmp_path / "blobs" / "1", rows("../blobs/x.png"), [0, 1] * 4)
    both(capsys, f"parquet:{link.parent}", "not in the folder of the table")


NO_IMAGES = {
    "text": pa.array(["x.png"] * 8),
    "lists": pa.array([[1, 2]] * 8),
    "other fields": pa.array([{"url": "x.png"}] * 8),
    "a path of bytes": pa.array([{"bytes": None, "path": b"x.png"}] * 8),
}


@pytest.mark.parametrize("case", NO_IMAGES)
def test_columns_declared_as_images_must_hold_them(tmp_path, capsys, case):
    file = table(tmp_path / "t.parquet", NO_IMAGES[case], [0, 1] * 4, said=declared())
    both(capsys, f"parquet:{file}", "column 'image' is of type .*images are a struct of bytes")


@pytest.mark.parametrize(
    "labels",
    [["a", "b"] * 4, [0.0, 1.5] * 4, [True, False] * 4, [None] * 8, [b"a"] * 8, [datetime.date(2020, 1, 1)] * 8],
    ids=lambda labels: type(labels[0]).__name__,
)
def test_columns_declared_as_labels_must_hold_whole_numbers(tmp_path, capsys, labels):
    """Of 1.5, class 1 was made without a word."""
    file = table(tmp_path / "t.parquet", pictures(), labels, said=declared())
    both(capsys, f"parquet:{file}", "column 'label' of .* is of type .*labels are whole numbers")


@pytest.mark.parametrize(
    "images",
    [
        pa.array([small()] * 8),
        pa.array([small()] * 8, pa.large_binary()),
        pa.array(pictures(), pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])),
        pa.array([{"bytes": small()}] * 8),
        pa.array([{"path": "x.png"}] * 8),
    ],
    ids=lambda images: str(images.type),
)
def test_images_are_stored_in_these_ways(tmp_path, images):
    """Guards the tests above."""
    (tmp_path / "x.png").write_bytes(small())
    splits = open_data(f"parquet:{table(tmp_path / 't.parquet', images, [0, 1] * 4, said=declared())}")
    assert (splits.shape, splits.classes) == ((1, 8, 8), ("a", "b"))


def test_a_path_in_a_table_that_is_no_utf8_is_refused(tmp_path, capsys):
    paths = pa.array([b"\xff\xfe.png"] * 8).view(pa.string())
    images = pa.StructArray.from_arrays([pa.nulls(8, pa.binary()), paths], names=["bytes", "path"])
    both(capsys, f"parquet:{table(tmp_path / 't.parquet', images, [0, 1] * 4)}", "cannot be read .*utf-8")


@pytest.mark.parametrize(
    ("labels", "kind", "match"),
    [
        ([0, 10**9] * 4, None, "has the label 1000000000; expected at most 999999"),
        ([0, 2**64 - 1] * 4, pa.uint64(), "has the label"),
        ([0, 2**63 - 1] * 4, None, "has the label"),
        ([-(10**9)] * 8, None, "has label|two a class|too few"),
    ],
)
def test_absurd_labels_are_refused(tmp_path, capsys, labels, kind, match):
    images = [{"bytes": small(), "path": None}] * 8
    both(capsys, f"parquet:{table(tmp_path / 't.parquet', images, labels, kind=kind)}", match)


@pytest.mark.parametrize(
    "said",
    [
        b"[" * 100_000,
        b"\xff",
        {"info": {"features": []}},
        {"info": {"features": {"label": {"_type": "ClassLabel", "names": "ab"}}}},
        {"info": {"features": {"label": {"_type": "ClassLabel", "names": 10**9}}}},
        {"info": {"features": {"label": {"_type": "ClassLabel", "names": [{}]}}}},
    ],
    ids=str,
)
def test_odd_metadata_is_left_alone_or_refused(tmp_path, said):
    images = [{"bytes": small(), "path": None}] * 8
    file = table(tmp_path / "t.parquet", images, [0, 1] * 4, said=said)
    if b"ClassLabel" in (said if isinstance(said, bytes) else json.dumps(said).encode()):
        with pytest.raises(DataError, match="names of the classes"):
            open_data(f"parquet:{file}", validation_fraction=0.3)
    else:
        assert open_data(f"parquet:{file}", validation_fraction=0.3).shape == (1, 8, 8)


@pytest.mark.parametrize("cut", [4, 100, -1, -8, -20])
def test_truncated_tables_are_refused(tmp_path, capsys, cut):
    file = table(tmp_path / "t.parquet", [{"bytes": small(), "path": None}] * 8, [0, 1] * 4)
    file.write_bytes(file.read_bytes()[:cut])
    both(capsys, f"parquet:{file}", "is no readable parquet file")
