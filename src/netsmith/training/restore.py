"""Training that makes a network worse is undone: one rule for fine-tuning, keyframes and generators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from netsmith.training.loop import TrainResult
from netsmith.training.tasks import Task


def restore_if_worse(
    trained: nn.Module,
    state: Mapping[str, Tensor],
    start: Mapping[str, float],
    result: TrainResult,
    task: Task,
    told: Callable[[float, float], None],
    *,
    slack: float = 0.0,
) -> TrainResult:
    """Put back what a training began with, where its best epoch is worse than that on validation.

    Too high a rate does that, above all without batch norms, and the best of bad epochs would pass for a result.

    Args:
        trained: what was trained, in place.
        state: a copy of its state before.
        start: its metrics then, on the validation part, as the epochs are judged.
        result: of the training.
        task: whose metric counts.
        told: called with the metric before, and at best after, where the training is undone.
        slack: by how much the metric may fall: what may be chance.

    Returns:
        The result; of a training that was undone, with `best_epoch` 0 and the metrics it began with.
    """
    first, best = start[task.primary], result.metrics[task.primary]
    lost = (first - best) * (1 if task.higher_is_better else -1)
    if not lost > slack:
        return result
    told(first, best)
    trained.load_state_dict(state)
    return replace(result, best_epoch=0, metrics=dict(start))
