"""How many images a forward pass takes at once: by the memory that a layer touches, and without changing a number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netsmith.data.images import MemoryImages
from netsmith.models import BUILDERS
from netsmith.reassembly import representation, scores
from netsmith.reassembly import stitch_cost as affinity
from netsmith.reassembly.representation import represent
from netsmith.reassembly.scores import ScoreContext, get_score
from netsmith.reassembly.stitch_cost import stitch_costs
from netsmith.trace.chain import dissect
from netsmith.trace.cost import images_at_once, in_parts
from netsmith.training.engine import evaluate
from netsmith.training.tasks import Classification


@pytest.mark.parametrize(
    ("network", "shape", "expected"),
    [
        (nn.Conv2d(3, 8, 1), (3, 1024, 1024), 1),  # 12 and 33 MB an image
        (nn.Sequential(nn.Conv2d(4, 12, 1), nn.ReLU()), (4, 256, 256), 2),  # 3 MB and 3 MB
        (BUILDERS["cifar_resnet20"](), (3, 32, 32), 128),  # 64 kB twice
        (nn.Linear(8, 8), (8,), 256),
    ],
)
def test_the_largest_layer_decides(network, shape, expected):
    assert images_at_once(network.eval(), torch.rand(2, *shape)) == expected
    assert not any(module._forward_hooks for module in network.modules())


def test_parts_are_put_together_in_order():
    seen = []

    class Doubled(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return 2 * x

    x = torch.rand(5, 4, 512, 1024)  # 8 MB each: one at a time
    assert torch.equal(in_parts(Doubled(), x), 2 * x)
    assert seen == [1, 1, 1, 1, 1, 1]  # one to see


@pytest.fixture
def at_once(monkeypatch):
    """Sets how many images everything takes at once."""

    def takes(count):
        for module in (representation, affinity, scores):
            monkeypatch.setattr(module, "images_at_once", lambda network, inputs: count)

    return takes


@pytest.mark.parametrize("name", ["cifar_resnet20", "small_vit"])
def test_no_number_depends_on_the_batch(at_once, name):
    torch.manual_seed(0)
    images = torch.rand(12, 3, 32, 32)
    chain = dissect(BUILDERS[name]().eval(), images[:1], name="net")
    labels, cuts = torch.arange(12) % 10, [("net", 1), ("net", 3)]
    found = []
    for count in (1, 5, 256):
        at_once(count)
        grams = represent(chain, images).grams.numpy()
        costs = stitch_costs({"net": chain}, {"net": images}, cuts, cuts).values
        scored = get_score("stitch")(ScoreContext(chain.model, images, labels))
        found.append((grams, costs, scored))
    for one in found[1:]:
        for a, b in zip(found[0], one, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)


def test_an_evaluation_in_any_batches_is_the_same():
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (11, 3, 32, 32), dtype=torch.uint8)
    data, network = MemoryImages(pixels, torch.arange(11) % 10, tuple("abcdefghij")), BUILDERS["cifar_resnet20"]()
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    whole = evaluate(network, data, Classification(10), **plain)
    for size in (1, 4, 64):
        assert evaluate(network, data, Classification(10), batch_size=size, **plain) == pytest.approx(whole, rel=1e-5)
