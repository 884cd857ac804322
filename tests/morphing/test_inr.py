"""The paper's generator: shapes, what the batched product computes, noise, warm start, and what is stored."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import pytest
import torch
from morph_networks import tiny
from torch import Tensor, nn

from netsmith.data.splits import open_data
from netsmith.distributed import stopping
from netsmith.errors import MorphError, TrainingError
from netsmith.morphing import features, inr
from netsmith.morphing.coordinates import relative
from netsmith.morphing.features import fourier, frequencies, runs
from netsmith.morphing.generator import Noise
from netsmith.morphing.inr import INR, WARM
from netsmith.morphing.kinds import make_generator
from netsmith.morphing.morphable import Morphable
from netsmith.morphing.pipeline import fit_generator, order
from netsmith.morphing.preparing import Run
from netsmith.morphing.settings import MorphSettings
from netsmith.morphing.space import morph_space
from netsmith.widths.groups import Axis, WidthGroup, width_groups

SMALL = {"layers": 2, "hidden": 32, "frequencies": 4}


def _tensors() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(3)
    shapes = {
        "first.weight": (8, 3, 3, 3),
        "first.bias": (8,),
        "norm.running_var": (8,),
        "depthwise.weight": (8, 1, 3, 3),
        "second.weight": (6, 8, 3, 3),
        "second.bias": (6,),
        "flat.weight": (5, 32),
        "joined.weight": (5, 12),
        "fused.weight": (24, 6),
        "position": (1, 7, 6),
        "untouched": (4, 4),
    }
    found = {name: torch.randn(shape, generator=rng) * 0.3 + 0.1 for name, shape in shapes.items()}
    found["norm.running_var"] = found["norm.running_var"].exp()
    return found


GROUPS = (
    WidthGroup(
        "g",
        8,
        "inner",
        (
            Axis("first.weight", 0),
            Axis("first.bias", 0),
            Axis("norm.running_var", 0),
            Axis("depthwise.weight", 0),
            Axis("second.weight", 1, fan_in=True),
            Axis("flat.weight", 1, repeat=4, fan_in=True),
            Axis("joined.weight", 1, start=4, fan_in=True),
            Axis("fused.weight", 0, tiles=3),
        ),
        (),
    ),
    WidthGroup(
        "h",
        6,
        "stream",
        (
            Axis("second.weight", 0),
            Axis("second.bias", 0),
            Axis("fused.weight", 1, fan_in=True),
            Axis("position", 2),
        ),
        (),
    ),
)


def _inr(settings: Mapping[str, object] | None = None) -> INR:
    made = make_generator("inr", _tensors(), GROUPS, SMALL | dict(settings or {}))
    assert isinstance(made, INR)
    return made


@pytest.mark.parametrize(("g", "h"), [(8, 6), (5, 6), (3, 4), (12, 9), (1, 1)])
def test_shapes_at_any_widths(g: int, h: int) -> None:
    found = _inr()({"g": g, "h": h})
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "first.weight": (g, 3, 3, 3),
        "first.bias": (g,),
        "norm.running_var": (g,),
        "depthwise.weight": (g, 1, 3, 3),
        "second.weight": (h, g, 3, 3),
        "second.bias": (h,),
        "flat.weight": (5, 4 * g),
        "joined.weight": (5, 4 + g),
        "fused.weight": (3 * g, h),
        "position": (1, 7, h),
    }
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in found.values())


def test_same_seed_same_weights_and_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    one, two, other = _inr(), _inr(), _inr({"seed": 1})
    widths = {"g": 5, "h": 6}
    assert all(torch.equal(a, b) for a, b in zip(one(widths).values(), two(widths).values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one(widths).values(), one(widths).values(), strict=True))
    assert not torch.equal(one(widths)["first.bias"], other(widths)["first.bias"])
    assert torch.equal(before, torch.get_rng_state())


def _plain(made: INR, widths: Mapping[str, int], noise: Noise | None = None) -> dict[str, Tensor]:
    """One tensor after the other, every coordinate with its whole feature vector through its own MLP."""
    found = {}
    coordinates = made.coordinates(widths, noise)
    for views, bank in zip(made.views, made.banks, strict=True):
        for k, v in enumerate(views):
            x = coordinates[v.slot.name].double()
            tops = [v.slot.shape[0], v.slot.shape[1] if len(v.slot.shape) > 1 else 1, 8, 8]
            parts = []
            for column, top in enumerate(tops):
                angle = x[:, column, None] * frequencies(made.count, top)
                parts.append(torch.cat([x[:, column, None], angle.sin(), angle.cos()], dim=1))
            p = {name: t[k].double() for name, t in bank.state_dict().items()}
            h = torch.relu(torch.cat(parts, dim=1) @ p["first"] + p["first_bias"])
            for layer in range(len(bank.weights)):
                h = h + torch.relu(h @ p[f"weights.{layer}"] + p[f"biases.{layer}"])
            y = (h @ p["last"] + p["last_bias"]) * p["std"] + p["mean"]
            if v.slot.name == "norm.running_var":
                y = y.exp()
            y = y * v.slot.fan_in_factor(made.base, widths)
            shape = v.slot.sized(made.base, widths)
            found[v.slot.name] = y.reshape(shape).permute([v.order.index(d) for d in range(len(shape))])
    return found


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("amount", [None, 1.0])
@pytest.mark.parametrize("widths", [{"g": 8, "h": 6}, {"g": 5, "h": 6}, {"g": 11, "h": 2}])
def test_batched_product_is_the_plain_loop(widths: dict[str, int], amount: float | None, layers: int) -> None:
    made = _inr({"layers": layers})
    noises = [None if amount is None else Noise(amount, torch.Generator().manual_seed(5)) for _ in range(2)]
    found, wanted = made(widths, noises[0]), _plain(made, widths, noises[1])
    assert list(found) == [s.name for s in made.slots]
    assert set(found) == set(wanted)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name].float(), rtol=1e-4, atol=1e-5, msg=name)


def test_products_are_shared_while_padding_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs([8, 64, 512]) == [3]
    assert runs([512, 4096, 4096, 5000]) == [1, 3]
    assert runs([4096, 5200]) == [2]
    assert runs([4096, 9000]) == [1, 1]
    monkeypatch.setattr(features, "ROWS", 10000)
    assert runs([4096, 4096, 4096]) == [2, 1]


def test_large_tensors_are_evaluated_in_pieces_with_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = _inr(), _inr()
    widths = {"g": 8, "h": 6}
    results = []
    for made in (whole, pieces):
        if made is pieces:
            monkeypatch.setattr(features, "ROWS", 16)
            monkeypatch.setattr(inr, "ROWS", 16)
            assert max(p.rows for p in made._plan(widths, made.device)[0]) > 16
        found = made(widths)
        sum(t.square().sum() for t in found.values()).backward()
        results.append(found | {n: p.grad for n, p in made.named_parameters()})
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_coordinates_are_those_of_the_axis_convention() -> None:
    made = _inr()
    for widths in ({"g": 8, "h": 6}, {"g": 5, "h": 7}):
        found = made.coordinates(widths)
        for slot in made.slots:
            if slot.name != "position":
                assert torch.equal(found[slot.name], relative(slot, made.base, widths)), slot.name
    # the dimension that varies is the first coordinate, the seven positions are the kernel
    position = made.coordinates({"g": 8, "h": 3})["position"]
    assert torch.allclose(position, torch.tensor([[(j + 0.5) / 3, 0.5, 0.5, 1.0] for j in range(3)]))


def test_noise_moves_outputs_and_inputs_by_a_share_of_a_cell_and_nothing_else() -> None:
    made = _inr()
    widths = {"g": 5, "h": 6}
    still = made.coordinates(widths)
    moved = made.coordinates(widths, Noise(0.5, torch.Generator().manual_seed(0)))
    again = made.coordinates(widths, Noise(0.5, torch.Generator().manual_seed(0)))
    for slot in made.slots:
        sized = next(v for views in made.views for v in views if v.slot.name == slot.name).slot.sized(made.base, widths)
        difference = moved[slot.name] - still[slot.name]
        cell = torch.tensor([1 / sized[0], 1 / sized[1] if len(sized) > 1 else 1.0])
        share = (difference[:, :2] / cell).abs()
        assert share.max() <= 0.25 + 1e-5
        assert (share > 1e-4).float().mean() > 0.9
        assert torch.equal(difference[:, 2:], torch.zeros_like(difference[:, 2:]))
        assert torch.equal(moved[slot.name], again[slot.name])
    a, b = (made(widths, n)["first.weight"] for n in (None, Noise(0.5, torch.Generator().manual_seed(0))))
    assert not torch.allclose(a, b)
    zero = made(widths, Noise(0.0, torch.Generator().manual_seed(0)))["first.weight"]
    torch.testing.assert_close(zero, a)


def test_frequencies_stop_at_the_grid_of_the_base_and_are_what_float32_bears() -> None:
    assert torch.allclose(frequencies(4, 10**9) / math.pi, torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64))
    assert float(frequencies(16, 64)[-1]) == pytest.approx(64 * math.pi)
    assert float(frequencies(16, 1).max()) == pytest.approx(math.pi)
    # the positions that a width has, rounded to float32, give the features of the exact ones
    n = 4096
    exact = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    omega = frequencies(16, n)[None]
    difference = fourier(exact.float()[None], omega) - fourier(exact[None], omega)
    assert difference.abs().max() < 1e-3
    assert fourier(exact[None], omega).shape == (1, n, 33)


def test_first_weights_are_about_as_large_as_the_bases() -> None:
    tensors = _tensors()
    found = make_generator("inr", tensors, GROUPS, {"hidden": 128})({"g": 8, "h": 6})
    for name in ("first.weight", "second.weight", "flat.weight", "fused.weight"):
        distance = float((found[name].detach() - tensors[name].mean()).square().mean().sqrt() / tensors[name].std())
        assert 0.2 < distance < 4.0, (name, distance)


def test_warm_start_brings_the_weights_to_the_bases() -> None:
    tensors, full = _tensors(), {"g": 8, "h": 6}

    def errors(made: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {n: float((t - tensors[n]).square().mean() / tensors[n].var()) for n, t in made(full).items()}

    made = _inr({"hidden": 64})
    before, seen = errors(made), []

    def told(what: str, done: int | float, total: int | float | None, note: str = "") -> None:
        seen.append((what, done, total, float(note.removeprefix("error "))))

    last = made.warm_start(tensors, 150, lr=5e-3, progress=told)
    after = errors(made)
    assert [entry[:3] for entry in seen] == [("warm start", k, 150) for k in range(1, 151)]
    assert last == pytest.approx(seen[-1][3], abs=6e-4)
    assert last < 0.1 * seen[0][3]
    assert all(after[name] < 0.5 * before[name] for name in before)
    assert sum(after.values()) < 0.1 * sum(before.values())


def test_warm_start_as_a_setting_is_the_method() -> None:
    made, warm = _inr(), _inr({"warm_start": 3})
    full = {name: (n, n) for name, n in made.base.items()}
    assert torch.equal(made({"g": 8, "h": 6})["fused.weight"], warm({"g": 8, "h": 6})["fused.weight"])
    warm.begin(_tensors(), full)
    assert not torch.equal(made({"g": 8, "h": 6})["fused.weight"], warm({"g": 8, "h": 6})["fused.weight"])
    made.warm_start(_tensors(), 3)
    assert torch.equal(made({"g": 8, "h": 6})["fused.weight"], warm({"g": 8, "h": 6})["fused.weight"])


def test_a_warm_start_reads_the_base_interpolated_at_other_widths() -> None:
    tensors, low = _tensors(), {"g": 4, "h": 3}
    ends = {"g": (4, 8), "h": (3, 6)}
    # every other channel's mean with its neighbour, in each dimension that has a width
    wanted = tensors["second.weight"].reshape(3, 2, 4, 2, 3, 3).mean(dim=(1, 3)) * 2  # twice: half the fan-in

    def error(made: INR) -> float:
        with torch.no_grad():
            return float((made(low)["second.weight"] - wanted).square().mean() / wanted.var())

    alone, both = _inr({"hidden": 64}), _inr({"hidden": 64})
    alone.warm_start(tensors, 200, lr=5e-3)
    both.warm_start(tensors, 200, ends, lr=5e-3)
    assert error(both) < 0.3 < 0.5 * error(alone)


def test_a_warm_start_begins_with_the_fit_and_can_be_repeated() -> None:
    ends = {"g": (4, 8), "h": (3, 6)}
    one, two, cold = _inr({"warm_start": 4}), _inr({"warm_start": 4}), _inr()
    for made in (one, two, cold):
        made.begin(_tensors(), ends)
    widths = {"g": 5, "h": 4}
    assert torch.equal(one(widths)["fused.weight"], two(widths)["fused.weight"])
    assert not torch.equal(one(widths)["fused.weight"], cold(widths)["fused.weight"])


def test_variances_are_positive_whatever_the_parameters() -> None:
    made = _inr()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(3.0)
    for width in (1, 5, 8, 20):
        assert (made({"g": width, "h": 6})["norm.running_var"] > 0).all()


def test_fan_in_scales_what_is_summed_over() -> None:
    made = _inr()
    with torch.no_grad():
        for bank in made.banks:
            bank.last.zero_()
            bank.last_bias.fill_(1.0)
        full, half = made({"g": 8, "h": 6}), made({"g": 4, "h": 6})
    for name, factor in (("flat.weight", 2.0), ("second.weight", 2.0), ("joined.weight", 1.5), ("first.weight", 1.0)):
        assert float(half[name].mean() / full[name].mean()) == pytest.approx(factor, rel=1e-4)


def test_state_dict_and_settings_rebuild_it() -> None:
    tensors = _tensors()
    made = _inr({"seed": 4, "precision": "bfloat16", "warm_start": 2})
    assert made.settings() == SMALL | {"precision": "bfloat16", "seed": 4}
    again = make_generator("inr", {n: torch.zeros_like(t) for n, t in tensors.items()}, GROUPS, made.settings())
    again.load_state_dict(made.state_dict())
    for widths in ({"g": 8, "h": 6}, {"g": 3, "h": 8}):
        for a, b in zip(made(widths).values(), again(widths).values(), strict=True):
            assert torch.equal(a, b)
    assert made.anchors() == ()


def test_features_are_kept_for_the_last_width_vectors_only_and_never_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inr.Plans, "LIMIT", 3)
    made = _inr()
    names = set(made.state_dict())
    for width in (1, 2, 3, 1, 4):
        made({"g": width, "h": 6})
    assert [key[0] for key in made._plans] == [3, 1, 4]
    kept = made._plans[(1, 6, made.device)]
    assert made._plan({"g": 1, "h": 6}, made.device) is kept
    assert set(made.state_dict()) == names
    assert len(copy.deepcopy(made)._plans) == 0
    assert torch.equal(copy.deepcopy(made)({"g": 2, "h": 6})["first.bias"], made({"g": 2, "h": 6})["first.bias"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_reach_every_parameter(precision: str) -> None:
    made = _inr({"layers": 4, "precision": precision})
    rng = torch.Generator().manual_seed(1)
    noise = Noise(1.0, torch.Generator().manual_seed(2))
    found = made({"g": 5, "h": 6}, noise)
    torch.stack([(t * torch.randn(t.shape, generator=rng)).sum() for t in found.values()]).sum().backward()
    for name, p in made.named_parameters():
        assert p.grad is not None, name
        assert p.grad.dtype == torch.float32
        assert (p.grad.flatten(1) != 0).any(dim=1).all(), f"{name}: a tensor's part has no gradient"


def test_bfloat16_products_give_nearly_the_same_weights_in_float32() -> None:
    widths = {"g": 5, "h": 6}
    with torch.no_grad():
        exact, rough = _inr({"layers": 5})(widths), _inr({"layers": 5, "precision": "bfloat16"})(widths)
    for name, value in exact.items():
        assert rough[name].dtype == torch.float32
        assert float((rough[name] - value).norm() / value.norm()) < 0.03, name


def test_autocast_around_it_changes_nothing() -> None:
    made = _inr()
    plain = made({"g": 5, "h": 6})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = made({"g": 5, "h": 6})
    assert all(torch.equal(plain[n], inside[n]) for n in plain)


def test_a_network_runs_at_any_width_of_its_generator() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 6, 1),
        nn.Flatten(),
        nn.Linear(96, 5),
    ).eval()
    x = torch.randn(2, 3, 4, 4)
    space = morph_space(width_groups(net, x))
    made = make_generator("inr", net.state_dict(), space.groups, SMALL)
    morphable = Morphable(net, space, made)
    for ratio in (0.25, 1.0, 1.5):
        plain = morphable.module(space.at(ratio))
        with morphable.at_widths(space.at(ratio)), torch.no_grad():
            torch.testing.assert_close(plain(x), morphable(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 0}, "layers of the generator 'inr' must be an integer from 1 to 64, not 0"),
        ({"hidden": -3}, "hidden of the generator 'inr' must be an integer from 1 to 16384, not -3"),
        ({"frequencies": 65}, "frequencies of the generator 'inr' must be an integer from 1 to 64, not 65"),
        ({"warm_start": -1}, "warm_start of the generator 'inr' must be"),
        ({"layers": True}, "layers of the generator 'inr' must be int, not True"),
        ({"precision": "bfloat"}, r"unknown precision 'bfloat'\. Did you mean 'bfloat16'"),
        ({"depth": 3}, "the generator 'inr' has no setting 'depth'. Known: 'layers', 'hidden'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(MorphError, match=message):
        make_generator("inr", _tensors(), GROUPS, settings)


def test_a_tensor_with_three_varying_dimensions_is_refused() -> None:
    axes = tuple(Axis("t", d) for d in range(3))
    groups = [WidthGroup(f"g{a.dim}", 4, "inner", (a,), ()) for a in axes]
    with pytest.raises(MorphError, match=r"'t' \(4, 4, 4\) has 3 dimensions that change with the widths"):
        make_generator("inr", {"t": torch.randn(4, 4, 4)}, groups, SMALL)


def test_a_warm_start_that_a_signal_stops_goes_on_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch) -> None:
    ends = {name: (width // 2, width) for name, width in _inr().base.items()}
    whole, stopped, resumed = (_inr({"warm_start": 8}) for _ in range(3))
    whole.begin(_tensors(), ends)
    asked: list[int] = []
    monkeypatch.setattr(stopping, "_asked", asked)

    def signalled(what: str, done: float, total: float | None, note: str = "") -> None:
        if done == 5:
            asked.append(2)

    with pytest.raises(stopping.Stopped, match="the warm start stopped after step 5 of 8"):
        stopped.begin(_tensors(), ends, signalled, tmp_path)
    asked.clear()
    steps: list[float] = []
    resumed.begin(_tensors(), ends, lambda what, done, total, note="": steps.append(done), tmp_path)
    assert steps == [6, 7, 8]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    again = _inr({"warm_start": 8})
    again.begin(_tensors(), ends, lambda *a, **k: pytest.fail("it is done already"), tmp_path)
    assert torch.equal(again.state_dict()[name], value)
    with pytest.raises(TrainingError, match="is of another run"):
        _inr({"warm_start": 9}).begin(_tensors(), ends, None, tmp_path)


def test_a_warm_start_begins_when_the_folder_is_there(tmp_path) -> None:
    came: list[str] = []
    settings = {"layers": 1, "hidden": 4, "frequencies": 2, "warm_start": 2}
    asked = MorphSettings(generator={"kind": "inr", "settings": settings}, ratios=(0.5,))
    run = Run("cpu", tmp_path / "checkpoints", lambda what, done, total, note="": came.append(what))
    start = order(tiny(), open_data("digits"), asked)
    assert not any(tmp_path.iterdir())
    fit_generator(start, run)
    assert came == ["warm start", "warm start"]
    assert (tmp_path / "checkpoints" / WARM).is_file()
