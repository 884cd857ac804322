"""From a `MorphConfig` to the library's plain arguments, and from its result to the output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from netsmith.config import MorphConfig
from netsmith.core.data import Splits, open_data
from netsmith.core.engine import Progress, TrainSettings
from netsmith.core.network import Network
from netsmith.core.profile import format_count
from netsmith.core.zoo import describe_source, load_zoo
from netsmith.errors import DataError
from netsmith.morph.pipeline import make_morphable
from netsmith.morph.results import Summary
from netsmith.morph.saving import write_results
from netsmith.report import write_report


def execute(config: MorphConfig, out: Path, *, device: str, progress: Progress | None = None) -> Summary:
    """Morph what a config describes, and write the results and the report to `out`, which exists."""
    data = config.data
    splits = open_data(data.source, seed=data.seed, validation_fraction=data.validation_fraction, size=data.size)
    network = base_network(config, splits)
    result = make_morphable(
        network,
        splits,
        blocks=config.space.blocks,
        widths=config.space.widths,
        streams=config.space.streams,
        norms=config.norms,
        order=config.order.by,
        solver=config.order.solver,
        importance_images=config.order.images,
        generator=config.generator.kind,
        settings=config.generator.settings,
        fitting=config.fitting,
        training=training(config),
        ratios=config.ratios,
        latency=config.latency,
        seed=config.seed,
        device=device,
        checkpoints=out / "checkpoints",
        progress=progress,
    )
    summary = write_results(result, out, config=config.model_dump(mode="json"))
    write_report(out)
    return summary


def base_network(config: MorphConfig, splits: Splits) -> Network:
    """The base network of a config, checked against the data.

    Raises:
        DataError: it tells other classes apart than the data has.
    """
    entry = config.network
    if config.weights is not None:
        entry = entry.model_copy(update={"source": f"{entry.source}#{config.weights}"})
    network = load_zoo((entry,), pretrained=config.pretrained, seed=config.seed)[0]
    if config.task is not None:
        network.task = config.task
    if network.task != "generation" and network.num_classes != len(splits.classes):
        raise DataError(
            f"'{network.name}' tells {network.num_classes} classes apart and the data ({splits.name}) has "
            f"{len(splits.classes)}: give the data that it was trained on, or another network"
        )
    return network


def training(config: MorphConfig) -> TrainSettings | None:
    """The optimisation of a config, with the config's own seed and precision where the section leaves them open."""
    if config.training is None:
        return None
    own: dict[str, Any] = {"seed": config.seed}
    if config.precision != "no":
        own["precision"] = config.precision
    left = {key: value for key, value in own.items() if key not in config.training.model_fields_set}
    return config.training.model_copy(update=left)


def plan(config: MorphConfig) -> list[str]:
    """What a config would do, download and cost, without weights, data or network: one text a line."""
    info = describe_source(config.network, pretrained=config.pretrained)
    fetch = f"{info.download_bytes / 1e6:.0f} MB to download" if info.download_bytes else "nothing to download"
    params = "?" if info.params is None else format_count(info.params)
    licence = f"licence {info.licence or 'not stated'}" + ("" if info.commercial is not False else " (NON-COMMERCIAL)")
    low, high = config.space.widths
    tune, fitting = config.training, config.fitting
    blocks = config.space.blocks if isinstance(config.space.blocks, str) else ", ".join(config.space.blocks)
    steps = [
        f"batch norms: {config.norms}; width groups found and proved",
        f"widths {low:g} to {high:g} of {blocks}" + (", residual streams too" if config.space.streams else ""),
        f"channels ordered ({config.order.by})",
        f"generator {config.generator.kind} {dict(config.generator.settings) or ''}".rstrip(),
        "no fitting"
        if tune is None
        else f"fitted for {tune.epochs} epochs of batches of {tune.batch_size} ({tune.optimizer}, lr {tune.lr:g}), "
        f"{fitting.per_step} width(s) a step, {fitting.views} views of the images",
        f"measured at ratios {', '.join(f'{r:g}' for r in config.ratios)}: validation, and test once",
        "artifact, summary.json and report.html written",
    ]
    return [
        f"network: {info.name}, {params} params, {fetch}, {licence}",
        *([] if config.weights is None else [f"weights: {config.weights}{_missing(config.weights)}"]),
        f"data: {config.data.source}",
        "steps:",
        *(f"  {i}. {step}" for i, step in enumerate(steps, start=1)),
    ]


def _missing(file: Path) -> str:
    return "" if file.is_file() else " (not there yet: train the base first)"
