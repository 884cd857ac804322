"""Each verb on small networks and bad input: what it prints and writes, its exit code and its message."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from netsmith.cli.main import main

TINY = "netsmith:plain_cnn"
TRAIN = """
network: {source: "netsmith:plain_cnn", name: tiny, options: {widths: [4, 6], depth: 1}}
data: digits
training: {epochs: 2, batch_size: 256, lr: 0.02, schedule: onecycle}
"""


class Broken(nn.Module):
    """Takes digits and gives NaN."""

    input_size = (1, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return self.layers(x) / 0.0 * 0.0


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("from test_verbs import Broken\n\n\ndef build():\n    return Broken()\n")
    return f"py:{path}:build"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TRAIN)
    out = folder / "out"
    assert main(["train", str(folder / "tiny.yaml"), "--out", str(out), "--quiet", "--device", "cpu"]) == 0
    return out


def test_dissect_prints_every_unit_and_totals(capsys):
    assert main(["dissect", "netsmith:cifar_resnet20"]) == 0
    text = capsys.readouterr().out
    assert "cifar_resnet20: 9 units" in text
    assert re.search(r"^3 +layer2\.0 +NCHW +16x32x32 +32x16x16 +13\.95k +3\.54M$", text, re.MULTILINE)
    assert re.search(r"^ +\(stem\) .* 464 ", text, re.MULTILINE)
    assert re.search(r"whole network +3x32x32 +10 +269\.72k +40\.55M", text)
    assert "The stem and the head cannot be cut" in text


def test_dissect_json_adds_up(capsys):
    assert main(["dissect", TINY, "--input-size", "1x8x8", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    pieces = [facts["stem"], *facts["units"], facts["head"]]
    assert facts["input_shape"] == [1, 8, 8]
    assert sum(p["params"] for p in pieces) == facts["params"]
    assert sum(p["macs"] for p in pieces) == facts["macs"]
    for before, after in zip(facts["units"][:-1], facts["units"][1:], strict=True):
        assert before["out_shape"] == after["in_shape"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("netsmith:cifar_resnet21", "There is no network 'netsmith:cifar_resnet21'. Did you mean 'cifar_resnet"),
        ("timm:resnet5", "timm has no architecture 'resnet5'. Did you mean 'resnet50'"),
        ("tim:resnet50", "Did you mean 'timm'?"),
        ("resnet50", "Did you mean 'timm:resnet50'"),
        ("netsmith:cifar_resnet20#nowhere.safetensors", "There is no weights file nowhere.safetensors"),
        ("py:nowhere.py:build", "There is no file nowhere.py"),
    ],
)
def test_an_unknown_source_names_the_nearest(source, message, capsys):
    assert main(["dissect", source]) == 2
    assert message in capsys.readouterr().err


def test_a_network_that_gives_nan_is_refused(broken, capsys):
    assert main(["dissect", broken]) == 2
    assert "NaN" in capsys.readouterr().err


def test_train_writes_an_artifact_that_is_a_source(trained, capsys):
    names = {p.name for p in trained.iterdir()} - {".netsmith"}
    assert names == {"artifact", "config.yaml", "log.txt", "summary.json"}  # and no checkpoint of a finished run
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["kind"] == "training"
    assert summary["name"] == "tiny"
    assert [h["epoch"] for h in summary["history"]] == [1, 2]
    assert main(["evaluate", str(trained / "artifact"), "--data", "digits", "--json", "--batch", "4"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["accuracy"] == summary["accuracy"]["test"]
    assert facts["params"] == summary["params"]
    assert facts["macs"] == summary["macs"]
    assert facts["latency_ms"] > 0
    assert facts["batch"] == 4


def test_the_artifact_of_a_training_names_its_classes_and_what_it_began_as(trained):
    manifest = json.loads((trained / "artifact" / "manifest.json").read_text())
    assert manifest["classes"] == [str(n) for n in range(10)]
    (row,) = manifest["provenance"]
    card = (trained / "artifact" / "README.md").read_text()
    assert f"- `{TINY}`, sha256 `{row['sha256']}`, licence not stated" in card


def test_a_finished_folder_is_not_replaced_unasked(trained, capsys):
    before = (trained / "summary.json").read_text()
    config = trained.parent / "tiny.yaml"
    assert main(["train", str(config), "--out", str(trained)]) == 2
    assert "exists and is not empty. Pass --overwrite" in capsys.readouterr().err
    assert (trained / "summary.json").read_text() == before


def test_overwriting_a_finished_run_trains_anew(tmp_path, monkeypatch):
    from netsmith.training import entry as training

    (tmp_path / "tiny.yaml").write_text(TRAIN)
    words = ["train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out"), "--device", "cpu", "--quiet"]
    real, calls = training.train, []
    monkeypatch.setattr(training, "train", lambda *a, **k: calls.append(real(*a, **k)) or calls[-1])
    assert main(words) == 0
    (tmp_path / "out/checkpoints").mkdir()
    (tmp_path / "out/checkpoints/mine.txt").write_text("not of a training")
    assert main([*words, "--overwrite"]) == 0
    assert [call.resumed_from for call in calls] == [0, 0]
    assert calls[1].images_per_second > 0
    assert (tmp_path / "out/checkpoints/mine.txt").exists()


def test_another_option_with_the_same_weights_is_another_training(tmp_path):
    """The weights of a ViT do not tell its heads: what was trained with four must not be served for one."""
    (tmp_path / "vit.yaml").write_text(
        "network: {source: 'netsmith:small_vit', options: {dim: 24, depth: 1, heads: 4}}\n"
        "data: digits\ntraining: {epochs: 1, batch_size: 256, lr: 0.003}\n"
    )
    words = ["train", str(tmp_path / "vit.yaml"), "--device", "cpu", "--quiet", "--out", str(tmp_path / "out")]
    one = ["--set", "network.options={dim: 24, depth: 1, heads: 1}"]
    assert main(words) == 0
    assert main([*words, *one, "--overwrite"]) == 0
    assert main([*words[:-1], str(tmp_path / "alone"), *one]) == 0
    found, alone = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("out", "alone"))
    assert found["metrics"] == alone["metrics"]
    assert found["history"] == alone["history"]


def test_an_unfinished_run_of_the_same_config_goes_on(tmp_path, monkeypatch, capsys):
    from netsmith.training import entry as training

    (tmp_path / "tiny.yaml").write_text(TRAIN)
    words = ["train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    real, calls = training.train, []

    def stop_after_one_epoch(*arguments, **named):
        def stop(entry):
            raise KeyboardInterrupt

        return real(*arguments, **named, on_epoch=stop)

    def go_on(*arguments, **named):
        calls.append(real(*arguments, **named))
        return calls[-1]

    monkeypatch.setattr(training, "train", stop_after_one_epoch)
    assert main(words) == 130
    assert f"What was finished is kept in {tmp_path / 'out'}; go on with:" in capsys.readouterr().err
    monkeypatch.setattr(training, "train", go_on)
    assert main([*words, "--set", "training.lr=0.5"]) == 2, "another config must not go on in that folder"
    assert main(words) == 0
    assert "going on with the unfinished run" in capsys.readouterr().err
    assert calls[0].resumed_from == 1
    assert (tmp_path / "out" / "log.txt").read_text().count("interrupted") == 1


def test_all_faults_of_a_config_at_once(tmp_path, capsys):
    config = tmp_path / "bad.yaml"
    config.write_text("network: netsmith:plain_cnn\ndata: digit\ntraining:\n  epochs: -1\n  learning_rate: 3\nsed: 1\n")
    assert main(["train", str(config), "--out", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert "bad.yaml has 4 faults" in text
    for line, key in ((2, "data"), (4, "training.epochs"), (5, "training.learning_rate"), (6, "sed")):
        assert re.search(rf"line {line}: {re.escape(key)}", text), text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["train", "reassemble"])
def test_a_missing_config_names_the_nearest(verb, tmp_path, capsys):
    assert main([verb, "cifar1O", "--out", str(tmp_path / "out")]) == 2
    assert "there is no config file cifar1O, and no preset of that name. Did you mean" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_zoo_of_one_is_refused(tmp_path, capsys):
    config = tmp_path / "one.yaml"
    config.write_text("zoo: [netsmith:plain_cnn]\ndata: digits\n")
    assert main(["reassemble", str(config), "--out", str(tmp_path / "out")]) == 2
    assert "the zoo has one network, and reassembly needs two at least" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_reassemble_needs_an_output_folder(tmp_path, capsys):
    config = tmp_path / "two.yaml"
    config.write_text("zoo: [netsmith:plain_cnn, netsmith:small_vit]\ndata: digits\nbudget: {params: 100k}\n")
    assert main(["reassemble", str(config)]) == 2
    assert "--out DIR is missing" in capsys.readouterr().err
    assert main(["reassemble", str(config), "--plan", "--set", "budget.macs=100M"]) == 0
    text = capsys.readouterr().out
    assert "zoo: 2 networks" in text
    assert "to download: nothing" in text
    assert "budget: params at most 100k, macs at most 100M" in text


@pytest.mark.parametrize("resource", ["params", "macs"])
def test_a_plan_refuses_a_budget_that_nothing_can_keep(resource, tmp_path, capsys):
    config = tmp_path / "two.yaml"
    config.write_text(f"zoo: [netsmith:plain_cnn, netsmith:small_vit]\ndata: digits\nbudget: {{{resource}: 1k}}\n")
    assert main(["reassemble", str(config), "--plan"]) == 2
    error = capsys.readouterr().err
    assert f"no assembly has {resource} of at most 1k: the smallest stem and 4 of the smallest units have" in error
    assert f"Raise budget.{resource}, or lower k." in error


def test_compare_writes_a_page_and_json(tmp_path, capsys):
    out = tmp_path / "cmp"
    words = ["compare", "netsmith:plain_cnn", "netsmith:small_vit", "--input-size", "1x8x8", "--images", "40"]
    assert main([*words, "--out", str(out), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    facts = json.loads((out / "comparison.json").read_text())
    assert len(facts["values"]) == len(facts["rows"]["cuts"])
    assert len(facts["best"]) == len(facts["rows"]["cuts"]) - 1
    first = facts["values"][1][1:]
    assert facts["best"][0]["similarity"] == max(first)
    assert "most alike in small_vit" in text
    assert (out / "comparison.html").stat().st_size > 1000
    assert main([*words, "--out", str(out)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--metric", "cca"], "unknown metric 'cca'. Did you mean 'cka'"),
        (["--data", "digit"], "unknown data source 'digit'. Did you mean 'digits'?"),
        (["--images", "3"], "at least 4 images"),
        (["--data", "folder:nowhere"], "nowhere"),
    ],
)
def test_compare_refuses(extra, message, capsys):
    assert main(["compare", TINY, "netsmith:lenet", "--input-size", "1x8x8", *extra]) == 2
    assert message in capsys.readouterr().err


def test_images_of_other_channels_are_refused(capsys):
    assert main(["compare", "netsmith:cifar_resnet20", TINY, "--data", "digits"]) == 2
    assert "takes images of 3 channels, and the data's have 1" in capsys.readouterr().err


def test_zoo_list_counts_the_libraries(capsys):
    assert main(["zoo", "list", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"source": "netsmith:cifar_resnet20", "params": 269722} in facts["netsmith"]
    assert facts["timm"]["families"] > 80
    assert facts["timm"]["networks"] > 1000
    assert facts["torchvision"]["networks"] > 70


def test_zoo_check_reports_all_faults_at_once(tmp_path, broken, capsys):
    zoo = tmp_path / "zoo.yaml"
    small = "input_size: [1, 8, 8]"
    zoo.write_text(
        f"networks:\n  - {{source: netsmith:plain_cnn, {small}}}\n  - {{source: '{broken}', name: broken}}\n"
        f"  - {{source: netsmith:small_vit, {small}, options: {{dim: 10}}}}\n"
    )
    assert main(["zoo", "check", str(zoo)]) == 2
    streams = capsys.readouterr()
    assert "plain_cnn" in streams.out
    assert "zoo.yaml has 2 faults" in streams.err
    assert "broken: " in streams.err
    assert "small_vit" in streams.err


def test_zoo_check_of_a_good_file(tmp_path, trained, capsys):
    zoo = tmp_path / "zoo.yaml"
    zoo.write_text(f"networks:\n  - {{source: {trained / 'artifact'}, name: tiny}}\n  - netsmith:lenet\n")
    assert main(["zoo", "check", str(zoo), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [n["name"] for n in facts["networks"]] == ["tiny", "lenet"]
    assert facts["faults"] == []


def test_report_of_a_folder_without_results(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no summary.json" in capsys.readouterr().err


def test_a_device_that_is_not_there(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["evaluate", TINY, "--data", "digits", "--input-size", "1x8x8", "--device", "cuda:7"]) == 2
    assert "there is no device 'cuda:7' here" in capsys.readouterr().err


def test_quiet_says_nothing_but_results(trained, capsys):
    assert main(["evaluate", str(trained / "artifact"), "--data", "digits", "--quiet"]) == 0
    streams = capsys.readouterr()
    assert "accuracy" in streams.out
    assert streams.err == ""
