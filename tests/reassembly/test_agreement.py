"""Divergence and agreement of two networks' answers, against sums over single predictions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from netsmith.errors import DataError
from netsmith.reassembly.agreement import agreement


def by_hand(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    """KL(a || b), KL(b || a) in nats and the share of equal first classes, one prediction after the other."""
    rows_a, rows_b = (t.movedim(1, -1).reshape(-1, t.shape[1]).tolist() for t in (a, b))
    forward = backward = same = 0.0
    for x, y in zip(rows_a, rows_b, strict=True):
        p, q = ([math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in (x, y))
        forward += sum(u * math.log(u / v) for u, v in zip(p, q, strict=True))
        backward += sum(v * math.log(v / u) for u, v in zip(p, q, strict=True))
        same += x.index(max(x)) == y.index(max(y))
    return forward / len(rows_a), backward / len(rows_a), same / len(rows_a)


@pytest.mark.parametrize(("shape", "per"), [((4,), "image"), ((3, 2, 5), "pixel")])
def test_against_single_predictions(shape, per):
    a, b = torch.randn(11, *shape), 2 * torch.randn(11, *shape)
    index = torch.arange(11.0).view(11, 1, 1, 1)

    def answers(logits):
        return lambda images: logits[images.flatten().long()]

    found = agreement(answers(a), answers(b), index, batch_size=4)
    assert (found.forward, found.backward, found.same) == pytest.approx(by_hand(a, b), rel=1e-5)
    assert (found.images, found.per) == (11, per)
    assert found.forward != pytest.approx(found.backward)
    turned = agreement(answers(b), answers(a), index)
    assert (turned.forward, turned.backward) == pytest.approx((found.backward, found.forward))


def test_a_network_agrees_with_itself():
    images = torch.rand(5, 3, 2, 2)
    told = []
    found = agreement(
        lambda x: x.flatten(1), lambda x: x.flatten(1), images, batch_size=2, progress=lambda *a: told.append(a)
    )
    assert (found.forward, found.backward, found.same) == (0.0, 0.0, 1.0)
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_sure_answers_stay_finite():
    sure = torch.tensor([[500.0, 0.0]])
    found = agreement(lambda _: sure, lambda _: -sure, torch.zeros(1, 1, 1, 1))
    assert found.forward == pytest.approx(500.0 * 1)
    assert found.same == 0.0


def test_other_shapes_are_refused():
    with pytest.raises(DataError, match=r"outputs of shapes \(2, 3\) and \(2, 4\) cannot be compared"):
        agreement(lambda _: torch.zeros(2, 3), lambda _: torch.zeros(2, 4), torch.zeros(2, 1, 1, 1))
