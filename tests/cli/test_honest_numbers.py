"""From the command line to the card and back: `netsmith evaluate` finds what cards say; manifests say what was used."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from netsmith.artifacts.artifact import read_manifest
from netsmith.cli.main import main
from netsmith.data.splits import open_data

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRAINING = "{epochs: 3, batch_size: 128, optimizer: adamw, lr: 0.01, schedule: onecycle, augment: false}"
TRAIN = "network: {{source: netsmith:plain_cnn, name: {name}, options: {{widths: {widths}, depth: 2}}}}\ndata: digits\n"
REASSEMBLE = f"""
zoo: [{{source: first/artifact, name: first}}, {{source: second/artifact, name: second}}]
data: digits
probe: {{images: 128}}
partition: {{k: 2, eps: 0.5, restarts: 5}}
budget: {{params: 100k}}
search: {{candidates: 4, distinct_sets: false}}
stitch: {{images: 300}}
finetune: {TRAINING}
"""
MORPH = f"""
network: both/artifact
data: digits
space: {{blocks: all, widths: [0.5, 1.0]}}
training: {TRAINING}
ratios: [1.0, 0.5]
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`first` and `second`, trained; `both`, reassembled of them; `any`, that morphed; `half`, read from it."""
    home = tmp_path_factory.mktemp("runs")
    for name, widths in (("first", [12, 16]), ("second", [8, 24])):
        (home / f"{name}.yaml").write_text(TRAIN.format(name=name, widths=widths) + f"training: {TRAINING}\n")
        assert main(["train", str(home / f"{name}.yaml"), "--out", str(home / name), "--device", "cpu"]) == 0
    for name, verb, text in (("both", "reassemble", REASSEMBLE), ("any", "morph", MORPH)):
        (home / f"{name}.yaml").write_text(text)
        assert main([verb, str(home / f"{name}.yaml"), "--out", str(home / name), "--device", "cpu"]) == 0
    sample = ["sample", str(home / "any" / "artifact"), "--ratio", "0.5", "--data", "digits", "--out"]
    assert main([*sample, str(home / "half")]) == 0
    return home


def evaluated(source: Path | str, capsys: pytest.CaptureFixture[str], split: str = "test") -> float:
    """Per cent, by the command line."""
    capsys.readouterr()
    assert main(["evaluate", str(source), "--data", "digits", "--split", split, "--json", "--device", "cpu"]) == 0
    return 100 * json.loads(capsys.readouterr().out)["metrics"]["accuracy"]


def said(folder: Path, pattern: str) -> float:
    """A number in a card, per cent."""
    card = (folder / "README.md").read_text()
    found = re.search(pattern, card)
    assert found, card
    return float(found[1])


NEAR = 0.05 + 1e-9  # points, of cards that say one decimal: these data sets have a few hundred images
EXACT = 0.01  # points, of manifests, which have all digits


def kept(folder: Path, key: str) -> float:
    """A number in a manifest, per cent."""
    return 100 * read_manifest(folder)["metrics"][key]


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("name", ["first", "second"])
def test_of_a_trained_network(runs, capsys, name, split):
    folder = runs / name / "artifact"
    found = evaluated(folder, capsys, split)
    assert found == pytest.approx(said(folder, rf"accuracy_{split}: ([\d.]+)%"), abs=NEAR)
    assert found == pytest.approx(kept(folder, f"accuracy_{split}"), abs=EXACT)


def test_of_a_reassembled_network(runs, capsys):
    folder = runs / "both" / "artifact"
    found = evaluated(folder, capsys)
    assert found == pytest.approx(said(folder, r"test accuracy, finetuned: ([\d.]+)%"), abs=NEAR)
    assert found == pytest.approx(kept(folder, "accuracy_finetuned"), abs=EXACT)


@pytest.mark.parametrize("ratio", ["1", "0.5"])
def test_of_a_morphable_network_at_a_size(runs, capsys, ratio):
    folder = runs / "any" / "artifact"
    card = said(folder, rf"\| {re.escape(ratio)} \| \S+ \| \S+ \| ([\d.]+)% \|")
    found = evaluated(f"{folder}@{ratio}", capsys)
    assert found == pytest.approx(card, abs=NEAR)
    assert found == pytest.approx(kept(folder, f"accuracy@{ratio}"), abs=EXACT)


def test_of_a_sampled_network(runs, capsys):
    card = said(runs / "any" / "artifact", r"\| 0\.5 \| \S+ \| \S+ \| ([\d.]+)% \|")
    found = evaluated(runs / "half", capsys)
    assert found == pytest.approx(card, abs=NEAR)
    assert found == pytest.approx(kept(runs / "any" / "artifact", "accuracy@0.5"), abs=EXACT)


def test_data_that_was_split_by_a_seed_is_split_so_again(tmp_path, capsys):
    """Split otherwise, the test part would hold images that were trained on."""
    digits, folder = open_data("digits"), tmp_path / "images"
    for i, (image, label) in enumerate(zip(digits.train.images(range(400)), digits.train.labels[:400], strict=True)):
        place = folder / f"class{int(label)}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image[0]).byte().numpy()).resize((16, 16)).save(place / f"{i}.png")
    source = f"folder:{folder}"
    section = f"data: {{source: '{source}', seed: 3, size: 8, validation_fraction: 0.2}}\n"
    network = "network: {source: netsmith:plain_cnn, name: own, options: {widths: [8, 8], depth: 2}}\n"
    (tmp_path / "own.yaml").write_text(network + section + f"training: {TRAINING}\nseed: 2\n")
    assert main(["train", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "own"), "--device", "cpu"]) == 0
    artifact = tmp_path / "own" / "artifact"
    for split in ("validation", "test"):
        capsys.readouterr()
        assert main(["evaluate", str(artifact), "--data", source, "--split", split, "--json", "--device", "cpu"]) == 0
        out, said_so = capsys.readouterr()
        assert "seed 3, size 8, validation_fraction 0.2" in " ".join(said_so.split())
        assert "in another way" not in said_so
        found = 100 * json.loads(out)["metrics"]["accuracy"]
        assert found == pytest.approx(kept(artifact, f"accuracy_{split}"), abs=EXACT)
    assert main(["evaluate", str(artifact), "--data", source, "--seed", "0", "--device", "cpu"]) == 0
    assert "is split in another way" in " ".join(capsys.readouterr().err.split())


# --- what was used ----------------------------------------------------------------------------------------------------


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("place", ["first/artifact", "both/artifact", "any/artifact"])
def test_a_manifest_names_libraries_config_data_and_weights(runs, place):
    found = manifest(runs / place)
    for library in ("netsmith", "torch", "torchvision", "timm", "accelerate", "numpy", "scipy"):
        assert found["versions"][library] == importlib.metadata.version(library)
    text = json.dumps(found["config"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    hashes = found["hashes"]
    assert hashes["config"] == hashlib.sha256(text.encode()).hexdigest()
    assert hashes["data"] == open_data("digits").fingerprint
    assert hashes["sources"]
    for source, sha256 in hashes["sources"].items():
        assert re.fullmatch(r"[0-9a-f]{64}", sha256), source
    for row in found["provenance"]:
        assert hashes["sources"][row["source"]] == row["sha256"]
    for name, entry in found["files"].items():
        assert hashlib.sha256((runs / place / name).read_bytes()).hexdigest() == entry["sha256"]


def test_a_sampled_network_names_its_artifact_and_what_that_was_made_of(runs):
    found, whole = manifest(runs / "half"), manifest(runs / "any" / "artifact")
    assert found["from"]["sha256"] == whole["sha256"]
    assert found["hashes"] == whole["hashes"]


@pytest.mark.parametrize(
    ("name", "file"), [("first", "summary.json"), ("both", "details.json"), ("any", "details.json")]
)
def test_an_output_folder_has_them_too(runs, name, file):
    told, kept = json.loads((runs / name / file).read_text()), manifest(runs / name / "artifact")
    for key in ("config", "data"):
        assert told["hashes"][key] == kept["hashes"][key]
    # sources name their files from the folder in which they are written
    assert sorted(told["hashes"]["sources"].values()) == sorted(kept["hashes"]["sources"].values())
    assert told["versions"] == kept["versions"]
    if name != "first":
        assert kept["hashes"]["data"] in (runs / name / "report.html").read_text(), "the page shows them"
