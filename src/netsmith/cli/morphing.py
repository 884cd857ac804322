"""The steps of a morphing as a config describes it, and its result in the output folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from netsmith.config import MorphConfig
from netsmith.data.splits import Splits, check_labelled
from netsmith.distributed import processes
from netsmith.errors import DataError
from netsmith.files.cache import digest
from netsmith.morphing.pipeline import fit_generator, measure, order
from netsmith.morphing.preparing import Run
from netsmith.morphing.saving import write_results
from netsmith.networks.network import Network
from netsmith.networks.zoo import describe_source, load_zoo
from netsmith.records.morphing import Summary
from netsmith.report import write_report
from netsmith.report.results import read_json
from netsmith.search.budget import format_count
from netsmith.training.engine import Progress, TrainSettings

from .forecast import forecast_morph
from .networks import open_section

_log = logging.getLogger("netsmith.morph")


def execute(
    config: MorphConfig,
    out: Path,
    *,
    device: str,
    begin: Callable[[], object] | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Morph what a config describes, and write the results and the report to `out`.

    `begin` is called once everything is checked and before anything is written; afterwards `out` exists.
    """
    splits = open_section(config.data)
    network = base_network(config, splits)
    settings = config.model_copy(update={"training": training(config)})
    kept = out / "checkpoints"
    run = Run(device, kept / fit_key(config, network, splits), progress)
    start = order(network, splits, settings)
    if begin is not None:
        begin()
    others = list(kept.iterdir()) if kept.is_dir() else []
    if others and run.checkpoints not in others:
        _log.info("%s is of other settings, network or data: fitting begins anew", kept)
    result = measure(fit_generator(start, run), run)
    if processes.first():
        write_results(result, out, config=config.model_dump(mode="json"))
        write_report(out)
    processes.wait()
    return Summary.from_dict(read_json(out / "summary.json"))


_FITTED = {"space", "norms", "order", "generator", "fitting", "training", "seed", "precision"}
"""Keys of a config that change what is fitted; network and data are told apart by their content."""


def fit_key(config: MorphConfig, network: Network, splits: Splits) -> str:
    """Name of the folder of the fitting's checkpoints: other settings, another network or data have another one."""
    fitted = config.model_dump(mode="json", include=_FITTED)
    return digest("morph", fitted, network.identity(), splits.fingerprint)[:16]


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
    if network.task != "generation":
        check_labelled(splits, "morphing")
    if network.task != "generation" and network.num_classes != len(splits.classes):
        raise DataError(
            f"'{network.name}' tells {network.num_classes} classes apart and the data ({splits.name}) has "
            f"{len(splits.classes)}: give the data that it was trained on, or another network"
        )
    return network


def training(config: MorphConfig) -> TrainSettings | None:
    """The optimisation of a config, with the config's own seed and precision where the section leaves them open."""
    return None if config.training is None else config.filled(config.training, "seed", "precision")


def plan(config: MorphConfig) -> list[str]:
    """Return what a config would do, download and cost, one text a line. Nothing is fetched or written."""
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
        *forecast_morph(config),
    ]


def _missing(file: Path) -> str:
    return "" if file.is_file() else " (not there yet: train the base first)"
