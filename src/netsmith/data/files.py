"""Data sources on disk: `folder:PATH` (one folder a class), `images:PATH` (no labels), `parquet:PATH` (of images)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
"""Endings of the names of image files."""

_TABLES = "Give the parts as tables of their own: train.parquet, validation.parquet and test.parquet in one folder"
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")


@data_source("folder")
def _open_folder(argument: str, options: DataOptions) -> Parts:
    """Folders of images, one a class; in `train`, `val`/`validation` and `test` folders or all in one."""
    path, folders = _folders("folder", argument)
    if folders and "train" not in folders and all(part_of(f.name) for f in subfolders(path)):
        raise DataError(f"'{path}' has {', '.join(sorted(folders))} but no train part: its classes are read from there")
    if "train" not in folders:
        folders = {"train": path}
    classes = _class_names(folders["train"])
    files = {part: _by_class(folder, classes) for part, folder in folders.items()}
    labels = {part: [classes.index(name) for name, _ in of_part] for part, of_part in files.items()}
    check_splittable(
        torch.tensor(labels["train"]),
        files,
        str(folders["train"]),
        f"Put images into '{path}/train/CLASS', '{path}/val/CLASS' and '{path}/test/CLASS' (a class without an image "
        f"has an empty folder below train), or give images:{argument} where no labels are needed",
    )
    sets = {
        part: _read_files(folders[part], [file for _, file in of_part], labels[part], classes, options)
        for part, of_part in files.items()
    }
    return Parts(**sets)


@data_source("images")
def _open_images(argument: str, options: DataOptions) -> Parts:
    """Images without labels in a folder and below it; in parts where one of its folders is called `train`."""
    path, folders = _folders("images", argument)
    if "train" not in folders:
        folders = {"train": path}
    files = {part: image_files(folder) for part, folder in folders.items()}
    if empty := next((part for part, of_part in files.items() if not of_part), None):
        raise no_image(folders[empty])
    labels = {part: [UNLABELLED] * len(of_part) for part, of_part in files.items()}
    check_splittable(torch.tensor(labels["train"]), files, str(path), "Add images")
    return Parts(**{part: _read_files(folders[part], files[part], labels[part], (), options) for part in files})


def _folders(kind: str, argument: str) -> tuple[Path, dict[str, Path]]:
    """Return the folder of a source, and the folders in it that are called by the name of a part."""
    path = existing_path(kind, argument)
    if not path.is_dir():
        raise DataError(f"'{kind}:{argument}' is a file; a folder of images was expected")
    return path, part_folders(path)


def part_folders(path: Path) -> dict[str, Path]:
    """Return the folders in a folder that are called by the name of a part."""
    return {part: f for f in subfolders(path) if (part := part_of(f.name)) is not None}


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; those of the operating system are passed over."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _of_the_system(p.name))


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder and below it, sorted, without files of the operating system (`._photo.jpg`)."""
    files = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
    return sorted(p for p in files if not any(map(_of_the_system, p.relative_to(folder).parts)))


def no_image(folder: Path) -> DataError:
    """Return the error for a folder without images."""
    return DataError(f"'{folder}' holds no image ({', '.join(sorted(IMAGE_ENDINGS))})")


def _of_the_system(name: str) -> bool:
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(p.name for p in subfolders(folder))
    if not names:
        raise DataError(
            f"no labels: '{folder}' has no folders; one folder of images a class was expected. Where no labels are "
            f"needed give images:{folder}"
        )
    if odd := next((n for n in names if not is_text(n)), None):
        raise DataError(
            f"the class folder '{folder / odd}' has a name that is not UTF-8, and artifacts hold the names of classes: "
            "rename it"
        )
    return names


def _by_class(folder: Path, classes: tuple[str, ...]) -> list[tuple[str, Path]]:
    """Return the images of a part, each with its class."""
    extra = sorted(set(_class_names(folder)) - set(classes))
    if extra:
        raise DataError(f"'{folder}' has classes that the train folder lacks: {', '.join(extra[:6])}")
    files = [(name, file) for name in classes for file in image_files(folder / name)]
    if not files:
        raise no_image(folder)
    return files


def _read_files(
    folder: Path, files: list[Path], labels: list[int], classes: tuple[str, ...], options: DataOptions
) -> ImageSet:
    ids = [f"{f.relative_to(folder).as_posix()}:{stamp_of(f)}" for f in files]
    encoded = Encoded(lambda i: files[i], lambda i: f"'{files[i]}'", torch.tensor(labels), ids)
    return decode_set(encoded, classes, size=options.size)


def stamp_of(file: Path) -> str:
    """Return size and time of a file. Raises DataError where there is none behind the name (a broken link)."""
    try:
        status = file.stat()
    except OSError as error:
        raise DataError(f"'{file}' cannot be read: {error.strerror or error}. Take it out, or mend the link") from error
    return f"{status.st_size}:{status.st_mtime_ns}"


@data_source("parquet")
def _open_parquet(argument: str, options: DataOptions) -> Parts:
    """Parquet files with an image column (bytes and path) and an integer label column."""
    path = existing_path("parquet", argument)
    base = path if path.is_dir() else path.parent
    files = (
        _tables(path) or [file for folder in subfolders(path) for file in _tables(folder)] if base == path else [path]
    )
    if not files:
        raise DataError(f"'parquet:{argument}': no *.parquet file in '{path}' or in a folder of it")
    parts: dict[str, list[Path]] = {}
    for file in files if base == path else ():
        # either train-00000-of-00002.parquet, or train/0000.parquet
        part = part_of(file.name) or (part_of(file.parent.name) if file.parent != path else None)
        parts.setdefault(part or "", []).append(file)
    named = sorted(filter(None, parts))
    if "train" not in parts:
        if named:
            raise DataError(f"'{path}' has files for {', '.join(named)} but none for train")
        parts, named = {"train": files}, ["train"]
    tables = {part: _read_parquet(parts[part]) for part in named}
    stamp = digest([(f.name, stamp_of(f)) for f in files])
    return read_parts(tables, str(path), options, base=base, stamp=stamp)


def read_parts(
    tables: Mapping[str, pa.Table], where: str, options: DataOptions, *, base: Path | None, stamp: str
) -> Parts:
    """Return parts from the tables of `train` and, where there are such, `validation` and `test`.

    A part without a single label (public test parts often have -1 everywhere) is left out. Class names, when the
    files have none, are the numbers up to the highest of all parts. `base` is where paths of images kept outside of the
    tables start; `stamp` changes when their content does.
    """
    names = {part: where if len(tables) == 1 else f"{where} ({part})" for part in tables}
    columns = {part: _columns(table, names[part]) for part, table in tables.items()}
    labels = {part: _labels(table, columns[part].label, names[part]) for part, table in tables.items()}
    labels = {part: values for part, values in labels.items() if part == "train" or labelled(values)}
    check_splittable(labels["train"], labels, where, _TABLES)
    classes = columns["train"].classes or _numbered(max(int(v.max()) for v in labels.values() if len(v)), where)

    def read(part: str) -> ImageSet:
        fetch = _fetcher(tables[part].column(columns[part].image), columns[part].image, names[part], base)
        ids = [f"{stamp}:{part}:{i}" for i in range(len(labels[part]))]
        encoded = Encoded(fetch, lambda i: f"row {i} of '{names[part]}'", labels[part], ids)
        return decode_set(encoded, classes, size=options.size)

    return Parts(**{part: read(part) for part in labels})


@dataclass(frozen=True)
class _Columns:
    """Names of the columns with the images and the labels, and those of the classes if the table has them."""

    image: str
    label: str
    classes: tuple[str, ...] | None


def _columns(table: pa.Table, where: str) -> _Columns:
    """Return the image and label column: by the Hugging Face metadata, else by type and usual names."""
    features = _features(table.schema)
    fields = {f.name: f.type for f in table.schema}
    shown = ", ".join(f"{n}: {str(t)[:200]}" for n, t in fields.items())
    images = [n for n in fields if features.get(n, {}).get("_type") == "Image"] or [
        n for n, t in fields.items() if pa.types.is_struct(t) and t.get_field_index("bytes") >= 0
    ]
    if not images:
        raise DataError(f"'{where}' has no image column (a struct of bytes and path); its columns are {shown}")
    image = next((n for n in ("image", "img") if n in images), images[0])
    labels = [n for n in fields if features.get(n, {}).get("_type") == "ClassLabel"] or [
        n for n, t in fields.items() if pa.types.is_integer(t)
    ]
    label = next((n for n in ("label", "labels", "fine_label", "class", "target") if n in labels), None)
    if label is None and len(labels) != 1:
        raise DataError(f"no labels: '{where}' needs one integer column named label; its columns are {shown}")
    label = label or labels[0]
    if not pa.types.is_integer(fields[label]):
        raise DataError(
            f"column '{label}' of '{where}' is of type {str(fields[label])[:200]}; labels are whole numbers. Write the "
            "number of its class into every row"
        )
    names = features.get(label, {}).get("names")
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise DataError(f"the names of the classes of '{where}' are no list of texts")
    return _Columns(image, label, tuple(names) if names else None)


def _fetcher(images: pa.ChunkedArray, column: str, where: str, base: Path | None) -> Callable[[int], Path | bytes]:
    """Return a function that gives the image of a row: its bytes, or its file in the table's own folder."""

    def fetch(i: int) -> Path | bytes:
        try:
            value = images[i].as_py()
        except ValueError as error:  # a path that is no UTF-8 among them
            raise DataError(f"row {i} of '{where}' cannot be read ({error}): write the table again") from error
        value = value if isinstance(value, dict) else {"bytes": value}
        data, path = value.get("bytes"), value.get("path")
        if isinstance(data, bytes):
            return data
        if data is not None or not isinstance(path, str):
            raise DataError(
                f"row {i} of '{where}' has neither the bytes nor the path of an image: column '{column}' is of type "
                f"{str(images.type)[:200]}; images are a struct of bytes (binary) and path (string), or binary alone. "
                "Write the encoded images into it"
            )
        file = as_path(path, DataError)
        if base is None or not (base / file).resolve().is_relative_to(base.resolve()):
            place = "no folder" if base is None else f"'{base}'"
            raise DataError(
                f"row {i} of '{where}' names the image '{path[:200]}', which is not in the folder of the table "
                f"({place}): refused. Put the images there, or write their bytes into the table"
            )
        return base / file

    return fetch


def _numbered(highest: int, where: str) -> tuple[str, ...]:
    """Return names for classes that have none: their numbers."""
    if highest < 0:
        raise DataError(
            f"no labels: '{where}' has label {highest} at most, which usually marks images without a label. Labels go "
            "from 0; where none are needed put the images into a folder and give images:FOLDER"
        )
    if highest >= limits.CLASSES:
        raise DataError(f"'{where}' has the label {highest}; expected at most {limits.CLASSES - 1}")
    return tuple(str(c) for c in range(highest + 1))


def _labels(table: pa.Table, label: str, where: str) -> Tensor:
    column = table.column(label)
    if column.null_count:
        raise DataError(f"no labels: {column.null_count} rows of '{where}' have none in column '{label}'")
    try:
        return torch.tensor(column.cast(pa.int64()).to_numpy())
    except pa.ArrowInvalid as error:
        raise DataError(f"'{where}' has the label of no class ({error})") from error


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the features that Hugging Face's `datasets` writes into a schema; none when it did not write this one."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: value for name, value in features.items() if isinstance(value, dict)}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}


def _read_parquet(files: Sequence[Path]) -> pa.Table:
    tables = []
    for file in files:
        if not file.is_file():  # a pipe would be waited for
            raise DataError(
                f"'{file}' is no file (it is missing, or a folder, a pipe or a device). Put one there, or take it out"
            )
        try:
            with file.open("rb") as stream:
                tables.append(pq.read_table(stream))
        except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError, IndexError) as error:
            reason = str(error)[:300]
            raise DataError(f"'{file}' is no readable parquet file ({reason}): fetch or write it again") from error
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"the columns of {', '.join(f.name for f in files)} do not agree ({error})") from error


def _tables(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.parquet") if not _of_the_system(file.name))
