"""A network in two parts whose front is computed once, and the memory that keeps what it makes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from netsmith.data.splits import open_data
from netsmith.errors import TrainingError
from netsmith.networks.network import load_source
from netsmith.training.finetuning import Distilling, Memory, Teacher, finetuned
from netsmith.training.settings import TrainSettings
from netsmith.training.split import Split, split
from netsmith.training.tasks import Classification, Generation

own_slack = Distilling.slack


def resnet() -> nn.Module:
    torch.manual_seed(0)
    options = {"widths": (4, 8, 8)}
    return load_source(
        "netsmith:cifar_resnet20", name="small", num_classes=10, input_size=(1, 8, 8), options=options
    ).model.eval()


def last_block(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith("layer3.2.")}


def test_both_parts_make_the_whole():
    model = resnet()
    x = torch.randn(3, 1, 8, 8)
    found = split(model, x, last_block(model))
    assert isinstance(found, Split)
    assert torch.allclose(found.rest(found.front(x)), model(x), atol=1e-6)
    assert torch.equal(found(x), model(x))
    assert not found.front(x).requires_grad
    assert {f"whole.{name}" for name in model.state_dict()} == set(found.state_dict())


def test_only_the_rest_is_trained():
    model = resnet()
    found = split(model, torch.randn(3, 1, 8, 8), last_block(model))
    assert found is not None
    found.train()
    norm = copy.deepcopy(model.layer1[0].bn1.running_mean)
    found.rest(found.front(torch.randn(3, 1, 8, 8)))
    assert torch.equal(model.layer1[0].bn1.running_mean, norm)
    assert model.layer3[2].bn1.num_batches_tracked


def test_a_network_whose_stem_is_named_or_that_cannot_be_cut_is_not_split():
    model = resnet()
    x = torch.randn(3, 1, 8, 8)
    assert split(model, x, {"conv1.weight"}) is None

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(x) if float(x.sum()) > 0 else x

    assert split(Loop().eval(), torch.randn(3, 1, 8, 8), {"layer.weight"}) is None


def test_a_memory_keeps_what_fits():
    memory, calls = Memory(100), []

    def compute(n: int):
        return lambda: calls.append(n) or torch.full((n,), float(n), requires_grad=True) * 1

    where = torch.device("cpu")
    for _ in range(2):
        assert memory(("a",), where, compute(10)).tolist() == [10.0] * 10
        assert not memory(("b",), where, compute(20)).requires_grad
        memory(None, where, compute(1))
    assert calls == [10, 20, 1, 20, 1]  # 40 bytes are kept; 80 more are too many
    assert memory.bytes == 40


@pytest.mark.parametrize("views", [1, 2])
def test_the_front_is_computed_once_for_all_that_share_its_memory(views):
    data, task = open_data("digits"), Classification(10)
    network = load_source(resnet(), name="small", input_size=(1, 8, 8), num_classes=10)
    training = TrainSettings(epochs=2, batch_size=256, lr=0.05, warmup_epochs=0)
    steps = 2 * (len(data.train) // 256)
    fronts, teacher, seen = Memory(2**30), Teacher(network.model), []

    def trained(whole: bool) -> dict[str, torch.Tensor]:
        model = copy.deepcopy(network.model).eval()
        names = last_block(model)
        parts = None if whole else split(model, torch.zeros(2, 1, 8, 8), names)
        if parts is not None:
            before = parts.front
            parts.front = lambda x: seen.append(len(x)) or before(x)
            names = {f"whole.{name}" for name in names}
        finetuned(
            model if parts is None else parts, network, data, task, training, steps,
            teacher=teacher, views=views, parameters=names, fronts=fronts,
        )  # fmt: skip
        return model.state_dict()

    plain, first, second = trained(True), trained(False), trained(False)
    assert len(seen) == views * (len(data.train) // 256)
    for name in plain:
        assert torch.allclose(plain[name], first[name], rtol=1e-4, atol=1e-5), name
        assert torch.equal(first[name], second[name]), name
    assert not torch.equal(plain["layer3.2.conv1.weight"], network.model.state_dict()["layer3.2.conv1.weight"])


@pytest.mark.parametrize(("views", "first", "seen"), [(8, 0, [0, 1, 2]), (8, 6, [6, 7, 0]), (2, 1, [1, 0, 1])])
def test_a_training_sees_the_views_from_its_first_on(monkeypatch, tmp_path, views, first, seen):
    """Gone on with after an interruption, too; another first view is another training."""
    data, task = open_data("digits"), Classification(10)
    network = load_source(resnet(), name="small", input_size=(1, 8, 8), num_classes=10)
    training = TrainSettings(epochs=3, batch_size=512, lr=0.05, warmup_epochs=0, augment=True)
    steps = 3 * (len(data.train) // 512)
    told, own_loss = [], Distilling.loss

    def loss(self, model, images, targets, step):
        told.append(step.view)
        if len(told) == stop:
            raise KeyboardInterrupt
        return own_loss(self, model, images, targets, step)

    def trained(folder, first_view):
        model = copy.deepcopy(network.model)
        finetuned(
            model, network, data, task, training, steps, views=views, first_view=first_view, checkpoint_dir=folder
        )
        return model.state_dict()

    monkeypatch.setattr(Distilling, "loss", loss)
    stop = 0
    whole = trained(None, first)
    assert list(dict.fromkeys((k // (steps // 3), view) for k, view in enumerate(told))) == list(enumerate(seen))
    told.clear()
    stop = 2 * steps // 3 + 1
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, first)
    stop = 0
    again = trained(tmp_path, first)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    with pytest.raises(TrainingError, match="is of another run"):
        trained(tmp_path, first + 1)


def test_of_epochs_within_the_noise_the_one_with_the_lower_loss_is_kept(monkeypatch):
    """Accuracy of 1,000 images at 0.9 is known to 0.0095; a task without such an error goes by its metric alone."""
    data, task = open_data("digits"), Classification(10)
    network = load_source(resnet(), name="small", input_size=(1, 8, 8), num_classes=10)
    told = [(0.900, 1.0), (0.895, 0.5), (0.800, 0.1), (0.901, 0.9), (0.896, 0.4)]
    training = TrainSettings(epochs=len(told), batch_size=512, lr=0.01)
    monkeypatch.setattr(Distilling, "slack", lambda self, metric, images: own_slack(self, metric, 1000))
    given = iter(told)
    monkeypatch.setattr(
        Distilling, "judge", lambda self, model, measured: dict(zip(("accuracy", "loss"), next(given), strict=True))
    )
    steps = len(told) * (len(data.train) // 512)
    found = finetuned(copy.deepcopy(network.model), network, data, task, training, steps)
    assert found.best_epoch == 5
    other = Distilling(Generation((1, 8, 8)), Teacher(network.model), 0.5, 2.0, None)
    assert own_slack(other, 0.9, 1000) == 0.0
