"""The demo, whole: a zoo trained, a budget that no member meets, a network that does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netsmith import report
from netsmith.cli import demo, morph, reassemble, train
from netsmith.cli.demo import MEMBERS
from netsmith.cli.main import main
from netsmith.config import load_morph_config
from netsmith.reassembly.facts import UNDONE


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a minute on a machine of its own
def test_the_demo_tells_its_story(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    budget, zoo = summary["budget"], summary["zoo"]
    assert {m["name"] for m in zoo} == set(MEMBERS)
    assert summary["params"] <= budget["params"]["max"]
    assert summary["macs"] <= budget["macs"]["max"]
    for member in zoo:
        assert member["params"] > budget["params"]["max"] or member["macs"] > budget["macs"]["max"]
        assert member["accuracy"] > 0.9
    assert summary["accuracy"]["stitched"] > 0.8
    undone = summary["accuracy"]["undone"]  # on some processors the stitched network is so good that tuning cannot help
    final = summary["accuracy"]["stitched" if undone else "finetuned"]
    assert final > 0.9
    assert len({block.partition("[")[0] for block in summary["blocks"]}) >= 2
    assert "under a budget that none of them meets" in text
    assert (UNDONE if undone else "stitched and fine-tuned") in text
    widths = json.loads((out / "any_width" / "summary.json").read_text())
    assert widths["base"]["params"] == summary["params"]
    found = {w["ratio"]: w for w in widths["widths"]}
    assert found[1.0]["accuracy"] == final
    assert found[0.5]["params"] < 0.8 * found[1.0]["params"]
    assert found[0.5]["accuracy"] > 0.85
    assert found[0.25]["accuracy"] > widths["floor"]
    assert "at any width, from one artifact" in text
    # the page of the reassembly leads to that of its family, and back; the config is all that the family needs
    assert 'href="any_width/report.html"' in (out / "report.html").read_text()
    assert 'href="../report.html"' in (out / "any_width" / "report.html").read_text()
    config = load_morph_config(out / "any_width" / "config.yaml")
    assert Path(config.network.source).resolve() == (out / "artifact").resolve()
    assert list(config.ratios) == [w["ratio"] for w in widths["widths"]]
    # a size of it is a source
    assert main(["evaluate", f"{out / 'any_width' / 'artifact'}@0.5", "--data", "digits", "--json"]) == 0
    # its zoo is made of artifacts like those of `netsmith train`
    assert main(["evaluate", str(out / "zoo" / "plain" / "artifact"), "--data", "digits", "--json"]) == 0


def test_what_an_interrupted_demo_says_goes_on(tmp_path, capsys, monkeypatch):
    """It is stopped in its last phase, where the reassembly's summary is there already."""
    out, done = tmp_path / "demo", []

    states = [out / part / "checkpoints" / "a" / "last.safetensors" for part in (".", "zoo/plain", "any_width")]

    def reassembled(folder, *_):
        (folder / "summary.json").write_text("{}")
        for state in states:
            state.parent.mkdir(parents=True)
            state.touch()
        (out / "zoo" / "plain" / "artifact").mkdir()

    def interrupted(*_):
        raise KeyboardInterrupt

    def silent(*_):
        done.append(None)

    for module, name, stand_in in (
        (demo, "train_member", silent), (demo, "reassemble_zoo", reassembled), (demo, "_budget", silent),
        (demo, "morph_result", interrupted), (report, "write_report", silent),
        (train, "show", silent), (reassemble, "show", silent), (morph, "show", silent),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, stand_in)
    assert main(["demo", "--out", str(out)]) == 130
    (again,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  netsmith ")]
    monkeypatch.setattr(demo, "morph_result", silent)
    assert all(state.exists() for state in states)
    monkeypatch.setattr(demo, "reassemble_zoo", silent)
    assert main(again.split()[1:]) == 0
    assert "going on with the unfinished run" in capsys.readouterr().err
    assert not list(out.rglob("checkpoints"))
    assert (out / "zoo" / "plain" / "artifact").exists()
    assert main(again.split()[1:]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
