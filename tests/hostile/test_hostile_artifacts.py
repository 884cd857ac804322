"""Artifacts made to do harm, with hashes that are right: none runs code, reads elsewhere, or grows without bound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from attacks import refused, resign, safetensors_bytes, tree

import netsmith
from netsmith.artifacts import consent
from netsmith.artifacts.artifact import read_manifest, read_tensors
from netsmith.errors import ArtifactError, ChannelError, NetsmithError, RecipeError, WeightsError
from netsmith.networks.zoo import describe_source, load_source
from netsmith.reassembly.members import rebuild
from netsmith.reassembly.recipe import Recipe

KINDS = ("network", "reassembly", "morph", "inr", "sampled")
READERS = (netsmith.load, read_manifest, lambda f: load_source(str(f)), lambda f: describe_source(str(f)))


def every_reader_refuses(folder: Path, capsys, match: str) -> None:
    """By the functions, and by the verbs that take an artifact; nothing is written."""
    before = tree(folder.parent)
    for read in READERS:
        with pytest.raises(NetsmithError, match=match):
            read(folder)
    refused(capsys, "dissect", folder)
    refused(capsys, "evaluate", folder, "--data", "digits")
    refused(capsys, "sample", folder, "--ratio", "0.5", "--out", folder.parent / "out")
    refused(capsys, "export", folder, "--out", folder.parent / "out.safetensors")
    assert tree(folder.parent) == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_specimens_are_sound(copied, kind):
    """Guards all tests here: what they spoil can be loaded, and signing it anew changes nothing."""
    folder = copied(kind)
    resign(folder)
    netsmith.load(folder)
    load_source(str(folder))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/passwd", "a/../../x", "a\0b", "a" * 300, "..", "", "a\nb", "~/x", "C:\\x", "-rf", "x y"],
)
def test_names_that_lead_elsewhere_are_refused(copied, capsys, name):
    folder = copied("network")
    resign(folder, lambda r: r["files"].update({name: {"bytes": 3, "sha256": "0" * 64, "resign": False}}))
    every_reader_refuses(folder, capsys, "which is no plain file name: refused")


@pytest.mark.parametrize("entry", [None, 3, [], {}, {"bytes": "3"}, {"bytes": True, "sha256": "x"}, {"bytes": -1}])
def test_entries_of_files_have_their_types(copied, capsys, entry):
    folder = copied("network")
    spoilt = {**entry, "resign": False} if isinstance(entry, dict) else entry
    resign(folder, lambda r: r["files"].update({"weights.safetensors": spoilt}))
    every_reader_refuses(folder, capsys, "has no hash and size|altered|truncated")


def test_weights_that_are_a_link_out_of_the_folder_are_refused(copied, capsys, tmp_path):
    folder, secret = copied("network"), tmp_path / "secret.safetensors"
    (folder / "weights.safetensors").rename(secret)
    (folder / "weights.safetensors").symlink_to(secret)
    every_reader_refuses(folder, capsys, "is a link to .*secret.*, out of the folder of the artifact: refused")


def test_a_card_that_is_a_link_is_never_copied_or_published(copied, capsys, tmp_path):
    folder, secret = copied("network"), tmp_path / "id_rsa"
    secret.write_text("private")
    module = netsmith.load(folder)
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(secret)
    every_reader_refuses(folder, capsys, "out of the folder")
    with pytest.raises(ArtifactError):
        netsmith.save_pretrained(module, tmp_path / "copy")
    with pytest.raises(ArtifactError, match="out of the folder"):
        netsmith.push_to_hub(folder, "you/net")
    assert not (tmp_path / "copy").exists()


def test_a_manifest_that_is_a_link_or_a_pipe_is_refused(copied, capsys, tmp_path):
    folder = copied("network")
    (folder / "manifest.json").rename(tmp_path / "manifest.json")
    (folder / "manifest.json").symlink_to(tmp_path / "manifest.json")
    every_reader_refuses(folder, capsys, "out of the folder")
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    refused(capsys, "dissect", folder)
    refused(capsys, "sample", folder, "--ratio", "0.5", "--out", tmp_path / "out")


def test_links_inside_the_folder_and_those_of_the_hub_are_fine(copied, tmp_path):
    folder = copied("network")
    (folder / "weights.safetensors").rename(folder / "real.safetensors")
    (folder / "weights.safetensors").symlink_to("real.safetensors")
    netsmith.load(folder)
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "abc", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        if file.is_symlink() or file.name != "real.safetensors":
            (blobs / str(i)).write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    netsmith.load(snapshot)


def test_headers_that_lie_behind_a_right_hash_are_refused(copied):
    folder = copied("network")
    for header in [{"w": {"dtype": "F32", "shape": [10**18], "data_offsets": [0, 4]}}, b"[" * 100_000, b"nonsense"]:
        (folder / "weights.safetensors").write_bytes(safetensors_bytes(header, bytes(4)))
        resign(folder)
        with pytest.raises(ArtifactError, match="is no safetensors file"):
            netsmith.load(folder)
        with pytest.raises(ArtifactError, match="is no safetensors file"):
            read_tensors(folder)


# --- the text of the manifest -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * 100_000, "cannot be read"),
        ('{"schema": ' + "9" * 10_000 + "}", "cannot be read"),
        ("nonsense", "cannot be read"),
        ('{"schema": 1e999}', "is no manifest"),
        ("[]", "is no manifest"),
        ('{"schema": true, "kind": "network"}', "is no manifest"),
        ('{"schema": 1, "kind": ["network"]}', "is no manifest"),
    ],
    ids=lambda v: str(v)[:25],
)
def test_texts_that_are_no_manifests_are_refused(copied, capsys, text, match):
    folder = copied("network")
    (folder / "manifest.json").write_text(text)
    every_reader_refuses(folder, capsys, match)


# --- what it says, with the hash that belongs to it -------------------------------------------------------------------

ANYWHERE = [
    ("name", 3), ("licence", ["mit"]), ("commercial", "no"), ("classes", "abc"), ("classes", [1]), ("task", None),
    ("provenance", {"source": "x"}), ("provenance", [3]), ("provenance", [{"source": 3}]), ("metrics", []),
    ("params", -1), ("params", 1.5), ("num_classes", 10**9), ("num_classes", "ten"), ("files", []), ("preprocess", 3),
    ("preprocess", {}), ("preprocess.input_size", [3, 10**9, 10**9]), ("preprocess.input_size", [3, 32]),
    ("preprocess.input_size", ["3", "32", "32"]), ("preprocess.mean", []), ("preprocess.mean", ["a"]),
    ("preprocess.std", [0.0]), ("preprocess.interpolation", 3),
]  # fmt: skip
OWN = {
    "network": [
        ("source", "../../etc"), ("source", "netsmith:nothing"), ("source", "netsmith:lenet#/dev/zero"), ("source", 3),
        ("source", "timm:hf-hub:evil/net"), ("options", []), ("options", {"widths": [10**9, 10**9], "depth": 2}),
        ("options", {"widths": [8, 12], "depth": 10**9}), ("options", {"nothing": 1}), ("num_classes", 11),
        ("source", "netsmith:lenet"),
    ],
    "reassembly": [
        ("recipe", None), ("recipe", "x"), ("recipe.version", 2), ("recipe.networks", []), ("recipe.stem", "nobody"),
        ("recipe.networks.0.source", "netsmith:nothing"), ("recipe.networks.0.options", {"widths": [10**9] * 3}),
        ("recipe.networks.0.options", {"widths": [200_000] * 3}), ("recipe.networks.0.name", "x"),
        ("recipe.networks.0.num_classes", 10**9), ("recipe.networks.0.input.input_size", [3, 10**9, 10**9]),
        ("recipe.networks.0.input.std", [0, 1, 1]), ("recipe.blocks.0.start", -1), ("recipe.blocks.0.stop", 10**9),
        ("recipe.blocks.0.start", 10**18), ("recipe.head.features", 10**6), ("recipe.head.features", -1),
        ("recipe.head.classes", 10**9), ("recipe.head.path", "a.b"), ("recipe.adapters.1.source_shape", [10**9] * 3),
        ("recipe.adapters.1.target.channels", 10**9), ("recipe.adapters.1.kernel", 10**9), ("recipe.adapters", []),
        ("recipe.fit.rows", 10**12), ("recipe.fit.ridges", [-1]), ("recipe.seed", -1), ("recipe.more", 1),
    ],
    "morph": [
        ("base", None), ("base", {}), ("base", {"kind": "morph"}), ("base", {"kind": "nothing"}), ("folded", "yes"),
        ("base.source", "netsmith:nothing"), ("base.options", {"widths": [10**9]}), ("space", []),
        ("space.groups", []), ("space.groups.0.width", 10**9), ("space.groups.0.width", 7), ("space.low", {}),
        ("space.groups.0.axes.0.tensor", "nothing"), ("space.groups.0.axes.0.dim", 9), ("space.groups.0.name", "x"),
        ("space.groups.0.axes.0.start", -1), ("space.groups.0.axes.0.repeat", 10**6), ("space.groups.0.axes.0", {}),
        ("space.groups.0.settings.0.attribute", "__class__"), ("space.groups.0.settings.0.attribute", "forward"),
        ("space.groups.0.settings.0.attribute", "training"), ("space.groups.0.settings.0.module", "../x"),
        ("space.groups.0.settings.0.fixed", 10**9), ("generator", None), ("generator.kind", "nothing"),
        ("generator.settings", {"keyframes": [1.0] + [0.5] * 10**4}), ("generator.settings", {"coarse": 10**9}),
        ("generator.settings", {"nothing": 1}), ("generator.settings", {"keyframes": "x"}),
    ],
    "inr": [
        ("generator.settings.layers", 10**9), ("generator.settings.hidden", 10**9), ("generator.settings.hidden", 9),
        ("generator.settings.frequencies", 10**9), ("generator.settings.warm_start", 10**9),
        ("generator.settings.precision", "float1"),
    ],
    "sampled": [
        ("widths", {}), ("widths", {"nothing": 3}), ("widths", []), ("groups", "x"), ("groups.0.width", 9),
        ("groups.0.axes", []), ("base", {"kind": "network"}), ("folded", None),
    ],
}  # fmt: skip


def put(record: dict, place: str, value: object) -> None:
    at: object = record
    *way, last = place.split(".")
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at[step]  # type: ignore[index]
    at[int(last) if isinstance(at, list) else last] = value  # type: ignore[index]


def widest(record: dict) -> dict:
    """The first width of `sampled` made absurd, whatever its name is."""
    record["widths"] = dict.fromkeys(record["widths"], 10**9)
    return record


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("place", "value"), ANYWHERE, ids=lambda v: str(v)[:40])
def test_common_fields_have_their_types_and_bounds(copied, kind, place, value):
    folder = copied(kind)
    if "preprocess" not in read_manifest(folder):
        pytest.skip("this kind has its preprocessing in the recipe")
    resign(folder, lambda r: put(r, place, value))
    for read in (netsmith.load, lambda f: load_source(str(f))):
        with pytest.raises(ArtifactError):
            read(folder)


@pytest.mark.parametrize(
    ("kind", "place", "value"), [(k, *case) for k, cases in OWN.items() for case in cases], ids=lambda v: str(v)[:40]
)
def test_what_builds_a_network_is_checked_before_it_is_built(copied, capsys, kind, place, value):
    folder = copied(kind)
    resign(folder, lambda r: put(r, place, value))
    for read in (netsmith.load, lambda f: load_source(str(f))):
        with pytest.raises(NetsmithError) as caught:
            read(folder)
        assert len(str(caught.value)) < 4000
    refused(capsys, "dissect", folder)


def test_absurd_widths_of_a_sampled_network_are_refused(copied):
    folder = copied("sampled")
    resign(folder, widest)
    with pytest.raises(ArtifactError, match="of at most 1048576"):
        netsmith.load(folder)


def test_groups_that_overlap_are_refused(copied):
    folder = copied("morph")
    resign(folder, lambda r: r["space"]["groups"][0]["axes"].append(r["space"]["groups"][0]["axes"][0]))
    with pytest.raises(ChannelError, match="overlap in dimension"):
        netsmith.load(folder)


def test_a_recipe_that_is_made_of_itself_is_refused(copied):
    folder = copied("reassembly")
    resign(folder, lambda r: put(r, "recipe.networks.0.source", str(folder)))
    with pytest.raises(RecipeError, match="expected an architecture"):
        netsmith.load(folder)


# --- code -------------------------------------------------------------------------------------------------------------

EVIL = """
import os, torch
os.system("touch '{canary}'")

def net(**options):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


def evil(folder: Path, kind: str, canary: Path) -> Path:
    """Code beside an artifact that names it."""
    code = folder.parent / "nets.py"
    code.write_text(EVIL.format(canary=canary))
    place = {"network": "source", "reassembly": "recipe.networks.0.source"}.get(kind, "base.source")
    resign(folder, lambda r: put(r, place, f"py:{code}:net"))
    return code


@pytest.mark.parametrize("kind", KINDS)
def test_code_that_an_artifact_names_is_not_run(copied, capsys, tmp_path, kind):
    folder, canary = copied(kind), tmp_path / "canary"
    evil(folder, kind, canary)
    for read in (netsmith.load, netsmith.from_pretrained, lambda f: load_source(str(f))):
        with pytest.raises(ArtifactError, match=r"is built by running code: net of .*It was not run"):
            read(folder)
    assert "--run-code" in refused(capsys, "dissect", folder)
    assert "--run-code" in refused(capsys, "evaluate", folder, "--data", "digits")
    refused(capsys, "sample", folder, "--ratio", "0.5", "--out", tmp_path / "out")
    assert not canary.exists()


def test_code_of_a_recipe_alone_is_not_run(specimens, tmp_path):
    canary, record = tmp_path / "canary", json.loads(specimens.recipe)
    (tmp_path / "nets.py").write_text(EVIL.format(canary=canary))
    record["networks"][0]["source"] = f"py:{tmp_path / 'nets.py'}:net"
    with pytest.raises(ArtifactError, match="the recipe is built by running code"):
        rebuild(Recipe.from_json(json.dumps(record)))
    assert not canary.exists()


def test_code_runs_where_the_user_says_so(copied, tmp_path, monkeypatch):
    monkeypatch.setattr(consent, "_ran", set())
    folder, canary = copied("network"), tmp_path / "canary"
    code = evil(folder, "network", canary)
    with pytest.raises(WeightsError):  # the code ran, and what it built is not the artifact's network
        netsmith.load(folder, run_code=True)
    assert canary.exists()
    canary.unlink()
    with pytest.raises(WeightsError):  # the same file, unchanged, that the user has run before
        netsmith.load(folder)
    assert canary.exists()
    canary.unlink()
    code.write_text(code.read_text() + "\n# changed\n")
    with pytest.raises(ArtifactError, match="It was not run"):
        netsmith.load(folder)
    assert not canary.exists()


def test_run_code_on_the_command_line(tmp_path):
    """In a process of its own, where nothing was run before: refused, and run when it is said."""
    code, out = tmp_path / "nets.py", tmp_path / "out"
    code.write_text(EVIL.format(canary=tmp_path / "canary"))
    program = textwrap.dedent(
        f"""
        from netsmith.networks.network import load_source
        from netsmith.networks.trained import save_network
        from pathlib import Path
        network = load_source("py:{code}:net", input_size=(1, 8, 8), mean=[0.5], std=[0.5])
        save_network(Path("{out}"), network, counts={{"params": 1, "macs": 1}}, metrics={{}}, config={{}})
        """
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert (tmp_path / "canary").exists()
    (tmp_path / "canary").unlink()
    words = [sys.executable, "-m", "netsmith", "evaluate", str(out), "--data", "digits"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr, "--run-code" in done.stderr) == (2, False, True)
    assert not (tmp_path / "canary").exists()
    done = subprocess.run([*words, "--run-code"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    assert (tmp_path / "canary").exists()


# --- sizes asked of a sound artifact ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("--ratio", "1e9"), ("--ratio", "1e999"), ("--ratio", "nan"), ("--ratio", "-1"), ("--ratio", "0"),
        ("--params", "1e30"), ("--params", "1e999"), ("--params", "nan"), ("--params", "-5"), ("--macs", "1e30"),
        ("--macs", "inf"), ("--width", "features.0.0=1000000000"), ("--width", "features.0.0=-1"), ("--width", "=1"),
        ("--width", "x=" + "9" * 5000), ("--ratio", "0.5", "--reads", "1000000000"),
        ("--ratio", "0.5", "--noise", "nan"), ("--ratio", "0.5", "--noise", "1e30", "--reads", "2"),
        ("--latency-ms", "nan"), ("--latency-ms", "-1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_absurd_sizes_are_refused_on_the_command_line(specimens, capsys, tmp_path, words):
    refused(capsys, "sample", specimens.artifacts["morph"], *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_absurd_sizes_are_refused_by_the_model(specimens):
    model = netsmith.load(specimens.artifacts["morph"])
    name = next(iter(model.morphable.space.full))
    requests = [
        {"ratio": 1e9}, {"ratio": float("nan")}, {"ratio": float("inf")}, {"widths": {name: 10**9}}, {"params": 1e30},
        {"params": float("nan")}, {"macs": 1e30}, {"latency_ms": float("nan")},
    ]  # fmt: skip
    for request in requests:
        for ask in (model.at, model.set_size, model.widths_for):
            with pytest.raises(NetsmithError):
                ask(**request)
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_a_size_beyond_this_machine_is_refused_before_it_is_made(specimens, monkeypatch):
    model = netsmith.load(specimens.artifacts["morph"])
    name = next(iter(model.morphable.space.full))
    monkeypatch.setenv("NETSMITH_MEMORY", "0.001")
    with pytest.raises(NetsmithError, match=r"a network of these widths takes .* more than the memory of this machine"):
        model.at({name: 50_000})
