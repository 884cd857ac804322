"""`netsmith compare`: unit by unit and answer by answer, in the terminal, as JSON and as a page."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from netsmith.cli.compare import compare_answers
from netsmith.cli.main import main
from netsmith.data.splits import open_data, probe_set
from netsmith.networks.network import load_source
from netsmith.trace.chain import dissect

NETWORK = "{source: netsmith:plain_cnn, name: tiny, input_size: [1, 8, 8], options: {widths: [8, 12], depth: 1}}"
IMAGES = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained network (`base`), its morph (`any`), and the same architecture trained from another seed (`other`)."""
    folder = tmp_path_factory.mktemp("compare")
    training = "training: {epochs: 1, batch_size: 128, lr: 0.1}"
    (folder / "train.yaml").write_text(f"network: {NETWORK}\ndata: digits\n{training}\n")
    (folder / "morph.yaml").write_text(
        "network: {source: base/artifact, name: tiny}\ndata: digits\ntraining: null\nratios: [0.5]\n"
    )
    quiet = ["--quiet", "--device", "cpu"]
    for name, seed in (("base", 0), ("other", 5)):
        words = ["--out", str(folder / name), "--seed", str(seed), *quiet]
        assert main(["train", str(folder / "train.yaml"), *words]) == 0
    assert main(["morph", str(folder / "morph.yaml"), "--out", str(folder / "any"), *quiet]) == 0
    return folder


def compared(first, second, out, *more):
    words = ["--images", str(IMAGES), "--out", str(out), "--device", "cpu", "--overwrite", *more]
    assert main(["compare", str(first), str(second), *words]) == 0
    return json.loads((out / "comparison.json").read_text())


def cka(x, y):
    """The plug-in estimate of linear CKA of rows of features."""
    x, y = (v - v.mean(0) for v in (x.double(), y.double()))
    return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_fewer_images_than_usual_are_all_taken(folder, tmp_path):
    for i in range(40):
        (tmp_path / "data" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 6 * i, np.uint8)).save(tmp_path / "data" / str(i % 2) / f"{i}.png")
    words = [
        f"{folder / 'any/artifact'}@0.5",
        f"{folder / 'any/artifact'}@1.0",
        "--data",
        f"images:{tmp_path / 'data'}",
    ]
    assert main(["compare", *words, "--out", str(tmp_path / "out")]) == 0
    assert 20 < json.loads((tmp_path / "out/comparison.json").read_text())["images"] < 40


@torch.no_grad()
def test_numbers_of_two_widths(folder, tmp_path, capsys):
    sources = [f"{folder / 'any/artifact'}@{size}" for size in ("0.5", "1.0")]
    facts = compared(*sources, tmp_path / "out", "--biased")
    networks = [load_source(source) for source in sources]
    images = probe_set(open_data("digits"), IMAGES)[0]
    inputs = [n.preprocess(images) for n in networks]
    p, q = (n.model(x).double().softmax(1) for n, x in zip(networks, inputs, strict=True))
    assert facts["outputs"] == {
        "kl": {
            "first_second": pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-4),
            "second_first": pytest.approx(float((q * (q / p).log()).sum(1).mean()), rel=1e-4),
        },
        "unit": "nats",
        "agreement": pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean())),
        "per": "image",
        "images": IMAGES,
    }
    chains = [dissect(n.model, x[:2]) for n, x in zip(networks, inputs, strict=True)]
    assert [s["unit"] for s in facts["same"]] == [u.name for u in chains[0].units]
    for unit, found in zip(chains[0].units, facts["same"], strict=True):
        outputs = [c.run(0, unit.index + 1, c.stem(x)).mean((2, 3)) for c, x in zip(chains, inputs, strict=True)]
        assert found["similarity"] == pytest.approx(cka(*outputs), abs=1e-4)
        assert found["similarity"] == facts["values"][unit.index + 1][unit.index + 1]
    text = capsys.readouterr().out
    assert "cka of tiny_morph@0.5 (rows) and tiny_morph@1.0 (columns)" in text
    assert re.search(r"unit of tiny_morph@0.5 +of the same unit +most alike in tiny_morph@1.0 +cka", text)
    kl = facts["outputs"]["kl"]
    assert f"in nats: KL(tiny_morph@0.5 || tiny_morph@1.0) = {kl['first_second']:.4f}, KL(tiny_morph@1.0 || " in text
    assert f"same first class: {100 * facts['outputs']['agreement']:.2f}% of images" in text
    page = (tmp_path / "out/comparison.html").read_text()
    assert 'id="same"' in page
    assert "KL(tiny_morph@0.5 ‖ tiny_morph@1.0)" in page


def test_a_network_and_itself(folder, tmp_path, capsys):
    facts = compared(folder / "any/artifact", folder / "base/artifact", tmp_path / "out")
    assert facts["rows"]["name"] == "tiny_morph"
    assert facts["outputs"]["kl"]["first_second"] == pytest.approx(0.0, abs=1e-8)
    assert facts["outputs"]["agreement"] == 1.0
    assert all(s["similarity"] == pytest.approx(1.0, abs=1e-4) for s in facts["same"])


def test_one_trained_by_itself(folder, tmp_path, capsys):
    facts = compared(f"{folder / 'any/artifact'}@0.5", folder / "other/artifact", tmp_path / "out")
    assert len(facts["same"]) == len(facts["rows"]["cuts"]) - 1
    assert facts["outputs"]["kl"]["first_second"] > 0
    facts = compared(folder / "base/artifact", folder / "other/artifact", tmp_path / "out")
    assert [facts[side]["name"] for side in ("rows", "columns")] == ["tiny", "tiny (2)"]


def test_answers_of_other_classes_are_not_compared(folder, tmp_path, capsys):
    made = "BUILDERS['plain_cnn'](num_classes=7, in_channels=1)"
    code = f"from netsmith.models import BUILDERS\n\n\ndef build():\n    return {made}\n"
    (tmp_path / "seven.py").write_text(code)
    second = f"py:{tmp_path}/seven.py:build"
    facts = compared(
        folder / "base/artifact", second, tmp_path / "out", "--input-size", "1x8x8", "--mean", "0", "--std", "1"
    )
    why = "one tells 10 classes apart, the other 7"
    assert facts["outputs"] == {"missing": why}
    assert f"answers not compared: {why}" in capsys.readouterr().out
    assert f"The answers were not compared: {why}." in (tmp_path / "out/comparison.html").read_text()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"task": "segmentation"}, "one is for classification, the other for segmentation"),
        ({"num_classes": 3}, "one tells 10 classes apart, the other 3"),
        ({"num_classes": 0}, "they tell no classes apart"),
    ],
)
def test_why_answers_cannot_be_compared(changes, why):
    first, second = (load_source("netsmith:plain_cnn", input_size=(1, 8, 8), num_classes=10) for _ in range(2))
    for name, value in changes.items():
        setattr(second, name, value)
    assert compare_answers(first, second, torch.zeros(2, 1, 8, 8), torch.device("cpu"), print) == why


def test_a_morphable_network_without_a_size_is_the_one_at_full_width(folder, tmp_path, capsys):
    """Its norms get statistics in both cases, or in none: with weights of its own it is not the base network."""
    text = (folder / "morph.yaml").read_text().replace("base/artifact", str(folder / "base/artifact"))
    (tmp_path / "kept.yaml").write_text(f"{text}norms: keep\ngenerator: nested\n")
    assert main(["morph", str(tmp_path / "kept.yaml"), "--out", str(tmp_path / "kept"), "--quiet"]) == 0
    artifact = tmp_path / "kept/artifact"
    facts = compared(artifact, f"{artifact}@1.0", tmp_path / "out", "--data", "digits")
    assert facts["outputs"]["kl"] == {"first_second": 0.0, "second_first": 0.0}
    capsys.readouterr()
    wanted = json.loads((tmp_path / "kept/summary.json").read_text())["widths"]
    assert main(["evaluate", str(artifact), "--data", "digits", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)["widths"]
    assert [w["accuracy"] for w in found] == pytest.approx([w["accuracy"] for w in wanted], abs=1e-4)
