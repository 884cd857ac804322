"""From a `ReassembleConfig` to the library's plain arguments, and from its result to the output folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from netsmith.config import ReassembleConfig
from netsmith.data.images import PROBE_IMAGES
from netsmith.distributed import processes
from netsmith.files.cache import Cache
from netsmith.networks.zoo import describe_source, load_zoo
from netsmith.reassembly.pipeline import Reassembled, reassemble
from netsmith.reassembly.saving import write_results
from netsmith.records.reassembly import Summary
from netsmith.report import write_report
from netsmith.report.results import read_json
from netsmith.search.budget import format_count
from netsmith.search.infeasible import check_reach
from netsmith.trace.chain import dissect
from netsmith.training.engine import Progress, TrainSettings

from .forecast import Sketch, built, forecast_reassembly, sketches
from .networks import open_section


def execute(
    config: ReassembleConfig, out: Path, *, cache: Path, device: str, progress: Progress | None = None
) -> Summary:
    """Reassemble what a config describes, and write the results and the report to `out`, which exists."""
    result = _reassemble(config, cache=cache, checkpoints=out / "checkpoints", device=device, progress=progress)
    if processes.first():
        write_results(result, out, config=config.model_dump(mode="json"))
        write_report(out)
    processes.wait()
    return Summary.from_dict(read_json(out / "summary.json"))


def _reassemble(
    config: ReassembleConfig,
    *,
    cache: Path,
    checkpoints: Path | None,
    device: str,
    progress: Progress | None,
) -> Reassembled:
    splits = open_section(config.data)
    networks = load_zoo(config.zoo, pretrained=config.pretrained, seed=config.seed)
    settings = config.model_copy(update={"finetune": tuning(config)})
    return reassemble(
        networks, splits, settings=settings, device=device, cache=Cache(cache), checkpoints=checkpoints,
        progress=progress,
    )  # fmt: skip


def plan(config: ReassembleConfig, *, progress: Progress | None = None) -> list[str]:
    """Return what a config would do, download and cost, one text a line. Nothing is fetched or written.

    Raises:
        BudgetError: the budget is below whatever can be assembled.
    """
    counts = sketches(config.zoo, progress)
    check_budget(config, counts)
    infos = []
    for i, entry in enumerate(config.zoo):
        infos.append(describe_source(entry, pretrained=config.pretrained))
        if progress is not None:
            progress("reading the zoo", i + 1, len(config.zoo))
    download = sum(info.download_bytes for info in infos)
    lines = [f"zoo: {len(infos)} networks, {format_count(sum(i.params or 0 for i in infos))} params in all"]
    for info in infos:
        fetch = f"{info.download_bytes / 1e6:.0f} MB to download" if info.download_bytes else "here"
        licence = f"licence {info.licence or 'not stated'}" + (
            "" if info.commercial is not False else " (NON-COMMERCIAL)"
        )
        params = "?" if info.params is None else format_count(info.params)
        lines.append(f"  {info.name:<32} {params:>8} params  {fetch:<22} {licence}")
    lines.append(f"to download: {download / 1e9:.2f} GB in all" if download else "to download: nothing")
    lines += [f"data: {config.data.source}", f"budget: {config.budget}"]
    lines += [*_steps(config), *forecast_reassembly(config, counts)]
    bound = [info.name for info in infos if info.commercial is False]
    if bound:
        lines.append(f"licences: a network with a block of {', '.join(bound)} may not be used commercially")
    return lines


def check_budget(config: ReassembleConfig, sketches: Sequence[Sketch | None]) -> None:
    """Raise BudgetError for a budget below whatever can be assembled of the zoo, found out with random weights.

    The networks are dissected only where none of them keeps a maximum. A zoo with code of the user's is not looked at.
    """
    counts = [{"params": s.params, "macs": s.macs} for s in sketches if s is not None]
    bounds = [(name, bound.max) for name, bound in config.budget.bounds().items() if name in ("params", "macs")]
    if len(counts) < len(sketches) or all(
        most is None or any(count[name] <= most for count in counts) for name, most in bounds
    ):
        return
    networks = [built(entry) for entry in config.zoo]
    chains = [dissect(n.model, torch.zeros(1, *n.preprocess.input_size), name=n.name) for n in networks]
    check_reach(chains, config.budget, config.partition.k)


def _steps(config: ReassembleConfig) -> list[str]:
    part, tune = config.partition, config.finetune
    count = config.probe.images or PROBE_IMAGES
    steps = [
        f"{count} probe images through every network; a Gram matrix of {4 * count**2 / 1e6:.1f} MB for each cut",
        f"{config.similarity.metric} of all cuts",
        f"{part.k} blocks a network (eps {part.eps:g}, by {part.size}) in {part.k} equivalence sets, "
        f"{part.restarts} restarts",
        f"the {config.search.candidates} cheapest assemblies within the budget",
        f"each stitched on {config.stitch.images} images ({config.stitch.init}), ranked by {config.score.name}",
        "no fine-tuning"
        if tune is None
        else f"{config.score.finalists} of them fine-tuned for {tune.epochs} epochs ({tune.optimizer})",
        "test images read once; artifact, summary.json and report.html written",
    ]
    return ["steps:", *(f"  {i}. {step}" for i, step in enumerate(steps, start=1))]


def tuning(config: ReassembleConfig) -> TrainSettings | None:
    """The fine-tuning of a config, with the config's own seed and precision where the section leaves them open."""
    return None if config.finetune is None else config.filled(config.finetune, "seed", "precision")
