"""Whether a network that somebody else described runs, and within which memory: found out on shapes alone."""

from __future__ import annotations

from torch import nn

from netsmith import limits
from netsmith.errors import ArtifactError, first_line
from netsmith.trace.cost import peak_bytes


def check_runs(model: nn.Module, input_size: tuple[int, ...], name: str) -> None:
    """That a network takes images of a size, and in this machine's memory; nothing is computed.

    Raises:
        ArtifactError: it does not, with the reason.
    """
    try:
        needed = peak_bytes(model, input_size)
    except Exception as error:  # what a network does with shapes that are not its own cannot be foreseen
        raise ArtifactError(
            f"'{name}' does not run on images of {list(input_size)} ({first_line(error)[:200]}): what describes it "
            "contradicts itself."
        ) from error
    if needed > limits.memory():
        raise ArtifactError(
            f"'{name}' needs {limits.amount(needed)} for one image of {list(input_size)}, more than the memory of this "
            f"machine ({limits.amount(limits.memory())}). If that is wrong, set NETSMITH_MEMORY to its GiB."
        )
