"""A network read from a morphable artifact, as an artifact of its own: what `netsmith sample` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from netsmith.core.artifact import build, loader, read_manifest, read_tensors, save_artifact
from netsmith.core.channel_check import check_groups
from netsmith.core.channels import resize
from netsmith.core.folding import fold_batch_norms
from netsmith.core.manifest_fields import check_fields
from netsmith.core.preprocess import Preprocess, remember
from netsmith.core.profile import count_macs, count_params
from netsmith.core.running import check_runs
from netsmith.core.weights import load_state
from netsmith.morph.coordinates import check_affordable, slots
from netsmith.morph.fields import SampledFields
from netsmith.morph.recalibrating import has_statistics
from netsmith.morph.saving import licence_lines

KIND = "sampled"
WEIGHTS = "weights.safetensors"
BASE_STATISTICS = "those of the base network's channels"
_KEPT = (
    "base",
    "folded",
    "num_classes",
    "task",
    "classes",
    "preprocess",
    "provenance",
    "licence",
    "commercial",
    "hashes",
    "config",
    "seed",
)


def save_sampled(
    source: Path,
    network: nn.Module,
    widths: Mapping[str, int],
    folder: Path,
    *,
    statistics: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a network that was read from the morphable artifact `source` at `widths`.

    `statistics` names the data on which those of its batch norms were estimated; None where they are of the base's.
    Raises OutputError.
    """
    origin = read_manifest(source, "morph")
    size = tuple(origin["preprocess"]["input_size"])
    params, macs = count_params(network), count_macs(network, size)
    manifest: dict[str, Any] = {
        "name": f"{origin['name']}_{params}",
        **{key: origin[key] for key in _KEPT if key in origin},
        "groups": origin["space"]["groups"],
        "widths": dict(widths),
        "params": params,
        "macs": macs,
        **({"statistics": statistics or BASE_STATISTICS} if has_statistics(network, size) else {}),
        "from": {"name": origin["name"], "sha256": origin["sha256"]},
    }
    rows = [f"| {name} | {width} |" for name, width in widths.items()]
    card = [
        f"# {manifest['name']}",
        "",
        f"Read from the morphable artifact `{origin['name']}`: {params:,} parameters, {macs:,} MACs an image.",
        "",
        "| width group | channels |",
        "|---|---|",
        *rows,
        "",
        *([f"- statistics of its batch norms: {manifest['statistics']}"] if "statistics" in manifest else []),
        *licence_lines(origin.get("licence"), origin.get("commercial")),
        "",
        'Written by Netsmith. The folder is a source; in Python: `netsmith.load("THIS_FOLDER")`.',
        "",
    ]
    return save_artifact(
        folder,
        kind=KIND,
        tensors={WEIGHTS: network.state_dict()},
        manifest=manifest,
        card="\n".join(card),
        overwrite=overwrite,
    )


@loader(KIND)
def load_sampled(folder: Path, *, base: nn.Module | None = None) -> nn.Module:
    """The network in an artifact of kind `sampled`, in eval mode.

    `base` is a network of the base's architecture, needed where the base was given as a module and has no source.

    Raises:
        ArtifactError: the manifest lacks what builds the network.
        WeightsError: the weights do not fit what was built.
    """
    manifest = read_manifest(folder, KIND)
    found = check_fields(manifest, SampledFields, folder)
    groups, size = tuple(group.group() for group in found.groups), found.preprocess.shape
    model = base if base is not None else build(found.base)
    check_runs(model, size, str(folder))
    if found.folded:
        model = fold_batch_norms(model, torch.randn(2, *size, generator=torch.Generator().manual_seed(0)))
    check_groups(model, groups)
    check_affordable(slots(model.state_dict(), groups), {g.name: g.width for g in groups}, found.widths)
    plain = resize(model, groups, found.widths)
    remember(plain, Preprocess.from_json(manifest["preprocess"]), manifest.get("classes", ()))
    load_state(plain, read_tensors(folder, WEIGHTS), str(Path(folder) / WEIGHTS))
    check_runs(plain, size, str(folder))
    return plain.eval()
