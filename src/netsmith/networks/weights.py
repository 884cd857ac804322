"""Checkpoints: reading them without running anything, and loading them without dropping anything."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from netsmith.errors import WeightsError, did_you_mean
from netsmith.networks.files import SAFE_SUFFIXES, check_weights_file

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "model_state_dict")
"""Keys under which training scripts put the weights, the averaged ones first (as timm prefers them)."""

_log = logging.getLogger("netsmith.weights")
_SHOWN = 5
_COUNTER = "num_batches_tracked"


def load_weights_file(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU.

    Safetensors, and PyTorch's own format through its restricted reader, which rebuilds tensors and plain values and
    refuses everything else: no code in a file is ever run. Wrappers (`state_dict`, `model`, ...) are opened and the
    prefixes `module.` and `_orig_mod.`, which parallel and compiled training leave behind, are taken off.

    Raises:
        WeightsError: the file is missing, truncated, no checkpoint, or a pickle with code in it.
    """
    path = Path(path)
    check_weights_file(path)
    if path.suffix.lower() in SAFE_SUFFIXES:
        content: object = _read_safetensors(path)
    else:
        content = _read_torch(path)
    return _plain_names(_unwrap(content, path), path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as safetensors: {error}. It is truncated or of "
            "another format (PyTorch's own ends in .pth): download or copy it again."
        ) from error


def _read_torch(path: Path) -> object:
    try:
        # training scripts store their command line beside the weights; a Namespace is data and runs nothing
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)|function <?([^>]+)", str(error))
        if found is not None:
            raise WeightsError(_with_code(path, found.group(1) or found.group(2))) from error
        raise WeightsError(_damaged(path, error)) from error
    except Exception as error:  # the reader raises RuntimeError, EOFError, KeyError and others on damaged files
        raise WeightsError(_damaged(path, error)) from error


def _with_code(path: Path, what: str) -> str:
    return (
        f"{path} holds more than tensors: code or objects of classes ({what}). It was refused and nothing in it "
        "was run. Ask its source for safetensors, or, if you trust it, load it yourself and save its "
        "state_dict() with safetensors.torch.save_file."
    )


def _damaged(path: Path, error: Exception) -> str:
    # torch wraps the reason in advice to switch the safe reader off, which is not for a user to follow
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Weights only load failed", "Check the doc", "("))]
    line = (
        (told or [type(error).__name__])[0]
        .removeprefix("WeightsUnpickler error: ")
        .partition(". ")[0][:200]
        .rstrip(".")
    )
    size = path.stat().st_size
    return (
        f"{path} ({size} bytes) cannot be read as a PyTorch checkpoint: {line}. "
        "It is truncated or of another format: download or copy it again."
    )


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """The state dict inside what a training script saved."""
    opened = [path.name]
    while isinstance(content, Mapping):
        if content and all(isinstance(value, Tensor) for value in content.values()):
            return {str(key): value for key, value in content.items()}
        key = next((k for k in WRAPPERS if isinstance(content.get(k), Mapping)), None) or _only_state(content)
        if key is None:
            break
        passed = [k for k in WRAPPERS if k != key and isinstance(content.get(k), Mapping)]
        if passed:
            _log.warning("%s has weights under '%s' and %s; taking '%s'", path, key, passed, key)
        content = content[key]
        opened.append(key)
    place = " > ".join(opened)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{place} holds a {type(content).__name__}, expected tensors by name (a state_dict).")
    if not content:
        raise WeightsError(f"{place} holds nothing, expected tensors by name (a state_dict).")
    odd = [f"{k} ({type(v).__name__})" for k, v in content.items() if not isinstance(v, Tensor)]
    raise WeightsError(
        f"{place} is no state_dict: {_some(odd)} {'is' if len(odd) == 1 else 'are'} not tensors, and there is none of "
        f"the wrappers that are understood ({', '.join(WRAPPERS)})."
    )


def _only_state(content: Mapping[Any, Any]) -> Any:
    """The key of the one entry that is a state dict, under whatever name a script gave it (`net`, `encoder`)."""
    keys = [k for k, v in content.items() if isinstance(v, Mapping) and v and all(map(_is_tensor, v.values()))]
    return keys[0] if len(keys) == 1 else None


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _plain_names(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    names = {key: key.replace("_orig_mod.", "") for key in state}
    # torch's AveragedModel adds a counter of its own beside the wrapped network
    averaged = "n_averaged" in state and all(n.startswith("module.") for n in names.values() if n != "n_averaged")
    if averaged:
        _log.info("%s holds averaged weights; their counter 'n_averaged' is not part of the network", path)
        del names["n_averaged"]
    while names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    result = {name: state[key] for key, name in names.items()}
    if len(result) != len(names):
        twice = sorted({n for n in result if list(names.values()).count(n) > 1})
        raise WeightsError(f"{path} holds {_some(twice)} twice: once with and once without a training prefix.")
    return result


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _renamed(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The same weights under the names of `model`, where one prefix of all names, here or there, is what differs."""
    if not mismatch(model, state):
        return state
    here, there = _prefix(model.state_dict()), _prefix(state)
    renamed = {here + name.removeprefix(there): t for name, t in state.items()}
    if mismatch(model, renamed):
        return state
    _log.info("the names of the weights begin with '%s' where the network's begin with '%s'", there, here)
    return renamed


def _prefix(names: Iterable[str]) -> str:
    """What all names have in common at their beginning, in whole parts: `model.backbone.`."""
    split = [name.split(".")[:-1] for name in names]
    parts = [firsts[0] for firsts in zip(*split, strict=False)] if split else []
    same = [len({tuple(s[: i + 1]) for s in split}) == 1 for i in range(len(parts))]
    return "".join(part + "." for part, one in zip(parts, same, strict=True) if one)


def mismatch(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from fitting `model` exactly, one line for each kind of fault; empty when it fits.

    Batch norm's `num_batches_tracked` may be missing: older checkpoints lack that counter, and outputs do not depend
    on it.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in state and k.rpartition(".")[2] != _COUNTER]
    unexpected = [k for k in state if k not in own]
    misshapen = [k for k in own if k in state and isinstance(own[k], Tensor) and own[k].shape != state[k].shape]
    lines = []
    if missing:
        lines.append(f"missing, {len(missing)} of {len(own)}: {_some(missing)}")
    if unexpected:
        near = [_beside_prefix(own, state) or did_you_mean(unexpected[0], missing)] if missing else []
        lines.append(" ".join([f"unexpected, {len(unexpected)} of {len(state)}: {_some(unexpected)}.", *near]))
    if misshapen:
        shapes = [f"{k} {tuple(state[k].shape)} where the network has {tuple(own[k].shape)}" for k in misshapen]
        lines.append(f"misshapen, {len(misshapen)}: {_some(shapes)}")
        lines.extend(_classes_hint(own, state, misshapen))
    return lines


def _beside_prefix(own: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """A sentence for a network that lies under one prefix of a larger state, as it does in a training module."""
    names = [k for k in own if k.rpartition(".")[2] != _COUNTER]
    for key in state:
        prefix = key.removesuffix(names[0]) if key.endswith("." + names[0]) else ""
        if prefix and all(prefix + name in state for name in names):
            others = [k for k in state if not k.startswith(prefix)]
            return (
                f"All of the network's are there under '{prefix}', beside others ({_some(others)}): save"
                f" those under '{prefix}' by themselves."
            )
    return ""


def _classes_hint(own: Mapping[str, Any], state: Mapping[str, Tensor], misshapen: Iterable[str]) -> list[str]:
    """A line for the usual mistake: the same network with another number of classes."""
    counts = set()
    for key in misshapen:
        ours, theirs = own[key].shape, state[key].shape
        if len(ours) == 0 or len(ours) != len(theirs) or ours[1:] != theirs[1:]:
            return []
        counts.add(theirs[0])
    if len(counts) != 1:
        return []
    return [f"these weights seem to be for {counts.pop()} classes: say so with num_classes"]


def load_state(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy `state` into `model`: every key must be there, none more, each of the right shape.

    Args:
        model: changed in place; untouched when there is an error.
        state: tensors by name; cast to the model's own types. A prefix that all names share, here or there and not in
            both, is passed over.
        where: what to call the weights in an error.

    Raises:
        WeightsError: lists missing, unexpected and misshapen keys.
    """
    state = _renamed(model, state)
    faults = mismatch(model, state)
    if faults:
        raise WeightsError(f"The weights of {where} do not fit {type(model).__name__}:\n  " + "\n  ".join(faults))
    fitting = OrderedDict(state)
    # the versions of the modules, which some refuse to load without: weights that fit are those of this very version
    fitting._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(fitting, strict=False)
