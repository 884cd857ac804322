"""Training what was assembled."""

from __future__ import annotations

from pathlib import Path

from netsmith.data.splits import Splits
from netsmith.networks.network import Preprocess
from netsmith.reassembly.settings import Trainable
from netsmith.reassembly.stitch import Assembled
from netsmith.training.engine import Progress, TrainResult, TrainSettings, train
from netsmith.training.tasks import Classification


def finetune(
    module: Assembled,
    data: Splits,
    settings: TrainSettings,
    *,
    trainable: Trainable = "all",
    preprocess: Preprocess | None = None,
    checkpoints: Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TrainResult:
    """Train an assembled network in place: all of it, or adapters and head only; the best epoch on validation stays.

    Raises:
        TrainingError: the loss is not finite.
    """
    task = Classification(module.recipe.num_classes)
    module.freeze(trainable == "adapters")
    try:
        return train(
            module,
            data,
            task,
            settings,
            preprocess=preprocess,
            checkpoint_dir=checkpoints,
            progress=progress,
            device=device,
        )
    finally:
        module.freeze(False)
        module.eval()
