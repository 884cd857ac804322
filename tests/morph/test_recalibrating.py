"""Batch norms that stay, at a width of their own."""

from __future__ import annotations

import pytest
import torch
from morph_networks import tiny
from torch import nn

from netsmith.core.data import batches, open_data
from netsmith.core.images import MemoryImages
from netsmith.errors import ChannelError
from netsmith.morph.pipeline import make_morphable
from netsmith.morph.recalibrating import augmented, has_statistics, is_base, recalibrated


def test_statistics_are_those_of_the_training_images():
    data, network = open_data("digits"), tiny()
    test = data.test.images([0, 1])
    before = network.model(network.preprocess(test))
    assert has_statistics(network.model, (1, 8, 8))
    assert recalibrated(network.model, data, network.preprocess, augment=False, images=256, seed=3)
    first = next(m for m in network.model.modules() if isinstance(m, nn.Conv2d))
    norm = next(m for m in network.model.modules() if isinstance(m, nn.BatchNorm2d))
    taken = [x for x, _ in batches(data.train, 128, shuffle=True, seed=3, drop_last=True)][:2]
    with torch.no_grad():
        maps = [first(network.preprocess(x)) for x in taken]
    torch.testing.assert_close(norm.running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0))
    assert not network.model.training
    assert not torch.allclose(network.model(network.preprocess(test)), before)


@pytest.mark.parametrize("seen", [True, False])
def test_statistics_tell_whether_images_were_augmented(seen):
    """What a network has seen while it was trained is what its norms should be estimated on."""
    data, network = open_data("digits"), tiny()
    assert recalibrated(network.model, data, network.preprocess, augment=seen, seed=5)
    assert augmented(network.model, data, network.preprocess) is seen
    assert not augmented(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, network.preprocess)


def test_only_the_norms_that_are_named_get_statistics():
    data, network = open_data("digits"), tiny()
    norms = {name: m for name, m in network.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    before = {name: m.running_mean.clone() for name, m in norms.items()}
    chosen = next(reversed(norms))
    assert recalibrated(network.model, data, network.preprocess, augment=False, norms={chosen})
    changed = {name for name, m in norms.items() if not torch.equal(m.running_mean, before[name])}
    assert changed == {chosen}


def test_a_network_without_norms_is_left_alone():
    data = open_data("digits")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    assert not has_statistics(plain, (1, 8, 8))
    assert not recalibrated(plain, data, tiny().preprocess, augment=True)


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
        recalibrated(flat, few, network.preprocess, augment=False)


@pytest.mark.parametrize(("kind", "anew"), [("grid", [False, True]), ("nested", [True, True])])
def test_only_the_base_itself_keeps_its_statistics(kind, anew):
    found = make_morphable(
        tiny(),
        open_data("digits"),
        norms="keep",
        generator=kind,
        training=None,
        ratios=(1.0, 0.5),
        importance_images=64,
    )
    assert [p.recalibrated for p in found.points] == anew
    assert is_base(found.model.morphable, found.space.full) == (kind == "grid")
    folded = make_morphable(tiny(), open_data("digits"), ratios=(0.5,), training=None, importance_images=64)
    assert [p.recalibrated for p in folded.points] == [False]
