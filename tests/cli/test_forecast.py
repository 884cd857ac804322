"""The estimates of `--plan`: what they say, what they leave out, and that nothing is written or run for them."""

from __future__ import annotations

import re

import pytest

from netsmith.cli.estimates import in_words, measured, size_in_words, sketch
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
finetune: {epochs: EPOCHS, batch_size: 64}
"""


def planned(tmp_path, capsys, text):
    (tmp_path / "zoo.yaml").write_text(text)
    assert main(["reassemble", str(tmp_path / "zoo.yaml"), "--plan", "--device", "cpu"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["zoo.yaml"]
    return capsys.readouterr().out


def seconds(text: str, step: str) -> float:
    found = re.search(rf"{step} ([\d.]+) (s|min|h|days)", text)
    assert found, text
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600, "days": 86400}[found[2]]


def test_a_plan_tells_time_memory_and_disk(tmp_path, capsys):
    text = planned(tmp_path, capsys, ZOO.replace("DATA", "digits").replace("EPOCHS", "300"))
    assert re.search(r"estimate, .* for one process on cpu as it is now \([\d.]+ G MACs a second with \w+", text)
    assert re.search(r"memory: about \d+ MB beside the images and the libraries", text)
    assert re.search(r"disk: about \d+ MB in the output folder", text)
    more = planned(tmp_path, capsys, ZOO.replace("DATA", "digits").replace("EPOCHS", "30000"))
    # a hundred times the epochs take about a hundred times as long (the machine may be busier now and then)
    assert 10 < seconds(more, "fine-tuning") / seconds(text, "fine-tuning") < 1000


def test_a_loose_budget_is_not_taken_for_the_size_of_the_network(tmp_path, capsys):
    text = ZOO.replace("DATA", "digits").replace("EPOCHS", "300")
    without = planned(tmp_path, capsys, text)
    loose = planned(tmp_path, capsys, text + "budget: {macs: 500G, params: 500G}\n")
    # no network is larger than the largest of the zoo (the machine may be busier now and then)
    assert seconds(loose, "fine-tuning") / seconds(without, "fine-tuning") < 20
    assert re.search(r"memory: about \d+ MB", loose)
    assert re.search(r"disk: about \d+ MB", loose)
    assert "e+" not in loose


def test_without_the_data_there_is_only_a_rate(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NETSMITH_DATA", str(tmp_path / "nowhere"))
    text = planned(tmp_path, capsys, ZOO.replace("DATA", "torchvision:CIFAR10").replace("EPOCHS", "2"))
    assert "estimate: none before torchvision:CIFAR10 is on this machine; with plain, cpu does" in text


def test_a_plan_of_a_morphing_is_estimated_too(tmp_path, capsys):
    (tmp_path / "m.yaml").write_text(f"network: {PLAIN}\ndata: digits\npretrained: false\ntraining: {{epochs: 3}}\n")
    assert main(["morph", str(tmp_path / "m.yaml"), "--plan"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"time: about \d+ s \(ordering \d+ s, fitting \d+ s, repair \d+ s, measuring \d+ s\)", text)


def test_a_plan_counts_what_an_inr_computes_for_its_weights(tmp_path, capsys):
    def minutes(settings: str) -> tuple[str, ...]:
        generator = f"generator: {{kind: inr, settings: {{{settings}}}}}"
        (tmp_path / "m.yaml").write_text(
            f"network: {PLAIN}\ndata: digits\npretrained: false\ntraining: {{epochs: 3}}\n{generator}\n"
        )
        assert main(["morph", str(tmp_path / "m.yaml"), "--plan"]) == 0
        found = re.search(r"\(ordering .*, warm start (.*), fitting (.*), measuring", capsys.readouterr().out)
        assert found is not None
        return found.groups()

    small, large = minutes("hidden: 4, layers: 1, warm_start: 1"), minutes("hidden: 8192, warm_start: 10000")
    assert small[0].endswith(" s")
    assert not large[0].endswith(" s")
    assert not large[1].endswith(" s")
    assert minutes("hidden: what")  # that is refused by the generator


def test_a_plan_does_not_run_the_users_code(tmp_path, capsys):
    (tmp_path / "net.py").write_text("raise SystemExit('run')\n")
    (tmp_path / "m.yaml").write_text(f"network: 'py:{tmp_path}/net.py:build'\ndata: digits\n")
    assert main(["morph", str(tmp_path / "m.yaml"), "--plan"]) == 0
    assert "estimate: none, since counting a network of the user's own would run its code" in capsys.readouterr().out


def test_a_sketch_counts_what_the_network_has():
    entry = ZooEntry.model_validate(PLAIN)
    found = sketch(entry)
    network = load_source(PLAIN["source"], num_classes=10, input_size=(1, 8, 8), pretrained=False)
    assert found is not None
    assert found.macs == count_macs(network.model, (1, 8, 8))
    assert found.params == count_params(network.model)
    assert found.input_shape == (1, 8, 8)


def test_a_rate_is_measured_with_a_network_of_middle_size():
    entries = [
        ZooEntry.model_validate({**PLAIN, "name": name, "options": {"widths": widths}})
        for name, widths in (("small", [4, 8]), ("middle", [8, 16]), ("large", [16, 32]))
    ]
    rate = measured(entries, [found for e in entries if (found := sketch(e))])
    assert rate is not None
    assert rate.name == "middle"
    assert rate.forward > rate.training > 0
    assert rate.saved_per_mac > 0
    assert measured([], []) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.2, "1 s"),
        (59, "59 s"),
        (89, "89 s"),
        (90, "1.5 min"),
        (7200, "2 h"),
        (86400 * 3, "3 days"),
        (86400 * 123.4, "120 days"),
    ],
)
def test_durations_in_words(value, text):
    assert in_words(value) == text


@pytest.mark.parametrize(("value", "text"), [(10, "1 MB"), (85e6, "85 MB"), (2.14e9, "2.1 GB"), (2.14e12, "2100 GB")])
def test_sizes_in_words(value, text):
    assert size_in_words(value) == text
