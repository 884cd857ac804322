"""The main path on a tiny zoo: every step, its cache, what is saved, and the same network from its file."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import netsmith
from netsmith.artifacts.artifact import read_manifest
from netsmith.cli.console import Console, RunLog
from netsmith.cli.reassemble import show
from netsmith.cli.session import Session
from netsmith.data.splits import open_data
from netsmith.errors import ArtifactError, BudgetError, DataError, PartitionError, RecipeError, ZooError
from netsmith.files.cache import Cache
from netsmith.networks.network import load_source
from netsmith.networks.trained import save_network
from netsmith.reassembly import steps
from netsmith.reassembly.facts import facts_of
from netsmith.reassembly.members import members_within, study
from netsmith.reassembly.members import on_device as parent_on_device
from netsmith.reassembly.pipeline import reassemble
from netsmith.reassembly.recipe import Recipe
from netsmith.reassembly.saving import load_reassembled, write_results
from netsmith.records.reassembly import Summary
from netsmith.report import write_report
from netsmith.search.budget import Budget
from netsmith.trace.cost import count_macs, count_params
from netsmith.training.settings import TrainSettings

ZOO = (
    ("residual", "netsmith:cifar_resnet20", {"widths": (8, 16, 32)}),
    ("vit", "netsmith:small_vit", {"dim": 24, "depth": 4}),
    ("plain", "netsmith:plain_cnn", {}),
)
SETTINGS = {
    "partition": {"k": 2, "eps": 0.5, "restarts": 20},
    "search": {"candidates": 4},
    "probe": {"images": 64},
    "stitch": {"images": 200},
}
ALSO = {"also": ("params", "naswot")}


@pytest.fixture(scope="module")
def digits():
    return open_data("digits")


def zoo():
    return [
        load_source(source, name=name, num_classes=10, input_size=(1, 8, 8), options=options, seed=7)
        for name, source, options in ZOO
    ]


@pytest.fixture(scope="module")
def result(digits):
    return reassemble(zoo(), digits, Budget(params="150k"), score=ALSO, **SETTINGS)


@pytest.mark.parametrize("score", ["stitch", "naswot", "synflow"])
def test_no_network_is_built_twice(digits, tmp_path, monkeypatch, score):
    built = []
    assemble = steps.assemble

    def counted(recipe, *arguments, **settings):
        built.append(recipe.digest)
        return assemble(recipe, *arguments, **settings)

    monkeypatch.setattr(steps, "assemble", counted)
    settings = {**SETTINGS, "search": {"candidates": 3}, "score": {"name": score}, "cache": Cache(tmp_path)}
    first = reassemble(zoo(), digits, Budget(params="150k"), **settings)
    assert len(built) == len(set(built)) == len(first.candidates) == 3
    # with the scores from the cache nothing was kept: the chosen one is built, and is the same
    again = reassemble(zoo(), digits, Budget(params="150k"), **settings)
    assert len(built) == 4
    assert again.recipe == first.recipe
    assert again.accuracy == first.accuracy
    assert again.candidates[0].stitched == first.candidates[0].stitched
    state = again.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.module.state_dict().items())


def test_the_chosen_network_keeps_the_budget_and_mixes(result):
    chosen = next(c for c in result.candidates if c.recipe is result.recipe)
    assert chosen.params <= 150_000
    assert len({block.network for block in result.recipe.blocks}) >= 2
    assert chosen is result.candidates[0]


def test_counts_are_those_of_the_built_network(result):
    """No network is built to be counted; what is written down must still be what is built."""
    chosen = result.candidates[0]
    assert chosen.params == count_params(result.module)
    assert chosen.macs == count_macs(result.module, (1, 8, 8))


def test_candidates_are_ranked_by_their_score(result):
    scores = [c.scores["stitch"] for c in result.candidates]
    assert scores == sorted(scores, reverse=True)
    assert all(set(c.scores) == {"stitch", "params", "naswot"} for c in result.candidates)


def test_stitching_beats_every_untrained_parent(result):
    assert result.accuracy["stitched"] > 0.5 > max(result.members.values())
    assert result.accuracy["finetuned"] is None


def test_seconds_name_the_steps(result):
    steps = ["dissection", "parents", "representation", "similarity", "partition", "search", "stitch costs"]
    assert list(result.seconds) == [*steps, "scoring", "finetuning", "test"]


def test_a_second_run_takes_its_steps_from_the_cache_and_agrees(digits, result, tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    first = reassemble(zoo(), digits, Budget(params="150k"), score=ALSO, cache=cache, **SETTINGS)

    def never(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr("netsmith.reassembly.steps.represent", never)
    monkeypatch.setattr("netsmith.reassembly.steps.judge", never)
    monkeypatch.setattr("netsmith.reassembly.steps.get_score", never)
    second = reassemble(zoo(), digits, Budget(params="150k"), score=ALSO, cache=cache, **SETTINGS)
    assert first.recipe == second.recipe == result.recipe
    assert [c.scores for c in first.candidates] == [c.scores for c in second.candidates]
    assert (first.table.values == second.table.values).all()


def test_more_probe_images_than_there_are_is_said_before_anything_is_kept(digits, tmp_path):
    with pytest.raises(DataError, match="50000 probe images"):
        reassemble(zoo(), digits, cache=Cache(tmp_path), **{**SETTINGS, "probe": {"images": 50_000}})
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_networks_and_the_pieces_cut_from_them_are_on_the_device_where_they_run(digits, monkeypatch):
    """Where stitch costs and scores are computed; a piece may have buffers that the network does not know."""
    there: list[object] = []
    plain = {name: getattr(steps, name) for name in ("represent", "joint_costs", "assemble")}

    @contextmanager
    def on_device(parents, device):
        assert device == "cpu"
        there.extend(p.name for p in parents)
        with parent_on_device(parents, device):
            yield
        del there[:]

    def watched(name):
        def call(first, second, *rest, **more):
            wanted = {"represent": 1, "joint_costs": 3, "assemble": 1}[name]
            assert len(there) >= wanted, name
            return plain[name](first, second, *rest, **more)

        return call

    monkeypatch.setattr(steps, "on_device", on_device)
    for name in plain:
        monkeypatch.setattr(steps, name, watched(name))
    reassemble(zoo(), digits, Budget(), **SETTINGS)

    moved: list[object] = []
    monkeypatch.setattr(
        "netsmith.reassembly.members.placed", lambda module, *_, **__: moved.append(module) or nullcontext()
    )
    parents = study(zoo(), digits.train.images([0]))
    with parent_on_device(parents, "cpu"):
        assert {id(u.module) for u in parents[0].chain.units} < {id(module) for module in moved}


def test_what_a_cache_keeps_by_content_is_of_the_network_that_asks(digits, tmp_path):
    """Renamed in the configuration, and one network twice in a zoo: the table has the names of this run."""
    cache = Cache(tmp_path)
    first = reassemble(zoo(), digits, Budget(), cache=cache, **SETTINGS)
    other, vit, plain = zoo()
    renamed = [replace(other, name="other"), vit, plain, replace(plain, name="twin")]
    second = reassemble(renamed, digits, Budget(), cache=cache, **SETTINGS)
    assert second.table.networks == ("other", "vit", "plain", "twin")
    old, new = first.table.values, second.table.values
    assert (new[: len(old), : len(old)] == old).all()


def test_a_shared_cache_tells_networks_of_equal_weights_apart(digits, tmp_path):
    """A ViT's weights do not tell its heads: of each number, a cache keeps what that one gives."""

    def members(heads: int):
        options = {"dim": 24, "depth": 4, "heads": heads}
        vit = load_source("netsmith:small_vit", name="vit", num_classes=10, input_size=(1, 8, 8), options=options)
        return [vit, *zoo()[2:]]

    cache = Cache(tmp_path)
    four = reassemble(members(4), digits, Budget(), cache=cache, **SETTINGS)
    one = reassemble(members(1), digits, Budget(), cache=cache, **SETTINGS)
    alone = reassemble(members(1), digits, Budget(), **SETTINGS)
    assert (one.table.values == alone.table.values).all()
    assert not (one.table.values == four.table.values).all()
    assert [c.scores for c in one.candidates] == [c.scores for c in alone.candidates]
    assert one.members == alone.members


def test_what_is_saved_loads_and_computes_the_same(result, tmp_path):
    summary = write_results(result, tmp_path)
    module = netsmith.load(tmp_path / "artifact")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(module(x), result.module(x))
    assert Summary.from_dict(json.loads((tmp_path / "summary.json").read_text())) == summary
    assert Recipe.from_json((tmp_path / "recipe.json").read_text()) == result.recipe
    card = (tmp_path / "artifact" / "README.md").read_text()
    assert str(result.recipe.blocks[0]) in card
    assert "netsmith.load" in card
    assert "- budget: " in card
    assert "150k" in card
    assert f"- test accuracy, stitched: {100 * result.accuracy['stitched']:.1f}% (digits)" in card
    for parent in result.parents:
        used = parent.name in {ref.name for ref in result.recipe.networks}
        assert (f"sha256 `{parent.network.provenance.sha256}`" in card) == used


def test_one_non_commercial_source_makes_the_result_so(result):
    inside = {ref.name for ref in result.recipe.networks}
    used = [p.name for p in result.parents if p.name in inside]
    limits = {p.name: (None, None) for p in result.parents} | dict(
        zip(used, [("cc-by-nc-4.0", False), ("apache-2.0", True)], strict=True)
    )
    parents = [
        replace(p, network=replace(p.network, provenance=replace(p.network.provenance, licence=a, commercial=b)))
        for p in result.parents
        for a, b in [limits[p.name]]
    ]
    about = {"counts": (1, 1), "budget": Budget(), "accuracy": {}, "classes": (), "data": "x", "seed": 0}
    facts = facts_of(result.recipe, parents, result.module, **about)
    assert [row["source"] for row in facts["provenance"]] == [
        source for name in used for n, source, _ in ZOO if n == name
    ]
    assert (facts["licence"], facts["commercial"]) == ("cc-by-nc-4.0 AND apache-2.0", False)
    assert result.module.facts["commercial"] is None, "nothing is known of these"


def test_weights_that_were_not_measured_claim_no_accuracy(result, tmp_path):
    module = copy.deepcopy(result.module)
    module.save_pretrained(tmp_path / "same")
    with torch.no_grad():
        module.get_classifier().bias[0] += 1
    module.save_pretrained(tmp_path / "changed")
    for name, measured in (("same", True), ("changed", False)):
        manifest = read_manifest(tmp_path / name)
        assert ("accuracy_stitched" in manifest["metrics"]) == measured
        assert manifest["params"] == count_params(module)
        card = (tmp_path / name / "README.md").read_text()
        assert ("accuracy: not measured with these weights" in card) != measured


def test_the_summary_keeps_its_contract(result, tmp_path):
    write_results(result, tmp_path)
    data = json.loads((tmp_path / "summary.json").read_text())
    assert list(data)[:2] == ["kind", "schema"]
    assert (data["kind"], data["schema"]) == ("reassembly", 1)
    assert {"budget", "blocks", "params", "macs", "accuracy", "zoo", "seconds"} <= set(data)
    assert data["budget"] == {"params": {"min": None, "max": 150_000}}
    assert data["accuracy"]["split"] == "test"
    assert [set(member) for member in data["zoo"]] == [{"name", "params", "macs", "accuracy"}] * 3


@pytest.mark.slow
def test_the_scored_recipe_rebuilds_bit_identically_in_a_new_process(result, tmp_path):
    """Recipe file, zoo and probe images: nothing else may be needed to get the stitched network to the last bit."""
    (tmp_path / "recipe.json").write_text(result.recipe.to_json())
    code = f"""
import hashlib, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from netsmith.data.splits import open_data, probe_set
from netsmith.networks.network import load_source
from netsmith.reassembly.members import chains_of, preprocessing_of, study
from netsmith.reassembly.recipe import Recipe
from netsmith.reassembly.stitch import Probe, assemble
digits = open_data("digits")
networks = [load_source(s, name=n, num_classes=10, input_size=(1, 8, 8), options=o, seed=7) for n, s, o in {ZOO!r}]
parents = study(networks, digits.train.images([0]))
images, labels = probe_set(digits, 200, seed=0)
recipe = Recipe.from_json(Path(sys.argv[1]).read_text())
module = assemble(recipe, chains_of(parents), init="lstsq", probe=Probe(images, labels, preprocessing_of(parents)))
for name, tensor in sorted(module.state_dict().items()):
    print(name, hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "recipe.json")], capture_output=True, text=True, check=True
    )
    expected = [
        f"{name} {hashlib.sha256(tensor.numpy().tobytes()).hexdigest()}"
        for name, tensor in sorted(result.module.state_dict().items())
    ]
    assert done.stdout.splitlines() == expected


def test_finetuning_changes_the_network_and_adapters_alone_when_asked(digits, tmp_path):
    settings = TrainSettings(epochs=1, lr=0.0001, batch_size=64)
    tuned = reassemble(
        zoo(),
        digits,
        Budget(params="150k"),
        finetune=settings,
        trainable="adapters",
        score={"finalists": 2},
        **SETTINGS,
    )
    assert tuned.training is not None
    assert len(tuned.training.history) == 1
    assert tuned.accuracy["finetuned"] is not None
    finalists = [c for c in tuned.candidates if c.finetuned is not None]
    assert len(finalists) == 2
    assert max(finalists, key=lambda c: c.finetuned).recipe is tuned.recipe
    block = tuned.recipe.blocks[0]
    parent = next(p for p in tuned.parents if p.name == block.network)
    own = parent.chain.part(block.start, block.stop).state_dict()
    kept = tuned.module.blocks[0].state_dict()
    assert all(torch.equal(own[name], kept[name]) for name in own if not name.endswith("num_batches_tracked"))


def test_another_tuning_in_the_same_folder_is_done_beside_the_first(digits, tmp_path):
    def resumed_from(lr: float) -> int:
        settings, cache = TrainSettings(epochs=1, lr=lr, batch_size=256), Cache(tmp_path / "cache")
        tuned = reassemble(
            zoo(), digits, Budget(), finetune=settings, cache=cache, checkpoints=tmp_path / "kept", **SETTINGS
        )
        assert tuned.training is not None
        return tuned.training.resumed_from

    assert [resumed_from(lr) for lr in (0.01, 0.02, 0.01)] == [0, 0, 1]


def test_a_zoo_of_one_is_refused(digits):
    with pytest.raises(ZooError, match="at least two networks, got 1 \\('residual'\\)"):
        reassemble(zoo()[:1], digits)


def test_two_networks_of_one_name_are_refused(digits):
    twins = [*zoo()[:1], *zoo()[:1]]
    with pytest.raises(ZooError, match="used more than once: residual"):
        reassemble(twins, digits)


def test_an_impossible_budget_names_the_nearest_feasible_value(digits):
    with pytest.raises(BudgetError, match="params"):
        reassemble(zoo(), digits, Budget(params=1000), **SETTINGS)


def test_members_that_keep_a_budget_are_named(result):
    vit = next(p for p in result.parents if p.name == "vit")
    budget = Budget(params=vit.chain.params)
    assert members_within(result.parents, budget) == " In the zoo, vit would keep its params and MACs."
    assert members_within(result.parents, Budget(params=10)) == ""


def test_an_impossible_budget_names_members_that_keep_it(digits, monkeypatch):
    def nothing(*_, **__):
        raise BudgetError("no assembly fits.")

    monkeypatch.setattr(steps, "search", nothing)
    with pytest.raises(BudgetError, match=r"^no assembly fits\. In the zoo, .*vit.* would keep its params and MACs\.$"):
        reassemble(zoo(), digits, Budget(params="1M"), **SETTINGS)


def test_k_above_the_shortest_network_names_it(digits):
    with pytest.raises(PartitionError, match="'vit' has 4"):
        reassemble(zoo(), digits, **{**SETTINGS, "partition": {"k": 5, "eps": 0.5}})


def test_latency_and_memory_bounds_are_measured_and_kept(digits):
    found = reassemble(
        zoo(), digits, Budget(latency_ms=1000, memory_mb=50), **{**SETTINGS, "search": {"candidates": 2, "mix": False}}
    )
    chosen = found.candidates[0]
    assert chosen.latency_ms is not None
    assert 0 < chosen.latency_ms < 1000
    assert 0 < chosen.memory_mb < 50


def test_a_network_given_as_a_module_needs_it_again_to_load(digits, tmp_path):
    modules = [load_source(n.model, name=n.name, num_classes=10, input_size=(1, 8, 8)) for n in zoo()]
    result = reassemble(modules, digits, **SETTINGS)
    write_results(result, tmp_path)
    with pytest.raises(RecipeError, match="was given as a module"):
        load_reassembled(tmp_path / "artifact")
    again = load_reassembled(tmp_path / "artifact", networks={n.name: n.model for n in zoo()})
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(x), result.module(x))


def test_an_artifact_without_its_recipe_says_so(result, tmp_path):
    from netsmith.artifacts.artifact import save_artifact

    folder = save_artifact(tmp_path / "a", kind="reassembly", tensors={}, manifest={"name": "x"}, card="x")
    with pytest.raises(ArtifactError, match="lacks 'recipe'"):
        load_reassembled(Path(folder))


def test_fine_tuning_never_makes_the_network_worse(digits, caplog, tmp_path, capsys):
    """Weights that tuning has spoilt on validation are not kept; the user is told."""
    spoiling = TrainSettings(epochs=1, lr=5.0, optimizer="adamw", batch_size=256)
    result = reassemble(zoo(), digits, Budget(params="150k"), finetune=spoiling, **SETTINGS)
    chosen = result.candidates[0]
    assert chosen.stitched is not None
    assert chosen.finetuned is None
    assert result.accuracy["finetuned"] is None
    assert "fine-tuning made the network worse on validation" in caplog.text
    assert result.undone
    assert result.training is not None
    assert result.training.metrics["accuracy"] == chosen.stitched
    assert [entry["accuracy"] < chosen.stitched for entry in result.training.history] == [True]
    summary = write_results(result, tmp_path)
    write_report(tmp_path)
    card, page = (tmp_path / "artifact/README.md").read_text(), (tmp_path / "report.html").read_text()
    number = f"{100 * result.accuracy['stitched']:.1f}%"
    assert f"- test accuracy, stitched; tuning did not help and was undone: {number} (digits)" in card
    assert "accuracy, finetuned" not in card
    assert "accuracy on test stitched; tuning did not help and was undone" in page
    assert "1 epoch after stitching, none better than the stitched network: tuning did not help and was undone." in page
    assert "after tuning" not in page
    assert summary.accuracy.undone
    show(summary, Session(Console(), RunLog(), ()))
    text = " ".join(capsys.readouterr().out.split())
    assert f"stitched; tuning did not help and was undone {number}" in text
    assert "fine-tuned" not in text
    manifest = read_manifest(tmp_path / "artifact")
    assert manifest["undone"]
    assert manifest["metrics"]["accuracy_finetuned"] is None


def test_results_say_nothing_of_the_makers_machine(digits, tmp_path):
    """Of a zoo of artifacts, files of weights and code; what was written is loaded where all of it was moved to."""
    home = tmp_path / "maker"
    home.mkdir()
    (home / "nets.py").write_text(
        "from netsmith.models import PlainCNN\n\n\ndef build(num_classes=10):\n"
        "    return PlainCNN(num_classes, in_channels=1, image_size=8)\n"
    )
    first, second, _ = zoo()
    save_network(home / "net", first, counts={"params": 1, "macs": 1}, metrics={}, config={})
    save_file(second.model.state_dict(), home / "vit.safetensors")
    sources = {
        str(home / "net"): {},
        f"netsmith:small_vit#{home}/vit.safetensors": {"options": second.options, "input_size": (1, 8, 8)},
        f"py:{home}/nets.py:build": {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)},
    }
    networks = [load_source(s, name=f"n{i}", num_classes=10, **more) for i, (s, more) in enumerate(sources.items())]
    result = reassemble(networks, digits, **SETTINGS)
    out = home / "out"
    out.mkdir()
    write_results(result, out, config={"zoo": list(sources), "data": f"folder:{home}"})
    write_report(out)
    files = [f for f in out.rglob("*") if f.is_file()]
    assert len(files) == 7
    assert [f.name for f in files if str(tmp_path).encode() in f.read_bytes()] == []
    home.rename(tmp_path / "taker")
    again = netsmith.load(tmp_path / "taker/out/artifact", run_code=True)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(x), result.module(x))
