"""Training that makes a network worse is undone: one rule for everything that is fitted here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from netsmith.core.checkpoint import copied_state
from netsmith.core.engine import TrainResult
from netsmith.core.tasks import Task

_log = logging.getLogger("netsmith.morph")


def undone_if_worse(
    trained: nn.Module,
    run: Callable[[], TrainResult],
    judge: Callable[[], dict[str, float]],
    task: Task,
    *,
    slack: Callable[[float], float],
    called: str,
) -> TrainResult:
    """Run a training, and put back what it began with where its best epoch is worse than that on validation.

    Too high a rate does that, above all without batch norms, and the best of bad epochs would pass for a result.

    Args:
        trained: what changes.
        run: trains it in place.
        judge: metrics on the validation part, the task's own among them, as the epochs are judged.
        task: whose metric counts.
        slack: by how much the metric may fall, given the first: what may be chance.
        called: how the warning calls it.

    Returns:
        The training's result; where it was undone `best_epoch` is 0 and `metrics` are those of the beginning.
    """
    state, start = copied_state(trained), judge()
    result = run()
    first, best = start[task.primary], result.metrics[task.primary]
    lost = (first - best) * (1 if task.higher_is_better else -1)
    if not lost > slack(first):
        return result
    _log.warning(
        "%s: training made it worse on validation (%s %.4f before, %.4f at best after): it stays as it was. "
        "Lower training.lr, set training.clip_grad or add training.warmup_epochs",
        called, task.primary, first, best,
    )  # fmt: skip
    trained.load_state_dict(state)
    return replace(result, best_epoch=0, metrics=start)
