from __future__ import annotations

import pytest
import torch

from netsmith.core.tasks import Classification, Task
from netsmith.errors import TrainingError


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
