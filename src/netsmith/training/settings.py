"""How a network is trained: `TrainSettings`, and the learning rate at every step."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from netsmith import limits

Precision = Literal["auto", "no", "bf16", "fp16"]
"""`no` is float32; `auto` is bf16 where it is faster than float32, and float32 elsewhere."""

DESCRIPTION = "no (float32), bf16, fp16 (needs a GPU), or auto: bf16 where it is faster than float32"


class TrainSettings(BaseModel):
    """Settings of the one training loop.

    Everything random follows from `seed`; two runs with the same settings and data on the same machine are equal.

    Examples:
        >>> netsmith.TrainSettings(epochs=3, optimizer="adamw", lr=0.002, schedule="onecycle").batch_size
        128
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(default=10, ge=1, le=limits.EPOCHS, description="times through the training part")
    batch_size: int = Field(default=128, ge=1, le=limits.BATCH, description="images a forward pass, in each process")
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="SGD with Nesterov momentum, or AdamW")
    lr: float = Field(default=0.1, gt=0, description="highest learning rate")
    weight_decay: float = Field(
        default=5e-4, ge=0, description="on weights of two or more dimensions; not on norms and biases"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of SGD")
    schedule: Literal["cosine", "onecycle", "constant"] = Field(
        default="cosine", description="shape of the learning rate"
    )
    warmup_epochs: float = Field(default=0.0, ge=0, description="epochs of linear warm-up (cosine and constant)")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    mixup: float = Field(default=0.0, ge=0, description="alpha of mixup, 0 for none")
    cutmix: float = Field(default=0.0, ge=0, description="alpha of cutmix, 0 for none; with mixup, one of them a batch")
    augment: bool = Field(
        default=False, description="shift every image at random, and mirror it where that keeps its class"
    )
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of the moving average of the weights, e.g. 0.999"
    )
    clip_grad: float | None = Field(default=None, gt=0, description="largest norm of the gradient")
    precision: Precision = Field(default="auto", description=DESCRIPTION)
    accumulate: int = Field(
        default=1, ge=1, le=limits.COUNT, description="batches whose gradients are added up before a step"
    )
    seed: int = Field(default=0, ge=0, le=limits.INTEGER)
    channels_last: bool = Field(default=False, description="memory format; may be faster for CNNs")
    frozen_statistics: bool = Field(
        default=True, description="parts without a trainable parameter stay in evaluation mode"
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> TrainSettings:
        if self.warmup_epochs >= self.epochs and self.warmup_epochs > 0:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs:g}) must be below epochs ({self.epochs})")
        return self


def lr_factor(schedule: str, step: int, steps: int, warmup: int = 0) -> float:
    """What the highest learning rate is multiplied by at `step` of `steps` (from 0).

    `cosine`: linear warm-up from `1 / warmup` over `warmup` steps, then half a cosine to 0 (Loshchilov and Hutter,
    2017). `onecycle`: from 1/25 up to 1 over three tenths of the steps and down to 1/250,000, both along half a cosine
    (Smith and Topin, 2018, with PyTorch's defaults; momentum stays).
    `constant`: 1 after the warm-up.
    """
    if schedule == "onecycle":
        top = 0.3 * steps - 1
        if step <= top:
            return _cosine(1 / 25, 1.0, step / top)
        return _cosine(1.0, 1 / 25e4, (step - top) / max(1e-9, steps - 1 - top))
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return _cosine(1.0, 0.0, (step - warmup) / max(1, steps - warmup))


def _cosine(start: float, stop: float, way: float) -> float:
    return stop + (start - stop) / 2 * (1 + math.cos(math.pi * way))
