from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netsmith.morphing.coordinates import Slot, along, cells, first, padded, prefix, relative, repeats
from netsmith.widths.groups import Axis

sizes = st.integers(1, 24)


@given(n=sizes, width=sizes)
@settings(max_examples=60, deadline=None)
def test_a_read_is_a_mean_of_cells(n, width):
    read = cells(n, width)
    assert read.shape == (n, width)
    assert torch.allclose(read.sum(dim=1), torch.ones(n))
    assert read.min() >= 0
    # the order of channels is kept: centres of gravity rise
    centres = (read * torch.arange(width)).sum(dim=1)
    assert bool((centres.diff() >= -1e-5).all())


@given(width=sizes)
@settings(max_examples=20, deadline=None)
def test_at_the_grids_own_width_reading_changes_nothing(width):
    assert torch.equal(cells(width, width), torch.eye(width))


def test_half_the_channels_are_means_of_pairs():
    expected = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    assert torch.allclose(cells(2, 4), expected)


def test_twice_the_channels_lie_between_cells_at_their_centres():
    # centres 0.25, 0.75, 1.25, 1.75 of two cells with centres 0.5 and 1.5
    expected = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]])
    assert torch.allclose(cells(4, 2), expected)


def test_a_shift_moves_what_is_read():
    moved = cells(4, 4, shift=torch.full((4,), 0.5))
    assert torch.allclose(moved[0], torch.tensor([0.5, 0.5, 0.0, 0.0]))


@given(n=sizes, width=sizes)
@settings(max_examples=40, deadline=None)
def test_repeated_channels_add_up_to_what_one_was(n, width):
    n = max(n, width)
    assert torch.allclose(repeats(n, width, fan_in=True).sum(dim=0), torch.ones(width))
    assert torch.equal(repeats(n, width, fan_in=False).sum(dim=1), torch.ones(n))


def by_hand(tensor, axis, width, read):
    """The same as `along`, one index at a time."""
    n, dim = read.shape[0], axis.dim
    columns = list(tensor.unbind(dim))
    span = axis.tiles * width * axis.repeat
    new = []
    for t in range(axis.tiles):
        for j in range(n):
            for r in range(axis.repeat):
                old = [columns[axis.start + t * width * axis.repeat + k * axis.repeat + r] for k in range(width)]
                new.append(sum(float(read[j, k]) * old[k] for k in range(width)))
    return torch.stack(columns[: axis.start] + new + columns[axis.start + span :], dim)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_reading_along_an_axis_is_the_sum_by_hand(data):
    width, n = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    axis = Axis(
        "w", data.draw(st.integers(0, 1)), data.draw(st.integers(0, 2)), data.draw(st.integers(1, 2)),
        data.draw(st.integers(1, 2)),
    )  # fmt: skip
    shape = [3, 3]
    shape[axis.dim] = axis.start + axis.span(width) + data.draw(st.integers(0, 2))
    tensor = torch.randn(*shape, 2)
    read = torch.randn(n, width)
    assert torch.allclose(along(tensor, axis, width, read), by_hand(tensor, axis, width, read), atol=1e-5)
    kept = min(n, width)
    assert torch.equal(prefix(tensor, axis, width, kept), by_hand(tensor, axis, width, torch.eye(width)[:kept]))
    wider = torch.cat([torch.eye(width), torch.zeros(n, width)])
    assert torch.equal(padded(tensor, axis, width, width + n), by_hand(tensor, axis, width, wider))


def test_two_groups_in_one_dimension_keep_their_places():
    slot = Slot("w", (7, 2), (("a", Axis("w", 0, 1)), ("b", Axis("w", 0, 4))))
    base = {"a": 3, "b": 3}
    tensor = torch.arange(14.0).view(7, 2)
    cut = first(slot, tensor, base, base, {"a": 1, "b": 2})
    assert torch.equal(cut, tensor[[0, 1, 4, 5]])
    assert slot.sized(base, {"a": 1, "b": 2}) == (4, 2)
    # and from a tensor that is not at the base's widths
    assert torch.equal(first(slot, cut, base, {"a": 1, "b": 2}, {"a": 1, "b": 1}), tensor[[0, 1, 4]])


def test_fan_in_counts_only_what_is_summed_over():
    slot = Slot("w", (4, 6, 3, 3), (("o", Axis("w", 0)), ("i", Axis("w", 1, fan_in=True))))
    base = {"o": 4, "i": 6}
    assert slot.fan_in_factor(base, {"o": 2, "i": 3}) == pytest.approx(2.0)
    assert slot.fan_in_factor(base, {"o": 2, "i": 6}) == pytest.approx(1.0)


def test_coordinates_are_relative_and_carry_the_sizes():
    slot = Slot("w", (4, 2, 3, 3), (("o", Axis("w", 0)),))
    rows = relative(slot, {"o": 4}, {"o": 2})
    assert rows.shape == (4, 4)
    assert torch.allclose(rows[:, 0], torch.tensor([0.25, 0.25, 0.75, 0.75]))
    assert torch.allclose(rows[:, 1], torch.tensor([0.25, 0.75, 0.25, 0.75]))
    assert torch.allclose(rows[:, 2], torch.full((4,), 0.5))
    assert torch.allclose(rows[:, 3], torch.ones(4))
