"""The zoo: the networks at hand, as entries of a file, described without loading, and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from netsmith.artifacts import artifact
from netsmith.networks import trained as _trained  # noqa: F401  its loader must be there when an artifact is a source
from netsmith.networks.entries import ZooEntry, check_names, load_zoo_file
from netsmith.networks.libraries import commercial_use, facts, state_values
from netsmith.networks.network import Network, Preprocess, Provenance, builder_options, load_source, manifest_of, told
from netsmith.networks.sources import parse_source
from netsmith.networks.weights import load_state, load_weights_file

__all__ = [
    "Network",
    "Preprocess",
    "Provenance",
    "SourceInfo",
    "ZooEntry",
    "check_names",
    "describe_source",
    "load_source",
    "load_state",
    "load_weights_file",
    "load_zoo",
    "load_zoo_file",
]


@dataclass(frozen=True)
class SourceInfo:
    """What loading a source would take: known without network, weights or user code.

    `download_bytes` is 0 when nothing has to be fetched; `params` is None when only running user code would tell.
    """

    name: str
    source: str
    weights: str | None
    params: int | None
    download_bytes: int
    licence: str | None
    commercial: bool | None
    url: str | None
    note: str


def describe_source(source: str | ZooEntry, *, pretrained: bool = True) -> SourceInfo:
    """What loading a source would take, without network, weights or user code.

    Raises:
        SourceError: nothing of that name. ArtifactError: an artifact folder is damaged.
    """
    entry = ZooEntry.model_validate(source)
    parsed = parse_source(entry.source)
    known = facts(parsed, pretrained=pretrained)
    params: int | None = None
    if parsed.scheme == "artifact":
        manifest = artifact.read_manifest(parsed.name)
        known, params = told(known, manifest), manifest.get("params")
    else:
        known = told(known, manifest_of(parsed.weights))
    if parsed.scheme not in ("artifact", "py"):
        wanted = builder_options(parsed, known, entry.num_classes, entry.input_size, entry.options, pretrained)
        params = state_values(parsed, wanted, parameters=True)
    return SourceInfo(
        name=entry.called(),
        source=str(parsed),
        weights=known.weights,
        params=params,
        download_bytes=known.download_bytes,
        licence=entry.licence or known.licence,
        commercial=commercial_use(entry.licence) if entry.licence else known.commercial,
        url=known.url,
        note=known.note,
    )


def load_zoo(entries: Sequence[ZooEntry], *, pretrained: bool = True, seed: int = 0) -> tuple[Network, ...]:
    """Load every entry, in order.

    Raises:
        SourceError: two entries have one name; or as `load_source`.

    Examples:
        >>> entries = [netsmith.ZooEntry(source=f"timm:{name}", num_classes=10) for name in ("resnet18", "resnet34")]
        >>> [network.name for network in netsmith.load_zoo(entries, pretrained=False)]
        ['resnet18', 'resnet34']
    """
    return tuple(
        load_source(
            entry.source,
            name=name,
            pretrained=pretrained,
            num_classes=entry.num_classes,
            input_size=entry.input_size,
            mean=entry.mean,
            std=entry.std,
            seed=seed,
            licence=entry.licence,
            options=entry.options,
        )
        for name, entry in zip(check_names(entries), entries, strict=True)
    )
