"""What a result was made from, as hashes: enough to tell whether two runs had the same config, data and weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from netsmith.networks.network import Provenance


def run_hashes(config: Mapping[str, Any], data: str | None, sources: Iterable[Provenance]) -> dict[str, Any]:
    """The hashes that manifests, `details.json` and the summary of a training keep under `hashes`.

    Args:
        config: the resolved config, as it is kept beside them.
        data: of the data sets, all three parts (`Splits.fingerprint`); None where it is not known.
        sources: the networks whose weights went in.

    Returns:
        `config`: SHA-256 of the config as JSON with sorted keys and no spaces, None without one; `data`; `sources`:
        SHA-256 of each one's weights, by source.
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return {
        "config": hashlib.sha256(text.encode()).hexdigest() if config else None,
        "data": data,
        "sources": {source.source: source.sha256 for source in sources},
    }
