"""Runs of networks that others wrote: the module under its wrappers, and the cause when a run fails."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from netsmith.errors import DissectionError, NetsmithError, first_line

_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_MOST_ENTRIES = 5_000_000  # of a batch that is tried only to find the cause of a failure


def original(model: nn.Module) -> nn.Module:
    """Return the network itself, without `torch.compile` and the wrappers of parallel training around it."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif type(model).__name__ == "OptimizedModule":  # its class lies in torch._dynamo, which is slow to import
            model = model.get_submodule("_orig_mod")
        else:
            return model


def packed(value: Any) -> list[Tensor]:
    """Return the weights and biases that torch's quantised layers keep packed, in an object or a list of objects."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [t for v in value for t in packed(v)]
    if not isinstance(value, torch.ScriptObject):
        return []
    script: Any = value  # its methods are those of a C++ class
    if hasattr(script, "unpack"):
        return packed(script.unpack())
    # a recurrent cell: its state repeats the biases beside the packed layers
    return packed([v for v in _flat(script.__getstate__()) if isinstance(v, torch.ScriptObject)])


def _flat(value: Any) -> list[Any]:
    return [leaf for v in value for leaf in _flat(v)] if isinstance(value, list | tuple) else [value]


def packed_tensors(module: nn.Module) -> list[Tensor]:
    """Return the tensors that are no parameters of `module`, because its layers are quantised."""
    return [t for m in module.modules() for v in vars(m).values() if type(v) is torch.ScriptObject for t in packed(v)]


def _inputs_needed(model: nn.Module) -> str:
    """Return what `forward` needs beyond one tensor, as a clause; empty where one is enough."""
    if not isinstance(model, nn.Module):
        raise DissectionError(f"expected a torch.nn.Module, got a {type(model).__name__}")
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except ValueError:  # a traced module has no signature
        return ""
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) < 2 and not any(p.kind is p.KEYWORD_ONLY for p in needed):
        return ""
    inputs = "1 input" if len(needed) == 1 else f"{len(needed)} inputs"
    return f"its forward needs {inputs} ({', '.join(p.name for p in needed)})"


_WRAP = "wrap it in a module whose forward takes one and fills in the others"


def check_inputs(model: nn.Module, label: str) -> None:
    """Raise DissectionError for a network that needs more than one input."""
    if needed := _inputs_needed(model):
        raise DissectionError(f"{label}: expected a network that takes one tensor, but {needed}; {_WRAP}")


def check_sizes(model: nn.Module) -> None:
    """Raise DissectionError for a network with lazy layers that have not run yet."""
    if name := next((n for n, t in _state(model) if is_lazy(t)), ""):
        raise DissectionError(f"{type(model).__name__}: the size of {name} {_LAZY}")


_LAZY = "is not known yet (a lazy layer). Run the network once on a batch"


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def unusable(model: nn.Module) -> str:
    """Return why a network cannot be run like others, with the way out; empty where it can.

    Its weights have no values (on the meta device, in lazy layers), or it is a program of `torch.export`.
    """
    for name, t in _state(model):
        if is_lazy(t):
            return f"the size of {name} {_LAZY}"
        if t.is_meta:
            return (
                f"{name} is on the meta device and has no values. Load the weights first:"
                " model.to_empty(device='cpu'), then model.load_state_dict(...)"
            )
    if isinstance(model, torch.fx.GraphModule) and "eval" in vars(model):  # torch.export puts a refusal there
        return (
            "it is a program of torch.export, made for one mode and the shapes of its example. Give the network that"
            " was exported"
        )
    return ""


def check_readable(model: nn.Module, label: str) -> None:
    """Raise DissectionError for a network whose layers cannot be seen or changed: quantised, scripted, exported."""
    if reason := unusable(model):
        raise DissectionError(f"{label}: {reason}")
    if isinstance(model, torch.jit.ScriptModule):
        raise DissectionError(
            f"{label} runs in code that torch does not see (TorchScript, by torch.jit.{_scripted_by(model)}); load it"
            " as plain PyTorch code"
        )
    for name, module in model.named_modules():
        if any(type(v) is torch.ScriptObject for v in vars(module).values()):
            layer = name.removesuffix("._packed_params")
            raise DissectionError(
                f"{label} is quantised: {layer or 'it'} ({type(model.get_submodule(layer)).__name__}) keeps its weights"
                " packed as integers, which can be neither cut nor changed; give the network from before it was"
                " quantised, and quantise what comes out"
            )


def _scripted_by(model: nn.Module) -> str:
    return "trace" if isinstance(model, torch.jit.TopLevelTracedModule) else "script"


@contextmanager
def uncompiled() -> Iterator[None]:
    """Have compiled modules and functions run as plain code meanwhile: compiling anew for each shape takes minutes."""
    # torch has this since 2.6 (before, compiled code is right, and slow), and imports for it what compiling needs
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", r"Using `torch.compile\(module\)` when there are global hooks")
        yield


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Put all modules back into the mode, of training or evaluation, that they have now."""
    modes = {m: m.training for m in model.modules()}
    try:
        yield
    finally:
        for m, mode in modes.items():
            if m.training != mode:  # to set an attribute of a module takes long
                m.training = mode


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put all modules into eval mode, and back into their own; without calling `eval`, which some refuse."""
    with kept_modes(model):
        for m in model.modules():
            m.training = False
        yield


@contextmanager
def explained(
    model: nn.Module, x: Tensor, what: str, remedy: str, kind: type[NetsmithError] = DissectionError
) -> Iterator[None]:
    """Turn what the code of a network raises on the batch `x` into one error with its cause and the way out.

    `what` begins the message; `remedy` ends it where the cause is not one of those that are recognised.
    """
    try:
        yield
    except NetsmithError:
        raise
    except Exception as error:  # the network's code may raise anything
        line = first_line(error).rstrip(".")
        cause = _cause(model, x, str(error)) or f"{type(error).__name__}: {line}. {remedy}"
        raise kind(f"{what}: {cause}") from error


def _cause(model: nn.Module, x: Tensor, text: str) -> str:
    """Return cause and remedy of a failed run, as far as weights and input show them; empty otherwise."""
    if reason := unusable(model):
        return reason
    if needed := _inputs_needed(model):
        return f"{needed}; {_WRAP}"
    state = _state(model)
    places = list(dict.fromkeys(t.device for _, t in state))
    if places and x.device not in places:
        return f"its weights are on {places[0]} and its input is on {x.device}. Move one of them with .to()"
    types = list(dict.fromkeys(t.dtype for _, t in state if t.is_floating_point()))
    if x.is_floating_point() and "type" in text and types not in ([], [x.dtype]):
        return _types(types, x.dtype)
    if x.is_floating_point() and ("indices" in text or "index" in text) and "type" in text:
        return (
            f"it looks up token ids, and its input is {_name(x.dtype)}. Give an example of integers, such as"
            " torch.randint(0, vocabulary, (1, length))"
        )
    if "allocate" in text or "out of memory" in text:
        return "there is not enough memory for it. Give a smaller batch or smaller inputs"
    size = _other_batch(model, x)
    if size is not None:
        return (
            f"it runs on a batch of {size} but not of {len(x)}: its code fixes the batch size. Take that from the"
            " input, x.shape[0]"
        )
    return ""


def _types(types: list[torch.dtype], given: torch.dtype) -> str:
    if len(types) > 1:
        return (
            f"its weights are of several types ({', '.join(map(_name, types))}), and its input is {_name(given)}. Make"
            " them one: model.float()"
        )
    return (
        f"its weights are {_name(types[0])} and its input is {_name(given)}. Convert one of them: model.to({given}), or"
        f" the input .to({types[0]})"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _other_batch(model: nn.Module, x: Tensor) -> int | None:
    """Return a batch size on which the network does run."""
    if x.ndim < 2 or not x.numel():
        return None
    for size in _BATCHES:
        if size == len(x) or size * x[0].numel() > _MOST_ENTRIES:
            continue
        try:
            with torch.no_grad():
                model(x[:1].expand(size, *x.shape[1:]).contiguous())
        except Exception:  # as in `explained`
            continue
        return size
    return None


def shape_text(shape: Sequence[int]) -> str:
    """A shape for messages: 3x32x32."""
    return "x".join(str(s) for s in shape) or "()"
