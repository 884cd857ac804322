"""Count what a run would work on, for `--plan`: multiply-adds, parameters, images, disk. Nothing is run or fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from netsmith.config import DataSection, MorphConfig, ReassembleConfig
from netsmith.data.images import PROBE_IMAGES
from netsmith.data.named import describe_data
from netsmith.errors import NetsmithError
from netsmith.limits import amount
from netsmith.networks.network import Network, load_source, parse_source
from netsmith.networks.zoo import ZooEntry
from netsmith.search.budget import format_count
from netsmith.trace.cost import count_macs, count_params
from netsmith.training.engine import Progress

from .networks import open_section

_CUTS = 16  # of a network, as a rule: between 8 (ResNet-18) and 24 (large transformers)
_CHECKPOINTS = 14  # copies of the network that the keyframes' checkpoints hold: weights, average, momentum, the best


@dataclass(frozen=True)
class Sketch:
    """A network's counts without its weights: MACs of one image, and parameters."""

    macs: int
    params: int


def sketch(entry: ZooEntry) -> Sketch | None:
    """Return the counts of a source, built without weights; None where building it would run a user's own code.

    Raises:
        SourceError: nothing of that name, or it cannot be built.
    """
    if parse_source(entry.source).scheme == "py":
        return None
    try:
        with torch.device("meta"):
            network = built(entry)
        macs = count_macs(network.model, network.preprocess.input_size)
    except (RuntimeError, NotImplementedError, NetsmithError):  # an initialiser that needs real numbers
        network = built(entry)
        macs = count_macs(network.model, network.preprocess.input_size)
    return Sketch(macs, count_params(network.model))


def built(entry: ZooEntry) -> Network:
    """Return the network of an entry with random weights; those of a local artifact are read."""
    parsed = parse_source(entry.source)
    artifact = parsed.scheme == "artifact"
    return load_source(
        entry.source if artifact else f"{parsed.scheme}:{parsed.name}",
        name=entry.called(),
        pretrained=artifact,
        num_classes=entry.num_classes,
        input_size=entry.input_size,
        options=dict(entry.options),
    )


def forecast_reassembly(config: ReassembleConfig, sketches: Sequence[Sketch | None]) -> list[str]:
    """Return the counts of a reassembly, one text a line: MACs of the zoo, images, disk."""
    counts = [s for s in sketches if s is not None]
    grams = len(config.zoo) * _CUTS * 4 * (config.probe.images or PROBE_IMAGES) ** 2
    params = max((s.params for s in counts), default=0)
    disk = grams + 4 * params * (1 + 4 * (config.score.finalists if config.finetune is not None else 0))
    return [*_macs(counts, len(config.zoo)), _images(config.data), _disk(disk)]


def forecast_morph(config: MorphConfig) -> list[str]:
    """Return the counts of a morphing, one text a line: MACs of the network, images, disk."""
    one = sketch(config.network)
    keyframes = config.training is not None and config.generator.kind == "grid"
    lines = [*_macs([] if one is None else [one], 1), _images(config.data)]
    if one is not None:
        lines.append(_disk(4 * one.params * (8 + (_CHECKPOINTS if keyframes else 0))))
    return lines


def sketches(entries: Sequence[ZooEntry], progress: Progress | None = None) -> list[Sketch | None]:
    """Return `sketch` of every network of a zoo."""
    counts = []
    for i, entry in enumerate(entries):
        if progress is not None:
            progress("counting MACs", i + 1, len(entries), entry.called())
        counts.append(sketch(entry))
    return counts


def _macs(counts: Sequence[Sketch], networks: int) -> list[str]:
    missing = networks - len(counts)
    lines = [f"MACs: {format_count(sum(s.macs for s in counts))} an image in all"] if counts else []
    return [*lines, *(["not counted: networks of your own, whose code a plan does not run"] if missing else [])]


def _disk(size: int) -> str:
    return f"disk: about {amount(size)} in the output folder"


def _images(data: DataSection) -> str:
    try:
        if not describe_data(data.source).present:
            return f"images: not known before {data.source} is on this machine"
        splits = open_section(data)
    except NetsmithError as error:
        return f"images: none can be read yet ({error})"
    return f"images: {len(splits.train):,} train, {len(splits.validation):,} validation, {len(splits.test):,} test"
