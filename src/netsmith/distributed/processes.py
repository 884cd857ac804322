"""This process among those that torchrun launched together: its number, how many there are, and where they meet."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from netsmith.distributed.launched import local_rank, rank, world


def first() -> bool:
    """Whether this process writes files and speaks to the user."""
    return rank() == 0


def own_device(device: str | torch.device) -> torch.device:
    """The device of that kind that is this process's: the n-th GPU for the n-th process on its machine."""
    wanted = torch.device(device)
    if wanted.type == "cuda" and wanted.index is None:
        return torch.device("cuda", local_rank())
    return wanted


def joined() -> bool:
    """Whether there are several processes and they have found each other."""
    return torch.distributed.is_available() and torch.distributed.is_initialized() and world() > 1


def wait() -> None:
    """Until every process is here; nothing to wait for when there is but one, or before they have joined."""
    if joined():
        torch.distributed.barrier()


def any_of_us(yes: bool, device: torch.device | str = "cpu") -> bool:
    """Whether this holds in at least one of the processes; every process must ask."""
    if not joined():
        return yes
    vote = torch.tensor(float(yes), device=device)
    torch.distributed.all_reduce(vote)
    return bool(vote > 0)


def agree(tensors: Iterable[Tensor], device: torch.device | str | None = None) -> None:
    """Give every process the values that these tensors have in the first one, in place; all must have as many."""
    if joined():
        for tensor in tensors:
            sent = tensor.to(tensor.device if device is None else own_device(device))
            torch.distributed.broadcast(sent, 0)
            tensor.copy_(sent)


def leave() -> None:
    """Take leave of the others, at the end of a program."""
    if joined():
        torch.distributed.destroy_process_group()
