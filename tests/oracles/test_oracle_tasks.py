"""Every loss, distillation and metric of every task against its formula, on plain and on awkward outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import formulas
import numpy as np
import pytest
import torch
from formulas import Array
from numpy.typing import NDArray

from netsmith.reassembly.agreement import agreement
from netsmith.training.tasks import TASKS, Classification, Generation, Segmentation, make_task

CLASSES, SHAPE, LATENT = 4, (2, 3, 3), 3
NUMBERS = 18
KINDS = ("random", "equal", "sure", "saturated", "tiny", "far from zero", "one class never")


def logits(kind: str, *shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Outputs of `shape`, classes along dimension 1, by what is awkward about them."""
    plain = np.random.default_rng(seed).standard_normal(shape)
    last = (np.arange(shape[1]) == shape[1] - 1).reshape(1, -1, *(1,) * (len(shape) - 2))
    return {
        "random": plain,
        "equal": np.zeros(shape),
        "sure": 30 * plain,
        "saturated": np.where(plain > 0, 1e4, -1e4),
        "tiny": 1e-6 * plain,
        "far from zero": plain + 500.0,
        "one class never": np.where(last, -1e9, plain),
    }[kind].astype(np.float32)


def summary(task: Any, outputs: Any, targets: Any) -> dict[str, float]:
    """Through sums over two unequal batches, as the engine takes them."""
    parts = [task.metrics(outputs[a:b], targets[a:b]) for a, b in ((0, 2), (2, len(outputs)))]
    return task.summary({key: parts[0][key] + parts[1][key] for key in parts[0]})


# --- metrics ----------------------------------------------------------------------------------------------------------


def _pixels(outputs: Array, masks: NDArray[Any]) -> tuple[Array, NDArray[Any]]:
    known = masks.reshape(-1) != 255
    rows = np.moveaxis(outputs, 1, -1).reshape(-1, outputs.shape[1])
    return rows[known], masks.reshape(-1)[known]


def _segmentation(measure: Callable[[Any], float]) -> Callable[[Array, Any], float]:
    def measured(outputs: Array, masks: Any) -> float:
        rows, labels = _pixels(outputs, masks)
        return measure(formulas.per_class(rows.argmax(axis=1), labels, CLASSES))

    return measured


def _bound(outputs: Array, images: Array) -> float:
    return float(formulas.evidence_bound(*_parts(outputs), images).mean())


def _parts(outputs: Array) -> tuple[Array, Array, Array]:
    pixels, mean, log_variance = np.split(outputs, [NUMBERS, NUMBERS + LATENT], axis=1)
    return pixels.reshape(-1, *SHAPE), mean, log_variance


def _error(outputs: Array, images: Array) -> float:
    """Mean squared error of the decoded image."""
    return float(((formulas.sigmoid(_parts(outputs)[0]) - images) ** 2).mean())


Oracle = Callable[[Array, Any], float]
METRICS: dict[str, dict[str, Oracle]] = {
    "classification": {
        "accuracy": formulas.accuracy,
        "loss": lambda outputs, labels: formulas.cross_entropy(outputs, formulas.one_hot(labels, CLASSES)),
    },
    "segmentation": {
        "miou": _segmentation(formulas.mean_iou),
        "f1": _segmentation(formulas.mean_f1),
        **{f"iou/{k}": _segmentation(lambda counts, k=k: formulas.mean_iou([counts[k]])) for k in range(3)},
        "accuracy": lambda outputs, masks: formulas.accuracy(*_pixels(outputs, masks)),
        "loss": lambda outputs, masks: formulas.cross_entropy(
            _pixels(outputs, masks)[0], formulas.one_hot(_pixels(outputs, masks)[1], CLASSES)
        ),
    },
    "generation": {"elbo": _bound, "reconstruction": _error, "loss": lambda outputs, images: -_bound(outputs, images)},
}


def batch(name: str, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and targets of a task."""
    rng = np.random.default_rng(7)
    if name == "classification":
        return torch.from_numpy(logits(kind, 9, CLASSES)), torch.from_numpy(rng.integers(0, CLASSES - 1, 9))
    if name == "segmentation":
        masks = rng.choice([0, 1, 2, 255], (5, 4, 3))  # class 3 is in no mask
        return torch.from_numpy(logits(kind, 5, CLASSES, 4, 3)), torch.from_numpy(masks)
    images = rng.random((6, *SHAPE)).astype(np.float32)
    images[0], images[1] = 0.0, 1.0
    outputs = logits(kind, 6, NUMBERS + 2 * LATENT)
    outputs[:, NUMBERS:] = np.clip(outputs[:, NUMBERS:], -20, 20)  # of a code, variances from e^-20 to e^20
    return torch.from_numpy(outputs), torch.from_numpy(images)


def test_every_task_and_every_metric_has_an_oracle():
    assert set(TASKS) == set(METRICS), "a task without formulas here is not known to be right"
    for name in TASKS:
        task = make_task(name, CLASSES, shape=SHAPE)
        found = set(summary(task, *batch(name, "random")))
        assert found - {"iou/3"} == set(METRICS[name]), name  # class 3 is in no mask: it is there where it is guessed
        assert task.primary in METRICS[name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_their_formulas(name, kind):
    outputs, targets = batch(name, kind)
    found = summary(make_task(name, CLASSES, shape=SHAPE), outputs, targets)
    values = targets.numpy().astype(np.float64) if name == "generation" else targets.numpy()
    for metric, oracle in METRICS[name].items():
        expected = oracle(outputs.numpy().astype(np.float64), values)
        assert found[metric] == pytest.approx(expected, rel=2e-6, abs=2e-7), metric


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_cross_entropy_of_labels_and_of_mixed_labels(kind, smoothing):
    outputs, labels = batch("classification", kind)
    exact, hard = outputs.numpy().astype(np.float64), formulas.one_hot(labels.numpy(), CLASSES)
    mixed = 0.3 * hard + 0.7 * np.roll(hard, 1, axis=0)  # Zhang et al., "mixup" (ICLR 2018), eq. 1
    task = Classification(CLASSES)
    for given, targets in ((labels, hard), (torch.from_numpy(mixed).float(), mixed)):
        expected = formulas.cross_entropy(exact, targets, smoothing)
        assert task.loss(outputs, given, smoothing).item() == pytest.approx(expected, rel=2e-6, abs=2e-7)
    assert Classification(CLASSES, smoothing).loss(outputs, labels).item() == pytest.approx(
        formulas.cross_entropy(exact, hard, smoothing), rel=2e-6, abs=2e-7
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_cross_entropy_of_the_known_pixels(kind, smoothing):
    outputs, masks = batch("segmentation", kind)
    rows, labels = _pixels(outputs.numpy().astype(np.float64), masks.numpy())
    expected = formulas.cross_entropy(rows, formulas.one_hot(labels, CLASSES), smoothing)
    assert Segmentation(CLASSES).loss(outputs, masks, smoothing).item() == pytest.approx(expected, rel=2e-6, abs=2e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_negative_bound(kind):
    outputs, images = batch("generation", kind)
    expected = -_bound(outputs.numpy().astype(np.float64), images.numpy().astype(np.float64))
    assert Generation(SHAPE).loss(outputs, images).item() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("teacher", KINDS)
@pytest.mark.parametrize("student", ["random", "equal", "sure", "saturated", "far from zero"])
def test_distillation_of_classes(student, teacher, temperature):
    a, b = logits(student, 9, CLASSES, seed=1), logits(teacher, 9, CLASSES, seed=2)
    expected = formulas.distillation(a.astype(np.float64), b.astype(np.float64), temperature)
    # logits near 500 have steps of 3e-5 in single precision
    near = {"rel": 1e-5, "abs": 2e-4 if "far from zero" in (student, teacher) else 2e-6}
    found = Classification(CLASSES).distil(torch.from_numpy(a), torch.from_numpy(b), temperature)
    assert found.item() == pytest.approx(expected, **near)
    pixels = [torch.from_numpy(v).reshape(3, 3, CLASSES).permute(0, 2, 1)[..., None].contiguous() for v in (a, b)]
    assert Segmentation(CLASSES).distil(*pixels, temperature).item() == pytest.approx(expected, **near)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("teacher", ["random", "equal", "sure", "tiny"])
def test_distillation_of_images_and_codes(teacher, temperature):
    outputs, taught = (
        np.clip(logits(kind, 6, NUMBERS + 2 * LATENT, seed=s), -8, 8) for kind, s in (("random", 1), (teacher, 2))
    )
    (pixels, mean, log), (other, other_mean, other_log) = (_parts(v.astype(np.float64)) for v in (outputs, taught))
    softened = formulas.bernoulli_divergence(pixels / temperature, other / temperature)
    codes = formulas.normal_divergence(mean, log, other_mean, other_log)
    expected = (temperature**2 * softened.sum() + codes.sum()) / (NUMBERS * len(outputs))
    found = Generation(SHAPE).distil(torch.from_numpy(outputs), torch.from_numpy(taught), temperature)
    assert found.item() == pytest.approx(expected, rel=2e-5, abs=1e-6)


# --- agreement of two networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_divergence_and_agreement(kind):
    a, b = logits("random", 9, CLASSES, seed=3), logits(kind, 9, CLASSES, seed=4)
    found = agreement(
        lambda x: torch.from_numpy(a)[x.flatten().long()],
        lambda x: torch.from_numpy(b)[x.flatten().long()],
        torch.arange(9.0).view(9, 1, 1, 1),
        batch_size=4,
    )
    p, q = a.astype(np.float64), b.astype(np.float64)
    assert found.forward == pytest.approx(formulas.kullback_leibler(p, q), rel=1e-9)
    assert found.backward == pytest.approx(formulas.kullback_leibler(q, p), rel=1e-9)
    assert found.same == pytest.approx(np.mean(p.argmax(axis=1) == q.argmax(axis=1)))
