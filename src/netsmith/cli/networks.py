"""From a SOURCE argument to a network, its chain and its measures: what dissect, compare, evaluate and zoo share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from netsmith import limits
from netsmith.artifacts.artifact import is_artifact, read_manifest
from netsmith.config import DataSection
from netsmith.data.names import FILE_KINDS
from netsmith.data.splits import Splits, open_data
from netsmith.errors import DataError, SourceError
from netsmith.formats import metric_text
from netsmith.networks.preprocess import preprocess_of
from netsmith.networks.sources import parse_source
from netsmith.networks.zoo import Network, load_source
from netsmith.trace.chain import Chain, dissect

from .session import Session


def load_network(
    source: str,
    arguments: argparse.Namespace,
    *,
    example_shape: tuple[int, ...] | None = None,
    one_of_two: bool = False,
) -> Network:
    """The network of a SOURCE argument; `example_shape` (c, h, w) is that of the images that it is going to meet.

    --mean and --std go before what the source tells, but for `one_of_two`: there they are for the one that tells none.

    Raises:
        SourceError: it meets images, and nothing tells its mean and standard deviation.
        DataError: it takes images of other channels.
    """
    network = load_source(
        source,
        pretrained=not arguments.random_weights,
        input_size=arguments.input_size,
        mean=None if one_of_two else arguments.mean,
        std=None if one_of_two else arguments.std,
        seed=arguments.seed or 0,
    )
    if one_of_two and network.preprocess.mean is None:
        network.preprocess = preprocess_of(
            network.model, network.preprocess.input_size, arguments.mean, arguments.std, name=network.name
        )
    channels = network.preprocess.input_size[0]
    if example_shape is not None and example_shape[0] != channels:
        raise DataError(
            f"'{network.name}' takes images of {channels} channels, and the data's have {example_shape[0]}. "
            "Choose other data with --data, or another network."
        )
    if example_shape is not None:
        _ = network.preprocess.statistics
    return network


def artifact_folder(text: str) -> Path:
    """The folder of an ARTIFACT argument: itself, or where one of the Hub (`hf:ORG/NAME`) was brought.

    Raises:
        SourceError: `hf:` with something else behind it, or with a size.
        HubError: the Hub has no such artifact, or is out of reach.
    """
    if not text.startswith("hf:"):
        return Path(text)
    source = parse_source(text)
    if source.detail is not None:
        raise SourceError(f"'{text}': here an artifact of all sizes is meant. Name it without '@{source.detail}'.")
    return Path(source.name)


_WITH_MASKS = ("masks:", "torchvision:VOCSegmentation")


@dataclass(frozen=True)
class Opened:
    """Data, and the seed of what is drawn from it."""

    splits: Splits
    seed: int


def open_for(
    sources: Sequence[str],
    data: str,
    session: Session,
    *,
    seed: int | None = None,
    size: int | tuple[int, int] | None = None,
    ignore: int | None = None,
) -> Opened:
    """The data of --data, split as it was where the first artifact among the sources was made of it.

    A test part that is split off by another seed would hold images that the artifact was trained on. What is given,
    `seed`, `size` of the images and the class to `ignore`, goes before what the artifact says. Raises DataError.
    """
    for source in sources:
        parsed = parse_source(source)
        if parsed.scheme != "artifact" or not is_artifact(parsed.name):
            continue
        manifest = read_manifest(parsed.name)
        told = manifest.get("config", {}).get("data")
        keys = ("seed", "size", "validation_fraction", *(("ignore",) if data.startswith(_WITH_MASKS) else ()))
        kept = {k: told[k] for k in keys if k in told} if type(told) is dict else {}
        try:
            section = DataSection.model_validate({"source": "digits", **kept})
        except ValidationError:
            continue  # it was made by hand
        own = manifest.get("seed")
        drawn = own if type(own) is int and 0 <= own <= limits.INTEGER else 0
        given = {"seed": seed, "size": size, "ignore": ignore}
        taken = {k: v for k, v in kept.items() if v is not None and given.get(k) is None}  # from the artifact
        splits = open_data(
            data,
            seed=section.seed if seed is None else seed,
            validation_fraction=section.validation_fraction,
            size=size or section.size,
            ignore=section.ignore if ignore is None else ignore,
        )
        if taken and (section.seed, section.validation_fraction, section.size, section.ignore) != (0, 0.1, None, None):
            session.console.note(f"{data} is read as for {source}: " + ", ".join(f"{k} {v}" for k, v in taken.items()))
        name, made_of = str(kept and told.get("source")), manifest.get("hashes", {}).get("data")
        folders = (Path(parsed.name), Path(parsed.name).parent)  # paths in it start from one of them
        same = any(_resolved(name, folder) == _resolved(data, Path()) for folder in folders)
        if same and isinstance(made_of, str) and made_of != splits.fingerprint:
            session.console.note(
                f"{data} is not what {source} was made of, or is split in another way: its test part may hold images "
                "that were trained on"
            )
        return Opened(splits, drawn if seed is None else seed)
    return Opened(open_data(data, seed=seed or 0, size=size, ignore=ignore), seed or 0)


def open_section(data: DataSection) -> Splits:
    """Return the data that a section of a config describes. Raises DataError."""
    return open_data(
        data.source, seed=data.seed, validation_fraction=data.validation_fraction, size=data.size, ignore=data.ignore
    )


def _resolved(data: str, folder: Path) -> str:
    """Return a data source whose path, if it has one, is absolute; a relative one starts from `folder`."""
    kind, _, path = data.partition(":")
    return f"{kind}:{(folder / path).resolve()}" if kind in FILE_KINDS and path else data


def resized_norms(source: str, network: Network) -> bool:
    """Whether a source is a morphable artifact whose batch norms, at the size asked for, need statistics of their own.

    Without a size (`DIR`) it is at full width, which only a grid keeps as the base network itself.
    """
    from netsmith.morphing.recalibrating import has_statistics

    parsed = parse_source(source)
    manifest = read_manifest(parsed.name) if parsed.scheme == "artifact" else {}
    if manifest.get("kind") != "morph":
        return False
    if float(parsed.detail or 1.0) == 1.0 and manifest["generator"]["kind"] == "grid":
        return False  # it is the base network
    return has_statistics(network.model, network.preprocess.input_size)


def recalibrate_sized(source: str, network: Network, splits: Splits, session: Session, *, seed: int = 0) -> bool:
    """Where a source is an artifact at a size (`DIR@0.5`) with batch norms: give them statistics of that size.

    As `netsmith morph` does before it measures a width, where they are better; says so. Whether there were any norms.
    """
    from netsmith.morphing.recalibrating import recalibrated
    from netsmith.morphing.saving import load_morphed
    from netsmith.training.tasks import make_task

    if not resized_norms(source, network):
        return False
    folder = Path(parse_source(source).name)
    known, base = read_manifest(folder).get("augmented"), load_morphed(folder).morphable.base
    task = make_task(network.task, network.num_classes, shape=network.preprocess.input_size)
    anew = recalibrated(network.model, base, splits, network.preprocess, task, augment=known, seed=seed)
    how = "estimated anew on" if anew else "kept, which is better on"
    session.console.note(f"{source}: statistics of batch norms {how} training images of {splits.name}")
    return True


def show_classes(columns: Mapping[str, Mapping[str, float]], images: int | None, session: Session) -> None:
    """The IoU of each class on so many images, a row a class, for metrics under a heading each; or nothing."""
    names = dict.fromkeys(key for metrics in columns.values() for key in metrics if key.startswith("iou/"))
    rows = [
        [name[4:], *(metric_text(name, m[name], images) if name in m else "-" for m in columns.values())]
        for name in names
    ]
    if rows:
        session.console.table(["class", *(f">IoU, {heading}" for heading in columns)], rows)


def example_input(network: Network) -> torch.Tensor:
    """Two images of noise of the network's own size, the same every time: (2, c, h, w)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *network.preprocess.input_size, generator=generator)


def load_chain(
    source: str,
    arguments: argparse.Namespace,
    *,
    example_shape: tuple[int, ...] | None = None,
    not_named: str | None = None,
    one_of_two: bool = False,
) -> tuple[Network, Chain]:
    """The network of a SOURCE argument, and its units; with another name when its own is `not_named`.

    An artifact is called as its manifest says, with its size behind an @ if it has one.
    """
    network = load_network(source, arguments, example_shape=example_shape, one_of_two=one_of_two)
    parsed, name = parse_source(source), network.name
    if parsed.scheme == "artifact":
        name = str(read_manifest(parsed.name).get("name", name)) + (f"@{parsed.detail}" if parsed.detail else "")
    name = f"{name} (2)" if name == not_named else name
    return network, dissect(network.model, example_input(network), name=name)


def device_of(name: str | None) -> torch.device:
    """The device of --device, checked; the best there is by default.

    Raises:
        SourceError: this machine, or this torch, has no such device.
    """
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(best if name in (None, "auto") else name)
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count(),
    }
    if device.type in there and (device.index or 0) >= there[device.type]:
        raise SourceError(
            f"there is no device '{name}' here: torch {torch.__version__} finds {best}. "
            "Leave --device out, or give cpu."
        )
    return device
