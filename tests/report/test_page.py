from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pages import Page
from samples import CONFIG, write_sample

from netsmith.errors import ArtifactError, OutputError
from netsmith.report import write_report


def page_of(folder: Path, sample, **options) -> Page:
    return Page(write_report(write_sample(folder, *sample, **options)).read_text())


@pytest.mark.parametrize("size", ["small", "large"])
def test_the_page_is_well_formed_small_and_whole(tmp_path, request, size):
    path = write_report(write_sample(tmp_path / "run", *request.getfixturevalue(size)))
    assert path == tmp_path / "run" / "report.html"
    assert path.stat().st_size < 1_000_000
    html = path.read_text()
    page = Page(html)
    assert len(page.svgs) > 20
    for anchor in re.findall(r'href="#([\w-]+)"', html):
        assert anchor in page.ids
    tips = json.loads(page.scripts[0])["tips"]
    assert {int(t) for t in re.findall(r'data-tip="(\d+)"', html)} == set(range(len(tips)))
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "config.yaml",
        "details.json",
        "report.html",
        "summary.json",
    ]


def test_five_hundred_candidates_of_24_networks_stay_below_a_megabyte(tmp_path):
    from samples import sample

    path = write_report(write_sample(tmp_path, *sample(24, candidates=500)))
    assert path.stat().st_size < 1_000_000
    page = Page(path.read_text())
    assert "The first 150 of 500 candidates" in page.text
    wide = next(s for s in page.svgs if "wide" in s.get("class", "") and "candidate" in s.get("aria-label", ""))
    assert len(wide.findall("g[@class='m-candidate']/circle")) == 499


def test_every_number_of_the_summary_appears(tmp_path, small):
    summary, _ = small
    page = page_of(tmp_path, small)
    values = page.values()
    expected = [summary["params"], summary["macs"], summary["accuracy"]["stitched"], summary["accuracy"]["finetuned"]]
    for network in summary["zoo"]:
        expected += [network["params"], network["macs"], network["accuracy"]]
    expected += list(summary["seconds"].values())
    for number in expected:
        assert (f"{number:.0f}" if float(number).is_integer() else repr(float(number))) in values
    for block in summary["blocks"]:
        assert block in page.text
    assert "at most 500k" in page.text
    assert "at most 90M" in page.text
    assert "Budget met" in page.text


def test_nothing_is_loaded_from_anywhere(tmp_path, large):
    html = write_report(write_sample(tmp_path, *large)).read_text()
    page = Page(html)
    assert "http:" not in html
    assert "https:" not in html
    for tag, attrs in page.tags:
        assert tag not in {"link", "iframe", "object", "embed"}
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            address = attrs.get(name)
            assert address is None or address.startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"@import|url\(", html)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_names_are_escaped_wherever_they_appear(tmp_path, small):
    evil = "<script>alert(1)</script>\"'&--"
    text = [json.dumps(part).replace('"resnet56"', json.dumps(evil)) for part in small]
    text = [t.replace("resnet56[", json.dumps(evil)[1:-1] + "[") for t in text]
    summary, details = (json.loads(t) for t in text)
    details["baselines"][0]["note"] = evil
    details["networks"][0]["licence"] = evil
    details["networks"][0]["units"][0]["name"] = evil
    details["similarity"]["labels"][1] = evil
    details["similarity"]["metric"] = evil
    details["candidates"][0]["scores"][evil] = 1.0
    details["machine"][evil] = evil
    page = page_of(tmp_path, (summary, details), config=f"# {evil}\n")
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert "alert(1)" not in page.scripts[1]
    assert evil in page.text
    assert json.loads(page.scripts[0])["heat"]["rows"][1] == evil


@pytest.mark.parametrize(
    ("drop", "says"),
    [
        ("similarity", "holds no similarity table"),
        ("partition", "holds no partition"),
        ("candidates", "has not returned candidates yet"),
        ("chosen", "does not record the pieces"),
        ("seconds", "No times were recorded"),
        ("baselines", ""),
        ("search", ""),
        ("budget", ""),
        ("machine", ""),
    ],
)
def test_a_missing_part_is_named_and_the_rest_is_there(tmp_path, small, drop, says):
    summary, details = small
    del details[drop]
    summary.pop(drop, None)
    page = page_of(tmp_path, (summary, details))
    assert says in page.text
    assert "The zoo" in page.text


def test_a_run_that_has_hardly_begun_still_gets_a_page(tmp_path):
    details = {"schema": 1, "networks": [{"name": "a", "params": 10, "macs": None}]}
    page = page_of(tmp_path, ({"kind": "reassembly", "schema": 1}, details), config=None)
    assert "No network has been built yet" in page.text
    assert "no config.yaml" in page.text
    assert "No budget was set" in page.text


def test_without_tuning_the_stitched_accuracy_is_the_headline(tmp_path, small):
    summary, details = small
    summary["accuracy"] = {"stitched": 0.8125, "finetuned": None, "split": "validation"}
    details["chosen"]["history"] = []
    page = page_of(tmp_path, (summary, details))
    assert "81.2% accuracy on validation stitched, without any training: 8.0 points below resnet20 (89.2%)" in page.text
    assert "The network was not tuned" in page.text


@pytest.mark.parametrize(
    ("images", "stitched", "shown", "colour"),
    [
        (1_000, 0.9, "90.0%", ""),  # 0.8 points above resnet20's 89.2%, and a standard error is 1.0
        (10_000, 0.9, "90.00%", "good"),
        (10_000, 0.88, "88.00%", "bad"),
        (None, 0.9, "90.0%", "good"),
    ],
)
def test_a_lead_within_a_standard_error_is_not_coloured(tmp_path, small, images, stitched, shown, colour):
    summary, details = small
    summary["accuracy"] = {"stitched": stitched, "finetuned": None, "split": "validation"}
    summary["accuracy"] |= {} if images is None else {"images": images}
    page_of(tmp_path, (summary, details))
    text = (tmp_path / "report.html").read_text()
    tile = text[text.index("Against the zoo") :][:200]
    assert re.search(r'<dd class="big (\w*)">', tile)[1] == colour, tile
    assert f"{shown} accuracy on validation" in text


def test_without_accuracies_candidates_are_drawn_by_score(tmp_path, small):
    summary, details = small
    summary["accuracy"] = {}
    for candidate in details["candidates"]:
        candidate["accuracy"] = {}
    page = page_of(tmp_path, (summary, details))
    assert "score “stitch” (higher is better)" in page.text
    assert "Its accuracy has not been measured yet." in page.text
    assert "No candidate's accuracy has been measured; networks of the zoo are ticks along the axis." in page.text


def test_a_budget_that_is_not_met_is_said_loudly(tmp_path, small):
    summary, details = small
    for part in (summary, details):
        part["budget"] = {"params": {"min": None, "max": 300_000}, "latency_ms": {"max": 2.0}, "memory_mb": {"max": 64}}
    page = page_of(tmp_path, (summary, details))
    assert "Budget not met" in page.text
    assert "params 466.22k (at most 300k) (not met)" in page.text
    assert "latency 3.21 ms (at most 2 ms) (not met)" in page.text
    assert "memory not measured (at most 64 MB)" in page.text
    assert "(which itself does not meet the budget)" in page.text


def test_no_member_of_the_zoo_fits(tmp_path, small):
    summary, details = small
    for part in (summary, details):
        part["budget"] = {"params": {"min": None, "max": 200_000}}
    page = page_of(tmp_path, (summary, details))
    assert "No network of the zoo fits this budget." in page.text
    assert "None fits" in page.text


def test_a_source_barred_from_commercial_use_is_warned_about(tmp_path, small):
    summary, details = small
    page = page_of(tmp_path / "a", (summary, details))
    assert "Not for commercial use: the network built here holds weights of vit_small32 (CC-BY-NC-4.0)." in page.text
    assert page.text.count("⚠ non-commercial") == 1
    details["networks"][3]["commercial"] = True
    assert "commercial use" not in page_of(tmp_path / "b", (summary, details)).text


def test_numbers_that_are_not_finite_are_dashes(tmp_path, small):
    summary, details = small
    details["similarity"]["values"][0][1] = None
    details["candidates"][3]["cost"] = float("nan")
    details["chosen"]["history"][0]["loss"] = float("inf")
    assert "nan" not in page_of(tmp_path, (summary, details)).text.lower().split()


def test_provenance_names_versions_seeds_and_hashes(tmp_path, small):
    (tmp_path / "artifact").mkdir()
    manifest = {"files": {"weights.safetensors": {"sha256": "f" * 64, "bytes": 3}}}
    (tmp_path / "artifact" / "manifest.json").write_text(json.dumps(manifest))
    small[1]["networks"][0]["sha256"] = "e" * 64
    small[1]["data"] = {"source": "digits", "fingerprint": "d" * 64}
    page = page_of(tmp_path, small)
    assert "torch 2.4.1" in page.text
    assert "weights of resnet20 " + "e" * 64 in page.text
    assert "fingerprint " + "d" * 64 in page.text
    assert "artifact/weights.safetensors " + "f" * 64 in page.text
    assert "Seeds seed 0" in page.text
    assert CONFIG.splitlines()[3] in page.text


def test_memory_and_latency_are_columns_when_they_were_measured(tmp_path, small):
    for i, candidate in enumerate(small[1]["candidates"]):
        candidate.update(latency_ms=3.0 + i, memory_mb=12.5)
    page = page_of(tmp_path, small)
    assert "Latency Memory" in page.text
    assert "4 ms 12.5 MB" in page.text


def test_drawings_have_names_and_tables_beside_them(tmp_path, small):
    page = page_of(tmp_path, small)
    for svg in page.svgs:
        assert svg.get("aria-hidden") == "true" or (svg.get("role") == "img" and svg.get("aria-label"))
    assert sum(tag == "table" for tag, _ in page.tags) >= 7
    for tag, attrs in page.tags:
        if tag == "th":
            assert attrs.get("scope") in ("col", "row")
    assert ("html", {"lang": "en"}) in page.tags


def test_files_that_are_not_there(tmp_path, small):
    with pytest.raises(ArtifactError, match=r"holds no summary\.json, so it is no finished output folder"):
        write_report(tmp_path)
    write_sample(tmp_path, *small)
    (tmp_path / "details.json").unlink()
    with pytest.raises(ArtifactError, match=r"holds no details\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_truncated_file(tmp_path, small):
    write_sample(tmp_path, *small)
    (tmp_path / "details.json").write_text(json.dumps(small[1])[:1000])
    with pytest.raises(ArtifactError, match=r"details\.json is no JSON \(line 1, column \d+: .*truncated or edited\?"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda s, d: s.update(kind="network"),
            r"summary\.json: a report is drawn for kind 'reassembly' or 'morph', came 'network'",
        ),
        (lambda s, d: d.update(schema=2), r"schema 2, and this netsmith reads up to 1: it was written by a newer one"),
        (lambda s, d: d.pop("networks"), r"networks: Field required"),
        (lambda s, d: d.update(networks=[]), r"networks is empty"),
        (lambda s, d: d["networks"][2].update(params="many"), r"networks\[2\]\.params: .*valid number.*, came 'many'"),
        (lambda s, d: d["candidates"][1].pop("blocks"), r"candidates\[1\]\.blocks: Field required"),
        (lambda s, d: d["similarity"]["values"].pop(), r"similarity\.values: expected 63 rows of 63 numbers"),
        (lambda s, d: d["similarity"]["values"][3].pop(), r"similarity\.values: expected 63 rows of 63 numbers"),
        (lambda s, d: d["similarity"].update(offsets=[0, 9]), r"offsets must hold the first row of each of the 4"),
        (lambda s, d: d["similarity"].update(offsets=[0, 9, 5, 70]), r"rising from 0 and below 63"),
        (lambda s, d: d["partition"]["blocks"].update(x=[[0, 1]]), r"names the network 'x', which is not in networks"),
        (lambda s, d: d["partition"]["blocks"].update(resnet20=[[0, 12]]), r"within its 9 units, came \[\[0, 12\]\]"),
        (lambda s, d: d["partition"]["assignment"].update({"a[0:2]": -1}), r"partition\.assignment\.a\[0:2\]"),
        (lambda s, d: d["chosen"]["parts"][0].update(kind="tail"), r"chosen\.parts\[0\]\.kind: .*, came 'tail'"),
    ],
)
def test_malformed_results_are_named_with_their_place(tmp_path, small, change, match):
    change(*small)
    with pytest.raises(ArtifactError, match=match):
        write_report(write_sample(tmp_path, *small))
    assert not (tmp_path / "report.html").exists()


def test_all_faults_come_at_once(tmp_path, small):
    small[1]["networks"][0]["params"] = "a"
    small[1]["networks"][1]["macs"] = "b"
    with pytest.raises(ArtifactError, match=r"(?s)networks\[0\]\.params.*networks\[1\]\.macs"):
        write_report(write_sample(tmp_path, *small))


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path, small, monkeypatch):
    write_sample(tmp_path, *small)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=r"No space left for .*report\.html"):
        write_report(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "details.json", "summary.json"]


def test_the_same_results_give_the_same_page(tmp_path, small):
    first = write_report(write_sample(tmp_path, *small)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
