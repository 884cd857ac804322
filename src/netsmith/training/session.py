"""What surrounds a training or evaluation: accelerate's state, random numbers, modes; all left as they were found."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from netsmith.distributed.processes import agree, any_of_us, world
from netsmith.errors import TrainingError
from netsmith.training.precision import automatic, relative_time
from netsmith.training.settings import Precision

_log = logging.getLogger("netsmith.train")


@dataclass(frozen=True)
class Session:
    """One accelerate session: this process's device and its place among the processes, of which `alone` knows none."""

    accelerator: Accelerator
    device: torch.device
    alone: bool = False

    @property
    def rank(self) -> int:
        """Number of this process."""
        return 0 if self.alone else self.accelerator.process_index

    @property
    def world(self) -> int:
        """Number of processes."""
        return 1 if self.alone else self.accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.alone or self.accelerator.is_main_process

    def wait(self) -> None:
        """Until every process is here."""
        if not self.alone:
            self.accelerator.wait_for_everyone()

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the processes."""
        if self.world == 1:
            return values
        values = values.to(self.device)
        torch.distributed.all_reduce(values)
        return values

    def agree_on_buffers(self, module: nn.Module) -> None:
        """Give every process the buffers (batch-norm statistics) of the first one."""
        if self.world > 1:
            agree(module.buffers())


@contextmanager
def settled(
    current: Session, precision: Precision, model: nn.Module, inputs: torch.Tensor, batch_size: int
) -> Iterator[Session]:
    """Give the session in the precision that was asked for; the processes decide on `auto` together.

    A precision that was asked for by name and is slower than float32 is used, with a warning. The model is in
    evaluation mode, and has no gradients afterwards.
    """
    if precision == "auto":
        slow = automatic(model, inputs, batch_size) == "no"
        if slow if current.alone else any_of_us(slow, current.device):
            yield current
            return
        with session("bf16", current.device, alone=current.alone) as found:
            yield found
        return
    if precision != "no" and current.main:
        relative = relative_time(model, inputs, precision)
        model.zero_grad()
        if relative > 1:
            _log.warning(
                "precision %s takes %.1f times as long as float32 on %s; precision: auto takes the faster of the two",
                precision, relative, current.device,
            )  # fmt: skip
    yield current


@contextmanager
def session(precision: str, device: str | torch.device | None = None, *, alone: bool = False) -> Iterator[Session]:
    """An accelerate session of its own, on `device` or the best there is; accelerate's global state is put back.

    With `alone` it is that of this process, and never waits for those that were launched with it.

    `auto` is float32 until it is decided (`settled`).

    Raises:
        TrainingError: the device does not exist or cannot do that precision, or the launched processes did not join.
    """
    precision = "no" if precision == "auto" else precision
    shared = (AcceleratorState._shared_state, PartialState._shared_state, GradientState._shared_state)
    kept = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        wanted = torch.device(device) if device is not None else None
        if wanted is not None and wanted.type == "cuda" and not torch.cuda.is_available():
            raise TrainingError(f"device '{device}' was asked for, but PyTorch sees no CUDA device: use --device cpu")
        try:
            accelerator = Accelerator(
                cpu=wanted is not None and wanted.type == "cpu", mixed_precision=precision, device_placement=False
            )
        except (ValueError, RuntimeError) as error:
            raise TrainingError(
                f"training with precision '{precision}' cannot start on {device or 'this machine'} ({error}). "
                f"precision: auto works everywhere"
            ) from error
        if precision == "fp16" and accelerator.device.type == "cpu":
            raise TrainingError("precision 'fp16' needs a GPU: precision: auto works everywhere")
        launched = world()
        if accelerator.num_processes != launched:
            raise TrainingError(
                f"{launched} processes were launched but {accelerator.num_processes} joined, so each would train "
                f"alone: launch with torchrun --nproc_per_node {launched} -m netsmith ..."
            )
        joined = wanted is None or accelerator.num_processes > 1
        yield Session(accelerator, accelerator.device if wanted is None or joined else wanted, alone)
    finally:
        for state, before in zip(shared, kept, strict=True):
            state.clear()
            state.update(before)


def join(device: str | torch.device | None = None) -> None:
    """Find the processes that were launched with this one, through accelerate; nothing to do for one alone.

    Raises:
        TrainingError: they did not join, or the device does not exist.
    """
    if world() > 1 and not torch.distributed.is_initialized():
        with session("no", device):
            pass


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Torch's global generators are put back on leaving."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        yield


@contextmanager
def chosen_parameters(model: nn.Module, trainable: Callable[[str, nn.Parameter], bool] | None) -> Iterator[None]:
    """Only parameters for which `trainable(name, parameter)` holds require a gradient meanwhile (None: as they are)."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        if trainable is not None:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(trainable(name, parameter))
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
            parameter.grad = None


@contextmanager
def placed(model: nn.Module, device: torch.device, channels_last: bool) -> Iterator[None]:
    """The model is on `device`, in that memory format, and goes back to where it was."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    home = first.device if first is not None else torch.device("cpu")
    model.to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    try:
        yield
    finally:
        model.to(home)
        if channels_last:
            model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


def training_mode(model: nn.Module, frozen_statistics: bool) -> None:
    """Training mode; parts none of whose parameters is trained stay in evaluation mode if `frozen_statistics`."""
    model.train()
    if frozen_statistics:
        for module in model.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()
