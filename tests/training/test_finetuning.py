"""Fine-tuning on digits: how many steps, the loss, and what teachers remember."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from netsmith.data.splits import MemoryImages, Splits, open_data
from netsmith.errors import MorphError
from netsmith.models import CifarResNet, PlainCNN
from netsmith.morphing.fit import FitSettings, Fitting
from netsmith.morphing.kinds import make_generator
from netsmith.morphing.morphable import Morphable
from netsmith.morphing.pipeline import morph
from netsmith.networks.network import load_source
from netsmith.training import finetuning
from netsmith.training.engine import Step, TrainSettings, train
from netsmith.training.finetuning import Distilling, Teacher, finetuned, lesson, optimizer_steps
from netsmith.training.tasks import Classification

TASK = Classification(10)
TRAINING = TrainSettings(epochs=3, batch_size=64, lr=0.05)


def load(model, size=(1, 8, 8)):
    return load_source(model, num_classes=10, input_size=size, mean=(0.3,), std=(0.35,))


@pytest.fixture(scope="module")
def digits():
    whole = open_data("digits")
    parts = {"train": 384, "validation": 80, "test": 96}
    sets = {name: getattr(whole, name).subset(range(n)) for name, n in parts.items()}
    return Splits("digits", fingerprint="some digits", **sets)


@pytest.fixture(scope="module")
def network(digits):
    """A residual network, trained a little, so that its channels and batch norms differ."""
    torch.manual_seed(0)
    found = load(CifarResNet(8, in_channels=1, image_size=8, widths=(6, 8, 12)))
    train(found.model, digits, TASK, TRAINING, preprocess=found.preprocess)
    return found


@pytest.fixture(scope="module")
def morphed(network, digits):
    return morph(network, digits, ratios=(1.0, 0.5, 0.25), order={"images": 128})


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def numbered(images):
    """Splits whose training labels number the images."""
    part = MemoryImages(torch.zeros(images, 1, 1, 1, dtype=torch.uint8), torch.arange(images), tuple("ab"))
    return Splits("numbered", part, part, part, f"{images} images")


@settings(deadline=None)
@given(
    steps=st.integers(1, 700),
    images=st.integers(1, 300),
    batch=st.integers(1, 40),
    accumulate=st.integers(1, 3),
)
def test_steps_are_met_within_two_percent(steps, images, batch, accumulate):
    data = numbered(images)
    training = TrainSettings(epochs=10, batch_size=batch, accumulate=accumulate, warmup_epochs=2.5, lr=0.3)
    each = optimizer_steps(images, training)
    lessons, chosen = lesson(data, training, steps)
    made = chosen.epochs * optimizer_steps(len(lessons.train), chosen)
    assert abs(made - steps) <= 0.02 * steps
    assert chosen.warmup_epochs / chosen.epochs == pytest.approx(0.25)
    assert chosen.model_copy(update={"epochs": 10, "warmup_epochs": 2.5}) == training
    counts = Counter(lessons.train.labels.tolist())
    if steps >= each:
        assert len(counts) == images  # none is left out
        assert max(counts.values()) - min(counts.values()) <= 1
    else:
        assert max(counts.values()) == 1
    if steps % each == 0:
        assert (lessons, chosen.epochs) == (data, steps // each)
    assert (lessons.fingerprint == data.fingerprint) == (lessons.train is data.train)
    assert lesson(data, training, steps)[0].train.labels.equal(lessons.train.labels)


def test_as_many_steps_as_promised_are_made(network, digits):
    totals = set()
    result = finetuned(
        copy.deepcopy(network.model), network, digits, TASK, TRAINING, 8,
        progress=lambda what, done, total, note="": totals.add(total),
    )  # fmt: skip
    assert totals == {8}
    assert len(result.history) == 1
    with pytest.raises(MorphError, match="number of steps must be at least 1, not 0"):
        finetuned(network.model, network, digits, TASK, TRAINING, 0)
    with pytest.raises(MorphError, match=r"distillation in the loss is 0 to 1, not 1\.5"):
        finetuned(network.model, network, digits, TASK, TRAINING, 1, distillation=1.5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_fitting(morphed, digits, smoothing):
    base, space = copy.deepcopy(morphed.prepared.model), morphed.space
    nested = Morphable(base, space, make_generator("nested", base.state_dict(), space.groups))
    images = morphed.network.preprocess(digits.train.images(range(16)))
    labels, step = digits.train.labels[:16], Step(0, 1, 0, 0)
    shares = FitSettings(draws=("low",), distillation=0.3, temperature=3.0)
    fitting = Fitting(TASK, shares, 0, (1.0,), smoothing).loss(nested, images, labels, step)
    plain = nested.module(space.low)
    ours = Distilling(TASK, Teacher(morphed.prepared.model), 0.3, 3.0, None, None, smoothing).loss(
        plain, images, labels, step
    )
    assert float(ours.detach()) == pytest.approx(float(fitting.detach()), rel=1e-5)
    assert ours.requires_grad
    outputs, taught = plain(images), morphed.prepared.model(images)
    expected = 0.7 * F.cross_entropy(outputs, labels, label_smoothing=smoothing) + 0.3 * TASK.distil(
        outputs, taught, 3.0
    )
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


class Counting(nn.Module):
    """Counts its forward passes over all copies."""

    calls = 0

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        Counting.calls += 1
        return self.model(x)


@pytest.mark.parametrize(("mixup", "room", "calls"), [(0.0, True, 12), (0.2, True, 48), (0.0, False, 48)])
def test_the_teacher_runs_once_on_a_batch_of_a_view(network, digits, monkeypatch, mixup, room, calls):
    monkeypatch.setattr(Counting, "calls", 0)
    if not room:
        monkeypatch.setattr(finetuning, "_REMEMBERED_BYTES", 0)
    teacher = Teacher(Counting(network.model))
    training = TRAINING.model_copy(update={"augment": True, "mixup": mixup})
    student = load(PlainCNN(10, 1, 8, (2,), 1)).model
    before = copy.deepcopy(student.state_dict())
    for _ in range(2):  # 2 x 4 epochs of 6 batches, 2 views
        result = finetuned(student, network, digits, TASK, training, 24, teacher=teacher, views=2)
    assert Counting.calls == calls
    assert len(result.history) == 4
    assert not same(student.state_dict(), before)


def test_a_teacher_that_is_shared_teaches_as_one_alone(network, digits):
    shared = Teacher(network.model)
    states = []
    for teacher in (shared, shared, network.model):
        student = copy.deepcopy(network.model)
        finetuned(student, network, digits, TASK, TRAINING, 13, teacher=teacher, views=2)
        states.append(student.state_dict())
    assert same(states[0], states[1])
    assert same(states[0], states[2])
