"""Export: one network as a file that is used without Netsmith (ONNX, `.pt2`) or without its code (safetensors)."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netsmith.artifacts.artifact import library_versions, staged
from netsmith.errors import ExportError, OutputError, did_you_mean, first_line
from netsmith.exporting import formats as exporters
from netsmith.exporting.card import Subject, card
from netsmith.exporting.subject import subject_of
from netsmith.files.output import (
    MARKER,
    check_output,
    named_os_errors,
    sha256_file,
    temporary,
    to_json,
    write_json,
    write_text,
)
from netsmith.networks.network import Network, Preprocess
from netsmith.trace.checks import explained, shape_text, unusable
from netsmith.trace.cost import count_macs, count_params
from netsmith.trace.trial import differ
from netsmith.training.measure import Progress

__all__ = ["BATCHES", "FORMATS", "TOLERANCE", "Exported", "check_out", "export"]

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}
"""Name and file ending of every format."""

BATCHES = (1, 3)
"""Batch sizes at which what was written is run beside the network; it was captured with two."""

TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest output, for float32; wider for coarser numbers."""

_STEPS = 3

SCHEMA = 1
"""Version of the layout of `export.json`."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file with the network.
        format: one of `FORMATS`.
        files: everything written, `path` first.
        bytes: of the network's file (with its data file, where ONNX needs one).
        input_shape: of one input, without the batch.
        output_shape: of one output, without the batch.
        difference: largest difference from PyTorch's output that was seen, relative to the largest output.
        facts: what the file's metadata say: preprocessing, classes, licence, sources, counts.

    Examples:
        >>> exported = netsmith.export(zoo[1], "plain.safetensors")
        >>> exported.path.name, exported.input_shape
        ('plain.safetensors', (1, 8, 8))
    """

    path: Path
    format: str
    files: tuple[Path, ...]
    bytes: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    difference: float
    facts: Mapping[str, Any]


def export(
    model: nn.Module | Network,
    out: Path | str,
    *,
    format: str | None = None,
    input_shape: Sequence[int] | None = None,
    preprocess: Preprocess | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] = (),
    name: str | None = None,
    opset: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a network as ONNX, `.pt2` (`torch.export`) or safetensors, for batches of any size, and check the file.

    What is exported takes images that have been preprocessed. Mean, standard deviation and size for that, the classes'
    names and the licence are in the file's metadata, and in the card of a folder.

    ONNX is run in onnxruntime and `.pt2` is loaded again, both at two batch sizes beside PyTorch; safetensors are read
    back. The network stays as it is.

    Args:
        model: a network (of `load_source`), or any module with one tensor in and one out.
        out: a file that ends as its format does (`net.onnx`); or a folder, for the file `model.*` with a card and
            `export.json`.
        format: one of `FORMATS`; may be left out when `out` is a file.
        input_shape: of one input without the batch, where the network does not tell.
        preprocess: of a module that does not tell its own.
        mean: in place of `preprocess`: per channel, of images in [0, 1].
        std: likewise.
        classes: names of the outputs, in order, where the network does not tell.
        name: what to call it.
        opset: of ONNX; default: the exporter's own.
        overwrite: replace what is there already.
        progress: told how far it is.

    Raises:
        ExportError: the network cannot be captured, uses an operator that ONNX lacks, or the file computes something
            else. Nothing is left behind.
        MissingDependencyError: onnx without the extra `onnx`.
        OutputError: `out` exists, or cannot be written.

    Examples:
        >>> netsmith.export(zoo[1], "plain.pt2").difference < 1e-4  # .onnx and .safetensors too
        True
    """
    out = Path(out)
    kind = check_out(out, format, overwrite=overwrite)
    if opset is not None and kind != "onnx":
        raise ExportError(f"opset is for ONNX only, and the format is {kind}: leave it out.")
    place = _file if out.suffix == FORMATS[kind] else _folder
    subject = subject_of(
        model, input_shape=input_shape, preprocess=preprocess, mean=mean, std=std, classes=classes, name=name
    )
    # a copy: capturing may touch caches and buffers, and the network may live on another device
    if reason := unusable(subject.model):
        raise ExportError(f"'{subject.name}': {reason}.")
    network = copy.deepcopy(subject.model).cpu().eval()
    example = _noise(network, subject.input_shape, 2)
    output = _run(network, example, subject.name)
    if differ(output, _run(network, example, subject.name)):
        raise ExportError(
            f"'{subject.name}' gives another output each time it runs, so the file cannot be checked. Make it"
            " deterministic in eval mode."
        )
    tell = progress or _silent
    tell(f"exporting {subject.name}", 0, _STEPS, "capturing")
    program = None if kind == "safetensors" else exporters.capture(network, example, subject.name)
    facts = {
        **subject.to_json(),
        "output_shape": list(output.shape[1:]),
        "params": count_params(network),
        "macs": count_macs(network, subject.input_shape),
        "netsmith": library_versions().get("netsmith", ""),
    }
    with place(out, FORMATS[kind], overwrite) as path, named_os_errors(out):
        tell(f"exporting {subject.name}", 1, _STEPS, f"writing {kind}")
        opened = _write(kind, network, program, path, subject, facts, opset)
        tell(f"exporting {subject.name}", 2, _STEPS, "checking")
        difference = 0.0 if opened is None else _check(kind, opened, path, network, subject)
        sizes = {p.name: p.stat().st_size for p in path.parent.iterdir()}
        if place is _folder:
            _describe(path, kind, subject, facts, difference)
        names = sorted((p.name for p in path.parent.iterdir() if p.name != MARKER), key=lambda n: (n != path.name, n))
    tell(f"exporting {subject.name}", _STEPS, _STEPS, "")
    home = out.parent if place is _file else out
    return Exported(
        path=home / path.name,
        format=kind,
        files=tuple(home / n for n in names),
        bytes=sum(sizes.values()),
        input_shape=subject.input_shape,
        output_shape=tuple(output.shape[1:]),
        difference=difference,
        facts=facts,
    )


def check_out(out: Path, format: str | None = None, *, overwrite: bool = False) -> str:
    """The format that `out` is to be written in, once it is sure that it can be; touches nothing.

    Raises: as `export`, before anything is loaded.
    """
    kind = _format_of(out, format)
    if kind == "onnx":
        exporters.require_onnx()
    if out.suffix == FORMATS[kind]:
        _check_file(out, overwrite)
    else:
        check_output(out, overwrite)
    return kind


def _format_of(out: Path, given: str | None) -> str:
    """The format, from the argument or the file's ending; both must agree."""
    by_ending = {ending: name for name, ending in FORMATS.items()}
    ending = by_ending.get(out.suffix)
    if given is None:
        if ending is None:
            raise ExportError(
                f"nothing tells the format of {out}: give a file that ends in {', '.join(by_ending)}, or a format "
                f"({', '.join(FORMATS)}) for a folder."
            )
        return ending
    if given not in FORMATS:
        raise ExportError(f"unknown format '{given}'. {did_you_mean(given, FORMATS)}")
    if ending not in (None, given):
        raise ExportError(f"{out} ends as {ending} does, and the format is {given}: leave one of them out.")
    return given


def _write(
    kind: str,
    network: nn.Module,
    program: torch.export.ExportedProgram | None,
    path: Path,
    subject: Subject,
    facts: Mapping[str, Any],
    opset: int | None,
) -> Callable[[Path], exporters.Run] | None:
    """Write the file; returns what opens it again, None where it cannot be run."""
    metadata = {key: value if isinstance(value, str) else to_json(value) for key, value in facts.items()}
    if program is None:
        exporters.write_safetensors(network, path, metadata)
        return None
    if kind == "pt2":
        exporters.write_pt2(program, path, to_json(facts, indent=2))
        return exporters.open_pt2
    exporters.write_onnx(program, path, metadata, opset, subject.name)
    return exporters.open_onnx


def _check(
    kind: str, opened: Callable[[Path], exporters.Run], path: Path, network: nn.Module, subject: Subject
) -> float:
    """Run the file beside the network at `BATCHES`; raises ExportError where they differ."""
    where = "in onnxruntime" if kind == "onnx" else "as loaded again"
    worst, written = 0.0, f"'{subject.name}' was written as {kind}, but"
    try:
        run = opened(path)
    except Exception as error:  # onnxruntime has no common kind of its own
        raise ExportError(f"{written} cannot be loaded: {first_line(error)}") from error
    for batch in BATCHES:
        x = _noise(network, subject.input_shape, batch)
        expected = _run(network, x, subject.name)
        try:
            with torch.no_grad():
                got = run(x)
        except Exception as error:  # as above
            raise ExportError(f"{written} {where} it fails on a batch of {batch}: {first_line(error)}") from error
        if got.shape != expected.shape:
            raise ExportError(
                f"{written} {where} a batch of {batch} gives "
                f"{shape_text(got.shape)}, expected {shape_text(expected.shape)} as in PyTorch."
            )
        scale = max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
        worst = max(worst, float((got - expected).abs().max()) / scale)
        allowed = max(TOLERANCE, 16 * torch.finfo(expected.dtype).eps)
        if not worst <= allowed:
            raise ExportError(
                f"{written} {where} a batch of {batch} differs from PyTorch by "
                f"{worst:.1e} of the largest output, and at most {allowed:.0e} is allowed. Please report this network."
            )
    return worst


def _run(network: nn.Module, x: Tensor, name: str) -> Tensor:
    """The network's output; raises ExportError for anything but one finite tensor with the batch first."""
    what = f"'{name}' does not run on an input of {shape_text(x.shape[1:])}"
    remedy = "Give the input_shape that it takes, without the batch."
    with torch.no_grad(), explained(network, x, what, remedy, ExportError):
        out = network(x)
    if not isinstance(out, Tensor) or out.ndim < 1 or out.shape[0] != x.shape[0]:
        what = shape_text(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise ExportError(
            f"'{name}' gives {what} for a batch of {x.shape[0]}, expected one tensor with the batch first: wrap it in "
            "a module that returns the tensor you mean."
        )
    if not bool(torch.isfinite(out).all()):
        raise ExportError(f"'{name}' gives NaN or infinity on noise, so nothing can be compared: check its weights.")
    return out


def _noise(network: nn.Module, shape: tuple[int, ...], batch: int) -> Tensor:
    """A batch of noise in the network's own kind of number, the same every time."""
    kinds = [p.dtype for p in network.parameters() if p.is_floating_point()]
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, *shape, generator=generator).to(kinds[0] if kinds else torch.float32)


def _silent(what: str, done: float | int, total: float | int | None, note: str = "") -> None:
    """Progress that nobody follows."""


def _check_file(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise OutputError(f"{out} is a folder, where a file is to go. Choose another name with --out.")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists. Pass --overwrite, or choose another name with --out.")


@contextmanager
def _folder(out: Path, ending: str, overwrite: bool) -> Iterator[Path]:
    """A new folder for `model.*`, which takes its place when all went well."""
    with staged(out, overwrite) as half:
        (half / MARKER).touch()  # so that --overwrite may replace it
        yield half / f"model{ending}"


@contextmanager
def _file(out: Path, ending: str, overwrite: bool) -> Iterator[Path]:
    """A path in a temporary folder beside `out`; what is written there moves out when all went well."""
    _check_file(out, overwrite)
    scratch = temporary(out)
    try:
        with named_os_errors(out):
            scratch.mkdir(parents=True)
        yield scratch / out.name
        with named_os_errors(out):
            # the data file of a large ONNX first, so that what names it never stands alone
            made = sorted(scratch.iterdir(), key=lambda p: p.name == out.name)
            for path in made:
                _check_file(out.parent / path.name, overwrite)
            for path in made:
                path.replace(out.parent / path.name)
    finally:
        with suppress(OSError):
            shutil.rmtree(scratch)


def _describe(path: Path, kind: str, subject: Subject, facts: Mapping[str, Any], difference: float) -> None:
    """The card and `export.json` beside the file."""
    files = {p.name: sha256_file(p) for p in sorted(path.parent.iterdir()) if p.name != MARKER}
    record = {
        "kind": "export",
        "schema": SCHEMA,
        "format": kind,
        "file": path.name,
        "sha256": files,
        "checked": {"batches": list(BATCHES), "difference": difference} if kind != "safetensors" else None,
        "versions": library_versions(),
        **facts,
    }
    write_json(path.parent / "export.json", record)
    write_text(path.parent / "README.md", card(subject, kind, path.name, facts, difference))
