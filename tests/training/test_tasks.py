from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netsmith.errors import TrainingError
from netsmith.training.tasks import TASKS, Classification, Generation, Segmentation, Task, make_task


def test_classification_is_a_task():
    assert isinstance(Classification(3), Task)


def test_metrics_of_batches_add_up_to_those_of_the_whole():
    task = Classification(3)
    outputs, targets = torch.randn(10, 3), torch.randint(0, 3, (10,))
    parts = [task.metrics(outputs[:4], targets[:4]), task.metrics(outputs[4:], targets[4:])]
    sums = {k: parts[0][k] + parts[1][k] for k in parts[0]}
    result = task.summary(sums)
    assert result["accuracy"] == (outputs.argmax(1) == targets).double().mean().item()
    assert result["loss"] == pytest.approx(torch.nn.functional.cross_entropy(outputs, targets).item(), rel=1e-6)


def test_loss_with_smoothing_is_the_mixture_of_label_and_uniform():
    task = Classification(4)
    outputs, targets = torch.randn(6, 4), torch.randint(0, 4, (6,))
    log = outputs.log_softmax(1)
    expected = -(0.9 * log[torch.arange(6), targets] + 0.1 * log.mean(1)).mean()
    torch.testing.assert_close(task.loss(outputs, targets, 0.1), expected)
    torch.testing.assert_close(Classification(4, 0.1).loss(outputs, targets), expected)
    soft = 0.9 * torch.nn.functional.one_hot(targets, 4).float() + 0.1 / 4
    torch.testing.assert_close(task.loss(outputs, soft), expected)


def test_metrics_know_no_smoothing():
    outputs, targets = torch.randn(6, 4), torch.randint(0, 4, (6,))
    assert torch.equal(
        Classification(4, 0.3).metrics(outputs, targets)["loss"], Classification(4).metrics(outputs, targets)["loss"]
    )


@pytest.mark.parametrize(
    ("classes", "shape", "message"),
    [
        (4, (2, 3), "the data set has 4 classes, the task has 3"),
        (3, (2, 5), r"outputs of shape \(2, 5\), \(2, 3\) was expected: load it with num_classes=3"),
        (3, (2, 3, 1), r"outputs of shape \(2, 3, 1\)"),
    ],
)
def test_classes_that_do_not_match(classes, shape, message):
    with pytest.raises(TrainingError, match=message):
        Classification(3).check(tuple("abcd"[:classes]), torch.zeros(shape))


def test_impossible_tasks():
    with pytest.raises(TrainingError, match="at least two classes, not 1"):
        Classification(1)
    with pytest.raises(TrainingError, match="label_smoothing"):
        Classification(2, 1.0)


@pytest.mark.parametrize("name", TASKS)
def test_tasks_by_name(name):
    task = make_task(name, 3, shape=(1, 4, 4))
    assert isinstance(task, Task)
    assert task.name == name
    assert task.num_classes == (0 if name == "generation" else 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("segmentatoin", "unknown task 'segmentatoin'. Did you mean 'segmentation'"),
        ("generation", "needs the shape of the images"),
        ("segmentation", "at least two classes, background included, not 0"),
    ],
)
def test_tasks_that_cannot_be_made(name, message):
    with pytest.raises(TrainingError, match=message):
        make_task(name)


# --- distillation -----------------------------------------------------------------------------------------------------


def divergence(student, teacher, temperature):
    """KL of softened classes by the formula, for rows of logits."""
    s, t = (student / temperature).softmax(-1).double(), (teacher / temperature).softmax(-1).double()
    return (t * (t / s).log()).sum(-1).mean().item() * temperature**2


@given(temperature=st.floats(0.5, 8.0))
def test_distillation_is_the_divergence_of_softened_classes(temperature):
    outputs, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    found = Classification(3).distil(outputs, teacher, temperature)
    assert found.item() == pytest.approx(divergence(outputs, teacher, temperature), rel=1e-4)
    pixels, taught = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    rows = [x.permute(0, 2, 3, 1).reshape(-1, 3) for x in (pixels, taught)]
    found = Segmentation(3).distil(pixels, taught, temperature)
    assert found.item() == pytest.approx(divergence(*rows, temperature), rel=1e-4)


@pytest.mark.parametrize("task", [Classification(3), Segmentation(3), Generation((1, 2, 2))])
def test_nothing_is_to_be_learnt_from_an_equal_teacher(task):
    shape = {"classification": (2, 3), "segmentation": (2, 3, 4, 4), "generation": (2, 10)}[task.name]
    outputs = torch.randn(shape)
    assert task.distil(outputs, outputs.clone(), 3.0).item() == pytest.approx(0.0, abs=1e-6)
    student = outputs.clone().requires_grad_()
    task.distil(student + 0.5 * torch.randn(shape), outputs).backward()
    assert student.grad is not None
    with pytest.raises(TrainingError, match="temperature of distillation is a number above 0, not 0"):
        task.distil(outputs, outputs, 0.0)


# --- segmentation -----------------------------------------------------------------------------------------------------


def counts(predicted, masks, label):
    """True positives, false positives, false negatives, pixel by pixel."""
    pairs = [(p, m) for p, m in zip(predicted.flatten().tolist(), masks.flatten().tolist(), strict=True) if m != 255]
    right = sum(p == m == label for p, m in pairs)
    return right, sum(p == label for p, _ in pairs) - right, sum(m == label for _, m in pairs) - right


@given(data=st.data(), classes=st.integers(2, 4))
def test_segmentation_metrics_by_brute_force(data, classes):
    label = st.integers(0, classes - 1)
    size = 2 * 3 * 4
    masks = data.draw(st.lists(label | st.just(255), min_size=size, max_size=size).filter(lambda m: set(m) != {255}))
    guesses = data.draw(st.lists(label, min_size=size, max_size=size))
    masks, guesses = (torch.tensor(v).view(2, 3, 4) for v in (masks, guesses))
    outputs = 3 * torch.nn.functional.one_hot(guesses, classes).permute(0, 3, 1, 2).float()
    task = Segmentation(classes)
    parts = [task.metrics(outputs[i : i + 1], masks[i : i + 1]) for i in range(2)]
    found = task.summary({k: parts[0][k] + parts[1][k] for k in parts[0]})
    table = [counts(guesses, masks, c) for c in range(classes)]
    table = [(tp, fp, fn) for tp, fp, fn in table if tp + fp + fn]
    assert found["miou"] == pytest.approx(sum(tp / (tp + fp + fn) for tp, fp, fn in table) / len(table))
    assert found["f1"] == pytest.approx(sum(2 * tp / (2 * tp + fp + fn) for tp, fp, fn in table) / len(table))
    known = masks != 255
    assert found["accuracy"] == pytest.approx((guesses == masks)[known].double().mean().item())
    expected = torch.nn.functional.cross_entropy(outputs.permute(0, 2, 3, 1)[known], masks[known])
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert task.loss(outputs, masks).item() == pytest.approx(expected.item(), rel=1e-5)


def test_masks_of_nothing_give_no_loss_and_no_metrics():
    task, masks = Segmentation(3), torch.full((1, 2, 2), 255)
    outputs = torch.randn(1, 3, 2, 2, requires_grad=True)
    assert task.loss(outputs, masks).item() == 0.0
    with pytest.raises(TrainingError, match=r"no pixel has a class: the masks hold 255"):
        task.summary(task.metrics(outputs.detach(), masks))


@pytest.mark.parametrize(
    ("classes", "outputs", "targets", "message"),
    [
        (2, (1, 3, 4, 4), torch.zeros(1, 4, 4).long(), "the data set has 2 classes, the task has 3"),
        (3, (1, 2, 4, 4), torch.zeros(1, 4, 4).long(), r"where \(1, 3, h, w\) was expected: take"),
        (3, (1, 3), torch.zeros(1, 4, 4).long(), r"outputs of shape \(1, 3\)"),
        (3, (1, 3, 4, 4), torch.zeros(1).long(), "this data set has none: use masks:PATH"),
        (3, (1, 3, 2, 4), torch.zeros(1, 4, 4).long(), "outputs of 2x4 pixels .* for masks of 4x4"),
        (3, (1, 3, 4, 4), torch.full((1, 4, 4), 7), r"a mask holds class 7, the network has 3 classes \(0 to 2; 255"),
        (3, (1, 3, 4, 4), torch.full((1, 4, 4), -1), "a mask holds class -1"),
    ],
)
def test_segmentation_that_does_not_fit(classes, outputs, targets, message):
    with pytest.raises(TrainingError, match=message):
        Segmentation(3).check(tuple("abcd"[:classes]), torch.zeros(outputs), targets)


def test_a_class_beyond_the_head_is_not_counted_in_silence():
    with pytest.raises(TrainingError, match="a mask holds class 3"):
        Segmentation(3).metrics(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 3))
    with pytest.raises(TrainingError, match=r"masks \(task: segmentation"):
        Classification(3).check(("a", "b", "c"), torch.zeros(1, 3), torch.zeros(1, 4, 4))


# --- generation -------------------------------------------------------------------------------------------------------


def generated(images=3, latent=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 8 + 2 * latent, generator=generator), torch.rand(images, 2, 2, 2, generator=generator)


def test_the_bound_is_the_formulas():
    task = Generation((2, 2, 2))
    outputs, images = generated()
    total, error = 0.0, 0.0
    for row, image in zip(outputs.tolist(), images.flatten(1).tolist(), strict=True):
        for logit, x in zip(row[:8], image, strict=True):
            chance = 1 / (1 + math.exp(-logit))
            total += x * math.log(chance) + (1 - x) * math.log(1 - chance)
            error += (chance - x) ** 2 / 8
        for mean, log_variance in zip(row[8:10], row[10:], strict=True):
            total -= (mean**2 + math.exp(log_variance) - log_variance - 1) / 2
    found = task.summary(task.metrics(outputs, images))
    assert found == pytest.approx({"elbo": total / 24, "reconstruction": error / 3, "loss": -total / 24}, rel=1e-5)
    assert task.loss(outputs, images).item() == pytest.approx(found["loss"], rel=1e-5)


def test_the_bound_uses_torchs_divergence():
    from torch.distributions import Normal, kl_divergence

    task = Generation((2, 2, 2))
    (outputs, _), (taught, _) = generated(seed=1), generated(seed=2)
    (logits, mean, log_variance), (wanted, taught_mean, taught_log_variance) = task.split(outputs), task.split(taught)
    codes = kl_divergence(
        Normal(taught_mean, (taught_log_variance / 2).exp()), Normal(mean, (log_variance / 2).exp())
    ).sum()
    pixels = kl_divergence(torch.distributions.Bernoulli(logits=wanted), torch.distributions.Bernoulli(logits=logits))
    torch.testing.assert_close(task.distil(outputs, taught), (codes + pixels.sum()) / 24)


def test_targets_of_generation_are_the_images():
    images, labels = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    assert Generation((1, 2, 2)).targets_of(images, labels) is images
    assert Classification(2).targets_of(images, labels) is labels
    assert Segmentation(2).targets_of(images, labels) is labels


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        ((2, 10), None, r"shape \(2, 10\), \(2, 12 \+ 2 \* latent\) was expected: an image of 3x2x2"),
        ((2, 15), None, r"shape \(2, 15\)"),
        ((2, 3, 2, 2), None, "Take a variational autoencoder for images of 3x2x2, such as netsmith:conv_vae"),
        ((2, 16), (2, 3, 4, 4), r"images of 3x2x2 were expected, these are \(3, 4, 4\)"),
    ],
)
def test_generation_that_does_not_fit(outputs, targets, message):
    with pytest.raises(TrainingError, match=message):
        Generation((3, 2, 2)).check(("a",), torch.zeros(outputs), None if targets is None else torch.zeros(targets))


def test_generation_refuses():
    outputs, images = generated()
    with pytest.raises(TrainingError, match="label_smoothing means nothing"):
        Generation((2, 2, 2)).loss(outputs, images, 0.1)
    with pytest.raises(TrainingError, match=r"cannot be compared with a teacher's of \(3, 14\)"):
        Generation((2, 2, 2)).distil(outputs, torch.zeros(3, 14))
    with pytest.raises(TrainingError, match=r"not \(1, 4, 0\)"):
        Generation((1, 4, 0))
