"""Shrinking: what comes out answers as the original does, keeps its budget, and is a network like any other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import netsmith
from netsmith.errors import BudgetError, ChannelError, ConfigError, DataError, SourceError
from netsmith.shrinking.readers import readers
from netsmith.shrinking.walk import Walk

SIZES = {"num_classes": 10, "input_size": (1, 8, 8)}


@pytest.fixture(scope="module")
def digits() -> netsmith.Splits:
    return netsmith.open_data("digits")


@pytest.fixture(scope="module", params=["cifar_resnet20", "small_vit"])
def trained(request, digits) -> netsmith.Network:
    """A residual network and a transformer, trained for some seconds."""
    options = {"widths": (8, 16, 32)} if request.param == "cifar_resnet20" else {"dim": 24, "depth": 3}
    network = netsmith.load_source(f"netsmith:{request.param}", options=options, **SIZES)
    settings = netsmith.TrainSettings(epochs=6, lr=0.004, optimizer="adamw", batch_size=64)
    netsmith.train(network.model, digits, netsmith.Classification(10), settings, preprocess=network.preprocess)
    return network


def accuracy(model: nn.Module, network: netsmith.Network, digits: netsmith.Splits) -> float:
    measured = netsmith.evaluate(model, digits.test, netsmith.Classification(10), preprocess=network.preprocess)
    return measured["accuracy"]


@pytest.mark.slow
def test_closed_form_keeps_what_choosing_channels_loses(trained, digits):
    state = copy.deepcopy(trained.model.state_dict())
    made = {
        how: netsmith.shrink(trained, digits, widths=0.5, method=how) for how in ("closed_form", "importance", "l1")
    }
    assert {s.after.params for s in made.values()} == {made["l1"].after.params}
    best = accuracy(made["closed_form"].model, trained, digits)
    assert best > max(accuracy(made[how].model, trained, digits) for how in ("importance", "l1"))
    assert best > accuracy(trained.model, trained, digits) - 0.06
    assert made["closed_form"].agreement > max(made["importance"].agreement, made["l1"].agreement)
    assert all(torch.equal(value, state[name]) for name, value in trained.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("budget", [{"macs": "60%"}, {"params": "75%", "macs": 0.7}])
def test_a_budget_is_kept_and_used(trained, digits, budget):
    small = netsmith.shrink(trained, digits, **budget)
    shares = {n: float(str(s).strip("%")) / (100 if "%" in str(s) else 1) for n, s in budget.items()}
    used = [getattr(small.after, n) / getattr(small.before, n) / share for n, share in shares.items()]
    assert 0.9 < max(used) <= 1
    assert netsmith.count_params(small.model) == small.after.params
    assert all(now < full for now, full in small.widths.values())


@pytest.mark.slow
def test_uneven_widths_are_taken_only_where_they_diverge_less(trained, digits):
    uneven = netsmith.shrink(trained, digits, params=0.6)
    uniform = netsmith.shrink(trained, digits, params=0.6, search=False)

    def divergence(model: nn.Module) -> float:
        x = trained.preprocess(digits.validation.images(range(len(digits.validation))))
        with torch.no_grad():
            answer, other = trained.model(x).log_softmax(1), model(x).log_softmax(1)
        return float((answer.exp() * (answer - other)).sum(1).mean())

    assert divergence(uneven.model) <= divergence(uniform.model) + 1e-6


@pytest.mark.slow
def test_tuning_learns_from_the_original_and_leaves_the_untuned_alone(trained, digits):
    small = netsmith.shrink(trained, digits, widths=0.25)
    before = copy.deepcopy(small.model.state_dict())
    tuned = small.finetune(digits, netsmith.TrainSettings(epochs=4, lr=0.01, batch_size=64, clip_grad=1.0))
    assert all(torch.equal(value, before[name]) for name, value in small.model.state_dict().items())
    assert tuned.tuned is not None
    assert "tuned for" in str(tuned)
    assert accuracy(tuned.model, trained, digits) > accuracy(small.model, trained, digits)
    assert tuned.agreement > small.agreement


def test_what_comes_out_is_saved_loaded_and_exported(digits, tmp_path):
    network = netsmith.load_source("netsmith:plain_cnn", **SIZES)
    small = netsmith.shrink(network, digits, widths=0.5, images=64)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(netsmith.load(small.save(tmp_path / "half"))(x), small.model(x))
    loaded = netsmith.load_source(str(tmp_path / "half"))
    assert loaded.preprocess.mean == network.preprocess.mean
    assert small.export(tmp_path / "half.onnx").difference < 1e-4
    assert "agreement" in str(small)
    assert f"{small.widths['features.0.0'][0]:>5} of    32" in str(small)


def test_tensors_and_batches_are_taken_as_preprocessed():
    network = netsmith.load_source("netsmith:plain_cnn", **SIZES)
    images = torch.rand(80, 1, 8, 8)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.zeros(80)), batch_size=16)
    whole = netsmith.shrink(network, images, widths=0.5)
    assert whole.images == 64
    assert whole.held == 16
    for data in (loader, list(images.split(16)), [{"pixels": x} for x in images.split(16)]):
        again = netsmith.shrink(network, data, widths=0.5)
        assert torch.equal(again.model(images), whole.model(images))


def test_at_full_width_a_walk_changes_nothing():
    network = netsmith.load_source("netsmith:plain_cnn", **SIZES)
    x = torch.rand(16, 1, 8, 8)
    folded = netsmith.fold_batch_norms(network.model, x)
    student = copy.deepcopy(folded)
    groups = netsmith.width_groups(folded, x).accepted
    Walk(folded, student, [x]).run(groups, {g.name: g.width for g in groups})
    assert torch.equal(student(x), folded(x))


class Doubled(nn.Module):
    """Channels that come in pairs of equals: half of them are of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        with torch.no_grad():
            self.first.weight[4:] = self.first.weight[:4]
            bias = self.first.get_parameter("bias")
            bias[4:] = bias[:4]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu()).mean((2, 3))


def test_channels_that_others_can_stand_for_cost_nothing():
    torch.manual_seed(0)
    network = netsmith.load_source(Doubled(), input_size=(1, 8, 8), num_classes=4, mean=(0.0,), std=(1.0,))
    images = torch.rand(200, 1, 8, 8)
    small = netsmith.shrink(network, images, widths=0.5)
    assert small.widths == {"first": (4, 8)}
    assert small.losses["first"] < 5e-3
    assert torch.allclose(small.model(images), network.model(images), atol=2e-2)
    assert {tuple(w.flatten().tolist()) for w in small.model.get_parameter("first.weight")} == {
        tuple(w.flatten().tolist()) for w in network.model.get_parameter("first.weight")[:4]
    }


class Squeezed(nn.Module):
    """The channels are read twice: at every place, and as means that scale them."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.gate = nn.Conv2d(1, 12, 3, padding=1), nn.Linear(12, 12)
        self.narrow = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x).relu()
        return self.narrow(x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]).mean((2, 3))


def test_every_reader_of_a_group_is_refitted():
    torch.manual_seed(0)
    model, images = Squeezed(), torch.rand(200, 1, 8, 8)
    groups = netsmith.width_groups(model, images[:2]).accepted
    assert {r.name for r in readers(model, groups, images[:1])["wide"]} == {"gate", "narrow"}
    network = netsmith.load_source(model, input_size=(1, 8, 8), num_classes=4, mean=(0.0,), std=(1.0,))
    fitted = netsmith.shrink(network, images, widths=0.5)
    chosen = netsmith.shrink(network, images, widths=0.5, method="importance")
    with torch.no_grad():
        missed = [float((s.model(images) - model(images)).square().mean()) for s in (fitted, chosen)]
    assert missed[0] < 0.5 * missed[1]


class Padded(nn.Conv2d):
    """A convolution that pads by itself, as TensorFlow does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(input, (0, 1, 0, 1)))


@pytest.mark.parametrize(
    ("layer", "refittable"),
    [
        (nn.Conv2d(8, 4, 3, padding=1), True),
        (nn.Conv2d(8, 4, 3, padding="same", padding_mode="reflect"), True),
        (nn.Conv2d(8, 4, 3, stride=2, dilation=2), True),
        (Padded(8, 4, 2), False),
    ],
)
def test_a_layer_is_refitted_only_where_it_multiplies_by_its_matrix(layer, refittable):
    model, x = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), layer), torch.rand(2, 1, 12, 12)
    (group,) = netsmith.width_groups(model, x).accepted
    assert [r.name for r in readers(model, [group], x)[group.name]] == (["2"] if refittable else [])


def test_the_original_is_left_alone():
    network = netsmith.load_source("netsmith:plain_cnn", **SIZES)
    before = copy.deepcopy(network.model.state_dict())
    small = netsmith.shrink(network, torch.rand(40, 1, 8, 8), widths=0.5)
    assert small.network is network
    assert all(torch.equal(value, before[name]) for name, value in network.model.state_dict().items())


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        ({}, BudgetError, "say how small"),
        ({"params": 0.5, "widths": 0.5}, BudgetError, "not both"),
        ({"params": 0}, BudgetError, "above 0"),
        ({"params": "150%"}, BudgetError, "up to 100%"),
        ({"macs": "many"}, BudgetError, "expected a number"),
        ({"params": "1G"}, BudgetError, "keeps that budget as it is"),
        ({"params": 10}, BudgetError, "with one channel in each of 6 groups the network still has"),
        ({"latency_ms": 1e-9}, BudgetError, "with one channel"),
        ({"widths": {"features.0.0": 64}}, BudgetError, "has 32 channels"),
        ({"widths": {"nothing": 4}}, ChannelError, "no width group is called"),
        ({"params": 0.5, "method": "l2"}, ConfigError, "no method 'l2'"),
    ],
)
def test_a_size_that_cannot_be_is_refused(asked, kind, message):
    network = netsmith.load_source("netsmith:plain_cnn", **SIZES)
    with pytest.raises(kind, match=message):
        netsmith.shrink(network, torch.rand(40, 1, 8, 8), **asked)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.rand(5, 1, 8, 8), "too few"),
        (torch.full((40, 1, 8, 8), torch.nan), "NaN"),
        (torch.ones(40, 1, 8, 8), "the same number"),
        (torch.rand(40, 3, 8, 8), "of 1 channels, and the calibration inputs have 3"),
        ([1, 2], "expected batches of tensors"),
        ([], "no calibration inputs"),
    ],
)
def test_inputs_that_tell_nothing_are_refused(data, message):
    network = netsmith.load_source("netsmith:plain_cnn", **SIZES)
    with pytest.raises(DataError, match=message):
        netsmith.shrink(network, data, widths=0.5)


def test_preprocessing_is_never_guessed(digits):
    with pytest.raises(SourceError, match="mean"):
        netsmith.shrink(Doubled(), digits, widths=0.5, num_classes=4)


def test_a_network_whose_readers_cannot_be_refitted_is_refused():
    grouped = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten())
    network = netsmith.load_source(grouped, input_size=(1, 8, 8), mean=(0.0,), std=(1.0,))
    with pytest.raises(ChannelError, match=r"can be (refitted|proved)"):
        netsmith.shrink(network, torch.rand(40, 1, 8, 8), widths=0.5)
