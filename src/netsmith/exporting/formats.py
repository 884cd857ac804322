"""The formats of an export: each writes a file and reads it back, to be run beside the network it was made from."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from netsmith.errors import ExportError, MissingDependencyError, first_line
from netsmith.files.cache import independent

Run = Callable[[Tensor], Tensor]

INPUT, OUTPUT = "input", "output"
NOTES = "netsmith.json"
"""The file inside a `.pt2` that holds what ONNX and safetensors keep as metadata."""

_ONNX_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
_ONNX_TORCH = (2, 6)  # from this release on, torch makes ONNX of what torch.export has captured
_INSTEAD = "Formats that need no such translation: pt2 (where torch.export can capture it) and safetensors."


def require_onnx() -> None:
    """Raises MissingDependencyError where a library that ONNX needs is not installed."""
    missing = [name for name in _ONNX_LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"The format onnx needs {', '.join(_ONNX_LIBRARIES)}, and {', '.join(missing)} is not installed: "
            "pip install 'netsmith[onnx]'. The formats pt2 and safetensors need nothing more."
        )
    have = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if have < _ONNX_TORCH:
        raise MissingDependencyError(
            f"The format onnx needs torch {'.'.join(map(str, _ONNX_TORCH))} or newer, and {torch.__version__} is "
            "installed: pip install --upgrade 'netsmith[onnx]'. The formats pt2 and safetensors work with it."
        )


def capture(model: nn.Module, example: Tensor, name: str) -> torch.export.ExportedProgram:
    """The network as a graph of torch's own operators, for batches of any size from 1 on.

    Raises:
        ExportError: its code decides by the values of tensors, or holds for one batch size only.
    """
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet_failure(), torch.no_grad():
            program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # torch's compiler has dozens of kinds, which change with every release
        raise ExportError(_not_captured(name, error)) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of this machine's files, with their paths: half of a small file
    return program


def _not_captured(name: str, error: Exception) -> str:
    text = "\n".join(str(e) for e in _causes(error))
    if "specialized it to be a constant" in text or "ConstraintViolation" in text:
        why = "its code takes batches of one size only, so that size cannot be left open"
        what = "Take sizes from the tensors (x.shape[0], or -1 in a reshape) instead of fixed numbers"
    elif "data-dependent" in text:
        why = "its code decides by the values of tensors (an `if`, a `.item()`, a shape that depends on the data)"
        what = "Write that with torch.where, or so that it depends on shapes and settings only"
    else:
        why, what = f"torch.export cannot capture it: {first_line(error)}", "Change what it names"
    return f"'{name}' cannot be exported: {why}. {what}; or keep the weights alone with the format safetensors."


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str], opset: int | None, name: str
) -> None:
    """Write a captured network as ONNX; weights beyond 1.5 GB go to a second file beside it.

    Raises:
        ExportError: an operator has no counterpart in ONNX; it is named.
    """
    try:
        made = torch.onnx.export(
            program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], opset_version=opset, verbose=False
        )
    except Exception as error:  # as in `capture`
        raise ExportError(_not_translated(name, error)) from error
    assert made is not None
    made.model.metadata_props.update(metadata)
    made.save(str(path))


def _not_translated(name: str, error: Exception) -> str:
    causes = list(_causes(error))
    for text in map(str, reversed(causes)):
        found = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text)
        if found:
            operator = found[1].replace("::", ".")
            return (
                f"'{name}' cannot be exported to ONNX: it uses the operator {operator}, which has no counterpart "
                f"there. Replace it in the network by operators that have one. {_INSTEAD}"
            )
    return f"'{name}' cannot be exported to ONNX: {first_line(causes[-1])}. {_INSTEAD}"


def open_onnx(path: Path) -> Run:
    """An ONNX file in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only: they come as exceptions too
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        (out,) = session.run([OUTPUT], {INPUT: x.numpy()})
        return torch.from_numpy(out)

    return run


def write_pt2(program: torch.export.ExportedProgram, path: Path, notes: str) -> None:
    """Write a captured network as torch's own archive, without the example that it was captured with."""
    # the example would be kept as a pickle; the archive holds none without it
    program.example_inputs = None
    torch.export.save(program, str(path), extra_files={NOTES: notes})


def open_pt2(path: Path) -> Run:
    """A `.pt2` file, loaded anew."""
    module = torch.export.load(str(path)).module()

    def run(x: Tensor) -> Tensor:
        return module(x)

    return run


def write_safetensors(model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write the state of a network, and read it back.

    Raises:
        ExportError: a tensor came back otherwise.
    """
    state = independent(model.state_dict())
    path.write_bytes(save(state, metadata={"format": "pt", **metadata}))
    again = load_file(str(path))
    wrong = [key for key, value in state.items() if key not in again or not _same(value, again[key])]
    if wrong:
        raise ExportError(f"{path.name}: {', '.join(wrong[:3])} came back otherwise than written; is the disk failing?")


def _same(a: Tensor, b: Tensor) -> bool:
    """Bit by bit, so that NaN equals itself."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(x: Tensor) -> Tensor:
    return x.detach().cpu().contiguous().flatten().view(torch.uint8)


def _causes(error: BaseException) -> Iterator[BaseException]:
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__ or at.__context__


@contextmanager
def _quiet_failure() -> Iterator[None]:
    """Keep back what is written to standard error, for good if the block fails: torch prints whole graphs then."""
    held = io.StringIO()
    with redirect_stderr(held):
        yield
    sys.stderr.write(held.getvalue())
