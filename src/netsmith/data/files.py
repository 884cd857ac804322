"""Data sources on disk: `folder:PATH` (one folder a class), `images:PATH` (no labels), `parquet:PATH` (of images)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from netsmith import limits
from netsmith.data.decoding import Encoded, decode_set
from netsmith.data.images import UNLABELLED, ImageSet
from netsmith.data.registry import DataOptions, Parts, check_splittable, data_source, existing_path, labelled, part_of
from netsmith.errors import DataError
from netsmith.files.cache import digest
from netsmith.files.paths import as_path, is_text

IMAGE_ENDINGS = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"])
"""How the names of image files end."""

_TABLES = "Give the parts as tables of their own: train.parquet, validation.parquet and test.parquet in one folder"
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")

_STORED = {
    "bytes": ("binary", "large_binary", "binary_view", "null"),
    "path": ("string", "large_string", "string_view", "null"),
}
"""Arrow types of the fields of an image; `null` where no row has one."""


@data_source("folder")
def _open_folder(argument: str, options: DataOptions) -> Parts:
    """Folders of images, one a class; in `train`, `val`/`validation` and `test` folders or all in one."""
    path = existing_path("folder", argument)
    if not path.is_dir():
        raise DataError(f"'folder:{argument}' is a file; a folder with one folder of images a class was expected")
    found = _part_folders(path)
    if found and "train" not in found and all(part_of(f.name) for f in subfolders(path)):
        raise DataError(f"'{path}' has {', '.join(sorted(found))} but no train part: its classes are read from there")
    if "train" not in found:
        found = {"train": path}
    classes = _class_names(found["train"])
    listed = {part: _listed(folder, classes) for part, folder in found.items()}
    check_splittable(
        torch.tensor(listed["train"][1]),
        listed,
        str(found["train"]),
        f"Put images into '{path}/train/CLASS', '{path}/val/CLASS' and '{path}/test/CLASS' (a class without an image "
        f"has an empty folder below train), or give images:{argument} where no labels are needed",
    )
    sets = {part: _read_folder(found[part], *of_part, classes, options) for part, of_part in listed.items()}
    return Parts(sets["train"], sets.get("validation"), sets.get("test"))


@data_source("images")
def _open_images(argument: str, options: DataOptions) -> Parts:
    """Images without labels in a folder and below it; in parts where one of its folders is called `train`."""
    path = existing_path("images", argument)
    if not path.is_dir():
        raise DataError(f"'images:{argument}' is a file; a folder of images was expected")
    found = _part_folders(path)
    files = {part: image_files(folder) for part, folder in (found if "train" in found else {"train": path}).items()}
    empty = next((part for part, of_part in files.items() if not of_part), None)
    if empty is not None:
        raise DataError(f"'{found.get(empty, path)}' holds no image ({', '.join(sorted(IMAGE_ENDINGS))})")
    labels = {part: [UNLABELLED] * len(of_part) for part, of_part in files.items()}
    check_splittable(torch.tensor(labels["train"]), files, str(path), "Add images")
    sets = {part: _read_folder(found.get(part, path), files[part], labels[part], (), options) for part in files}
    return Parts(sets["train"], sets.get("validation"), sets.get("test"))


def _part_folders(path: Path) -> dict[str, Path]:
    """The folders in a folder that are called by the name of a part."""
    return {part: f for f in subfolders(path) if (part := part_of(f.name)) is not None}


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; those of the operating system are passed over."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _of_the_system(p.name))


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and below it, sorted; files of the operating system (`._photo.jpg`) are passed over."""
    files = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
    return sorted(p for p in files if not any(map(_of_the_system, p.relative_to(folder).parts)))


def _of_the_system(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(p.name for p in subfolders(folder))
    if not names:
        raise DataError(
            f"no labels: '{folder}' has no folders; one folder of images a class was expected. Where no labels are "
            f"needed give images:{folder}"
        )
    odd = next((n for n in names if not is_text(n)), None)
    if odd is not None:
        raise DataError(
            f"the class folder '{folder / odd}' has a name that is not UTF-8, and artifacts hold the names of classes: "
            "rename it"
        )
    return names


def _listed(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """The images of a part and their labels."""
    extra = sorted(set(_class_names(folder)) - set(classes))
    if extra:
        raise DataError(f"'{folder}' has classes that the train folder lacks: {', '.join(extra[:6])}")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        here = image_files(folder / name)
        files += here
        labels += [label] * len(here)
    if not files:
        raise DataError(f"'{folder}' holds no image ({', '.join(sorted(IMAGE_ENDINGS))})")
    return files, labels


def _read_folder(
    folder: Path, files: list[Path], labels: list[int], classes: tuple[str, ...], options: DataOptions
) -> ImageSet:
    ids = [f"{f.relative_to(folder).as_posix()}:{stamp_of(f)}" for f in files]
    encoded = Encoded(lambda i: files[i], lambda i: f"'{files[i]}'", torch.tensor(labels), ids)
    return decode_set(encoded, classes, size=options.size)


def stamp_of(file: Path) -> str:
    """Size and time of an image's file. Raises DataError where there is none behind the name (a broken link)."""
    try:
        about = file.stat()
    except OSError as error:
        raise DataError(f"'{file}' cannot be read: {error.strerror or error}. Take it out, or mend the link") from error
    return f"{about.st_size}:{about.st_mtime_ns}"


@data_source("parquet")
def _open_parquet(argument: str, options: DataOptions) -> Parts:
    """Parquet files with an image column (bytes and path) and an integer label column."""
    path = existing_path("parquet", argument)
    if not path.is_dir():
        return Parts(read_table(_read_parquet([path]), str(path), options, base=path.parent, stamp=_stamp([path])))
    files = _tables(path) or [file for folder in subfolders(path) for file in _tables(folder)]
    if not files:
        raise DataError(f"'parquet:{argument}': no *.parquet file in '{path}' or in a folder of it")
    found: dict[str, list[Path]] = {}
    for file in files:
        # either train-00000-of-00002.parquet, or train/0000.parquet
        part = part_of(file.name) or (part_of(file.parent.name) if file.parent != path else None)
        found.setdefault(part or "", []).append(file)
    if "train" not in found:
        if set(found) != {""}:
            raise DataError(f"'{path}' has files for {', '.join(sorted(filter(None, found)))} but none for train")
        return Parts(read_table(_read_parquet(files), str(path), options, base=path, stamp=_stamp(files)))
    tables = {part: _read_parquet(of_part) for part, of_part in found.items() if part}
    return read_parts(tables, str(path), options, base=path, stamp=_stamp(files))


def read_parts(
    tables: Mapping[str, pa.Table], where: str, options: DataOptions, *, base: Path | None, stamp: str
) -> Parts:
    """Parts from the tables of `train` and, where there are such, `validation` and `test`.

    A part without a single label (public test parts often have -1 everywhere) is left out. Class names, when the
    files have none, are the numbers up to the highest of all parts.
    """
    columns = {part: find_columns(table, f"{where} ({part})") for part, table in tables.items()}
    usable = {
        part: table
        for part, table in tables.items()
        if part == "train" or labelled(_labels(table, columns[part], where))
    }
    check_splittable(
        _labels(usable["train"], columns["train"], where),
        usable,
        where,
        _TABLES,
    )
    classes = columns["train"].classes
    if classes is None:
        highest = max(int(_labels(t, columns[p], where).max()) for p, t in usable.items() if len(t))
        classes = _numbered(highest, where)
    sets = {
        p: read_table(t, f"{where} ({p})", options, base=base, stamp=f"{stamp}:{p}", classes=classes)
        for p, t in usable.items()
    }
    return Parts(sets["train"], sets.get("validation"), sets.get("test"))


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold the images and the labels, and the names of the classes if it has them."""

    image: str
    label: str
    classes: tuple[str, ...] | None


def find_columns(table: pa.Table, where: str) -> Columns:
    """The image and label column: by the Hugging Face metadata, else by type and usual names. Raises DataError."""
    features = _features(table.schema)
    fields = {f.name: f.type for f in table.schema}
    shown = ", ".join(f"{n}: {t}" for n, t in fields.items())
    images = [n for n in fields if features.get(n, {}).get("_type") == "Image"] or [
        n for n, t in fields.items() if pa.types.is_struct(t) and t.get_field_index("bytes") >= 0
    ]
    if not images:
        raise DataError(f"'{where}' has no image column (a struct of bytes and path); its columns are {shown}")
    image = images[0] if len(images) == 1 else next((n for n in ("image", "img") if n in images), images[0])
    labels = [n for n in fields if features.get(n, {}).get("_type") == "ClassLabel"] or [
        n for n, t in fields.items() if pa.types.is_integer(t)
    ]
    usual = [n for n in ("label", "labels", "fine_label", "class", "target") if n in labels]
    if not labels or (len(labels) > 1 and not usual):
        raise DataError(f"no labels: '{where}' needs one integer column named label; its columns are {shown}")
    label = usual[0] if usual else labels[0]
    _check_types(fields[image], fields[label], image, label, where)
    names = features.get(label, {}).get("names")
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise DataError(f"the names of the classes of '{where}' are no list of texts")
    return Columns(image, label, tuple(names) if names else None)


def _check_types(image: pa.DataType, label: pa.DataType, images: str, labels: str, where: str) -> None:
    """That two columns hold what the metadata says of them: it is somebody's word. Raises DataError."""
    parts = list(image) if pa.types.is_struct(image) else [pa.field("bytes", image)]
    known = [part for part in parts if part.name in _STORED]
    twice = len({part.name for part in known}) < len(known)
    if not known or twice or any(str(part.type) not in _STORED[part.name] for part in known):
        raise DataError(
            f"column '{images}' of '{where}' is of type {str(image)[:200]}; images are a struct of bytes (binary) and "
            "path (string), or binary alone. Write the encoded images into it"
        )
    if not pa.types.is_integer(label):
        raise DataError(
            f"column '{labels}' of '{where}' is of type {str(label)[:200]}; labels are whole numbers. Write the number "
            "of its class into every row"
        )


def read_table(
    table: pa.Table,
    where: str,
    options: DataOptions,
    *,
    base: Path | None,
    stamp: str,
    classes: Sequence[str] | None = None,
) -> ImageSet:
    """The images and labels of one table.

    Without `classes` it is a set in one piece. `base` is where paths of images kept outside of it start; `stamp`
    changes when its content does.
    """
    columns = find_columns(table, where)
    labels = _labels(table, columns, where)
    if classes is None:  # the table is the whole set
        check_splittable(labels, (), where, _TABLES)
    names = tuple(classes or columns.classes or _numbered(int(labels.max()) if len(labels) else 0, where))
    images = table.column(columns.image)
    parts = _fields(images) if pa.types.is_struct(images.type) else {"bytes": images}

    def fetch(i: int) -> Path | bytes:
        data = parts["bytes"][i].as_py() if "bytes" in parts else None
        if data is not None:
            return data
        path = _path(parts["path"], i, where) if "path" in parts else None
        if path is None:
            raise DataError(f"row {i} of '{where}' has neither the bytes nor the path of an image")
        return _inside(base, path, f"row {i} of '{where}'")

    ids = [f"{stamp}:{i}" for i in range(len(labels))]
    return decode_set(Encoded(fetch, lambda i: f"row {i} of '{where}'", labels, ids), names, size=options.size)


def _fields(column: pa.ChunkedArray) -> dict[str, pa.ChunkedArray]:
    """The fields of a column of structs."""
    return {field.name: values for field, values in zip(column.type, column.flatten(), strict=True)}


def _path(paths: pa.ChunkedArray, i: int, where: str) -> str | None:
    try:
        return paths[i].as_py()
    except UnicodeDecodeError as error:
        raise DataError(f"row {i} of '{where}' names its image in no UTF-8 ({error}): write the table again") from error


def _inside(base: Path | None, path: str, where: str) -> Path:
    """The file of an image that a table names: in the table's own folder, as the table is not the user's word."""
    found = as_path(path, DataError)
    if base is None or not (base / found).resolve().is_relative_to(base.resolve()):
        place = "no folder" if base is None else f"'{base}'"
        raise DataError(
            f"{where} names the image '{path[:200]}', which is not in the folder of the table ({place}): refused. "
            "Put the images there, or write their bytes into the table"
        )
    return base / found


def _numbered(highest: int, where: str) -> tuple[str, ...]:
    """Names of classes that have none: their numbers."""
    if highest < 0:
        raise DataError(
            f"no labels: '{where}' has label {highest} at most, which usually marks images without a label. Labels go "
            "from 0; where none are needed put the images into a folder and give images:FOLDER"
        )
    if highest >= limits.CLASSES:
        raise DataError(f"'{where}' has the label {highest}; expected at most {limits.CLASSES - 1}")
    return tuple(str(c) for c in range(highest + 1))


def _labels(table: pa.Table, columns: Columns, where: str) -> Tensor:
    column = table.column(columns.label)
    if column.null_count:
        raise DataError(f"no labels: {column.null_count} rows of '{where}' have none in column '{columns.label}'")
    values = column.to_numpy()
    if len(values) and values.max() > np.iinfo(np.int64).max:
        raise DataError(f"'{where}' has the label {values.max()}; expected at most {limits.CLASSES - 1}")
    return torch.from_numpy(values.astype(np.int64))


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """The features that Hugging Face's `datasets` writes into a schema; empty when it did not write this one."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        features = info["info"]["features"]
        return {name: value for name, value in features.items() if isinstance(value, dict)}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _read_parquet(files: Sequence[Path]) -> pa.Table:
    tables = []
    for file in files:
        try:
            tables.append(_read_one(file))
        except (pa.ArrowException, OSError, OverflowError, MemoryError, UnicodeDecodeError, IndexError) as error:
            raise DataError(
                f"'{file}' is no readable parquet file ({str(error)[:300]}): fetch or write it again"
            ) from error
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"the columns of {', '.join(f.name for f in files)} do not agree ({error})") from error


def _read_one(file: Path) -> pa.Table:
    """A parquet file, as long as it takes no more memory than images in a file of its size can."""
    if not file.is_file():  # a pipe would be waited for
        raise DataError(
            f"'{file}' is no file (it is missing, or a folder, a pipe or a device). Put one there, or take it out"
        )
    with pa.OSFile(os.fsencode(file)) as data:  # as bytes: pyarrow takes no other name than UTF-8 as a path
        return _read_bounded(data, file, file.stat().st_size)


def _read_bounded(data: pa.NativeFile, file: Path, size: int) -> pa.Table:
    opened = pq.ParquetFile(data)
    rows, most = opened.metadata.num_rows, limits.TABLE_GROWTH * size + limits.TABLE_BYTES
    groups = [opened.metadata.row_group(k) for k in range(opened.metadata.num_row_groups)]
    claimed = sum(group.total_byte_size for group in groups)
    if not 0 <= rows <= min(limits.ROWS, size) or claimed > most:
        raise DataError(
            f"'{file}' claims {rows} rows and {limits.amount(claimed)}, which {limits.amount(size)} of images cannot be"
        )
    before, parts = pa.total_allocated_bytes(), []
    for batch in opened.iter_batches(batch_size=64):
        parts.append(batch)
        if pa.total_allocated_bytes() - before > most:
            raise DataError(f"'{file}' ({limits.amount(size)}) grows beyond {limits.amount(most)} when it is read")
    return pa.Table.from_batches(parts, None if parts else opened.schema_arrow)


def _tables(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.parquet") if not _of_the_system(file.name))


def _stamp(files: Sequence[Path]) -> str:
    return digest([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files])
