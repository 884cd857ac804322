"""A network whose widths were changed, as an artifact of its own: from a morphable artifact, or by `resize`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from netsmith.artifacts.artifact import build, builder, loader, read_manifest, read_tensors, save_artifact, saver
from netsmith.artifacts.manifest import check_fields
from netsmith.errors import ArtifactError, NetsmithError
from netsmith.files.output import to_json
from netsmith.morphing.coordinates import check_affordable, slots
from netsmith.morphing.fields import SampledFields
from netsmith.morphing.recalibrating import has_statistics
from netsmith.networks.licences import licence_lines
from netsmith.networks.preprocess import Preprocess, remember
from netsmith.networks.running import check_runs
from netsmith.networks.weights import load_state
from netsmith.records.architecture import architecture, note
from netsmith.trace.checks import original, unusable
from netsmith.trace.cost import count_macs, count_params
from netsmith.widths.check import check_groups
from netsmith.widths.folding import fold_batch_norms
from netsmith.widths.groups import resize

KIND = "sampled"
WEIGHTS = "weights.safetensors"
_OTHER_LAYERS = (
    "layers or their settings differ (an activation, a stride, an eps, a new head). Change a network before it is "
    "resized, or build it by a source that has the change."
)
BASE_STATISTICS = "those of the base network's channels"


@saver(KIND)
def save_sampled(network: nn.Module, folder: Path, overwrite: bool = False, *, statistics: str | None = None) -> Path:
    """Write a network that `MorphableModel.at`, `resize` or `fold_batch_norms` gave, with the weights it has now.

    `statistics` names the data on which those of its batch norms were estimated; None where they are of the base's.

    Raises:
        ArtifactError: the network was made in another way.
        OutputError: the folder exists, or cannot be written.
    """
    found = json.loads(to_json(architecture(network)))
    if found["kind"] != KIND:
        raise ArtifactError(f"This {type(network).__name__} did not come of `resize` or of a morphable artifact.")
    shape, params, changed = check_fields(found, SampledFields, folder).shape, count_params(network), False
    found["layers"] = _layers(network)
    with suppress(NetsmithError):  # of a class of the user's, or of code that may not run: loading compares them
        changed = _layers(rebuilt(found, str(folder))) != found["layers"]
    if changed:
        raise ArtifactError(f"This {type(network).__name__} was changed after it was resized: {_OTHER_LAYERS}")
    if shape is not None:
        found["macs"] = count_macs(network, shape)
    if "from" in found and shape is not None and has_statistics(network, shape):
        found["statistics"] = statistics or found.get("statistics", BASE_STATISTICS)
    name = str(found.get("name") or type(network).__name__.lower()).removesuffix(f"_{params}")
    manifest = {**found, "name": f"{name}_{params}", "params": params}
    del manifest["kind"]
    return save_artifact(
        folder,
        kind=KIND,
        tensors={WEIGHTS: network.state_dict()},
        manifest=manifest,
        card=_card(manifest),
        overwrite=overwrite,
    )


@loader(KIND)
def load_sampled(folder: Path, *, base: nn.Module | None = None) -> nn.Module:
    """The network in an artifact of kind `sampled`, in eval mode.

    `base` is a network of the class that it began with, needed where that was given as a module and has no source.

    Raises:
        ArtifactError: the manifest lacks what builds the network.
        WeightsError: the weights do not fit what was built.
    """
    manifest = read_manifest(folder, KIND)
    plain = rebuilt(manifest, str(folder), base)
    load_state(plain, read_tensors(folder, WEIGHTS), str(Path(folder) / WEIGHTS))
    shape = check_fields(manifest, SampledFields, folder).shape
    if shape is not None:
        check_runs(plain, shape, str(folder))
    if manifest.get("layers", _layers(plain)) != _layers(plain):
        raise ArtifactError(f"{folder} was saved of another network than is built here: {_OTHER_LAYERS}")
    note(plain, manifest)
    if "preprocess" in manifest:
        remember(plain, Preprocess.from_json(manifest["preprocess"]), manifest.get("classes", ()))
    return plain.eval()


def _layers(network: nn.Module) -> str:
    """Return a digest of the layers and their settings, as they print."""
    return hashlib.sha256(repr(network).encode()).hexdigest()


@builder(KIND)
def build_sampled(manifest: Mapping[str, Any]) -> nn.Module:
    """The network of a manifest of kind `sampled`, with random weights; see `load_sampled`."""
    return rebuilt(manifest, str(manifest.get("name", "a network")))


def _card(manifest: Mapping[str, Any]) -> str:
    origin, base = manifest.get("from"), manifest["base"]
    while base.get("kind") == KIND:
        base = base["base"]
    began = f"the morphable artifact `{origin['name']}`" if origin else f"`{base.get('source', base['kind'])}`"
    macs = f", {manifest['macs']:,} MACs an input" if "macs" in manifest else ""
    into = ", into=module" if base["kind"] == "module" else ""
    lines = [
        f"# {manifest['name']}",
        "",
        f"Made of {began} by changing its widths: {manifest['params']:,} parameters{macs}.",
        "",
        "| width group | channels |",
        "|---|---|",
        *(f"| {name} | {width} |" for name, width in manifest["widths"].items()),
        "",
        *(["- such widths were not fitted: expect a loss of accuracy"] if manifest.get("fitted") is False else []),
        *([f"- statistics of its batch norms: {manifest['statistics']}"] if "statistics" in manifest else []),
        *licence_lines(manifest.get("licence"), manifest.get("commercial")),
        "",
        f'Written by Netsmith. In Python: `netsmith.load("THIS_FOLDER"{into})`'
        + (", where `module` is of the class that it began with." if into else "; the folder is a source, too."),
        "",
    ]
    return "\n".join(lines)


def rebuilt(manifest: Mapping[str, Any], where: str, into: nn.Module | None = None) -> nn.Module:
    """Return the network that a manifest describes, its weights still to be loaded.

    A network of the kind `sampled` is made of its base as it was then: folded, resized, perhaps several times. `into`
    is a network of the class that it all began with, needed where no source builds one.

    Raises:
        ArtifactError: the manifest lacks something, or there is nothing to build the network from.
        ChannelError: `into` is another network.
    """
    steps: list[SampledFields] = []
    while manifest.get("kind") == KIND:
        steps.insert(0, check_fields(manifest, SampledFields, where))
        manifest = steps[0].base
    if into is None and manifest.get("kind") == "module":
        named = str(manifest.get("source", ""))[7:200]
        raise ArtifactError(
            f"{where} began as a module ({named}) that no source string builds again. Build one as it was before "
            f"and pass it: netsmith.load('{where}', into=module). A network that netsmith.load_source built needs none."
        )
    if into is not None and (reason := unusable(into)):
        raise ArtifactError(f"into: {reason}.")
    model = build(manifest) if into is None else original(into)
    for step in steps:
        model = _made(model, step, where)
    return model


def _made(model: nn.Module, step: SampledFields, where: str) -> nn.Module:
    """Return a network made of `model` by one step."""
    size, groups = step.shape, tuple(group.group() for group in step.groups)
    if size is not None:
        check_runs(model, size, where)
    if step.folded and size is not None:
        model = fold_batch_norms(model, torch.randn(2, *size, generator=torch.Generator().manual_seed(0)))
    if not groups:
        return model
    check_groups(model, groups)
    check_affordable(slots(model.state_dict(), groups), {g.name: g.width for g in groups}, step.widths)
    return resize(model, groups, step.widths)
