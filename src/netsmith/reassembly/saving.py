"""A reassembly on disk: the artifact with its card, the recipe, `summary.json` and `details.json`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from netsmith.artifacts.artifact import (
    builder,
    library_versions,
    loader,
    read_manifest,
    read_tensors,
    save_artifact,
    saver,
)
from netsmith.errors import ArtifactError
from netsmith.files.output import to_json, write_json, write_text
from netsmith.files.paths import portable
from netsmith.networks.run_hashes import run_hashes
from netsmith.networks.weights import load_state
from netsmith.reassembly.adapters import spec_cost
from netsmith.reassembly.candidates import Candidate
from netsmith.reassembly.facts import KEPT, card, manifest_of
from netsmith.reassembly.heads import head_cost
from netsmith.reassembly.members import Parent, rebuild
from netsmith.reassembly.pipeline import Reassembled
from netsmith.reassembly.recipe import Recipe
from netsmith.reassembly.stitch import Assembled, assemble
from netsmith.records.reassembly import Accuracy, Chosen, Details, Member, NetworkRow, Part, Summary, UnitRow
from netsmith.records.reassembly import Candidate as CandidateRow
from netsmith.trace.chain import Unit

KIND = "reassembly"
WEIGHTS = "weights.safetensors"


def write_results(result: Reassembled, folder: Path | str, *, config: Mapping[str, Any] | None = None) -> Summary:
    """Write `artifact/`, `recipe.json`, `details.json` and, last, `summary.json` to a folder that exists.

    Args:
        result: of `reassemble`.
        folder: where they go; what is there under these names is replaced.
        config: the resolved configuration, kept in the artifact.

    Raises:
        OutputError: the folder cannot be written.

    Examples:
        >>> from pathlib import Path
        >>> Path("run").mkdir()
        >>> netsmith.write_results(result, "run").params == netsmith.count_params(result.module)
        True
    """
    folder = Path(folder)
    config = portable(config or {}, folder)  # once, so that all files have one config and one hash of it
    write_text(folder / "recipe.json", portable(result.recipe.to_json(), folder))
    save_reassembled(result, folder / "artifact", config=config, overwrite=True)
    write_json(folder / "details.json", details_of(result, config).to_dict())
    summary = summary_of(result)
    write_json(folder / "summary.json", summary.to_dict())
    return summary


def save_reassembled(
    result: Reassembled, folder: Path | str, *, config: Mapping[str, Any] | None = None, overwrite: bool = False
) -> Path:
    """Write the chosen network as an artifact, which is itself a source; returns the folder. Raises OutputError.

    Examples:
        >>> folder = netsmith.save_reassembled(result, "reassembled")
        >>> netsmith.load("reassembled")(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    kept = portable(config or {}, Path(folder))
    result.module.facts = {**result.module.facts, "config": kept, "hashes": hashes_of(result, kept)}
    return save_assembled(result.module, Path(folder), overwrite)


def hashes_of(result: Reassembled, config: Mapping[str, Any]) -> dict[str, Any]:
    """Of config, data and the weights of the whole zoo, used or not: all of it decides what is found."""
    return run_hashes(config, result.data_sha256, [p.network.provenance for p in result.parents])


@saver(KIND)
def save_assembled(module: Assembled, folder: Path, overwrite: bool = False) -> Path:
    """Write any assembled network as an artifact; measures of other weights than its own are left out.

    Raises OutputError.
    """
    manifest = manifest_of(module.recipe, module, module.facts)
    tensors = {WEIGHTS: module.state_dict()}
    return save_artifact(
        folder, kind=KIND, tensors=tensors, manifest=manifest, card=card(manifest), overwrite=overwrite
    )


@loader(KIND)
def load_reassembled(folder: Path, *, networks: Mapping[str, nn.Module] | None = None) -> Assembled:
    """The network in an artifact of kind `reassembly`, in eval mode; `py:` sources run their code again.

    `networks` holds modules by name for those that were given as modules and have no source.

    Raises:
        ArtifactError: the manifest lacks the recipe.
        RecipeError: the recipe cannot be read, or needs a module that is not in `networks`.
        WeightsError: the weights do not fit what was built.

    Examples:
        >>> folder = netsmith.save_reassembled(result, "reassembled")
        >>> netsmith.load_reassembled(folder).recipe == result.recipe
        True
    """
    manifest = read_manifest(folder, KIND)
    module = build_reassembled(manifest, networks=networks)
    load_state(module, read_tensors(folder, WEIGHTS), str(Path(folder) / WEIGHTS))
    module.facts = {key: manifest[key] for key in KEPT if key in manifest}
    return module.eval()


@builder(KIND)
def build_reassembled(manifest: Mapping[str, Any], *, networks: Mapping[str, nn.Module] | None = None) -> Assembled:
    """The network of a manifest of kind `reassembly`, with random weights; see `load_reassembled`."""
    if not isinstance(manifest.get("recipe"), dict):
        raise ArtifactError("The manifest lacks 'recipe', so the network cannot be built.")
    recipe = Recipe.from_json(to_json(manifest["recipe"]))
    return assemble(recipe, rebuild(recipe, networks), init="random")


def summary_of(result: Reassembled) -> Summary:
    """The contract `summary.json`."""
    chosen = _chosen(result)
    stitched = result.accuracy["stitched"]
    assert stitched is not None
    return Summary(
        budget=_budget(result),
        blocks=[str(block) for block in result.recipe.blocks],
        params=chosen.params,
        macs=chosen.macs,
        accuracy=Accuracy(
            stitched=stitched,
            finetuned=result.accuracy["finetuned"],
            split="test",
            undone=result.undone,
            images=result.test_images,
        ),
        zoo=[
            Member(name=p.name, params=p.chain.params, macs=p.chain.macs, accuracy=result.members[p.name])
            for p in result.parents
        ],
        seconds=result.seconds,
        licence=result.module.facts["licence"],
        commercial=result.module.facts["commercial"],
        precision=None if result.training is None else result.training.precision,
    )


def details_of(result: Reassembled, config: Mapping[str, Any] | None = None) -> Details:
    """Everything that the report shows."""
    chosen = _chosen(result)
    return Details(
        networks=[_network_row(p, result.members[p.name]) for p in result.parents],
        similarity={
            "metric": result.table.metric,
            "biased": result.table.biased,
            "samples": result.table.samples,
            "networks": list(result.table.networks),
            "offsets": list(result.table.offsets.values()),
            "labels": list(result.table.labels),
            "values": [[round(float(v), 5) for v in row] for row in result.table.values],
        },
        partition=_partition(result),
        budget=_budget(result),
        candidates=[_candidate_row(i, c, c is chosen, result) for i, c in enumerate(result.candidates, start=1)],
        search={
            "optimal": result.found.optimal,
            "gap": result.found.gap if result.found.gap != float("inf") else None,
            "explored": result.found.explored,
        },
        chosen=Chosen(
            parts=_parts(result),
            params=chosen.params,
            macs=chosen.macs,
            accuracy=result.accuracy,
            history=[] if result.training is None else result.training.history,
            latency_ms=chosen.latency_ms,
            memory_mb=chosen.memory_mb,
        ),
        seconds=result.seconds,
        machine={"platform": platform.platform(), "processor": _processor(), "cores": os.cpu_count()}
        | {"threads": torch.get_num_threads()},
        versions=library_versions(),
        data={"name": result.data_name, "classes": list(result.classes)},
        seed=result.seed,
        hashes=hashes_of(result, config or {}),
    )


def _chosen(result: Reassembled) -> Candidate:
    return next(c for c in result.candidates if c.recipe is result.recipe)


def _budget(result: Reassembled) -> dict[str, Any]:
    return {name: {"min": bound.min, "max": bound.max} for name, bound in result.budget.bounds().items()}


def _network_row(parent: Parent, tested: float | None) -> NetworkRow:
    chain, provenance = parent.chain, parent.network.provenance
    accuracy = None
    if parent.accuracy is not None and tested is not None:
        accuracy = {"validation": parent.accuracy, "test": tested}
    return NetworkRow(
        name=parent.name,
        source=provenance.source,
        licence=provenance.licence,
        commercial=provenance.commercial,
        sha256=provenance.sha256,
        params=chain.params,
        macs=chain.macs,
        accuracy=accuracy,
        units=[_unit_row(u) for u in chain.units],
        stem={"params": chain.stem_params, "macs": chain.stem_macs},
        head={"params": chain.head_params, "macs": chain.head_macs},
    )


def _unit_row(unit: Unit) -> UnitRow:
    return UnitRow(
        name=unit.name,
        layout=unit.layout.kind,
        in_shape=list(unit.in_shape),
        out_shape=list(unit.out_shape),
        params=unit.params,
        macs=unit.macs,
    )


def _partition(result: Reassembled) -> dict[str, Any]:
    sets = result.partition
    return {
        "k": sets.k,
        "objective": sets.objective,
        "trace": list(sets.trace),
        "sets": [
            {"medoid": str(medoid), "blocks": [str(b) for b in blocks]}
            for medoid, blocks in zip(sets.medoids, sets.sets, strict=True)
        ],
        "blocks": {line[0].network: [[b.start, b.stop] for b in line] for line in sets.blocks},
        "assignment": {str(block): number for block, number in sets.assignment.items()},
    }


def _candidate_row(rank: int, candidate: Candidate, chosen: bool, result: Reassembled) -> CandidateRow:
    accuracy = {}
    if candidate.stitched is not None:
        accuracy["stitched_validation"] = candidate.stitched
    if candidate.finetuned is not None:
        accuracy["finetuned_validation"] = candidate.finetuned
    if chosen and result.accuracy["finetuned"] is not None:
        accuracy["finetuned_test"] = result.accuracy["finetuned"]
    return CandidateRow(
        rank=rank,
        blocks=[str(b) for b in candidate.recipe.blocks],
        params=candidate.params,
        macs=candidate.macs,
        cost=candidate.cost,
        scores=candidate.scores,
        latency_ms=candidate.latency_ms,
        memory_mb=candidate.memory_mb,
        accuracy=accuracy,
        chosen=chosen,
    )


def _parts(result: Reassembled) -> list[Part]:
    """The chosen network piece by piece, in the order in which data flows."""
    recipe = result.recipe
    chains = {p.name: p.chain for p in result.parents}
    stem = chains[recipe.stem]
    first = stem.cuts[0]
    parts = [
        Part(
            kind="stem",
            network=recipe.stem,
            name=f"{recipe.stem} stem",
            in_shape=list(stem.input_shape),
            out_shape=list(first.shape),
            layout_in="NCHW",
            layout_out=first.layout.kind,
            params=stem.stem_params,
            macs=stem.stem_macs,
        )
    ]
    for spec, block in zip(recipe.adapters, (*recipe.blocks, None), strict=True):
        if spec.style != "identity":
            params, macs = spec_cost(spec)
            parts.append(
                Part(
                    kind="adapter",
                    network=None,
                    name=spec.style,
                    in_shape=list(spec.source_shape),
                    out_shape=list(spec.target_shape),
                    layout_in=spec.source.kind,
                    layout_out=spec.target.kind,
                    params=params,
                    macs=macs,
                )
            )
        if block is not None:
            units = chains[block.network].units[block.start : block.stop]
            parts.append(
                Part(
                    kind="block",
                    network=block.network,
                    name=str(block),
                    in_shape=list(units[0].in_shape),
                    out_shape=list(units[-1].out_shape),
                    layout_in=units[0].before.layout.kind,
                    layout_out=units[-1].layout.kind,
                    params=sum(u.params for u in units),
                    macs=sum(u.macs for u in units),
                    units=[u.name for u in units],
                )
            )
    head = chains[recipe.head.network]
    params, macs = head_cost(head, recipe.head)
    last = head.cuts[-1]
    parts.append(
        Part(
            kind="head",
            network=recipe.head.network,
            name=f"{recipe.head.network} head",
            in_shape=list(last.shape),
            out_shape=[recipe.num_classes],
            layout_in=last.layout.kind,
            layout_out=None,
            params=params,
            macs=macs,
        )
    )
    return parts


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
