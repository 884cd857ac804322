from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from morph_networks import morphable, space_of, tiny

import netsmith
from netsmith.artifacts.artifact import read_manifest
from netsmith.cli.main import main
from netsmith.data.splits import open_data
from netsmith.errors import ArtifactError, BudgetError, MorphError, SourceError
from netsmith.morphing import pipeline
from netsmith.morphing.fit import FitSettings
from netsmith.morphing.generator import Nested
from netsmith.morphing.grid import default_keyframes
from netsmith.morphing.live import MorphableModel, Sampling, sample_tensors
from netsmith.morphing.pipeline import Morphed, morph
from netsmith.morphing.sampled import load_sampled, save_sampled
from netsmith.morphing.saving import artifact_bytes, load_morphed, save_morphed, write_results
from netsmith.morphing.space import MorphSpace
from netsmith.networks.network import load_source
from netsmith.records.architecture import NOTE
from netsmith.records.morphing import better_narrower, by_ratio
from netsmith.training.settings import TrainSettings
from netsmith.widths.groups import WidthGroup

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def result() -> Morphed:
    training = TrainSettings(epochs=1, batch_size=128, lr=0.02, augment=False)
    return morph(tiny(), open_data("digits"), training=training, ratios=(1.0, 0.5, 0.125))


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    out = tmp_path_factory.mktemp("morph")
    write_results(result, out, config={"seed": 0})
    return out


def test_results_are_the_contract(result, folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["kind"], summary["schema"]) == ("morph", 1)
    assert {"base", "floor", "widths", "artifact_bytes", "seconds"} <= set(summary)
    assert [w["ratio"] for w in summary["widths"]] == [1.0, 0.5, 0.125]
    assert [w["fitted"] for w in summary["widths"]] == [True, True, False]
    assert summary["artifact_bytes"] == artifact_bytes(folder / "artifact")
    details = json.loads((folder / "details.json").read_text())
    assert details["space"]["groups"][0]["name"] == "features.0.0"
    assert details["fit"]["history"][0]["metric"].keys() == {"1", "0.625", "0.25"}


@torch.no_grad()
def test_at_full_width_nothing_is_lost(result):
    assert torch.allclose(result.model(X), tiny().model(X), atol=1e-5)
    assert result.points[0].metrics["test"]["accuracy"] == result.base["test"]["accuracy"]


@torch.no_grad()
def test_an_artifact_gives_the_same_networks_again(result, folder):
    loaded = netsmith.load(folder / "artifact")
    assert isinstance(loaded, MorphableModel)
    for ratio in (1.0, 0.7, 0.5, 0.25):
        assert torch.equal(loaded.at(ratio)(X), result.model.at(ratio)(X))


@torch.no_grad()
def test_a_size_of_an_artifact_is_a_source(result, folder):
    network = load_source(f"{folder / 'artifact'}@0.5")
    assert torch.equal(network.model(X), result.model.at(0.5)(X))
    with pytest.raises(SourceError, match="behind the @ goes a ratio above 0"):
        load_source(f"{folder / 'artifact'}@half")


@torch.no_grad()
def test_a_sampled_network_is_an_artifact_of_its_own(result, folder, tmp_path):
    widths = result.space.of({"features.0.0": 3})
    with pytest.warns(UserWarning, match=r"unequal ratios \(0.375 to 1\) were never fitted together"):
        network = result.model.at(widths)
    save_sampled(network, tmp_path / "s")
    assert read_manifest(tmp_path / "s")["fitted"] is False
    assert "such widths were not fitted" in (tmp_path / "s/README.md").read_text()
    assert torch.equal(load_sampled(tmp_path / "s")(X), network(X))
    assert torch.equal(load_source(str(tmp_path / "s")).model(X), network(X))


def test_budgets_give_the_widest_network_within(result):
    model = result.model
    least, most = model.sizes(model.narrowest())[0], model.sizes(result.space.full)[0]
    for budget in (least, (least + most) // 2, most):
        widths = model.widths_for(params=budget)
        assert model.sizes(widths)[0] <= budget
    wider = {
        name: min(width + 1, result.space.full[name]) for name, width in model.widths_for(params=most // 2).items()
    }
    assert model.sizes(wider)[0] > most // 2
    assert model.sizes(model.widths_for(macs=20_000))[1] <= 20_000
    with pytest.raises(BudgetError, match=rf"params of 5 is below the smallest .* from {least}"):
        model.widths_for(params=5)
    with pytest.raises(BudgetError, match="is above the largest"):
        model.widths_for(params=10**9)
    with pytest.raises(MorphError, match="ask for one of"):
        model.widths_for()
    with pytest.raises(MorphError, match="ask for one of"):
        model.widths_for(0.5, params=1000)


def test_widths_outside_the_range_warn(result):
    with pytest.warns(UserWarning, match=r"outside the fitted range \(ratios 0.25 to 1\)"):
        result.model.at(0.125)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result.model.at(0.5)


@pytest.mark.parametrize(
    ("kind", "fitting", "drawn"),
    [
        ("nested", {}, "range"),
        ("nested", {"draws": ("full", "mixed")}, "each"),
        ("grid", {}, "ratio"),
        ("grid", {"draws": ("keyframe", "mixed"), "apart": 0.0}, "each"),
        ("nested", {"draws": ("full", "mixed"), "undone": True}, "ratio"),
        ("inr", {"draws": ("full", "low")}, "ratio"),
    ],
)
def test_each_kind_says_whether_unequal_widths_were_fitted(kind, fitting, drawn, tmp_path, monkeypatch, capsys):
    fitting = dict(fitting)
    if fitting.pop("undone", False):
        real = pipeline.fit
        monkeypatch.setattr(pipeline, "fit", lambda *a, **k: replace(real(*a, **k), best_epoch=0))
    inr = {"layers": 1, "hidden": 8, "frequencies": 2, "warm_start": 0}
    settings = {"inr": inr, "grid": {"keyframes": [1.0, 0.25], "coarse": None}, "nested": {}}[kind]
    made = morph(
        tiny(), open_data("digits"), generator={"kind": kind, "settings": settings},
        fitting=FitSettings.model_validate(fitting),
        training=TrainSettings(epochs=1, batch_size=256, lr=0.01, augment=False), ratios=(1.0, 0.5),
    )  # fmt: skip
    unequal = {"features.0.0": 4}
    assert made.space.drawn == drawn
    assert made.space.fitted(unequal) == (drawn == "each")
    assert [p.fitted for p in made.points] == [True, True]
    save_morphed(made, tmp_path / "a")
    loaded = load_morphed(tmp_path / "a")
    assert loaded.morphable.space.drawn == drawn
    assert ("unequal ratios can be read too" in (tmp_path / "a/README.md").read_text()) == (drawn != "each")
    for ask in (loaded.at, loaded.set_size, loaded.at):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ask(unequal)
        assert len(caught) == (drawn != "each")
    words = ["sample", str(tmp_path / "a"), "--width", "features.0.0=4", "--out", str(tmp_path / "s")]
    assert main(words) == 0
    assert ("were never fitted together" in capsys.readouterr().err) == (drawn != "each")


def test_many_noisy_reads_are_their_mean():
    made = morphable(Nested)
    widths = made.space.at(0.5)
    exact = made.tensors(widths)
    mean = sample_tensors(made, widths, Sampling(reads=5, noise=1.0))
    assert all(torch.allclose(exact[name], mean[name]) for name in exact)
    with pytest.raises(MorphError, match="must be from 1 to 1000000, not 0"):
        Sampling(reads=0)


def test_damaged_artifacts_are_refused(folder, tmp_path):
    import shutil

    for change, message in (
        (lambda f: (f / "generator.safetensors").write_bytes(b"x"), "truncated"),
        (lambda f: (f / "base.safetensors").unlink(), "lacks base.safetensors"),
        (lambda f: (f / "manifest.json").write_text("{"), "cannot be read"),
    ):
        copy = tmp_path / message.replace(" ", "_")
        shutil.copytree(folder / "artifact", copy)
        change(copy)
        with pytest.raises(ArtifactError, match=message):
            load_morphed(copy)
    altered = tmp_path / "altered"
    shutil.copytree(folder / "artifact", altered)
    data = bytearray((altered / "base.safetensors").read_bytes())
    data[-1] ^= 1
    (altered / "base.safetensors").write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="its hash differs"):
        load_morphed(altered)


def test_a_network_given_as_a_module_is_handed_over_again(tmp_path):
    module = tiny().model
    vars(module).pop(NOTE)  # as one that no source built
    network = load_source(module, name="mine", input_size=(1, 8, 8), num_classes=10)
    made = morph(network, open_data("digits"), training=None, ratios=(0.5,))
    write_results(made, tmp_path)
    with pytest.raises(ArtifactError, match="that no source string builds again"):
        load_morphed(tmp_path / "artifact")
    loaded = load_morphed(tmp_path / "artifact", base=tiny(seed=5).model)
    with torch.no_grad():
        assert torch.equal(loaded.at(0.5)(X), made.model.at(0.5)(X))


def test_default_keyframes_end_at_the_range():
    eighths = [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25]
    for low, expected in ((0.25, eighths), (0.5, eighths[:5]), (0.75, [1.0, 0.75]), (0.1, [*eighths, 0.125, 0.1])):
        found = default_keyframes(space_of(tiny(), (low, 1.0)))
        assert found["keyframes"] == pytest.approx(expected, abs=0.02)
        assert found["coarse"] == pytest.approx(0.75 * low, abs=0.07)
        assert set(found["inbetweens"]) == set(found["keyframes"]) & {0.875, 0.75, 0.625, 0.375} - {low}


@pytest.mark.parametrize(("low", "steps"), [(0.25, [0.5, 0.25]), (0.1, [0.5, 0.25, 0.125, 0.1]), (0.3, [0.5, 0.3])])
def test_no_default_keyframe_that_is_not_in_between_loses_more_than_half_the_channels(low, steps):
    group = WidthGroup("g", 1000, "inner", (), ())
    found = default_keyframes(MorphSpace("all", (group,), {"g": round(1000 * low)}, {"g": 1000}))
    assert [r for r in found["keyframes"][1:] if r not in found["inbetweens"]] == pytest.approx(steps, abs=1e-3)


def test_default_keyframes_end_at_the_group_that_goes_lowest():
    groups = tuple(WidthGroup(f"g{n}", n, "inner", (), ()) for n in (3, 12))
    space = MorphSpace("all", groups, {"g3": 1, "g12": 3}, {"g3": 3, "g12": 12})
    odd = [0.75, 0.875, 0.625, 0.375]
    lowest = {"g3": 1, "g12": 3}
    keyframes = [k / 8 for k in range(8, 1, -1)]
    assert default_keyframes(space) == {"keyframes": keyframes, "inbetweens": odd, "coarse": 0.1875, "lowest": lowest}


def test_default_keyframes_of_few_channels_are_all_different():
    group = WidthGroup("g", 4, "inner", (), ())
    found = default_keyframes(MorphSpace("all", (group,), {"g": 1}, {"g": 4}))
    assert found["keyframes"] == [1.0, 0.75, 0.625, 0.25]  # widths 4, 3, 2, 1
    assert found["inbetweens"] == [0.75]
    wide = default_keyframes(MorphSpace("all", (group,), {"g": 6}, {"g": 8}))
    assert wide == {"keyframes": [1.0], "coarse": None, "lowest": {"g": 4}}


def test_what_is_known_of_the_base_s_images_is_kept(tmp_path):
    """Without its weights (`nested` has its own) nothing could be told from the base in an artifact."""
    made = morph(tiny(), open_data("digits"), norms="keep", generator="nested", ratios=(1.0, 0.5))
    for known in (True, False):
        folder = save_morphed(replace(made, augmented=known), tmp_path / str(known))
        assert read_manifest(folder)["augmented"] is known
    assert made.augmented is not None
    assert "augmented" not in read_manifest(save_morphed(replace(made, augmented=None), tmp_path / "none"))


def test_a_range_above_the_base_is_read_and_not_fitted():
    data = open_data("digits")
    found = morph(tiny(), data, space={"widths": (1.5, 2.0)}, ratios=(1.0, 2.0))
    assert found.model.morphable.generator.keyframes == (1.0,)
    assert [p.fitted for p in found.points] == [False, True]
    assert found.points[0].metrics == found.points[1].metrics  # the base's function, with its channels repeated
    assert found.model.widths_for(latency_ms=1e9) == found.space.at(2.0)
    for widths in ((1.5, 2.0), (1.0, 2.0)):
        with pytest.raises(
            MorphError, match=r"a grid has nothing to fit on ratios 1.* to 2.*choose generator.kind: nest"
        ):
            morph(tiny(), data, space={"widths": widths}, training=TrainSettings(epochs=1), ratios=(1.0,))


def test_budgets_reach_the_base_in_one_way():
    found = morph(tiny(), open_data("digits"), space={"widths": (0.25, 0.5)}, ratios=(1.0,)).model
    assert found.widths_for(latency_ms=1e9) == found.widths_for(params=found.sizes(found.widths_for(1.0))[0])


def test_a_fit_in_channels_is_judged_at_these_channels():
    training = TrainSettings(epochs=2, batch_size=256, lr=0.02)
    found = morph(tiny(), open_data("digits"), space={"widths": (6, 12)}, training=training, ratios=(1.0, 0.5))
    grid = found.model.morphable.generator
    assert set(grid.widths_at(grid.keyframes[-1]).values()) == {6}
    assert found.training is not None
    assert "accuracy@0.5" in found.training.history[0]


# --- a narrower size that is better -----------------------------------------------------------------------------------


def test_metrics_by_ratio_leave_out_what_is_none():
    found = {"accuracy@0.5": 0.88, "accuracy@1": 1, "accuracy": 0.9, "accuracy@x": 0.1, "a@0.25": "0.5", "a@nan": 0.2}
    assert by_ratio({**found, "a@0.125": math.nan, "a@-1": 0.3}) == {0.5: 0.88, 1.0: 1.0}


MEASURED = {1.0: 0.9, 0.75: 0.89, 0.5: 0.88, 0.375: 0.80, 0.25: 0.84}


@pytest.mark.parametrize(
    ("ratio", "found"),
    [
        (0.375, (0.25, 0.84, 0.80)),  # measured itself
        (0.4, (0.25, 0.84, 0.816)),  # on the line from 0.375 to 0.5
        (0.45, None),  # 0.848
        (0.3, (0.25, 0.84, 0.824)),
        (0.25, None),  # nothing narrower was measured
        (0.1, None),
        (2.0, None),  # as at 1
    ],
)
def test_a_narrower_size_is_named_where_it_was_better(ratio, found):
    assert better_narrower(MEASURED, ratio) == (None if found is None else pytest.approx(found))


def test_what_is_better_by_no_more_than_noise_is_not_told_from_it():
    assert better_narrower(MEASURED, 0.375, lambda value: value * 0.05) is None
    assert better_narrower(MEASURED, 0.375, lambda value: value * 0.04) is not None


@given(
    st.dictionaries(st.integers(1, 32).map(lambda k: k / 16), st.floats(-5, 5), max_size=8),
    st.floats(0.01, 2.5, allow_nan=False),
)
def test_what_is_named_is_narrower_and_the_best_of_those(measured, ratio):
    found = better_narrower(measured, ratio)
    narrower = {r: v for r, v in measured.items() if r < ratio}
    if found is not None:
        best, value, expected = found
        assert value == narrower[best] == max(narrower.values()) > expected
    elif ratio in measured and narrower:
        assert max(narrower.values()) <= measured[ratio] + 1e-9


def test_sample_names_a_narrower_size_that_was_better(result, folder, tmp_path, capsys):
    """A budget alone asks for what fits; a ratio is what was asked for."""
    values = {1.0: 0.9, 0.5: 0.8, 0.125: 0.85}
    assert read_manifest(folder / "artifact")["validation_images"] == len(result.data.validation)
    points = [
        replace(p, metrics={"validation": {"accuracy": values[p.ratio]}, "test": {"accuracy": 0.5}})
        for p in result.points
    ]
    made = save_morphed(replace(result, points=tuple(points)), tmp_path / "artifact")
    params = str(points[1].params)
    assert main(["sample", str(made), "--params", params, "--out", str(tmp_path / "half")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "accuracy 85.0% on validation at ratio 0.125, where about 80.0% is to be expected at this one, 0.5." in said
    assert "Give --ratio 0.125 to have it." in said
    for words in (["--ratio", "0.5"], ["--params", str(points[0].params)]):
        assert main(["sample", str(made), *words, "--out", str(tmp_path / "other"), "--overwrite"]) == 0
        assert "was better" not in capsys.readouterr().err
