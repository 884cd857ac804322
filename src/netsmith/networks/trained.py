"""A trained network as an artifact of kind `network`: what builds it, its weights, its preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from torch import nn

from netsmith import limits
from netsmith.artifacts.artifact import builder, loader, read_manifest, read_tensors, save_artifact
from netsmith.artifacts.consent import origin, recorded
from netsmith.artifacts.manifest import Fields, PreprocessFields, Text, check_fields
from netsmith.errors import SourceError
from netsmith.formats import metric_text
from netsmith.networks.licences import licence_lines, source_lines
from netsmith.networks.network import Network, Preprocess, load_source, provenance_of
from netsmith.networks.preprocess import remember
from netsmith.networks.running import check_runs
from netsmith.networks.sources import SCHEMES, parse_source
from netsmith.networks.weights import load_state

KIND = "network"
WEIGHTS = "weights.safetensors"


class NetworkFields(Fields):
    """What builds the network; `source` is the architecture, never its weights."""

    source: Text
    options: dict[str, Any]
    num_classes: Annotated[int, Field(ge=0, le=limits.CLASSES)] | None
    preprocess: PreprocessFields

    @field_validator("source")
    @classmethod
    def _an_architecture(cls, value: str) -> str:
        if value.partition(":")[0] not in SCHEMES or "#" in value:
            raise ValueError(f"expected one of {', '.join(SCHEMES)}: and the name of an architecture")
        return value


def save_network(
    folder: Path,
    network: Network,
    *,
    counts: Mapping[str, int],
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    hashes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a trained network as an artifact, which is itself a source: `netsmith evaluate FOLDER`.

    Args:
        folder: where it goes.
        network: with its trained weights; its source and options say how it is built.
        counts: `params` and `macs` of the whole network.
        metrics: what was measured, and on which split.
        config: the resolved configuration that trained it.
        hashes: of config, data and the weights it began with (`core.run_hashes`).
        overwrite: replace an artifact that is there already.

    Raises:
        SourceError: the network was given as a module, which no source string builds again.
        OutputError: the folder exists, or cannot be written.
    """
    built_from, built_with = architecture(network.source, network.options)
    manifest = {
        "name": network.name,
        "source": built_from,
        "options": built_with,
        "num_classes": network.num_classes,
        "classes": list(network.classes),
        "task": network.task,
        "preprocess": network.preprocess.to_json(),
        **counts,
        "licence": network.provenance.licence,
        "commercial": network.provenance.commercial,
        "provenance": [asdict(network.provenance)],
        "metrics": dict(metrics),
        "config": dict(config),
        **({"hashes": dict(hashes)} if hashes else {}),
    }
    return save_artifact(
        folder,
        kind=KIND,
        tensors={WEIGHTS: network.model.state_dict()},
        manifest=manifest,
        card=_card(manifest),
        overwrite=overwrite,
    )


def check_trainable(source: str) -> None:
    """Raises SourceError when what `source` names could be trained but not saved as a network of its own."""
    architecture(source, {})


def architecture(source: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What builds the network without any file that may be gone tomorrow, and with which options."""
    if source.startswith("module:"):
        raise SourceError(f"'{source}' was given as a module; name a source, such as py:FILE.py:FUNCTION, to save it.")
    parsed = parse_source(source)
    if parsed.scheme != "artifact":
        return str(parsed).partition("#")[0], dict(options)
    manifest = read_manifest(parsed.name)
    if manifest["kind"] != KIND:
        raise SourceError(
            f"{parsed.name} is an artifact of kind '{manifest['kind']}', and only those of kind '{KIND}' can be "
            "trained further by `netsmith train`. A reassembled network is fine-tuned by `netsmith reassemble`."
        )
    return manifest["source"], {**manifest["options"], **options}


@loader(KIND)
def load_network(folder: Path) -> nn.Module:
    """The module in an artifact of kind `network`, in eval mode; `py:` sources run their code again.

    Raises:
        ArtifactError: the manifest lacks what builds the network.
        WeightsError: the weights do not fit what was built.
    """
    manifest = read_manifest(folder, KIND)
    model = build_network(manifest)
    load_state(model, read_tensors(folder, WEIGHTS), str(folder / WEIGHTS))
    check_runs(model, Preprocess.from_json(manifest["preprocess"]).input_size, str(folder))
    remember(model, Preprocess.from_json(manifest["preprocess"]), manifest.get("classes", ()))
    return model.eval()


@builder(KIND)
def build_network(manifest: Mapping[str, Any]) -> nn.Module:
    """The network of a manifest of kind `network`, with random weights.

    Raises:
        ArtifactError: the manifest lacks what builds the network.
        SourceError: its source names nothing any more.
    """
    found = check_fields(manifest, NetworkFields, origin() or "a network")
    size, options = found.preprocess.input_size, found.options
    with recorded(origin() or "the manifest"):
        network = load_source(
            found.source, pretrained=False, num_classes=found.num_classes, input_size=size, options=options,
            mean=found.preprocess.mean, std=found.preprocess.std,
        )  # fmt: skip
    return network.model


def _text(key: str, value: Any, metrics: Mapping[str, Any]) -> str:
    """The text of a metric of one part (``accuracy_test``), and of anything else that stands among them."""
    name, _, part = key.rpartition("_")
    return metric_text(name, value, metrics.get(f"{part}_images")) if isinstance(value, float) else str(value)


def _card(manifest: Mapping[str, Any]) -> str:
    channels, height, width = manifest["preprocess"]["input_size"]
    classes = f"{manifest['num_classes']} classes, " if manifest["num_classes"] else ""
    lines = [
        f"# {manifest['name']}",
        "",
        f"`{manifest['source']}` for {manifest['task']}, {classes}images of {channels}x{height}x{width}; "
        f"{manifest['params']:,} parameters, {manifest['macs']:,} MACs an image.",
        "",
        *(f"- {key}: {_text(key, value, manifest['metrics'])}" for key, value in manifest["metrics"].items()),
        *licence_lines(manifest["licence"], manifest["commercial"]),
        "",
        "It began as:",
        "",
        *source_lines(provenance_of(manifest["provenance"])),
        "",
        "Written by Netsmith. The folder is a source:",
        "",
        "```python",
        "import netsmith",
        "",
        'model = netsmith.load("THIS_FOLDER")',
        "```",
        "",
    ]
    return "\n".join(lines)
