from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from netsmith.models import BUILDERS, CifarResNet, LeNet, PaddedShortcut, PlainCNN, SeparableCNN, SmallViT


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", [n for n, b in BUILDERS.items() if not hasattr(b, "task")])
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 8, 10), (3, 32, 7)])
def test_every_builder_runs_on_digits_and_on_cifar(name, channels, size, classes):
    model = BUILDERS[name](num_classes=classes, in_channels=channels, image_size=size).eval()
    assert model.input_size == (channels, size, size)
    with torch.no_grad():
        out = model(torch.rand(2, channels, size, size))
    assert out.shape == (2, classes)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("name", "params"),
    [
        # table 6 of the ResNet paper gives them rounded: 0.27M, 0.46M, 0.66M, 0.85M, 1.7M
        ("cifar_resnet20", 269_722),
        ("cifar_resnet32", 464_154),
        ("cifar_resnet44", 658_586),
        ("cifar_resnet56", 853_018),
        ("cifar_resnet110", 1_727_962),
    ],
)
def test_cifar_resnet_sizes(name, params):
    assert count(BUILDERS[name]()) == params


def test_projection_shortcuts_add_two_convolutions_and_norms():
    extra = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert count(CifarResNet(20, shortcut="B")) == 269_722 + extra


@pytest.mark.parametrize(("channels", "size", "params"), [(1, 28, 61_706), (1, 32, 61_706), (3, 32, 62_006)])
def test_lenet_size_is_the_papers(channels, size, params):
    assert count(LeNet(10, channels, size)) == params


def test_padded_shortcut_takes_every_second_pixel_and_pads_evenly():
    x = torch.rand(2, 4, 6, 6)
    y = PaddedShortcut(4, 8, 2)(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert y[:, :2].abs().sum() == 0
    assert y[:, 6:].abs().sum() == 0


@pytest.mark.parametrize("options", [{"pool": "token"}, {"conv_stem": False}, {"patch": 8}, {"dropout": 0.1}])
def test_vit_options(options):
    model = SmallViT(image_size=32, dim=24, depth=2, **options).eval()
    x = torch.rand(3, 3, 32, 32)
    assert model(x).shape == (3, 10)
    patch = options.get("patch", 4)
    assert model.embed(x).shape == (3, (32 // patch) ** 2 + (options.get("pool") == "token"), 24)


def test_vit_attention_is_softmax_of_scaled_products():
    attention = SmallViT(dim=12, heads=2, depth=1).blocks[0].attn
    x = torch.rand(2, 5, 12)
    q, k, v = attention.qkv(x).split(12, dim=2)
    heads = []
    for h in (slice(0, 6), slice(6, 12)):
        weights = torch.softmax(q[..., h] @ k[..., h].transpose(1, 2) / 6**0.5, dim=-1)
        heads.append(weights @ v[..., h])
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, dim=2)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CifarResNet(21), "6 n \\+ 2"),
        (lambda: CifarResNet(20, widths=(16, 32)), "three positive numbers"),
        (lambda: CifarResNet(20, widths=(16, 8, 8)), "from 16 to 8 channels"),
        (lambda: CifarResNet(20, shortcut="C"), '"A" \\(padded\\) or "B"'),
        (lambda: LeNet(image_size=2), "at least 4x4"),
        (lambda: PlainCNN(widths=()), "positive widths"),
        (lambda: SeparableCNN(depth=0), "positive widths and depth"),
        (lambda: SmallViT(image_size=30), "do not divide images of 30"),
        (lambda: SmallViT(dim=10), "3 heads do not divide"),
        (lambda: SmallViT(pool="max"), '"mean" or "token"'),
        (lambda: SmallViT(image_size=33, patch=3), "2, 4, 8"),
    ],
)
def test_impossible_sizes_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("depth", [20, 32, 56])
def test_the_published_checkpoints_fit_key_by_key(shared_zoo, depth):
    state = load_file(shared_zoo / f"resnet{depth}_cifar10_jpeg.safetensors")
    BUILDERS[f"cifar_resnet{depth}"]().load_state_dict(state, strict=True)
