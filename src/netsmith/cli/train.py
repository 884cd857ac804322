"""Train a network from a source, from scratch or further: members of a zoo, baselines of one size.

CONFIG is a YAML file, or a preset's name. A second run with the same config and folder goes on from the last epoch. The
artifact can be used wherever a source is expected. Under torchrun, every process trains on its share of the images:
`torchrun --nproc_per_node 2 -m netsmith train CONFIG --out DIR`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_common, add_output, add_overrides, add_size, add_statistics, size_override
from .session import Session

if TYPE_CHECKING:
    from netsmith.config import TrainConfig
    from netsmith.training.engine import Progress

SUMMARY = "train a network from scratch or further"
EXAMPLES = (
    ("netsmith train train.yaml --out runs/r20", "until the last epoch; again to go on after a stop"),
    ("netsmith train demo_residual --out runs/residual", "a preset: a tiny residual network on digits"),
    ("netsmith train train.yaml --out runs/long --set training.epochs=50 --seed 1", "changed keys"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG and the output folder."""
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or a preset's name")
    add_output(parser, required=True, what="folder for the artifact, summary.json and checkpoints")
    add_size(parser)
    add_overrides(parser, "training.epochs=50")
    add_statistics(parser, of="the config's, what the source tells, or, from random weights, the training images'")
    add_common(parser)


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Read the config, train, print."""
    from netsmith.config import dump_config, load_train_config

    from .configs import config_path

    overrides = [*arguments.overrides, *size_override(arguments.size)]
    if arguments.seed is not None:
        overrides = [*overrides, f"seed={arguments.seed}", f"training.seed={arguments.seed}"]
    for name in ("mean", "std"):
        if (values := getattr(arguments, name)) is not None:
            overrides = [*overrides, f"network.{name}={values}"]
    if arguments.device is not None:
        overrides = [*overrides, f"device={arguments.device}"]
    config = load_train_config(config_path(arguments.config), overrides)

    # torch is loaded from here on
    from .folder import check_folder, clear_checkpoints, open_folder
    from .networks import device_of
    from .running import long_work

    device = device_of(config.device)
    text = dump_config(config, arguments.out)
    check_folder(arguments.out, arguments.overwrite, text)
    with long_work(session, str(device)):
        going_on = open_folder(arguments.out, arguments.overwrite, session, text)
        if arguments.overwrite:
            forget(arguments.out, going_on)
        with session.console.progress() as bars:
            summary = train_network(config, arguments.out, progress=bars)
        session.finished = True
        clear_checkpoints(arguments.out)
        show([summary], session)
        session.console.result(f"wrote {arguments.out / 'artifact'}")
    return 0


def forget(folder: Path, going_on: bool) -> None:
    """Remove the checkpoints of earlier trainings in `folder`, unless one of them goes on: this one begins anew."""
    from netsmith.distributed import processes
    from netsmith.training.checkpoint import BEST, LAST

    if processes.first() and not going_on:
        for name in (LAST, BEST):  # without the last there is nothing to go on from
            for file in (folder / "checkpoints").glob(f"*/{name}"):
                file.unlink()
    processes.wait()


def train_network(config: TrainConfig, folder: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Train what a config describes into `folder`; returns its summary."""
    from netsmith.training.entry import train_entry

    from .networks import open_section

    splits = open_section(config.data)
    return train_entry(
        config.network,
        splits,
        config.filled(config.training, "precision"),
        folder,
        task=config.task,
        pretrained=config.pretrained,
        seed=config.seed,
        config=config.model_dump(mode="json"),
        device=None if config.device == "auto" else config.device,
        progress=progress,
    )


def show(summaries: list[dict[str, Any]], session: Session) -> None:
    """What came out of one training or of several, as a table."""
    from netsmith.formats import metric_text
    from netsmith.search.budget import format_count

    from .networks import show_classes

    primary = summaries[0]["primary"]
    rows = [
        [
            s["name"],
            format_count(s["params"]),
            format_count(s["macs"]),
            *(metric_text(primary, s["metrics"][part][primary], s["images"][part]) for part in ("validation", "test")),
            f"{s['best_epoch']} of {s['epochs']}" if s["best_epoch"] else "none: training did not help and was undone",
            f"{s['seconds']['training']:.1f} s",
        ]
        for s in summaries
    ]
    metric = "" if primary == "accuracy" else f" {primary}"
    columns = ["network", ">params", ">MACs", f">validation{metric}", f">test{metric}", ">best epoch", ">time"]
    session.console.table(columns, rows)
    for s in summaries:
        show_classes(s["metrics"], min(s["images"].values()), session)
