"""Batch norms that stay, at a width of their own."""

from __future__ import annotations

import copy

import pytest
import torch
from morph_networks import tiny
from torch import nn

from netsmith.data.images import MemoryImages
from netsmith.data.splits import batches, open_data
from netsmith.errors import ChannelError
from netsmith.morphing.pipeline import morph
from netsmith.morphing.recalibrating import augmented, has_statistics, is_base, recalibrated
from netsmith.networks.network import Network
from netsmith.training.tasks import Classification, make_task
from netsmith.widths.folding import recalibrate

TEN = Classification(10)


def calibrated(seed: int = 0) -> Network:
    """A network whose norms have the statistics of digits, as a trained one's have."""
    network = tiny(seed)
    recalibrate(network.model, [network.preprocess(open_data("digits").train.images(range(1000)))])
    return network


def shifted(model: nn.Module, by: float) -> nn.Module:
    """A copy whose norms have means that are off by so much."""
    other = copy.deepcopy(model)
    for norm in other.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean += by
    return other


def test_statistics_are_those_of_the_training_images():
    data, network = open_data("digits"), calibrated()
    test = data.test.images([0, 1])
    before = network.model(network.preprocess(test))
    assert has_statistics(network.model, (1, 8, 8))
    model = shifted(network.model, 3.0)
    assert recalibrated(model, network.model, data, network.preprocess, TEN, augment=False, images=256, seed=3)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    taken = [x for x, _ in batches(data.train, 128, shuffle=True, seed=3, drop_last=True)][:2]
    with torch.no_grad():
        maps = [first(network.preprocess(x)) for x in taken]
    torch.testing.assert_close(norm.running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0))
    assert not model.training
    assert not torch.allclose(model(network.preprocess(test)), before)


@pytest.mark.parametrize("augment", [True, False, None])
def test_statistics_that_are_right_are_kept(augment):
    """The base's own, by definition: nothing comes closer to the base than itself."""
    data, network = open_data("digits"), calibrated()
    model = copy.deepcopy(network.model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not recalibrated(model, network.model, data, network.preprocess, TEN, augment=augment)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_no_label_is_needed_to_decide():
    """So that data of other classes will do, and pictures without any."""
    data, network = open_data("digits"), calibrated()
    wrong = MemoryImages(
        (255 * data.train.images(range(600))).byte(), torch.full((600,), 77), tuple(map(str, range(100)))
    )
    other = type(data)(data.name, wrong, data.validation, data.test, "other")
    assert recalibrated(shifted(network.model, 3.0), network.model, other, network.preprocess, TEN, augment=False)
    assert not recalibrated(copy.deepcopy(network.model), network.model, other, network.preprocess, TEN)


def test_the_images_that_decide_have_shaped_no_statistic(monkeypatch):
    data, network = open_data("digits"), calibrated()
    seen = []

    def noted(images):
        seen.append({image.numpy().tobytes() for image in images})
        return network.preprocess(images)

    recalibrated(shifted(network.model, 3.0), network.model, data, noted, TEN, augment=False)
    before, used, after = seen[:2], seen[2:-2], seen[-2:]
    assert before == after
    assert not set.union(*before) & set.union(*used)
    assert len(used) == 7  # of 9 full batches


@pytest.mark.parametrize("seen", [True, False])
def test_statistics_tell_whether_images_were_augmented(seen):
    """What a network has seen while it was trained is what its norms should be estimated on."""
    data, network = open_data("digits"), calibrated()
    model = shifted(network.model, 3.0)
    assert recalibrated(model, network.model, data, network.preprocess, TEN, augment=seen, seed=5)
    assert augmented(model, data, network.preprocess) is seen
    assert not augmented(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, network.preprocess)


def test_only_the_norms_that_are_named_get_statistics():
    data, network = open_data("digits"), calibrated()
    model = copy.deepcopy(network.model)
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    chosen = next(reversed(norms))
    norms[chosen].running_mean += 3.0
    before = {name: m.running_mean.clone() for name, m in norms.items()}
    assert recalibrated(model, network.model, data, network.preprocess, TEN, augment=False, norms={chosen})
    changed = {name for name, m in norms.items() if not torch.equal(m.running_mean, before[name])}
    assert changed == {chosen}


def test_a_network_without_norms_is_left_alone():
    data = open_data("digits")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    assert not has_statistics(plain, (1, 8, 8))
    assert not recalibrated(plain, plain, data, tiny().preprocess, TEN, augment=True)


def test_norms_that_are_not_run_do_not_count():
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
    plain.spare = nn.BatchNorm2d(4)
    plain.forward = lambda x: plain[1](plain[0](x))
    assert not has_statistics(plain.eval(), (1, 8, 8))


def test_one_image_is_too_few():
    data, network = open_data("digits"), tiny()
    one = MemoryImages(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), data.classes)
    few = type(data)(data.name, one, data.validation, data.test, "one")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4)).eval()
    with pytest.raises(ChannelError, match="too small"):
        recalibrated(flat, flat, few, network.preprocess, make_task("classification", 4), augment=False)


@pytest.mark.parametrize("kind", ["grid", "nested"])
def test_only_the_base_itself_keeps_its_statistics(kind):
    found = morph(
        calibrated(),
        open_data("digits"),
        norms="keep",
        generator=kind,
        training=None,
        ratios=(1.0, 0.5),
        order={"images": 64},
    )
    assert [p.recalibrated for p in found.points] == [False, True]
    assert is_base(found.model.morphable, found.space.full) == (kind == "grid")
    folded = morph(tiny(), open_data("digits"), ratios=(0.5,), training=None, order={"images": 64})
    assert [p.recalibrated for p in folded.points] == [False]
