"""A trained network as an artifact of kind `network`: what builds it, its weights, its preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from netsmith.core.artifact import loader, read_manifest, read_tensors, save_artifact
from netsmith.core.network import Network, load_source
from netsmith.core.sources import parse_source
from netsmith.core.weights import load_state
from netsmith.errors import ArtifactError, SourceError

KIND = "network"
WEIGHTS = "weights.safetensors"


def save_network(
    folder: Path,
    network: Network,
    *,
    counts: Mapping[str, int],
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write a trained network as an artifact, which is itself a source: `netsmith evaluate FOLDER`.

    Args:
        folder: where it goes.
        network: with its trained weights; its source and options say how it is built.
        counts: `params` and `macs` of the whole network.
        metrics: what was measured, and on which split.
        config: the resolved configuration that trained it.
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
        "preprocess": network.preprocess.to_json(),
        **counts,
        "licence": network.provenance.licence,
        "commercial": network.provenance.commercial,
        "provenance": [asdict(network.provenance)],
        "metrics": dict(metrics),
        "config": dict(config),
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
    try:
        source, options = manifest["source"], manifest["options"]
        size, classes = manifest["preprocess"]["input_size"], manifest["num_classes"]
    except KeyError as error:
        raise ArtifactError(f"The manifest of {folder} lacks {error}, so the network cannot be built.") from error
    network = load_source(source, pretrained=False, num_classes=classes, input_size=size, options=options)
    load_state(network.model, read_tensors(folder, WEIGHTS), str(folder / WEIGHTS))
    return network.model.eval()


def _card(manifest: Mapping[str, Any]) -> str:
    channels, height, width = manifest["preprocess"]["input_size"]
    lines = [
        f"# {manifest['name']}",
        "",
        f"`{manifest['source']}`, {manifest['num_classes']} classes, images of {channels}x{height}x{width}; "
        f"{manifest['params']:,} parameters, {manifest['macs']:,} MACs an image.",
        "",
        *(
            f"- {key}: {value:.4f}" if isinstance(value, float) else f"- {key}: {value}"
            for key, value in manifest["metrics"].items()
        ),
        f"- licence of the weights it began with: {manifest['licence'] or 'none, or not stated'}",
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
