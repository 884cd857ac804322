"""`netsmith morph` and `sample`: resuming, norms that stay, and every mistake with its message."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
import yaml

from netsmith.cli import morphing
from netsmith.cli.main import main
from netsmith.data.splits import open_data
from netsmith.morphing import pipeline
from netsmith.networks.network import load_source
from netsmith.training.engine import evaluate
from netsmith.training.tasks import Classification

NETWORK = "{source: netsmith:plain_cnn, name: tiny, input_size: [1, 8, 8], options: {widths: [8, 12], depth: 1}}"
MORPH = """
network: {network}
weights: {weights}
data: digits
training: {{epochs: 2, batch_size: 256, lr: 0.02}}
ratios: [1.0, 0.5, 0.25]
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a trained network and a config that morphs it."""
    folder = tmp_path_factory.mktemp("morph")
    training = "training: {epochs: 4, batch_size: 128, lr: 0.1}"
    (folder / "base.yaml").write_text(f"network: {NETWORK}\ndata: digits\n{training}\n")
    words = ["--out", str(folder / "base"), "--quiet", "--device", "cpu"]
    assert main(["train", str(folder / "base.yaml"), *words]) == 0
    weights = folder / "base/artifact/weights.safetensors"
    (folder / "morph.yaml").write_text(MORPH.format(network=NETWORK, weights=weights))
    return folder


def morph(base, out, *changes, more=()):
    words = ["morph", str(base / "morph.yaml"), "--out", str(out), "--device", "cpu", *more]
    return main([*words, *(word for change in changes for word in ("--set", change))])


@pytest.fixture(scope="module")
def morphed(base):
    """An output folder whose artifact has its batch norms."""
    changes = ("norms=keep", "training.batch_size=32")
    assert morph(base, base / "kept", *changes, more=["--quiet"]) == 0
    return base / "kept"


# --- the paper's generator --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_papers_generator_from_a_config_to_a_sampled_network(tmp_path, capsys):
    network = "{source: netsmith:plain_cnn, name: tiny, input_size: [1, 8, 8], options: {widths: [16, 24], depth: 1}}"
    training = "training: {epochs: 12, batch_size: 32, lr: 0.003, optimizer: adamw"
    words = ["--quiet", "--device", "cpu"]
    (tmp_path / "base.yaml").write_text(f"network: {network}\ndata: digits\n{training}}}\n")
    assert main(["train", str(tmp_path / "base.yaml"), "--out", str(tmp_path / "base"), *words]) == 0
    weights = tmp_path / "base/artifact/weights.safetensors"
    rest = "training: {epochs: 6, batch_size: 64, lr: 0.0003, optimizer: adamw, clip_grad: 1.0}\nratios: [1.0, 0.5]\n"
    (tmp_path / "m.yaml").write_text(f"network: {network}\nweights: {weights}\ndata: digits\n{rest}")
    found = {}
    for steps in (0, 600):
        settings = f"layers: 3, hidden: 96, frequencies: 8, warm_start: {steps}"
        generator = f"generator={{kind: inr, settings: {{{settings}}}}}"
        out = tmp_path / f"warm-{steps}"
        assert main(["morph", str(tmp_path / "m.yaml"), "--out", str(out), "--set", generator, *words]) == 0
        widths = json.loads((out / "summary.json").read_text())["widths"]
        found[steps] = {w["ratio"]: w["accuracy"] for w in widths}
    assert all(found[600][r] > found[0][r] + 0.2 for r in (1.0, 0.5)), found
    assert found[600][1.0] > 0.5
    capsys.readouterr()
    assert main(["sample", str(out / "artifact"), "--ratio", "0.5", "--out", str(tmp_path / "half")]) == 0
    assert main(["evaluate", str(tmp_path / "half"), "--data", "digits"]) == 0
    assert f"{100 * found[600][0.5]:.1f}%" in capsys.readouterr().out


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_stopped_while_it_writes_its_report_goes_on(base, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(morphing, "write_report", interrupted)
        assert morph(base, out) == 130
    assert (out / "summary.json").exists()
    assert not (out / "report.html").exists()
    assert morph(base, out) == 0
    assert "going on with the unfinished run" in capsys.readouterr().err
    assert (out / "report.html").exists()
    assert morph(base, out) == 2
    assert "exists and is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_another_config_says_what_changed(base, tmp_path, monkeypatch, capsys):
    out, real, fitted = tmp_path / "out", pipeline.fit, []

    def stopped(*arguments, **named):
        def stop(entry):
            raise KeyboardInterrupt

        return real(*arguments, **{**named, "on_epoch": stop})

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "fit", stopped)
        assert morph(base, out) == 130
        # another fitting
        assert morph(base, out, "training.lr=0.03", more=["--overwrite"]) == 130
        assert "is of other settings, network or data: fitting begins anew" in capsys.readouterr().err
        assert morph(base, out, more=["--overwrite"]) == 130
    monkeypatch.setattr(pipeline, "fit", lambda *a, **k: fitted.append(real(*a, **k)) or fitted[-1])
    before = (out / "config.yaml").read_text()
    capsys.readouterr()
    assert morph(base, out, "training.lr=0.5", "generator=nested") == 2
    text = capsys.readouterr().err
    assert f"{out} holds an unfinished run of another config:\n" in text
    assert "  generator.kind: grid -> nested\n  training.lr: 0.02 -> 0.5\nGive the old values to go on with it" in text
    assert (out / "config.yaml").read_text() == before
    assert not fitted
    # what changes nothing in the fitting: begun anew, and the fitting goes on from its checkpoint
    assert morph(base, out, "ratios=[1.0,0.5]", more=["--overwrite"]) == 0
    text = capsys.readouterr().err
    assert "beginning anew in" in text
    assert "ratios: [1.0, 0.5, 0.25] -> [1.0, 0.5]" in text
    assert fitted[0].resumed_from > 0
    assert not (out / "checkpoints").exists()  # a finished run has nothing to go on from


# --- mistakes ---------------------------------------------------------------------------------------------------------

PADDED = "{source: netsmith:cifar_resnet20, input_size: [1, 8, 8], num_classes: 10}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["space.blocks=[features.9]"], r"has no block 'features.9'. Did you mean 'features.1'"),
        (["space.blocks=[features.0.1]"], r"has no block 'features.0.1'. Did you mean 'features.0.0'"),
        (["space.widths=[0,1.0]"], r"space.widths: a width must be above 0, got 0"),
        (["space.widths=[-0.5,1.0]"], r"space.widths: a width must be above 0, got -0.5"),
        (["space.widths=[8.5,16]"], r"8.5 to 16 are ratios, as not both are whole numbers, .* such as \[16, 64\]"),
        (["space.widths=[0.5,0.25]"], r"space.widths: the range is empty: 0.5 is above 0.25"),
        (["space.widths=[0.5]"], r"space.widths: expected two numbers, lowest and highest"),
        (["network.options={widths: [8, 16], depth: 1}"], r"misshapen, \d+: features.1.0.weight \(12, 8, 3, 3\) where"),
        (["network.num_classes=7", "weights=null"], r"tells 7 classes apart and the data \(digits\) has 10"),
        (["data=folder:nowhere"], r"there is no '.*/nowhere'"),
        (["weights=nowhere.safetensors"], r"There is no weights file .*/nowhere.safetensors"),
        (["generator.settings.keyframe=3"], r"'grid' has no setting 'keyframe'. Did you mean 'keyframes'"),
        (
            ["generator=nested", "fitting.draws=[keyframe]"],
            r"the generator 'nested' has no 'keyframe' .*to draw: leave it out",
        ),
        (["task=segmentation"], r"outputs of shape \(2, 10\) where \(2, 10, h, w\) was expected"),
        (["rivals=[l1]"], r"rivals are measured by benchmarks/morph_rivals.py"),
        (["training.mixup=0.2"], r"leave mixup and cutmix 0"),
    ],
)
def test_a_mistake_gives_one_message_and_writes_nothing(base, tmp_path, capsys, changes, message):
    assert morph(base, tmp_path / "out", *changes) == 2
    text = capsys.readouterr().err
    assert re.search(message, text), text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


def test_a_network_without_a_provable_group(tmp_path, capsys):
    source = (
        "import torch\n\n\ndef build():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    (tmp_path / "bare.py").write_text(source)
    (tmp_path / "bare.yaml").write_text(
        f"network: {{source: 'py:{tmp_path}/bare.py:build', input_size: [1, 8, 8], mean: [0.5], std: [0.5]}}\n"
        "data: digits\n"
    )
    assert main(["morph", str(tmp_path / "bare.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert "no width" in (text := capsys.readouterr().err), text
    assert not (tmp_path / "out").exists()


CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), nn.Linear(12, 10)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def build():
    return Net()
"""


@pytest.mark.slow
def test_an_edited_network_is_fitted_anew(tmp_path, monkeypatch, capsys):
    """Its weights are the same, and so is every key of the config."""
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "morph.yaml").write_text(
        f"network: {{source: 'py:{tmp_path}/net.py:build', input_size: [1, 8, 8], num_classes: 10, mean: [0.5], "
        "std: [0.5]}\ndata: digits\n"
        "training: {epochs: 1, batch_size: 256, lr: 0.02}\nratios: [1.0, 0.5]\n"
        "generator: {kind: nested}\norder: {by: none}\n"
    )
    fitted, fit = [], pipeline.fit
    monkeypatch.setattr(pipeline, "fit", lambda *a, **k: fitted.append(fit(*a, **k)) or fitted[-1])
    assert morph(tmp_path, tmp_path / "out") == 0, capsys.readouterr().err
    assert morph(tmp_path, tmp_path / "out", more=["--overwrite"]) == 0
    assert [f.resumed_from for f in fitted] == [0, 0], "a finished run keeps no checkpoints"
    (tmp_path / "net.py").write_text(CODE.replace("relu(self.b", "sigmoid(self.b"))
    assert morph(tmp_path, tmp_path / "out", more=["--overwrite"]) == 0
    assert [f.resumed_from for f in fitted] == [0, 0, 0]


def test_a_folder_of_results_is_safe_from_a_mistake(base, morphed, capsys):
    before = {p: p.read_bytes() for p in morphed.rglob("*") if p.is_file()}
    assert morph(base, morphed, "data=folder:nowhere", more=["--overwrite"]) == 2
    assert {p: p.read_bytes() for p in morphed.rglob("*") if p.is_file()} == before


def test_a_loss_that_is_not_a_number(base, tmp_path, capsys):
    wild = ["training.clip_grad=null", "training.lr=1e30"]
    assert morph(base, tmp_path / "out", *wild) == 2
    assert re.search(
        r"the loss at step \d+ of \d+ is (nan|inf), at widths features.0.0 \d of 8", capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists(), "no epoch was complete, so there is nothing to keep"


def test_a_loss_that_is_not_a_number_later_keeps_the_last_good_state(base, tmp_path, monkeypatch, capsys):
    real = Classification.loss
    steps = len(open_data("digits").train) // 256

    def spoilt(self, *arguments, **named):
        calls.append(1)
        loss = real(self, *arguments, **named)
        return loss * float("nan") if len(calls) == steps + 2 else loss

    calls: list[int] = []
    monkeypatch.setattr(Classification, "loss", spoilt)
    assert morph(base, tmp_path / "out") == 2
    assert f"the loss at step {steps + 2} of {2 * steps} is nan, at widths" in capsys.readouterr().err
    monkeypatch.undo()
    (kept,) = (tmp_path / "out/checkpoints").iterdir()
    assert {p.name for p in kept.iterdir()} == {"best.safetensors", "last.safetensors"}
    assert morph(base, tmp_path / "out") == 0
    assert "going on with the unfinished run" in capsys.readouterr().err


def test_a_preset_by_name_looks_for_weights_in_the_working_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["morph", "morph_mnist", "--plan"]) == 0
    assert f"weights: {tmp_path}/base/artifact/weights.safetensors (not there yet" in capsys.readouterr().out
    assert main(["morph", "morph_mnist", "--plan", "--set", "weights=mine.safetensors"]) == 0
    assert f"weights: {tmp_path}/mine.safetensors (not there yet" in capsys.readouterr().out


# --- artifacts --------------------------------------------------------------------------------------------------------


def _sample(artifact, out, *more):
    return main(["sample", str(artifact), "--out", str(out), *(more or ("--ratio", "0.5"))])


def _alter(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: (a / "generator.safetensors").write_bytes(b"x"), "is truncated: 1 bytes, expected"),
        (lambda a: _alter(a / "base.safetensors"), "was altered after it was written: its hash differs"),
        (lambda a: (a / "base.safetensors").unlink(), "lacks base.safetensors, which its manifest lists"),
        (lambda a: _rewrite(a, schema=99), "has schema 99 and this Netsmith reads up to 1.*newer version"),
        (lambda a: _rewrite(a, name="other"), "manifest.json was altered after it was written"),
    ],
)
def test_a_damaged_artifact(morphed, tmp_path, capsys, change, message):
    shutil.copytree(morphed / "artifact", tmp_path / "artifact")
    change(tmp_path / "artifact")
    assert _sample(tmp_path / "artifact", tmp_path / "out") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def _rewrite(artifact, **changes):
    manifest = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--params", "5"], r"params of 5 is below the smallest network of this artifact: it reaches from \S+ .* to "),
        (["--params", "1G"], r"params of 1G is above the largest network of this artifact: it reaches from \S+ .* to "),
        (["--ratio", "0"], "a ratio must be above 0"),
        (["--ratio", "-1"], "a ratio must be above 0"),
        (["--ratio", "half"], "--ratio: a number was expected, 'half' came"),
        (["--ratio", "nan"], "--ratio: a finite number was expected, 'nan' came"),
        (["--latency-ms", "nan"], "--latency-ms: a finite number was expected, 'nan' came"),
        (["--latency-ms", "1e999"], "--latency-ms: a finite number was expected, '1e999' came"),
        (["--params", "nan"], "--params: a finite number was expected, 'nan' came"),
        (["--macs", "inf"], "--macs: a finite number was expected, 'inf' came"),
        (
            ["--width", "features.0.0=4", "--width", "features.0.0=6"],
            "--width: 'features.0.0' is there twice, with 4 and 6. Keep one of them",
        ),
        (["--width", "features.0.0=two"], "GROUP=N with a whole number of channels, or a ratio with a decimal point"),
        (
            ["--width", "features.0.0=0"],
            "the width of 'features.0.0' must be an integer of at least 1, or a ratio as a float .*, not 0",
        ),
        (["--width", "features.0.1=3"], "no group of the morph space is called 'features.0.1'. Did you mean 'featur"),
        (["--ratio", "1", "--params", "5"], "give one of --ratio, --params, .*--ratio, --params came"),
    ],
)
def test_a_size_that_cannot_be(morphed, tmp_path, capsys, words, message):
    assert _sample(morphed / "artifact", tmp_path / "out", *words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_an_artifact_of_the_other_kind(base, morphed, tmp_path, capsys):
    assert _sample(base / "base/artifact", tmp_path / "out") == 2
    assert "is an artifact of kind 'network', expected kind 'morph'" in capsys.readouterr().err
    assert _sample(morphed, tmp_path / "out") == 2
    assert f"the artifact in it is {morphed / 'artifact'}: name that" in capsys.readouterr().err
    assert main(["dissect", f"{base / 'base/artifact'}@0.5"]) == 2
    assert "only a morphable artifact has sizes" in capsys.readouterr().err


# --- norms that stay --------------------------------------------------------------------------------------------------


def test_widths_are_measured_with_statistics_of_their_own(morphed, tmp_path, capsys, monkeypatch):
    """Whichever are better on held-out images; here each is made the better one in turn."""
    details = json.loads((morphed / "details.json").read_text())
    anew = [w["recalibrated"] for w in details["widths"]]
    assert not anew[0]
    card = (morphed / "artifact/README.md").read_text()
    assert ("statistics estimated anew" in card) == any(anew)
    half = {w["ratio"]: w for w in details["widths"]}[0.5]
    digits, closer = open_data("digits"), list[float]()
    monkeypatch.setattr("netsmith.morphing.recalibrating._Drawn.distance", lambda *_: closer.pop(0))

    def accuracy(folder):
        network = load_source(str(folder))
        task = Classification(10)
        return evaluate(network.model, digits.test, task, preprocess=network.preprocess)["accuracy"]

    closer += [1.0, 0.0]
    assert _sample(morphed / "artifact", tmp_path / "anew", "--ratio", "0.5", "--data", "digits") == 0
    assert "batch norms: statistics estimated on training images of digits" in capsys.readouterr().out
    closer += [0.0, 1.0]
    assert _sample(morphed / "artifact", tmp_path / "kept", "--ratio", "0.5", "--data", "digits") == 0
    assert "which are better on training images of digits" in capsys.readouterr().out
    assert _sample(morphed / "artifact", tmp_path / "old", "--ratio", "0.5") == 0
    assert "batch norms have statistics of the base network's channels" in capsys.readouterr().out
    reached = {name: accuracy(tmp_path / name) for name in ("anew", "kept", "old")}
    assert reached["kept"] == reached["old"] != reached["anew"]
    assert half["accuracy"]["test"] == reached["anew" if half["recalibrated"] else "kept"]
    cards = [(tmp_path / name / "README.md").read_text() for name in ("anew", "old")]
    assert "statistics of its batch norms: estimated on training images of digits" in cards[0]
    assert "statistics of its batch norms: those of the base network's channels" in cards[1]
    for distances, name, said in (
        ((1.0, 0.0), "anew", "estimated anew on"),
        ((0.0, 1.0), "kept", "kept, which is better on"),
    ):
        closer += distances
        assert main(["evaluate", f"{morphed / 'artifact'}@0.5", "--data", "digits", "--json", "--batch", "2"]) == 0
        streams = capsys.readouterr()
        assert json.loads(streams.out)["accuracy"] == reached[name]
        assert f"statistics of batch norms {said} training images of digits" in streams.err


def test_evaluate_sweeps_over_the_widths_of_a_morphable_artifact(morphed, capsys):
    """As its card has them, recalibrated as they were; or those asked for, fitted or not."""
    words = ["evaluate", str(morphed / "artifact"), "--data", "digits", "--batch", "2"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    details = json.loads((morphed / "details.json").read_text())
    assert [w["ratio"] for w in found["widths"]] == [1.0, 0.5, 0.25]
    for own, card in zip(found["widths"], details["widths"], strict=True):
        assert (own["params"], own["macs"]) == (card["params"], card["macs"])
        assert own["accuracy"] == pytest.approx(card["accuracy"]["test"], abs=1e-4)
        assert own["latency_ms"] > 0
    assert found["accuracy"] == found["widths"][0]["accuracy"]
    assert main([*words, "--ratios", "0.3,0.75", "--split", "validation"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"on \d+ images \(validation of digits\)", text)
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["0.75", "0.3"]


def test_a_sweep_needs_sizes(morphed, capsys):
    folder = str(morphed / "artifact")
    assert main(["evaluate", f"{folder}@0.5", "--data", "digits", "--ratios", "1"]) == 2
    assert "--ratios are for a morphable artifact without a size" in capsys.readouterr().err
    assert main(["evaluate", folder, "--data", "digits", "--ratios", "1,none"]) == 2
    assert "positive numbers, such as 1,0.5,0.25, were expected, '1,none' came" in capsys.readouterr().err


def test_nothing_is_said_of_norms_that_are_folded(base, tmp_path, capsys):
    assert morph(base, tmp_path / "out", "training=null", more=["--quiet"]) == 0
    details = json.loads((tmp_path / "out/details.json").read_text())
    assert not any(w["recalibrated"] for w in details["widths"])
    assert _sample(tmp_path / "out/artifact", tmp_path / "half") == 0
    streams = capsys.readouterr()
    assert "batch norms" not in streams.out + streams.err
    words = ["--ratio", "0.5", "--data", "digits"]
    assert _sample(tmp_path / "out/artifact", tmp_path / "again", *words) == 0
    assert "--data is not needed: this network has no batch norms" in capsys.readouterr().err
    assert _sample(tmp_path / "out/artifact", tmp_path / "more", "--ratio", "1", "--data", "digits") == 0


# --- provenance -------------------------------------------------------------------------------------------------------


def test_a_base_that_is_not_for_commercial_use_says_so_everywhere(base, tmp_path, capsys):
    config = yaml.safe_load((base / "morph.yaml").read_text())
    config["network"]["licence"] = "cc-by-nc-4.0"
    config["training"] = None
    (tmp_path / "morph.yaml").write_text(yaml.safe_dump(config))
    assert main(["morph", str(tmp_path / "morph.yaml"), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    details = json.loads((tmp_path / "out/details.json").read_text())
    sha256 = torch_sha256(base / "base/artifact/weights.safetensors")
    assert {key: details["base"][key] for key in ("licence", "commercial", "sha256")} == {
        "licence": "cc-by-nc-4.0",
        "commercial": False,
        "sha256": sha256,
    }
    page = (tmp_path / "out/report.html").read_text()
    assert "Not for commercial use" in page
    assert sha256[:12] in page
    assert _sample(tmp_path / "out/artifact", tmp_path / "half") == 0
    for folder in (tmp_path / "out/artifact", tmp_path / "half"):
        card = (folder / "README.md").read_text()
        assert "- licence: cc-by-nc-4.0" in card
        assert "**non-commercial**" in card
        assert json.loads((folder / "manifest.json").read_text())["commercial"] is False


def torch_sha256(path):
    from netsmith.files.output import sha256_file

    return sha256_file(path)


def test_two_runs_are_equal(base, tmp_path):
    for name in ("one", "two"):
        assert morph(base, tmp_path / name, "training.epochs=1", "ratios=[0.5]", more=["--quiet"]) == 0
    one, two = (load_source(f"{tmp_path / name / 'artifact'}@0.5").model.state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
