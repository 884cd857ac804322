"""The network of a manifest, built again: from its source, or from a module of the caller's own class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from netsmith.artifacts.artifact import build
from netsmith.artifacts.manifest import check_fields
from netsmith.errors import ArtifactError
from netsmith.morphing.coordinates import check_affordable, slots
from netsmith.morphing.fields import SampledFields
from netsmith.networks.running import check_runs
from netsmith.trace.checks import original, unusable
from netsmith.widths.check import check_groups
from netsmith.widths.folding import fold_batch_norms
from netsmith.widths.groups import resize

SAMPLED = "sampled"


def rebuilt(manifest: Mapping[str, Any], where: str, into: nn.Module | None = None) -> nn.Module:
    """Return the network that a manifest describes, its weights still to be loaded.

    A network of the kind `sampled` is made of its base as it was then: folded, resized, perhaps several times. `into`
    is a network of the class that it all began with, needed where no source builds one.

    Raises:
        ArtifactError: the manifest lacks something, or there is nothing to build the network from.
        ChannelError: `into` is another network.
    """
    steps: list[SampledFields] = []
    while manifest.get("kind") == SAMPLED:
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
