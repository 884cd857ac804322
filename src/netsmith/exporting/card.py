"""The card of an exported network: what it takes and gives, where it comes from, how to load it without Netsmith."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netsmith.exporting.subject import Subject
from netsmith.networks.licences import licence_lines, source_lines
from netsmith.search.budget import format_count
from netsmith.trace.checks import shape_text

_GIVES = {
    "classification": "one score a class (logits)",
    "segmentation": "one score a class for every pixel (logits)",
    "generation": "logits of the image, then means and logarithms of variances of its code",
}
_RANDOM = ("", "**Its weights are random**: it was built without trained ones, and its answers mean nothing.")


def card(subject: Subject, kind: str, file: str, facts: Mapping[str, Any], difference: float) -> str:
    """The text of README.md."""
    lines = [
        f"# {subject.name}",
        "",
        f"`{subject.source}`, exported as {kind}: {format_count(facts['params'])} parameters, "
        f"{format_count(facts['macs'])} MACs for one input.",
        *_RANDOM[: 2 * subject.random],
        "",
        "## What it takes and gives",
        "",
        *_input_lines(subject),
        f"- output: `(batch, {', '.join(map(str, facts['output_shape']))})`"
        + (f", {_GIVES[subject.task]}" if subject.task in _GIVES else ""),
        *_class_lines(subject),
        "",
        "## Sources and licence",
        "",
        *licence_lines(subject.licence, subject.commercial),
        *source_lines(subject.sources),
        "",
        "## How to load",
        "",
        *_HOW[kind](subject, file),
        "",
    ]
    if kind != "safetensors":
        lines += [f"Checked against PyTorch at two batch sizes: {difference:.1e} of the largest output at most.", ""]
    return "\n".join(lines)


def _input_lines(subject: Subject) -> list[str]:
    shape = ", ".join(map(str, subject.input_shape))
    lines = [f"- input: `(batch, {shape})`, float32, any batch from 1 on"]
    how = subject.preprocess
    if how is None:
        return [*lines, "- preprocessing: not known; the network takes what it was trained on"]
    mean, std = how.statistics
    channels = {1: "grey", 3: "RGB"}.get(how.input_size[0], f"of {how.input_size[0]} channels")
    return [
        *lines,
        f"- images: {channels}, values in [0, 1], resized to {shape_text(how.input_size[1:])} ({how.interpolation}), "
        f"then per channel minus `{list(mean)}`, over `{list(std)}`",
    ]


def _class_lines(subject: Subject) -> list[str]:
    if not subject.classes:
        return []
    shown = ", ".join(subject.classes[:20])
    more = f", ... ({len(subject.classes)} in all, see export.json)" if len(subject.classes) > 20 else ""
    return [f"- classes, in order: {shown}{more}"]


def _onnx(subject: Subject, file: str) -> list[str]:
    shape = ", ".join(map(str, subject.input_shape))
    return [
        "Without Netsmith and PyTorch, for instance in onnxruntime:",
        "",
        "```python",
        "import numpy as np",
        "import onnxruntime",
        "",
        f'session = onnxruntime.InferenceSession("{file}")',
        f"x = np.zeros((1, {shape}), dtype=np.float32)  # preprocessed images",
        '(output,) = session.run(["output"], {"input": x})',
        "about = session.get_modelmeta().custom_metadata_map  # mean, std, input_size, classes, licence (JSON)",
        "```",
    ]


def _pt2(subject: Subject, file: str) -> list[str]:
    shape = ", ".join(map(str, subject.input_shape))
    return [
        "With PyTorch alone:",
        "",
        "```python",
        "import torch",
        "",
        'about = {"netsmith.json": ""}  # filled: mean, std, input_size, classes, licence (JSON)',
        f'model = torch.export.load("{file}", extra_files=about).module()',
        f"output = model(torch.zeros(1, {shape}))  # preprocessed images",
        "```",
    ]


def _safetensors(subject: Subject, file: str) -> list[str]:
    return [
        "These are weights alone, under the names of the network's `state_dict`. They go into a network built as",
        f"`{subject.source}`:",
        "",
        "```python",
        "from safetensors.torch import load_file",
        "",
        f'model.load_state_dict(load_file("{file}"))',
        "```",
    ]


_HOW = {"onnx": _onnx, "pt2": _pt2, "safetensors": _safetensors}
