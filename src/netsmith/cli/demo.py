"""The whole story on scikit-learn's digits, offline, in a few minutes on two cores.

Trains a zoo of five small networks (residual, plain, depthwise-separable, transformer), then reassembles it under a
budget that no member of the zoo meets, and shows the accuracy without any training and after fine-tuning beside every
member's. The network that comes out is then morphed: one artifact that gives it at any width. All of it is made of
presets (`netsmith presets copy demo`, `demo_morph`) and of the verbs `train`, `reassemble` and `morph`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netsmith import presets
from netsmith.errors import OutputError

from .options import add_common, add_output
from .session import Session

if TYPE_CHECKING:
    from netsmith.records.reassembly import Summary
    from netsmith.training.engine import Progress

SUMMARY = "the whole story on small images: offline, in a few minutes"
EXAMPLES = (("netsmith demo --out runs/demo", "then open runs/demo/report.html and runs/demo/any_width/report.html"),)

MEMBERS = ("residual", "projection", "plain", "separable", "vit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the output folder."""
    add_output(parser, required=True, what="folder for the zoo, the artifact and the report")
    add_common(parser, usual="cpu")


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Train the zoo, reassemble it, and morph what came out."""
    import torch

    from netsmith.files.paths import is_text
    from netsmith.report import write_report

    from . import morph, reassemble, train
    from .folder import check_folder, clear_checkpoints, open_folder
    from .networks import device_of

    device = str(device_of(arguments.device or "cpu"))
    out, text = arguments.out, _marked(presets.read("demo"), arguments.seed)
    if not is_text(str(out)):
        raise OutputError(
            f"the name of {out} is not UTF-8, and the demo's config names files in it. "
            "Choose another folder with --out."
        )
    check_folder(out, arguments.overwrite, text)
    open_folder(out, arguments.overwrite, session, text)
    console = session.console
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small are slower on two
    try:
        with console.progress() as bars:
            members = [train_member(name, out / "zoo" / name, arguments.seed, device, bars) for name in MEMBERS]
        console.result(f"A zoo of {len(MEMBERS)} networks, trained on 8x8 digits:")
        train.show(members, session)
        with console.progress() as bars:
            summary = reassemble_zoo(out, arguments.seed, device, bars)
        console.result(f"\nReassembled under a budget that none of them meets ({_budget(summary)}):")
        reassemble.show(summary, session)
        reassemble.show_written(out, session)
        with console.progress() as bars:
            morph_result(out, arguments.seed, device, bars)
        write_report(out)  # once more: it links to the family that is there now
        session.finished = True
        for folder in (out, out / "any_width", *(out / "zoo" / name for name in MEMBERS)):
            clear_checkpoints(folder)
    finally:
        torch.set_num_threads(threads)
    console.result("\nThat network at any width, from one artifact:")
    morph.show(out / "any_width", session)
    reassemble.show_written(out / "any_width", session)
    return 0


def train_member(name: str, folder: Path, seed: int | None, device: str, progress: Progress) -> dict[str, Any]:
    """Train one member of the demo's zoo into `folder`, or take what an earlier run finished there."""
    from netsmith.config import load_train_config

    from .train import train_network

    overrides = [f"device={device}"] + ([] if seed is None else [f"seed={seed}", f"training.seed={seed}"])
    config = load_train_config(presets.path(f"demo_{name}"), overrides)
    folder.mkdir(parents=True, exist_ok=True)

    def named(what: str, done: float | int, total: float | int | None, note: str = "") -> None:
        progress(f"{what} {name}", done, total, note)

    return train_network(config, folder, progress=named)


def reassemble_zoo(out: Path, seed: int | None, device: str, progress: Progress) -> Summary:
    """Run the preset `demo` on the zoo in `out`/zoo."""
    from netsmith.config import load_reassemble_config

    from .execution import execute

    overrides = [f"device={device}"] + ([] if seed is None else [f"seed={seed}"])
    config = load_reassemble_config(out / "config.yaml", overrides)
    return execute(config, out, cache=out / "cache", device=device, progress=progress)


def morph_result(out: Path, seed: int | None, device: str, progress: Progress) -> None:
    """Run the preset `demo_morph` on the artifact in `out`; results go to `out`/any_width."""
    from netsmith.config import dump_config, load_morph_config
    from netsmith.files.output import write_text

    from .morphing import execute

    file, folder = out / "morph.yaml", out / "any_width"
    write_text(file, presets.read("demo_morph"))
    overrides = [f"device={device}"] + ([] if seed is None else [f"seed={seed}"])
    folder.mkdir(exist_ok=True)
    config = load_morph_config(file, overrides)
    write_text(folder / "config.yaml", dump_config(config, folder))  # as `netsmith morph` leaves it
    execute(config, folder, device=device, progress=progress)


def _marked(text: str, seed: int | None) -> str:
    """The preset as config.yaml of the output folder: beside it lies the zoo that it names."""
    seeded = text if seed is None else text.replace("\nseed: 0\n", f"\nseed: {seed}\n")
    return f"# netsmith demo\n{seeded}"


def _budget(summary: Summary) -> str:
    from netsmith.search.budget import Budget

    fields = {k: v for k, v in summary.budget.items() if k in Budget.model_fields}
    return str(Budget.model_validate(fields))
