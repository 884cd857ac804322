from __future__ import annotations

import pytest
import torch
from morph_networks import morphable, tiny

from netsmith.data.images import derived_seed
from netsmith.data.splits import Splits, open_data
from netsmith.errors import MorphError, TrainingError
from netsmith.morphing.fit import FitSettings, Fitting, fit, reconstruction
from netsmith.morphing.generator import Nested
from netsmith.morphing.grid import Grid
from netsmith.morphing.importance import by_importance, channel_importance
from netsmith.morphing.morphable import Morphable
from netsmith.morphing.preparing import prepare
from netsmith.morphing.space import morph_space
from netsmith.training.engine import Step, evaluate, train
from netsmith.training.settings import TrainSettings
from netsmith.training.tasks import Classification

TASK = Classification(10)
TRAINING = TrainSettings(epochs=2, batch_size=64, lr=0.02, ema=0.9, clip_grad=2.0, augment=False)


@pytest.fixture(scope="module")
def digits() -> Splits:
    return open_data("digits")


def grid():
    return morphable(Grid, keyframes=(1.0, 0.5, 0.25), coarse=0.125)


@pytest.mark.slow
def test_fitting_makes_narrow_networks_better(digits):
    network = tiny()
    trained = TrainSettings(epochs=4, batch_size=32, optimizer="adamw", lr=0.01, schedule="onecycle")
    train(network.model, digits, TASK, trained, preprocess=network.preprocess)
    made = morphable(Nested, network)

    def at_half() -> float:
        with made.at_widths(made.space.at(0.5)):
            return evaluate(made, digits.validation, TASK, preprocess=network.preprocess)["accuracy"]

    before = at_half()
    longer = TRAINING.model_copy(update={"epochs": 8, "batch_size": 32})
    draws = FitSettings(draws=("random", "low"))
    result = fit(made, digits, TASK, draws, longer, preprocess=network.preprocess)
    last = result.history[-1]
    assert at_half() > before + 0.1
    assert {"accuracy@1", "accuracy@0.625", "accuracy@0.25"} <= set(last)
    assert last["accuracy"] == pytest.approx(sum(last[f"accuracy@{r}"] for r in ("1", "0.625", "0.25")) / 3)


def test_only_the_generator_changes(digits):
    made = grid()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    fit(made, digits, TASK, FitSettings(), TRAINING, preprocess=tiny().preprocess)
    after = made.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("generator.") and "anchor" not in name for name in changed)


class Stop(Exception):
    pass


def test_a_fit_that_was_stopped_ends_as_one_that_was_not(digits, tmp_path):
    network = tiny()
    whole = grid()
    fit(whole, digits, TASK, FitSettings(noise=0.5), TRAINING, preprocess=network.preprocess)

    def stop(entry):
        raise Stop

    broken = grid()
    arguments = {"preprocess": network.preprocess, "checkpoint_dir": tmp_path / "c"}
    with pytest.raises(Stop):
        fit(broken, digits, TASK, FitSettings(noise=0.5), TRAINING, on_epoch=stop, **arguments)
    resumed = grid()
    result = fit(resumed, digits, TASK, FitSettings(noise=0.5), TRAINING, **arguments)
    assert result.resumed_from == 1
    a, b = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_of_other_settings_is_refused(digits, tmp_path):
    network = tiny()
    arguments = {"preprocess": network.preprocess, "checkpoint_dir": tmp_path / "c"}
    short = TRAINING.model_copy(update={"epochs": 1})
    fit(grid(), digits, TASK, FitSettings(), short, **arguments)
    with pytest.raises(TrainingError, match="is of another run"):
        fit(grid(), digits, TASK, FitSettings(distillation=0.9), short, **arguments)


def test_a_loss_that_is_not_finite_says_step_and_widths(digits):
    made = morphable(Nested)
    with torch.no_grad():
        next(made.generator.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"loss at step 1 of \d+ is nan, at widths features\.0\.0 \d+ of 8"):
        fit(made, digits, TASK, FitSettings(), TRAINING, preprocess=tiny().preprocess)


def test_features_and_teacher_are_computed_once_a_batch(digits):
    network = tiny()
    made = morphable(Nested, network)
    objective = Fitting(TASK, FitSettings(views=1), 0, (1.0,))
    seen = []
    original = made.teacher
    made.teacher = lambda features: seen.append(1) or original(features)  # pyright: ignore[reportAttributeAccessIssue]
    images, labels = network.preprocess(digits.train.images([0, 1, 2])), digits.train.labels[:3]
    losses = [float(objective.loss(made, images, labels, Step(0, 10, 0, 0)).detach()) for _ in range(3)]
    assert len(seen) == 1
    assert losses[0] == losses[1] == losses[2]
    objective.loss(made, images, labels, Step(1, 10, 0, 1))
    assert len(seen) == 2


def test_blockwise_later_groups_wait_at_full_width():
    made = morphable(Nested)
    objective = Fitting(TASK, FitSettings(blockwise=0.5), 0, (1.0,))
    low = dict(made.space.low)
    names = made.space.names
    early = objective._waiting(made, low, Step(0, 100, 0, 0))
    late = objective._waiting(made, low, Step(60, 100, 0, 0))
    assert early[names[0]] == low[names[0]]
    assert all(early[name] == made.space.full[name] for name in names[1:])
    assert late == low


def test_reconstruction_is_zero_where_nothing_changed():
    made = morphable(Nested)
    assert float(reconstruction(made).detach()) == 0.0
    with torch.no_grad():
        next(made.generator.parameters()).mul_(1.5)
    assert float(reconstruction(made).detach()) > 0


def test_default_draws_suit_the_generator():
    assert "full" in morphable(Nested).generator.default_draws()
    assert "coarse" in grid().generator.default_draws()
    assert "full" not in grid().generator.default_draws()


@torch.no_grad()
def test_importance_is_what_readers_lose():
    network = tiny()
    made = morphable(Nested, network)
    model, group = made.base, made.space.groups[0]
    reader = model.get_submodule("features.1.0")
    reader.weight[:, 2] = 0.0
    reader.weight[:, 5] *= 10.0
    found = channel_importance(model, [group], [torch.randn(16, 1, 8, 8)])[group.name]
    assert found[2] == 0
    assert by_importance(found)[0] == 5
    assert by_importance(found)[-1] == 2
    # by hand: the norm of the weights that read a channel, times its root mean square
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    features = model.get_submodule("features.0")(x)
    expected = reader.weight.flatten(2).square().sum(dim=(0, 2)).sqrt() * features.square().mean(dim=(0, 2, 3)).sqrt()
    assert torch.allclose(channel_importance(model, [group], [x])[group.name], expected, rtol=1e-4)


def test_draws_follow_from_seed_and_step():
    assert derived_seed(0, 2, 5, 1) == derived_seed(0, 2, 5, 1) != derived_seed(0, 2, 6, 1)


def test_a_fit_that_makes_every_epoch_worse_is_undone(digits, caplog):
    network = tiny()
    train(network.model, digits, TASK, TRAINING.model_copy(update={"lr": 0.1}), preprocess=network.preprocess)
    prepared = prepare(network, fold=False)
    space = morph_space(prepared.groups, "all", (0.75, 1.0))
    made = Morphable(prepared.model, space, Nested(prepared.model.state_dict(), space.groups))
    before = {name: value.clone() for name, value in made.generator.state_dict().items()}
    arguments = {"preprocess": network.preprocess, "judged": (1.0,)}
    result = fit(made, digits, TASK, FitSettings(), TRAINING.model_copy(update={"lr": 20.0, "ema": None}), **arguments)
    assert result.best_epoch == 0
    assert result.metrics["accuracy@1"] > max(entry["accuracy"] for entry in result.history)
    assert all(torch.equal(before[name], value) for name, value in made.generator.state_dict().items())
    assert "the generator: training made it worse on validation (accuracy " in caplog.text


def test_mixed_images_are_refused(digits):
    with pytest.raises(MorphError, match="leave mixup and cutmix 0"):
        fit(grid(), digits, TASK, FitSettings(), TRAINING.model_copy(update={"mixup": 0.2}))


def test_batch_norms_may_stay(digits):
    network = tiny()
    prepared = prepare(network, fold=False)
    space = morph_space(prepared.groups, "all", (0.5, 1.0))
    made = Morphable(prepared.model, space, Nested(prepared.model.state_dict(), space.groups))
    one = TRAINING.model_copy(update={"epochs": 1, "ema": None})
    fit(made, digits, TASK, FitSettings(), one, preprocess=network.preprocess)
    assert torch.equal(
        made.tensors(space.full)["features.0.1.running_mean"], network.model.state_dict()["features.0.1.running_mean"]
    )
