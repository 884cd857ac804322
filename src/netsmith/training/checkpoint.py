"""The state of a training run on disk: safetensors with JSON in the header. No pickle is written or read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from netsmith.errors import TrainingError
from netsmith.files.cache import independent
from netsmith.files.changes import changes
from netsmith.files.output import write_bytes
from netsmith.training.settings import Precision

LAST = "last.safetensors"
"""Model, average and optimizer after the last complete epoch: what a run resumes from."""

BEST = "best.safetensors"
"""State dict of the best epoch so far: a weights file like any other."""

PROCESSES = "processes"
"""In `facts`: how many took part."""

_HEADER = "netsmith"
_ELSE = "choose another folder, or delete that one to start again (in Python, resume=False starts again over it)"


def write_state(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write one file completely or not at all. Raises OutputError (no space, no permission)."""
    write_bytes(path, save(independent(tensors), metadata={_HEADER: json.dumps(state)}))


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_state` has written. Raises TrainingError for a damaged file, or one that is not ours."""
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})[_HEADER])
            return {key: file.get_tensor(key) for key in file.keys()}, state  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise TrainingError(
            f"'{path}' is no checkpoint of a training run, or a damaged one ({error}). "
            f"Delete it to start again; in Python, resume=False does so over it"
        ) from error


def begun_in(folder: Path) -> Precision | None:
    """Return the precision of the run whose checkpoint is in a folder, so that it goes on in it; None without one."""
    return read_state(folder / LAST)[1].get("precision") if (folder / LAST).exists() else None


def facts(
    settings: Mapping[str, Any], task: str, images: int, weights: str, structure: str, processes: int
) -> dict[str, Any]:
    """What a checkpoint tells of its run, so that another one can be told what differs."""
    about = {"task": task, "training images": images, "first weights": weights[:12]}
    return {**settings, **about, "options or code of the network": structure[:12], PROCESSES: processes}


def another_run(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The message for a checkpoint that is not this run's; `old` and `new` are `facts`, `old` empty where unknown."""
    changed = changes(old, new) if old else []
    what = "; ".join(changed) or "other images, network, objective or settings"
    return f"the checkpoint in '{folder}' is of another run ({what}): {_ELSE}"


def other_processes(folder: Path, old: int, new: int) -> str:
    """The message for a checkpoint of this run that another number of processes has written."""
    return (
        f"the checkpoint in '{folder}' is of a run of {old} process{'es' * (old != 1)}, and this one has {new}: what "
        f"was done is counted in batches of each, so go on with {old} (torchrun --nproc_per_node {old}); or {_ELSE}"
    )


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under `prefix.key`."""
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def unprefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those under `prefix.`, without it."""
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `INDEX.NAME` (momentum buffers, moments, step counts)."""
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; hyperparameters stay those of `optimizer`."""
    state = optimizer.state_dict()
    filled: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        filled.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**state, "state": filled})


def copied_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict on the CPU."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in model.state_dict().items()}
