from __future__ import annotations

import pytest
import torch

from netsmith.models import BUILDERS, ConvVAE
from netsmith.widths.groups import resize, width_groups


def net(**options):
    return ConvVAE(**{"image_size": 8, "in_channels": 1, "latent": 3, "width": 4, **options})


@pytest.mark.parametrize(("channels", "size", "stages"), [(1, 4, 1), (1, 8, 1), (1, 28, 2), (3, 32, 3), (3, 64, 4)])
def test_images_come_back_in_their_size_with_a_code(channels, size, stages):
    model = BUILDERS["conv_vae"](in_channels=channels, image_size=size, latent=5, width=2).eval()
    assert model.input_size == (channels, size, size)
    assert len(model.encoder) == stages
    images = torch.rand(2, channels, size, size)
    mean, log_variance = model.encode(images)
    outputs = model(images)
    assert mean.shape == log_variance.shape == (2, 5)
    expected = torch.cat([model.decode(mean).flatten(1), mean, log_variance], dim=1)
    assert outputs.shape == (2, channels * size * size + 10)
    assert torch.equal(outputs, expected)


def test_only_training_draws_the_code():
    model, images = net(), torch.rand(4, 1, 8, 8)
    model.eval()
    assert torch.equal(model(images), model(images))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    model.train()
    one, two = model(images), model(images)
    assert torch.equal(one[:, 64:], two[:, 64:]), "the distribution itself is not random"
    assert not torch.equal(one[:, :64], two[:, :64])


def test_variances_stay_within_what_floats_bear():
    model = net()
    torch.nn.init.constant_(model.log_variance.bias, 1e6)
    assert torch.isfinite(model.train()(torch.rand(2, 1, 8, 8))).all()


def test_every_inner_width_can_change():
    model, images = net(image_size=16, latent=4).eval(), torch.rand(3, 1, 16, 16)
    groups = width_groups(model, images)
    convolutions = [n for n, m in model.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d))]
    assert {g.name for g in groups.accepted} == {n for n in convolutions if n != "image"}
    small = resize(model, groups.accepted, {g.name: g.width // 2 for g in groups.accepted}).eval()
    assert small(images).shape == model(images).shape
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters()) / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 10}, r"has no classes, 10 were asked for \(task: generation\)"),
        ({"image_size": 7}, "even size from 4 pixels on, not 7"),
        ({"image_size": 2}, "even size"),
        ({"latent": 0}, "at least 1, not 1, 0 and 4"),
    ],
)
def test_impossible_autoencoders(options, message):
    with pytest.raises(ValueError, match=message):
        net(**options)
