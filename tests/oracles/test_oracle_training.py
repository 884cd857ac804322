"""What training does beside its loss, by its formulas: mixed images, learning rates, fitting a generator, paths."""

from __future__ import annotations

import itertools

import formulas
import numpy as np
import pytest
import torch

from netsmith.morphing.fit import reconstruction
from netsmith.morphing.paths import channel_order, l1_distances
from netsmith.training.objective import make_mixing
from netsmith.training.settings import TrainSettings, lr_factor
from netsmith.training.tasks import Classification

N, CLASSES = 6, 6


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Image k has the value k everywhere and the label k, so that a mixture says what it is made of."""
    return torch.arange(float(N)).view(N, 1, 1, 1).expand(N, 1, 8, 8).clone(), torch.arange(N)


def mixed(**settings: float) -> tuple[np.ndarray, np.ndarray]:
    mixing = make_mixing(TrainSettings.model_validate(settings), Classification(CLASSES))
    assert mixing is not None
    images, labels = mixing(*pictures())
    return images.double().numpy(), labels.double().numpy()


@pytest.mark.parametrize("seed", range(5))
def test_mixup_is_one_line_between_neighbours(seed):
    """Zhang et al. (ICLR 2018), eq. 1: the same share for images and labels."""
    torch.manual_seed(seed)
    images, labels = mixed(mixup=0.8)
    share = labels[1, 1]
    before = np.roll(np.arange(N), 1)
    assert images == pytest.approx(
        np.broadcast_to((share * np.arange(N) + (1 - share) * before)[:, None, None, None], images.shape), abs=1e-5
    )
    expected = share * np.eye(N) + (1 - share) * np.eye(N)[before]
    assert labels == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_gives_labels_by_area(seed):
    """Yun et al. (ICCV 2019), eq. 1: one rectangle of a neighbour, labels by the share of pixels that are left."""
    torch.manual_seed(seed)
    images, labels = mixed(cutmix=1.0)
    before = np.roll(np.arange(N), 1)
    own = images == np.arange(N)[:, None, None, None]
    assert ((images == before[:, None, None, None]) | own).all()
    rows, columns = np.nonzero(~own[0, 0])
    if len(rows):
        box = ~own[0, 0][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.all(), "a rectangle"
    share = own[0].mean()
    assert labels == pytest.approx(share * np.eye(N) + (1 - share) * np.eye(N)[before], abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 11, 200])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_learning_rates(steps, warmup):
    for step in range(steps):
        if step < warmup:
            cosine = constant = (step + 1) / warmup
        else:
            cosine = formulas.annealed(1.0, 0.0, (step - warmup) / max(1, steps - warmup))
            constant = 1.0
        assert lr_factor("cosine", step, steps, warmup) == pytest.approx(cosine, abs=1e-12)
        assert lr_factor("constant", step, steps, warmup) == pytest.approx(constant)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 300])
def test_one_cycle(steps):
    """Smith and Topin (2018): up from 1/25 for three tenths of the steps, down to 4e-6; never 0, never above 1."""
    found = [lr_factor("onecycle", step, steps) for step in range(steps)]
    top = 0.3 * steps - 1
    for step, value in enumerate(found):
        if step <= top:
            expected = formulas.annealed(1 / 25, 1.0, step / top if top > 0 else 1.0)
        else:
            expected = formulas.annealed(1.0, 4e-6, min(1.0, (step - top) / (steps - 1 - top)))
        assert value == pytest.approx(expected, abs=1e-9)
    assert found[-1] == pytest.approx(4e-6)
    assert max(found) <= 1.0


# --- fitting a generator ----------------------------------------------------------------------------------------------


class _Space:
    full: dict[str, int] = {}  # noqa: RUF012


class _Fitted:
    """What `reconstruction` looks at: tensors at full width, and the base's."""

    space = _Space()

    def __init__(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self._now = {str(i): torch.from_numpy(now) for i, (now, _) in enumerate(pairs)}
        self._then = {str(i): torch.from_numpy(then) for i, (_, then) in enumerate(pairs)}
        self.base = self

    def tensors(self, widths: object) -> dict[str, torch.Tensor]:
        return self._now

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._then


def test_reconstruction_is_relative_to_each_tensor():
    """Mean over tensors of `|w' - w|^2 / |w|^2`: tensors of any scale count alike."""
    rng = np.random.default_rng(0)
    pairs = [
        (rng.standard_normal((4, s)), scale * rng.standard_normal((4, s))) for s, scale in ((3, 1), (9, 1e-4), (2, 1e4))
    ]
    formula = getattr(reconstruction, "__wrapped__", reconstruction)  # without the check that this is a Morphable
    expected = np.mean([((now - then) ** 2).mean() / (then**2).mean() for now, then in pairs])
    fitted = _Fitted([(now.astype(np.float32), then.astype(np.float32)) for now, then in pairs])
    assert float(formula(fitted)) == pytest.approx(expected, rel=1e-5)


# --- shortest paths ---------------------------------------------------------------------------------------------------

ROWS = formulas.awkward(7, 4)


@pytest.mark.parametrize("kind", ROWS)
def test_lengths_and_orders_of_awkward_channels(kind):
    """Yang et al. (ECCV 2024), eq. 6: the order that makes the total variation least, by trying all orders."""
    rows = ROWS[kind].astype(np.float64)
    distances = np.abs(rows[:, None, :] - rows[None, :, :]).sum(axis=2)
    scale = max(float(distances.max()), 1e-300)
    assert l1_distances(torch.from_numpy(ROWS[kind])) == pytest.approx(distances, rel=1e-6, abs=1e-6 * scale)

    def length(order: tuple[int, ...]) -> float:
        return sum(distances[a, b] for a, b in itertools.pairwise(order))

    best = min(length(order) for order in itertools.permutations(range(7)))
    for solver in ("exact", "fast-tsp", "2opt", "greedy"):
        found = channel_order(torch.from_numpy(ROWS[kind]), solver=solver)
        assert found.length == pytest.approx(length(found.order), rel=1e-6, abs=1e-6 * scale)
        assert found.before == pytest.approx(length(tuple(range(7))), rel=1e-6, abs=1e-6 * scale)
        assert found.length >= best * (1 - 1e-6) - 1e-6 * scale
        if solver == "exact":
            assert found.length == pytest.approx(best, rel=1e-6, abs=1e-6 * scale)
