"""Keyframes: what is theirs, how training is divided, their training one by one, the repair of what lies between."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from morph_networks import tiny
from torch import nn

from netsmith.data.splits import open_data
from netsmith.errors import MorphError, TrainingError
from netsmith.morphing import keyframes
from netsmith.morphing.fit import FitSettings
from netsmith.morphing.grid import Grid
from netsmith.morphing.importance import channel_importance
from netsmith.morphing.keyframes import _mean, divide, own_tensors
from netsmith.morphing.ordering import order_channels
from netsmith.morphing.pipeline import morph
from netsmith.morphing.preparing import prepare, with_norms
from netsmith.morphing.repairing import probe_images, repair, repairable
from netsmith.morphing.saving import _undone, details_of
from netsmith.networks.network import load_source
from netsmith.training.engine import evaluate
from netsmith.training.finetuning import finetuned
from netsmith.training.settings import TrainSettings
from netsmith.training.tasks import Classification
from netsmith.widths.groups import entries, permute, relocate, resize

TRAINING = TrainSettings(epochs=4, batch_size=64, lr=0.05, warmup_epochs=0)


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


@pytest.fixture(scope="module")
def network(digits):
    """A small residual network that was trained."""
    from netsmith.training.engine import train

    found = load_source(
        "netsmith:cifar_resnet20", name="small", num_classes=10, input_size=(1, 8, 8), options={"widths": (8, 16, 16)}
    )
    train(found.model, digits, Classification(10), TRAINING, preprocess=found.preprocess)
    return found


@pytest.fixture(scope="module")
def result(network, digits):
    return morph(
        network,
        digits,
        space={"widths": (0.5, 1.0)},
        training=TRAINING,
        fitting=FitSettings(apart=0.75),
        ratios=(1.0, 0.5),
    )


def accuracy(result, ratio: float) -> float:
    module = result.model.morphable.module(result.space.at(ratio))
    found = evaluate(module, result.data.validation, result.task, preprocess=result.network.preprocess)
    return found["accuracy"]


def test_biases_and_the_classifier_are_the_keyframes_own(network):
    prepared = prepare(network)
    groups = list(prepared.groups.inner)
    model = prepared.model
    touched = {axis.tensor for group in groups for axis in group.axes}
    alone = own_tensors(model, groups, None)
    assert "layer3.2.conv2.bias" in alone
    assert not touched.intersection(alone)
    assert all(name.rpartition(".")[0] in {t.rpartition(".")[0] for t in touched} for name in alone)
    generated = touched.union(alone)
    layers = repairable(model, groups, generated)
    assert "layer1.0.conv1" in layers
    assert "layer3.2.conv2" in layers
    assert "layer1.0.conv2" not in repairable(model, groups, touched)


def test_what_runs_before_the_first_group_is_nobodys_own(result):
    own = result.model.morphable.generator.own
    assert "linear.bias" in own
    assert not any(name.startswith("conv1.") for name in own)
    assert result.model.morphable.splits


def test_groups_are_found_again_in_the_network_with_its_norms(network):
    prepared = prepare(network)
    groups = prepared.groups.inner
    found = with_norms(network, prepared, groups)
    assert found is not None
    model, same = found
    assert [(g.name, g.width) for g in same] == [(g.name, g.width) for g in groups]
    tensors = model.state_dict()
    assert all(torch.equal(value, tensors[name]) for name, value in network.model.state_dict().items())
    normed = {a.tensor for g in same for a in g.axes} - {a.tensor for g in groups for a in g.axes}
    assert "layer1.0.bn1.weight" in normed
    resize(model, same, {groups[0].name: 4})(prepared.example)
    strange = [replace(groups[0], name="elsewhere"), replace(groups[0], width=groups[0].width + 1)]
    assert all(with_norms(network, prepared, [group]) is None for group in strange)
    assert with_norms(network, prepare(network, fold=False), groups) is None


def small_grid(**settings) -> Grid:
    prepared = prepare(load_source(tiny().model, name="tiny", input_size=(1, 8, 8), num_classes=10))
    return Grid(prepared.model.state_dict(), tuple(prepared.groups), **settings)


@pytest.mark.parametrize(("epochs", "share", "left"), [(10, 0.9, 1), (10, 0.5, 5), (2, 0.9, 1), (4, 0.0, 4)])
def test_a_training_is_divided_among_the_keyframes(epochs, share, left):
    grid = small_grid(keyframes=(1.0, 0.75, 0.5, 0.25), inbetweens=(0.75,))
    training = TrainSettings(epochs=epochs, batch_size=50, warmup_epochs=1)
    apart = divide(grid, 5000, training, share)
    assert apart.each == training
    assert apart.together is not None
    assert apart.together.epochs == left
    if share:
        assert sum(apart.steps) == pytest.approx((epochs - left) * 100, abs=3)
        assert apart.steps[2] == pytest.approx(apart.steps[1], rel=0.15, abs=100)
        assert apart.steps[0] == pytest.approx(apart.steps[1] / 2, abs=60)
        assert apart.together.warmup_epochs == pytest.approx(left / epochs)
    else:
        assert apart.steps == ()


@pytest.mark.parametrize(
    ("epochs", "steps"),
    [(18, (100, 300, 100, 600, 100, 600)), (9, (39, 156, 39, 313, 39, 313)), (19, (100, 300, 100, 600, 100, 700))],
)
def test_steps_are_whole_epochs_where_that_is_near(epochs, steps):
    """Then the batches of a view are the same for all. 9 epochs would give one in between twice its share."""
    eighths = (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
    grid = small_grid(keyframes=eighths, inbetweens=(0.75, 0.875, 0.625, 0.375), coarse=None)
    found = divide(grid, 5000, TrainSettings(epochs=epochs, batch_size=50), 1.0).steps
    assert found == steps


@pytest.mark.parametrize(
    ("keyframes", "between", "steps"),
    [((1.0, 0.5, 0.25), 0.5, (900, 900)), ((1.0, 0.95, 0.9, 0.5, 0.25), 0.95, (100, 500, 600, 600))],
)
def test_one_in_between_has_no_more_steps_than_others_and_never_next_to_none(keyframes, between, steps):
    grid = small_grid(keyframes=keyframes, inbetweens=(between,))
    found = divide(grid, 5000, TrainSettings(epochs=20, batch_size=50), 0.9).steps
    assert found == steps


@pytest.mark.parametrize("inbetweens", [(0.3,), (1.0,), (0.25,), (0.5, 0.5)])
def test_what_is_in_between_has_two_around_it(inbetweens):
    with pytest.raises(MorphError, match="inbetweens are keyframes other than the first and the last"):
        small_grid(keyframes=(1.0, 0.75, 0.5, 0.25), inbetweens=inbetweens)


def test_without_a_coarse_set_all_steps_are_the_keyframes():
    grid = small_grid(keyframes=(1.0, 0.5), coarse=None)
    apart = divide(grid, 100, TrainSettings(epochs=1, batch_size=10), 0.9)
    assert apart.steps == (10,)
    assert apart.together is None
    assert divide(grid, 100, TrainSettings(epochs=1, batch_size=10), 0.0).steps == ()


def test_keyframes_are_trained_and_the_full_width_stays(result, network, digits):
    expected = evaluate(network.model, digits.validation, result.task, preprocess=network.preprocess)["accuracy"]
    assert expected > 0.9
    assert accuracy(result, 1.0) == pytest.approx(expected, abs=0.005)
    assert accuracy(result, 0.5) > 0.85
    assert result.seconds["keyframes"] > 0
    assert [ratio for ratio, _ in result.keyframes] == [0.5, 0.75, 0.875, 0.625]  # those in between come last
    told = details_of(result, 1).to_dict()["fit"]
    assert told["keyframes"] == 4
    assert told["keyframe_epochs"] == sum(len(course.history) for _, course in result.keyframes)
    assert told["epochs"] == told["keyframe_epochs"] + len(result.training.history)
    assert told["undone"] == []
    ratio, course = result.keyframes[0]
    worse = replace(result, keyframes=((ratio, replace(course, best_epoch=0)), *result.keyframes[1:]))
    assert details_of(worse, 1).to_dict()["fit"]["undone"] == ["0.5"]
    assert _undone(worse) == ["- training did not help and was undone: keyframe 0.5"]
    assert _undone(result) == []
    metrics = [next(iter(h["metric"])) for h in told["history"]]
    assert list(dict.fromkeys(metrics)) == ["0.5", "0.75", "0.875", "0.625", "coarse set"]


def test_repair_gives_the_widths_between_what_the_keyframes_have(result):
    """Without it, means of two networks are worse than either."""
    grid = result.model.morphable.generator
    repaired = [accuracy(result, ratio) for ratio in grid.between]
    plain = copy.deepcopy(result)
    for name, buffer in plain.model.morphable.generator.named_buffers():
        if name.startswith("repair/"):
            buffer.zero_()
    ends = min(accuracy(result, r) for r in grid.keyframes[-2:])
    assert [accuracy(plain, r) for r in grid.keyframes] == [accuracy(result, r) for r in grid.keyframes]
    unrepaired = [accuracy(plain, ratio) for ratio in grid.between]
    assert sum(repaired) > sum(unrepaired)
    assert min(repaired) > ends - 0.05


def test_repaired_outputs_have_the_means_and_deviations_of_their_neighbours(result):
    morphable, grid = result.model.morphable, result.model.morphable.generator
    images = result.network.preprocess(probe_images(result.data, (1, 8, 8), 0))
    layer = grid.repaired[-1]

    def output(ratio: float) -> torch.Tensor:
        module, found = morphable.module(grid.widths_at(ratio)), []
        module.get_submodule(layer).register_forward_hook(lambda m, i, out: found.append(out))
        with torch.no_grad():
            module(images)
        return found[0].transpose(0, 1).flatten(1)

    at = grid.between.index((grid.keyframes[-1] + grid.keyframes[-2]) / 2)
    high, low, middle = (output(r) for r in (grid.keyframes[-2], grid.keyframes[-1], grid.between[at]))
    share = torch.log(torch.tensor(grid.between[at] / grid.keyframes[-1]))
    share = share / torch.log(torch.tensor(grid.keyframes[-2] / grid.keyframes[-1]))
    for measure in (lambda x: x.mean(1), lambda x: x.std(1)):
        wanted = share * measure(high) + (1 - share) * measure(low)
        assert torch.allclose(measure(middle), wanted, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(("low", "at", "done"), [(0.5, 0.875, 0.5), (0.25, 0.25, 0.5)])
def test_a_run_that_was_stopped_between_two_keyframes_ends_the_same(network, digits, tmp_path, low, at, done):
    settings = {
        "space": {"widths": (low, 1.0)},
        "training": TRAINING,
        "fitting": FitSettings(apart=0.75),
        "ratios": (0.5,),
    }
    whole = morph(network, digits, **settings)
    assert whole.model.morphable.generator.inbetweens[:3] == (0.75, 0.875, 0.625)

    class Stop(Exception):
        pass

    def stop(what, count, total, note=""):
        if what == "training" and f"keyframe {at}" in note and count >= done * total:
            raise Stop

    with pytest.raises(Stop):
        morph(network, digits, checkpoints=tmp_path, progress=stop, **settings)
    assert (tmp_path / "keyframe-0.5").is_dir()
    assert (tmp_path / "keyframe-0.75").is_dir() == (at == 0.875)  # those in between come last
    again = morph(network, digits, checkpoints=tmp_path, **settings)
    a, b = (m.model.morphable.generator.state_dict() for m in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_channels_are_ranked_anew_in_each_trained_keyframe(network, digits, monkeypatch):
    """All networks that are there follow, alike, and the next takes the first channels of the last one's rank."""
    ranked_anew, seen = keyframes._ranked_anew, []

    def watched(grid, groups, made, lowest, images, moved, device):
        if not seen:
            seen.append(copy.deepcopy(made[1.0]))
        batches, before = list(images), copy.deepcopy(made)
        found = ranked_anew(grid, groups, made, lowest, batches, moved, device)
        scores = channel_importance(made[lowest], relocate(groups, grid.widths_at(lowest)), batches)
        assert all((s[:-1] >= s[1:]).all() for s in scores.values())
        for ratio, model in before.items():
            for group in relocate(groups, grid.widths_at(ratio)):
                rank = [moved[group.name].index(k) for k in found[group.name][: group.width]]
                assert rank[len(scores[group.name]) :] == list(range(len(scores[group.name]), group.width))
                permute(model, group, rank)
            assert_same(model, made[ratio])
        origin = copy.deepcopy(seen[0])
        for group in groups:
            permute(origin, group, found[group.name])
        assert_same(origin, made[1.0])
        seen.append((lowest, sorted(made)))
        return found

    monkeypatch.setattr(keyframes, "_ranked_anew", watched)
    settings = {"keyframes": [1.0, 0.75, 0.5, 0.25]}
    made = morph(
        network, digits, space={"widths": (0.25, 1.0)}, generator={"settings": settings}, training=TRAINING,
        fitting=FitSettings(apart=0.75),
        ratios=(1.0, 0.5),
    )  # fmt: skip
    assert seen[1:] == [(0.75, [0.75, 1.0]), (0.5, [0.5, 0.75, 1.0])]
    x = network.preprocess(digits.test.images(list(range(32))))
    assert torch.allclose(made.model.at(1.0)(x), network.model.eval()(x), rtol=1e-3, atol=1e-4)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    tensors = b.state_dict()
    assert all(torch.equal(value, tensors[name]) for name, value in a.state_dict().items())


@pytest.fixture(scope="module")
def down_to_a_quarter(network, digits):
    return morph(
        network,
        digits,
        space={"widths": (0.25, 1.0)},
        training=TRAINING,
        fitting=FitSettings(apart=0.75),
        ratios=(1.0, 0.5),
    )


def test_the_order_of_channels_that_is_kept_is_the_last_one(down_to_a_quarter, network, digits):
    """Reordered by what the artifact keeps, a folded copy of the base has the weights of the grid's full width."""
    result, prepared, first = down_to_a_quarter, prepare(network), prepare(network)
    for group in result.space.groups:
        permute(prepared.model, group, result.ordered.orders[group.name])
    base, grid = prepared.model.state_dict(), result.model.morphable.generator
    assert all(torch.equal(value, base[name]) for name, value in grid(result.space.full).items())
    assert_same(result.model.morphable.base, prepared.model)
    told = {g.name: g.after for g in result.ordered.groups}
    for group in result.space.groups:
        rows = entries(base, group)
        assert told[group.name] == pytest.approx(float((rows[1:] - rows[:-1]).double().abs().sum()), rel=1e-5)
    at_first = order_channels(first.model, result.space, network, digits)
    assert at_first.orders != result.ordered.orders
    assert at_first.groups != result.ordered.groups


def test_each_keyframe_goes_on_with_the_views_after_those_of_the_one_before_it(network, digits, monkeypatch):
    began, own = [], keyframes.finetuned

    def told(*args, **kwargs):
        began.append((kwargs["called"], kwargs["first_view"]))
        return own(*args, **kwargs)

    monkeypatch.setattr(keyframes, "finetuned", told)
    made = morph(
        network,
        digits,
        space={"widths": (0.25, 1.0)},
        training=TRAINING,
        fitting=FitSettings(apart=0.75, views=4),
        ratios=(1.0,),
    )
    epochs = [len(course.history) for _, course in made.keyframes]
    assert began == [(f"keyframe {r:g}", sum(epochs[:k]) % 4) for k, (r, _) in enumerate(made.keyframes)]
    assert sum(epochs) > 4


def test_an_order_that_was_asked_for_stays(network, digits):
    made = morph(
        network, digits, space={"widths": (0.25, 1.0)}, order="none", training=TRAINING,
        fitting=FitSettings(apart=0.75),
        ratios=(1.0,),
    )  # fmt: skip
    assert made.keyframes
    assert all(order == tuple(range(len(order))) for order in made.ordered.orders.values())


def test_what_is_in_between_begins_as_the_mean_of_its_neighbours():
    network = load_source(tiny().model, name="tiny", input_size=(1, 8, 8), num_classes=10)
    prepared = prepare(network)
    grid = Grid(prepared.model.state_dict(), tuple(prepared.groups), keyframes=(1.0, 0.75, 0.5), inbetweens=(0.75,))
    groups = grid.groups
    low = resize(prepared.model, groups, grid.widths_at(0.5))
    with torch.no_grad():
        for p in low.parameters():
            p.add_(1.0)
    made = {1.0: prepared.model, 0.5: low}
    found = _mean(grid, groups, made, 1.0, 0.5, 0.75).state_dict()
    plain = resize(prepared.model, groups, grid.widths_at(0.75)).state_dict()
    share = torch.log(torch.tensor(1 / 0.75)) / torch.log(torch.tensor(2.0))
    for name, narrow in low.state_dict().items():
        inside = tuple(slice(n) for n in narrow.shape)
        moved = found[name].float() - plain[name].float()
        if narrow.is_floating_point():
            assert torch.allclose(moved[inside], share.expand_as(moved[inside]), atol=1e-5), name
            moved[inside] = 0
        assert not moved.any(), name


class Joined(nn.Module):
    """Two groups of channels side by side in one convolution, and a layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.a, self.b = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.both = nn.Conv2d(16, 6, 1)
        self.same = self.both
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = self.same(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1))
        return self.head(x.mean((2, 3)))


def test_the_mean_of_two_networks_moves_each_channel_where_it_lies_and_once():
    prepared = prepare(load_source(Joined(), name="joined", input_size=(1, 8, 8), num_classes=10))
    groups = [g for g in prepared.groups if g.width == 8]
    assert len(groups) == 2
    grid = Grid(prepared.model.state_dict(), tuple(groups), keyframes=(1.0, 0.75, 0.5), inbetweens=(0.75,))
    low = resize(prepared.model, groups, grid.widths_at(0.5))
    with torch.no_grad():
        low.get_parameter("both.weight").add_(1.0)
        low.get_parameter("stem.weight").add_(1.0)
    found = _mean(grid, groups, {1.0: prepared.model, 0.5: low}, 1.0, 0.5, 0.75)
    plain = resize(prepared.model, groups, grid.widths_at(0.75))
    moved = {n: (found.state_dict()[n] - v)[0].flatten(1) for n, v in plain.state_dict().items() if v.ndim == 4}
    share = math.log(1 / 0.75) / math.log(2)
    told = torch.tensor([share, share, share, share, 0, 0] * 2)[:, None]  # four of six channels of either
    assert torch.allclose(moved["both.weight"], told, atol=1e-5)
    assert torch.allclose(moved["same.weight"], told, atol=1e-5)
    assert torch.allclose(moved["stem.weight"], torch.tensor(share), atol=1e-5)
    assert not moved["a.weight"].any()


def test_training_that_makes_a_network_worse_is_undone(network, digits, caplog):
    training = TRAINING.model_copy(update={"epochs": 1, "lr": 5.0})
    student = copy.deepcopy(network.model)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = finetuned(student, network, digits, Classification(10), training, 20, called="keyframe 0.5")
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    measured = evaluate(network.model, digits.validation, Classification(10), preprocess=network.preprocess)
    assert (found.best_epoch, found.metrics) == (0, measured)
    assert found.history[0]["accuracy"] < measured["accuracy"] - 0.1
    assert "keyframe 0.5: training made it worse on validation (accuracy " in caplog.text
    assert "it stays as it was. Lower training.lr, set training.clip_grad or add training.warmup_epochs" in caplog.text
    caplog.clear()
    assert finetuned(student, network, digits, Classification(10), TRAINING, 20).best_epoch > 0
    assert not caplog.records


def test_a_loss_that_is_not_finite_says_which_keyframe_it_is_of(network, digits):
    training = TRAINING.model_copy(update={"lr": 1e30})
    with pytest.raises(TrainingError, match=r"^keyframe 0\.5: the loss at step \d+ of \d+ of epoch 1 is "):
        morph(network, digits, space={"widths": (0.5, 1.0)}, training=training, ratios=(1.0,))


def test_mixed_images_are_refused_before_a_keyframe_is_trained(network, digits):
    seen = []
    mixed = TRAINING.model_copy(update={"mixup": 0.2})
    with pytest.raises(MorphError, match="leave mixup and cutmix 0"):
        morph(
            network, digits, space={"widths": (0.5, 1.0)}, training=mixed, ratios=(1.0,),
            progress=lambda what, done, total, note="": seen.append(what),
        )  # fmt: skip
    assert "training" not in seen


def test_draws_that_would_not_be_drawn_are_refused(network, digits):
    fitting = FitSettings(draws=("random", "low"))
    with pytest.raises(MorphError, match=r"fitting\.draws \(random, low\) would not be drawn.*fitting\.apart: 0"):
        morph(network, digits, training=TRAINING, fitting=fitting, ratios=(1.0,))


def test_layers_without_a_generated_bias_cannot_be_repaired():
    with pytest.raises(MorphError, match="repaired names 'nowhere'"):
        small_grid(repaired=["nowhere"])
    prepared = prepare(load_source(tiny().model, name="tiny", input_size=(1, 8, 8), num_classes=10))
    layer = repairable(prepared.model, list(prepared.groups), set(prepared.model.state_dict()))[0]
    with pytest.raises(MorphError, match="names a layer twice"):
        small_grid(repaired=[layer, layer])


def test_a_layer_that_runs_twice_is_left_alone(digits):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 8, 3, padding=1)
            self.first = nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Linear(8, 10)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            x = torch.relu(self.first(torch.relu(self.first(x))))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    made = morph(
        load_source(Twice(), name="twice", input_size=(1, 8, 8), num_classes=10, mean=(0.5,), std=(0.5,)), digits,
        space={"widths": (0.5, 1.0), "streams": True}, training=None, ratios=(1.0,),
    )  # fmt: skip
    grid = made.model.morphable.generator
    repair(grid, made.model.morphable.module, torch.rand(32, 1, 8, 8))
    factors = {layer: [grid._set_of(i, layer)[0] for i in range(len(grid.between))] for layer in grid.repaired}
    assert "first" in factors
    assert not any(found.any() for found in factors["first"])
