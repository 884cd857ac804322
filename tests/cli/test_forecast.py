"""The counts of `--plan`: what they say, what they leave out, and that nothing is written or run for them."""

from __future__ import annotations

import re

from netsmith.cli.forecast import Sketch, sketch
from netsmith.cli.main import main
from netsmith.networks.network import load_source
from netsmith.networks.zoo import ZooEntry
from netsmith.trace.cost import count_macs, count_params

PLAIN = {"source": "netsmith:plain_cnn", "name": "plain", "num_classes": 10, "input_size": [1, 8, 8]}
ZOO = """
zoo:
  - {source: "netsmith:plain_cnn", name: plain, num_classes: 10, input_size: [1, 8, 8]}
  - {source: "netsmith:small_vit", name: vit, num_classes: 10, input_size: [1, 8, 8], options: {dim: 24, depth: 4}}
pretrained: false
data: DATA
finetune: {epochs: 3, batch_size: 64}
"""


def planned(tmp_path, capsys, text):
    (tmp_path / "zoo.yaml").write_text(text)
    assert main(["reassemble", str(tmp_path / "zoo.yaml"), "--plan", "--device", "cpu"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["zoo.yaml"]
    return capsys.readouterr().out


def disk(text: str) -> float:
    size = re.search(r"disk: about ([\d.]+) MB in the output folder", text)
    assert size, text
    return float(size[1])


def test_a_plan_tells_macs_images_and_disk(tmp_path, capsys):
    text = planned(tmp_path, capsys, ZOO.replace("DATA", "digits"))
    assert "MACs: " in text
    assert "images: 1,169 train, 269 validation, 359 test" in text
    finalists = planned(tmp_path, capsys, ZOO.replace("DATA", "digits") + "score: {finalists: 20}\n")
    assert disk(finalists) > disk(text) > 0


def test_without_the_data_their_images_are_not_known(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NETSMITH_DATA", str(tmp_path / "nowhere"))
    text = planned(tmp_path, capsys, ZOO.replace("DATA", "torchvision:CIFAR10"))
    assert "images: not known before torchvision:CIFAR10 is on this machine" in text


def test_a_plan_of_a_morphing_counts_its_network(tmp_path, capsys):
    (tmp_path / "m.yaml").write_text(f"network: {PLAIN}\ndata: digits\npretrained: false\ntraining: {{epochs: 3}}\n")
    assert main(["morph", str(tmp_path / "m.yaml"), "--plan"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"MACs: [\d.]+k an image in all", text) or re.search(r"MACs: [\d.]+M an image in all", text)
    assert disk(text) > 0


def test_a_plan_does_not_run_the_users_code(tmp_path, capsys):
    (tmp_path / "net.py").write_text("raise SystemExit('run')\n")
    (tmp_path / "m.yaml").write_text(f"network: 'py:{tmp_path}/net.py:build'\ndata: digits\n")
    assert main(["morph", str(tmp_path / "m.yaml"), "--plan"]) == 0
    assert "not counted: networks of your own, whose code a plan does not run" in capsys.readouterr().out


def test_a_sketch_counts_what_the_network_has():
    network = load_source(PLAIN["source"], num_classes=10, input_size=(1, 8, 8), pretrained=False)
    expected = Sketch(count_macs(network.model, (1, 8, 8)), count_params(network.model))
    assert sketch(ZooEntry.model_validate(PLAIN)) == expected
