"""Rivals of morphing on digits: sizes, what they learn from, how many steps, and what is kept."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from netsmith.data.splits import MemoryImages, Splits, batches, open_data
from netsmith.errors import MorphError
from netsmith.models import CifarResNet, LeNet, PlainCNN, SmallViT
from netsmith.morphing import finetuning, pipeline
from netsmith.morphing import rivals as module
from netsmith.morphing.finetuning import Distilling, Teacher, lesson, optimizer_steps
from netsmith.morphing.fit import FitSettings, Fitting
from netsmith.morphing.generator import make_generator
from netsmith.morphing.morphable import Morphable
from netsmith.morphing.pipeline import morph
from netsmith.morphing.preparing import prepare
from netsmith.morphing.rivals import finetuned, fresh, pruned, rivals
from netsmith.morphing.space import morph_space
from netsmith.networks.network import load_source
from netsmith.records.morphing import Details
from netsmith.trace.cost import count_macs, count_params
from netsmith.training.engine import Step, TrainSettings, train
from netsmith.training.tasks import Classification
from netsmith.widths.folding import fold_batch_norms
from netsmith.widths.groups import width_groups

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
def space(network):
    return morph_space(prepare(network).groups)


@pytest.fixture(scope="module")
def morphed(network, digits):
    return morph(network, digits, ratios=(1.0, 0.5, 0.25), importance_images=128)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


# --- pruning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["l1", "taylor"])
def test_the_widths_asked_for_are_reached_exactly(network, space, digits, by):
    before = copy.deepcopy(network.model.state_dict())
    widths = {"layer1.0.conv1": 1, "layer2.0.conv1": 5, "layer3.0.conv1": 12}
    found = pruned(network, space, widths, by=by, data=digits, task=TASK, images=64)
    assert [found.get_submodule(name).out_channels for name in widths] == [1, 5, 12]
    assert isinstance(found.layer2[0].bn1, nn.BatchNorm2d)
    assert found.layer2[0].bn1.num_features == found.layer2[0].conv2.in_channels == 5
    assert found.layer2[0].conv2.out_channels == 8
    assert all(p.grad is None and p.requires_grad for p in found.parameters())
    assert not found.training
    assert same(network.model.state_dict(), before)
    assert all(p.grad is None for p in network.model.parameters())


@pytest.mark.parametrize("ratio", [0.8, 0.5, 0.1])
def test_folded_it_has_the_parameters_of_the_morphed_network(morphed, digits, ratio):
    widths = morphed.space.at(ratio)
    found = pruned(morphed.network, morphed.space, widths, by="l1", data=digits, task=TASK)
    folded = fold_batch_norms(found, morphed.prepared.example)
    assert (count_params(folded), count_macs(folded, (1, 8, 8))) == morphed.model.sizes(widths)
    norms = [m.num_features for m in found.modules() if isinstance(m, nn.BatchNorm2d)]
    assert count_params(found) == count_params(folded) + sum(norms)  # weight and bias of a norm for one bias


def test_l1_keeps_the_channels_of_the_largest_norm_over_the_whole_group(network, space, digits):
    block = network.model.layer3[0]
    scores = block.conv1.weight.abs().sum((1, 2, 3)) + block.bn1.weight.abs() + block.conv2.weight.abs().sum((0, 2, 3))
    kept = scores.topk(4).indices.sort().values
    found = pruned(network, space, {"layer3.0.conv1": 4}, by="l1", data=digits, task=TASK).layer3[0]
    assert torch.equal(found.conv1.weight, block.conv1.weight[kept])
    assert torch.equal(found.bn1.running_mean, block.bn1.running_mean[kept])
    assert torch.equal(found.conv2.weight, block.conv2.weight[:, kept])


def test_taylor_keeps_the_channels_on_which_the_loss_depends_most(network, space, digits):
    model = copy.deepcopy(network.model)
    for images, labels in list(batches(digits.train, 64, shuffle=True, seed=5))[:2]:
        nn.functional.cross_entropy(model(network.preprocess(images)), labels).backward()
    first, second = [c.weight * c.weight.grad for c in (model.layer3[0].conv1, model.layer3[0].conv2)]
    scores = first.abs().sum((1, 2, 3)) + second.abs().sum((0, 2, 3))
    kept = scores.topk(5).indices.sort().values
    widths = {"layer3.0.conv1": 5}
    found = pruned(network, space, widths, by="taylor", data=digits, task=TASK, seed=5, images=128)
    assert torch.equal(found.layer3[0].conv1.weight, network.model.layer3[0].conv1.weight[kept])


def test_layers_that_follow_one_another_and_flattened_ones(digits):
    for model, size in ((PlainCNN(10, 1, 8, (6, 8), 2), (1, 8, 8)), (LeNet(10, 1, 32), (1, 32, 32))):
        network = load(model, size)
        space = morph_space(prepare(network).groups)
        widths = {name: k + 1 for k, name in enumerate(space.names)}
        found = pruned(network, space, widths, by="l1", data=digits, task=TASK)
        layers = [found.get_submodule(name) for name in space.names]
        assert [getattr(m, "out_channels", getattr(m, "out_features", 0)) for m in layers] == list(widths.values())
        assert found(torch.zeros(2, *size)).shape == (2, 10)


def test_what_cannot_be_pruned_is_said(network, space, digits):
    def cut(widths, where=space, what=network):
        return pruned(what, where, widths, by="l1", data=digits, task=TASK)

    with pytest.raises(MorphError, match=r"pruning only removes: 'layer1.0.conv1' has 6 channels, 7 were asked for"):
        cut({"layer1.0.conv1": 7})
    with pytest.raises(MorphError, match=r"no group of the morph space is called 'layer1.0.conv2'"):
        cut({"layer1.0.conv2": 3})
    odd = replace(space, groups=(replace(space.groups[0], name="layer1.0"),))
    with pytest.raises(
        MorphError, match=r"the group 'layer1.0' of 6 channels is a BasicBlock of None outputs: leave it"
    ):
        cut({"layer1.0": 3}, odd)
    short = replace(space, groups=(replace(space.groups[0], axes=space.groups[0].axes[:1]),))
    with pytest.raises(MorphError, match=r"gave layer1.0.conv1.bias the shape \(3,\), .* has \(6,\) there: leave that"):
        cut({"layer1.0.conv1": 3}, short)
    vit = load(SmallViT(10, 1, 8, dim=12, depth=1))
    heads = morph_space(prepare(vit).groups)
    with pytest.raises(MorphError, match=r"'blocks.0.attn.qkv' of 3 channels is a Linear of 36 outputs"):
        cut({"blocks.0.attn.qkv": 1}, heads, vit)
    assert cut({"blocks.0.mlp.0": 7}, heads, vit).blocks[0].mlp[0].out_features == 7


def test_an_error_inside_torch_pruning_names_the_group(network, space, digits, monkeypatch):
    import torch_pruning

    def broken(*_):
        raise KeyError("conv")

    monkeypatch.setattr(torch_pruning.DependencyGraph, "get_pruning_group", broken)
    with pytest.raises(MorphError, match=r"cannot prune 'layer2.0.conv1' \(KeyError: 'conv'\)") as caught:
        pruned(network, space, {"layer2.0.conv1": 3}, by="l1", data=digits, task=TASK)
    assert isinstance(caught.value.__cause__, KeyError)


# --- random weights ---------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A layer, its norm, and parameters that no layer draws."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)
        self.token = nn.Parameter(torch.full((1, 10), 7.0))
        self.gamma = nn.Parameter(torch.full((10,), 7.0))

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu()) * self.gamma + self.token


def test_fresh_weights_have_nothing_of_the_old_ones():
    model = Scaled()
    nn.init.constant_(model.first.weight, 3.0)
    model.norm.running_mean.fill_(9.0)
    groups = width_groups(model, torch.randn(2, 4)).accepted
    state = torch.get_rng_state()
    found = fresh(model, groups, {"first": 5}, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.first.weight.shape == (5, 4)
    assert float(found.first.weight.detach().abs().max()) <= 0.5  # 1 / sqrt(fan-in)
    assert not found.norm.running_mean.any()
    assert found.gamma.tolist() == [1.0] * 10
    assert 0 < float(found.token.detach().abs().max()) < 0.1
    assert same(found.state_dict(), fresh(model, groups, {"first": 5}, seed=1).state_dict())
    other = fresh(model, groups, {"first": 5}, seed=2)
    assert not torch.equal(found.first.weight, other.first.weight)
    assert float(model.first.weight.detach().min()) == 3.0


# --- fine-tuning ------------------------------------------------------------------------------------------------------


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


# --- the comparison ---------------------------------------------------------------------------------------------------

EVERY = ("nested", "l1", "taylor", "alone")


def compare(result, which=EVERY, steps=6, each=True, **more):
    return rivals(result, which, steps, each, training=TRAINING, images=64, **more)


def timeless(found):
    return [{k: v for k, v in rival.items() if k != "seconds"} for rival in found]


@pytest.fixture(scope="module")
def finished(morphed, tmp_path_factory):
    """All rivals, the folder that keeps them, and on how often the test part was read."""
    folder = tmp_path_factory.mktemp("rivals")
    read: list[object] = []
    real = pipeline.evaluate
    with pytest.MonkeyPatch.context() as patch:

        def evaluate(model, images, *args, **kwargs):
            read.append(images)
            return real(model, images, *args, **kwargs)

        patch.setattr(pipeline, "evaluate", evaluate)
        found = compare(morphed, cache=folder)
    return found, folder, sum(images is morphed.data.test for images in read)


def test_rivals_stand_at_the_sizes_of_the_morphed_network(morphed, finished):
    found, _, test_reads = finished
    assert [(r["name"], r["note"], r["steps"]) for r in found] == [
        ("nested", "same total of steps", 6),
        ("Torch-Pruning L1", "same total of steps", 3),
        ("Torch-Pruning L1", "these steps for each size", 6),
        ("Torch-Pruning Taylor", "same total of steps", 3),
        ("Torch-Pruning Taylor", "these steps for each size", 6),
        ("trained alone", "one network a size, from random weights", 6),
    ]
    sizes = {p.ratio: (p.params, p.macs) for p in morphed.points}
    for rival in found:
        assert [p["ratio"] for p in rival["points"]] == ([1.0, 0.5, 0.25] if rival["name"] == "nested" else [0.5, 0.25])
        assert rival["seconds"] > 0
        for p in rival["points"]:
            assert (p["params"], p["macs"]) == sizes[p["ratio"]]
            assert set(p["accuracy"]) == {"validation", "test"}
            assert 0 <= p["accuracy"]["test"] <= 1
            assert p["steps"] == rival["steps"]
    assert test_reads == sum(len(r["points"]) for r in found)
    empty = {key: {} for key in ("base", "task", "space", "generator", "artifact", "seconds", "machine", "versions")}
    Details(**empty, floor=None, smooth=None, fit=None, widths=[], rivals=found)


def test_a_second_comparison_computes_nothing(morphed, finished, monkeypatch):
    found, folder, _ = finished

    def forbidden(*_, **__):
        raise AssertionError("this was computed before")

    for name in ("finetuned", "fit", "pruned", "fresh", "with_norms", "evaluate"):
        monkeypatch.setattr(pipeline if name == "evaluate" else module, name, forbidden)
    assert compare(morphed, cache=folder) == found
    assert not any((folder / "checkpoints").iterdir())
    only = compare(morphed, ("alone", "nested"), cache=folder)
    assert only == [found[-1], found[0]]
    with pytest.raises(AssertionError, match="computed before"):
        rivals(morphed, ("l1",), 6, training=TRAINING.model_copy(update={"lr": 0.06}), images=64, cache=folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "steps", "after", "left", "told"),
    [
        ("l1", 24, 9, 21, "Torch-Pruning L1 at 0.5"),  # in the second epoch of the first of two networks
        ("alone", 12, 23, 7, "trained alone at 0.5"),  # in the second epoch of the second
        ("nested", 12, 9, 7, "nested"),
    ],
)
def test_an_interrupted_comparison_goes_on(morphed, tmp_path, kind, steps, after, left, told):
    notes = []

    def stop(what, done, total, note=""):
        notes.append(note)
        if len(notes) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(morphed, (kind,), steps, False, cache=tmp_path, progress=stop)
    assert any((tmp_path / "checkpoints").iterdir())
    assert notes[0] == told
    assert notes[6].startswith(f"{told}. epoch 1: accuracy")
    again = []
    found = compare(
        morphed, (kind,), steps, False, cache=tmp_path, progress=lambda what, done, total, note="": again.append(done)
    )
    assert len(again) == left
    assert timeless(found) == timeless(compare(morphed, (kind,), steps, False))
    assert not any((tmp_path / "checkpoints").iterdir())


def test_networks_that_keep_their_norms(network, digits):
    result = morph(network, digits, norms="keep", ratios=(0.5,), importance_images=64, order="none")
    found = compare(result, ("l1", "alone"), 1, False)
    for rival in found:
        assert [(p["ratio"], p["params"]) for p in rival["points"]] == [(0.5, result.points[0].params)]


@pytest.mark.slow
def test_nested_takes_the_most_important_channels_whatever_the_order_of_the_result(network, digits, morphed):
    smooth = morph(network, digits, order="smooth", ratios=(0.5,), importance_images=128)
    bench = module.Bench(smooth, TRAINING, FitSettings(), TRAINING, 128)
    wanted = module.Bench(morphed, TRAINING, FitSettings(), TRAINING, 128)
    x = morphed.prepared.example
    one, other = [b._nested().module(morphed.space.at(0.5))(x) for b in (bench, wanted)]
    assert torch.allclose(one, other, atol=1e-5)
    assert not torch.allclose(one, smooth.prepared.model(x), atol=1e-2)


def test_what_is_asked_of_rivals_is_checked(morphed, space, digits, network):
    with pytest.raises(MorphError, match=r"there is no rival 'nestd'. Did you mean 'nested'\?"):
        compare(morphed, ("l1", "nestd"))
    with pytest.raises(MorphError, match="1 steps cannot be shared among 2 sizes"):
        compare(morphed, ("l1",), 1)
    with pytest.raises(MorphError, match="ratios below 1, and the result has none"):
        compare(replace(morphed, points=morphed.points[:1]))
    vit = load(SmallViT(10, 1, 8, dim=12, depth=1))
    heads = morph(vit, digits, ratios=(0.34,), importance_images=64)
    with pytest.raises(MorphError, match=r"'blocks.0.attn.qkv' of 3 channels is a Linear"):
        compare(heads, ("nested", "l1"))
    alone = compare(heads, ("alone",), 1)
    assert alone[0]["points"][0]["params"] == heads.points[0].params
    assert math.isfinite(alone[0]["seconds"])
