from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import SIDE, chains, images, preprocess, probe, references
from torch import Tensor, nn

from netsmith.errors import DataError, RecipeError
from netsmith.reassembly.probe import Probe, ProbeCache
from netsmith.reassembly.recipe import FitSpec, Recipe
from netsmith.reassembly.stitch import adapter_cost, assemble, fit, join, plan_recipe, recipe_cost
from netsmith.search.blocks import Block
from netsmith.trace.cost import count_macs, count_params

CHAINS = chains()
NETWORKS = references()
MIXED = "small[0:1] tokens[1:2] deep[4:6]"


def recipe(text: str, **settings) -> Recipe:
    return plan_recipe([Block.parse(t) for t in text.split()], CHAINS, NETWORKS, **settings)


def digest(state: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in state.items():
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("style", ["auto", "linear", "conv3", "dery"])
@pytest.mark.parametrize(("a", "b"), list(itertools.permutations(CHAINS, 2)))
def test_every_pair_of_networks_fits_at_the_planned_cost(a: str, b: str, style: str):
    made = recipe(f"{a}[0:1] {b}[1:{len(CHAINS[b])}]", style=style)
    net = assemble(made, CHAINS, init="lstsq", probe=probe(16))
    assert recipe_cost(made, CHAINS) == (count_params(net), count_macs(net, (3, SIDE, SIDE)))
    out = net(torch.rand(5, 3, SIDE, SIDE))
    assert out.shape == (5, 4)
    assert torch.isfinite(out).all()


def test_consecutive_blocks_of_one_network_are_that_network():
    made = recipe("deep[0:2] deep[2:5] deep[5:6]")
    assert all(spec.style == "identity" for spec in made.adapters)
    net = assemble(made, CHAINS)
    x = torch.rand(3, 3, SIDE, SIDE)
    assert torch.equal(net(x), CHAINS["deep"].model(x))
    report = fit(net, CHAINS, probe(), cache=None)
    assert report.joints == ()
    plain = assemble(recipe("deep[0:2] deep[2:5] deep[5:6]", fit=FitSpec(head="keep")), CHAINS)
    fit(plain, CHAINS, probe())
    assert torch.allclose(plain(x), CHAINS["deep"].model(x), atol=1e-6)


def test_blocks_that_start_late_or_end_early_get_adapters_at_the_ends():
    made = recipe("small[1:2] deep[2:4]")
    assert [s.style for s in made.adapters] == ["conv3", "conv3", "conv3"]
    assert made.adapters[0].source_shape == CHAINS["small"].cuts[0].shape
    assert made.adapters[2].target_shape == CHAINS["deep"].cuts[-1].shape
    assert (made.stem, made.head.network) == ("small", "deep")
    net = assemble(made, CHAINS, init="lstsq", probe=probe())
    assert net(torch.rand(1, 3, SIDE, SIDE)).shape == (1, 4)


def test_the_stem_may_be_another_networks():
    made = recipe("small[0:3]", stem="deep")
    assert [n.name for n in made.networks] == ["deep", "small"]
    assert [s.style for s in made.adapters] == ["conv3", "identity", *[]]
    assert made.input == NETWORKS["deep"].input


def test_an_adapter_to_the_same_place_learns_to_copy():
    """The stem of `small` feeds block `small[0:3]` through an adapter that has to be the identity."""
    chain = CHAINS["small"]
    made = recipe("small[0:3]", fit=FitSpec(head="keep", recalibrate=False))
    spec = replace(join("deep", Block("small", 0, 3), CHAINS, "linear"))
    assert spec.source.channels == 5
    same_place = replace(
        made, adapters=(replace(spec, source=spec.target, source_shape=spec.target_shape), made.adapters[1])
    )
    net = assemble(made, CHAINS)
    from netsmith.reassembly.adapters import Adapter

    adapter = Adapter(same_place.adapters[0]).eval()
    net.adapters[0] = adapter
    net.recipe = same_place
    report = fit(net, CHAINS, probe())
    assert report.joints[0].r2 == pytest.approx(1, abs=1e-5)
    x = preprocess(images(8, seed=9)[0])
    assert torch.allclose(net(x), chain.model(x), atol=1e-3)


def test_each_adapter_is_the_regression_on_what_really_reaches_it():
    made = recipe("small[0:1] deep[2:4] small[2:3]", style="linear", fit=FitSpec(ridges=(1e-3,), holdout=0.25))
    data = probe(40)
    net = assemble(made, CHAINS)
    report = fit(net, CHAINS, data)
    x = preprocess(data.images)
    with torch.no_grad():
        reaching = net.blocks[1](net.adapters[1](net.blocks[0](net.stem(x))))
        target = CHAINS["small"].run(0, 2, CHAINS["small"].stem(x))
    a = reaching.permute(0, 2, 3, 1).flatten(0, 2).double()
    b = target.permute(0, 2, 3, 1).flatten(0, 2).double()
    centred = a - a.mean(0)
    gram = centred.T @ centred
    weight = torch.linalg.solve(
        gram + 1e-3 * gram.diagonal().mean() * torch.eye(len(gram)).double(), centred.T @ (b - b.mean(0))
    )
    assert torch.allclose(net.adapters[2].conv.weight.detach().flatten(1).T.double(), weight, atol=1e-4)
    assert [j.index for j in report.joints] == [1, 2]
    assert report.cost == pytest.approx(sum(1 - j.r2 for j in report.joints))


def test_token_targets_are_met_on_average_at_every_place():
    made = recipe("small[0:1] tokens[0:3]", fit=FitSpec(rows=200))
    data = probe(64)
    net = assemble(made, CHAINS, init="lstsq", probe=data)
    x = preprocess(data.images)
    with torch.no_grad():
        out = net.adapters[1](net.blocks[0](net.stem(x)))
        target = CHAINS["tokens"].stem(x)
    assert torch.allclose(out.mean(0), target.mean(0), atol=1e-4)
    assert net.adapters[1].positions is not None


def test_fitting_beats_random_adapters():
    made = recipe(MIXED)
    data, (x, y) = probe(200), images(200, seed=11)
    accuracy = {}
    for init in ("random", "lstsq"):
        net = assemble(made, CHAINS, init=init, probe=data)  # type: ignore[arg-type]
        with torch.no_grad():
            accuracy[init] = float((net(preprocess(x)).argmax(1) == y).double().mean())
    assert accuracy["lstsq"] > 0.9
    assert accuracy["random"] < 0.6


def test_norms_behind_an_adapter_get_the_statistics_of_what_reaches_them():
    made = recipe("small[0:1] deep[2:6]", fit=FitSpec(batch_size=64, recalibrate=True, holdout=0.0))
    data = probe(64)
    net = assemble(made, CHAINS, init="lstsq", probe=data)
    norm = net.blocks[1].get_submodule("layer2.0.bn1")
    conv = net.blocks[1].get_submodule("layer2.0.conv1")
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        reaching = conv(net.adapters[1](net.blocks[0](net.stem(preprocess(data.images)))))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert torch.allclose(norm.running_mean, reaching.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(norm.running_var, reaching.var((0, 2, 3)), atol=1e-4)
    assert (norm.momentum, norm.training) == (0.1, False)
    kept = assemble(recipe("small[0:1] deep[2:6]", fit=FitSpec(recalibrate=False)), CHAINS, init="lstsq", probe=data)
    original = CHAINS["deep"].model.get_submodule("layer2.0.bn1")
    assert torch.equal(kept.blocks[1].get_submodule("layer2.0.bn1").running_mean, original.running_mean)  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_held_out_images_decide_whether_norms_keep_their_statistics(shift: float):
    """Statistics that suit what reaches a norm are kept; where they are far off, those of the images are taken."""
    made, data = recipe("small[0:1] deep[2:6]"), probe(200)
    behind = [unit.module for unit in CHAINS["deep"].units[2:]]
    means = [m.running_mean for unit in behind for m in unit.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [mean.clone() for mean in means]  # type: ignore[union-attr]
    try:
        for mean in means:
            mean += shift  # type: ignore[operator]
        net = assemble(made, CHAINS)
        report = fit(net, CHAINS, data)
        forced = [
            fit(assemble(replace(made, fit=FitSpec(recalibrate=anew)), CHAINS), CHAINS, data) for anew in (False, True)
        ]
        assert made.fit.recalibrate is None
        assert net.recipe.fit.recalibrate is (forced[1].head.loss < forced[0].head.loss)
        assert report.head == min(forced, key=lambda r: r.head.loss).head
        again = assemble(net.recipe, CHAINS, init="lstsq", probe=data)
        assert same(again.state_dict(), net.state_dict())
        assert Recipe.from_json(net.recipe.to_json()) == net.recipe
        if shift:
            assert net.recipe.fit.recalibrate
            assert "statistics estimated anew" in str(net.recipe)
    finally:
        for mean, value in zip(means, before, strict=True):
            mean.copy_(value)  # type: ignore[union-attr]


def test_without_norms_behind_an_adapter_there_is_nothing_to_decide():
    for blocks in ("deep[0:6]", "small[0:1] tokens[0:3]"):
        net = assemble(recipe(blocks), CHAINS, init="lstsq", probe=probe(40))
        assert net.recipe.fit.recalibrate is False


def test_a_probe_that_is_given_is_used():
    made, data = recipe(MIXED), probe(40)
    fitted, plain = assemble(made, CHAINS, init="lstsq", probe=data), assemble(made, CHAINS, init="random")
    assert same(assemble(made, CHAINS, probe=data).state_dict(), fitted.state_dict())
    assert same(assemble(made, CHAINS).state_dict(), plain.state_dict())
    assert not same(fitted.state_dict(), plain.state_dict())


def test_the_networks_are_left_as_they_were():
    before = {n: {k: v.clone() for k, v in c.model.state_dict().items()} for n, c in CHAINS.items()}
    state = torch.random.get_rng_state()
    CHAINS["small"].model.train()
    net = assemble(recipe(MIXED), CHAINS, init="lstsq", probe=probe())
    assert all(m.training for m in CHAINS["small"].model.modules())
    CHAINS["small"].model.eval()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(same(before[n], c.model.state_dict()) for n, c in CHAINS.items())
    assert not any(m.training for m in net.modules())
    ours = {p.data_ptr() for p in net.parameters()}
    assert not any(p.data_ptr() in ours for c in CHAINS.values() for p in c.model.parameters())


@pytest.mark.parametrize("limit", [0, 200_000, 1 << 30])
def test_a_cache_changes_nothing_in_the_result(limit: int):
    data = probe(50)
    cache = ProbeCache(limit_bytes=limit)
    texts = ["small[0:1] deep[2:6]", "small[0:1] deep[2:4] small[2:3]", MIXED, "small[0:1] deep[2:6]"]
    for text in texts:
        made = recipe(text, fit=FitSpec(batch_size=16))
        net = assemble(made, CHAINS)
        report = fit(net, CHAINS, data, cache=cache)
        alone = assemble(made, CHAINS)
        assert report == fit(alone, CHAINS, data)
        assert same(net.state_dict(), alone.state_dict())
    assert cache._bytes <= limit


def test_prefixes_are_shared_between_recipes(monkeypatch: pytest.MonkeyPatch):
    data, cache = probe(50), ProbeCache()
    fit(assemble(recipe("small[0:1] deep[2:4] small[2:3]"), CHAINS), CHAINS, data, cache=cache)
    runs = []
    chain = CHAINS["small"]
    monkeypatch.setattr(type(chain), "run", lambda self, *a: runs.append(a) or (_ for _ in ()).throw(AssertionError))
    fit(assemble(recipe("small[0:1] deep[2:4] small[2:3]"), CHAINS), CHAINS, data, cache=cache)
    assert runs == []


REBUILD = """
import json, sys, torch
torch.set_num_threads(1)
from tiny import chains, probe
from test_stitch import digest
from netsmith.reassembly.recipe import Recipe
from netsmith.reassembly.stitch import assemble
torch.rand(int(sys.argv[2]))
made = Recipe.from_json(open(sys.argv[1]).read())
found = {i: digest(assemble(made, chains(), init=i, probe=probe()).state_dict()) for i in ("random", "lstsq")}
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_recipe_file_rebuilds_to_the_last_bit_in_a_new_process(tmp_path: Path):
    made = recipe(MIXED, num_classes=4, seed=5)
    file = tmp_path / "recipe.json"
    file.write_text(made.to_json())
    here = {i: digest(assemble(made, CHAINS, init=i, probe=probe()).state_dict()) for i in ("random", "lstsq")}  # type: ignore[arg-type]
    here_again = json.loads(
        subprocess.run(
            [sys.executable, "-c", REBUILD, str(file), "3"],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
    )
    assert here_again == here
    assert here["random"] != here["lstsq"]


def test_frozen_blocks_get_no_gradient_and_keep_their_statistics():
    net = assemble(recipe(MIXED), CHAINS, init="lstsq", probe=probe())
    net.freeze()
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items() if k.startswith(("stem", "blocks"))}
    net(torch.rand(4, 3, SIDE, SIDE)).sum().backward()
    assert all(p.grad is None for m in (net.stem, *net.blocks) for p in m.parameters())
    assert all(p.grad is not None for p in net.adapters.parameters())
    assert same(before, {k: net.state_dict()[k] for k in before})
    net.freeze(False)
    assert all(m.training for m in net.modules())
    net(torch.rand(4, 3, SIDE, SIDE)).sum().backward()
    assert all(p.grad is not None for p in net.blocks.parameters())


def test_another_number_of_classes_gets_a_new_classifier():
    made = recipe("small[0:1] deep[2:6]", num_classes=7)
    assert made.head.fresh
    x, y = images(48)
    labels = (y + 3) % 7
    net = assemble(made, CHAINS, init="lstsq", probe=Probe(x, labels, dict.fromkeys(CHAINS, preprocess)))
    with torch.no_grad():
        assert (net(preprocess(x)).argmax(1) == labels).double().mean() > 0.8


def test_adapter_cost_is_public_here_too():
    before, after = CHAINS["small"].cuts[1], CHAINS["tokens"].cuts[1]
    assert adapter_cost(before, after, "linear")[0] == 4 * 12 + 16 * 12 + (4 * 12 + 12)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("", {}, "at least one block"),
        ("smal[0:1]", {}, "block smal.0:1. is of network 'smal', which is not in the zoo. Did you mean 'small'"),
        ("small[0:9]", {}, "block small.0:9. ends after the last unit: 'small' has 3 units"),
        ("small[0:1]", {"stem": "depe"}, "the stem is of network 'depe', which is not in the zoo. Did you mean 'deep'"),
        ("small[0:1]", {"style": "glue"}, None),
        ("small[1:3]", {"style": "glue"}, "adapter style must be one of"),
    ],
)
def test_bad_plans_are_refused(text: str, settings: dict[str, str], message: str | None):
    with pytest.raises(RecipeError, match=message or "adapter style"):
        recipe(text, **settings)


def test_bad_assembly_is_refused():
    made = recipe(MIXED)
    with pytest.raises(RecipeError, match=r"needs network 'deep'|block deep"):
        assemble(made, {k: v for k, v in CHAINS.items() if k != "deep"})
    with pytest.raises(RecipeError, match="give probe=Probe"):
        assemble(made, CHAINS, init="lstsq")
    with pytest.raises(RecipeError, match="must be 'random' or 'lstsq', not 'zeros'"):
        assemble(made, CHAINS, init="zeros")  # type: ignore[arg-type]
    with pytest.raises(
        RecipeError, match=r"adapter 1 of the recipe is .* has to be .* other networks or another input"
    ):
        assemble(made, {**CHAINS, "tokens": CHAINS["deep"]})
    data = probe()
    with pytest.raises(RecipeError, match="no preprocessing was given for 'tokens'"):
        fit(assemble(made, CHAINS), CHAINS, Probe(data.images, data.labels, {"small": preprocess, "deep": preprocess}))
    with pytest.raises(DataError, match="48 probe images came with 3 labels"):
        Probe(data.images, data.labels[:3], {})
    with pytest.raises(DataError, match="at least 2 probe images, got 1"):
        Probe(data.images[:1], data.labels[:1], {})


def test_nan_on_the_probe_is_one_clear_error():
    data = probe()
    broken = data.images.clone()
    broken[3] = float("nan")
    with pytest.raises(RecipeError, match="NaN or infinity"):
        fit(assemble(recipe(MIXED), CHAINS), CHAINS, Probe(broken, data.labels, data.preprocess))
