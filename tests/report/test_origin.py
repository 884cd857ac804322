from __future__ import annotations

import json
from pathlib import Path

import pytest
from morph_samples import write_morph
from pages import Page
from samples import write_sample

from netsmith.errors import ArtifactError
from netsmith.report import write_report


@pytest.fixture
def story(tmp_path, small, morphed) -> Path:
    """A reassembly with its report, and within it a morph of what it made."""
    folder = write_sample(tmp_path / "run", *small)
    (folder / "artifact").mkdir()
    (folder / "artifact" / "manifest.json").write_text(json.dumps({"kind": "reassembly", "name": "reassembled"}))
    write_report(folder)
    morphed[1]["base"]["source"] = str(folder / "artifact")
    write_morph(folder / "any_width", *morphed)
    return folder


def links(page: Page) -> list[str | None]:
    return [a.get("href") for t, a in page.tags if t == "a" and not (a.get("href") or "").startswith("#")]


def test_a_morph_of_a_reassembly_tells_of_the_zoo(story, small):
    page = Page(write_report(story / "any_width").read_text())
    assert links(page) == ["../report.html"]
    text = page.text.partition("From zoo to family The base network was itself")[2].partition("The network at any")[0]
    assert f"A zoo of {len(small[0]['zoo'])} networks" in text
    for network in small[0]["zoo"]:
        assert network["name"] in text
    for block in small[0]["blocks"]:
        assert block in text
    assert text.count(" used ") == len({b.partition("[")[0] for b in small[0]["blocks"]})
    assert "as stitched, on test" in text
    assert "0.5× 136.48k 86.9%" in text


def test_a_reassembly_links_to_its_family(story):
    write_report(story / "any_width")
    page = Page(write_report(story).read_text())
    assert "This network at any width from 0.25× to 1×: any_width ." in page.text
    assert links(page) == ["any_width/report.html"]


def test_a_source_beside_the_page_may_be_relative(story, morphed):
    morphed[1]["base"]["source"] = "../artifact"
    write_morph(story / "any_width", *morphed)
    assert links(Page(write_report(story / "any_width").read_text())) == ["../report.html"]
    assert links(Page(write_report(story).read_text())) == ["any_width/report.html"]


def test_the_story_may_be_in_details_themselves(tmp_path, morphed):
    origin = {
        "blocks": ["a[0:3]", "b[2:5]"],
        "params": 5e5,
        "accuracy": {"stitched": 0.7},
        "report": "../r/report.html",
    }
    morphed[1]["base"]["origin"] = origin
    page = Page(write_report(write_morph(tmp_path, *morphed)).read_text())
    assert "a[0:3] b[2:5]" in page.text
    assert "A zoo a, b" in page.text
    assert "70.0% as stitched, not tuned" in page.text
    assert links(page) == ["../r/report.html"]


@pytest.mark.parametrize("address", ["javascript:alert(1).html", "https://x.org/a.html", "C:\\a.html", "", "a.exe"])
def test_an_address_that_leads_elsewhere_is_no_link(tmp_path, morphed, address):
    morphed[1]["base"]["origin"] = {"blocks": ["a[0:3]"], "report": address}
    page = Page(write_report(write_morph(tmp_path, *morphed)).read_text())
    assert "From zoo to family" in page.text
    assert links(page) == []


@pytest.mark.parametrize("kind", ["network", "morph"])
def test_other_origins_are_no_story(story, kind):
    (story / "artifact" / "manifest.json").write_text(json.dumps({"kind": kind}))
    assert "From zoo to family" not in Page(write_report(story / "any_width").read_text()).text


@pytest.mark.parametrize(
    "broken", ["{", "[]", '{"kind": "reassembly", "zoo": 3}', '{"kind": "reassembly", "schema": 99}']
)
def test_faults_of_another_folder_are_not_this_pages(story, broken):
    (story / "summary.json").write_text(broken)
    assert "From zoo to family" not in Page(write_report(story / "any_width").read_text()).text


def test_a_malformed_story_is_named_with_its_place(tmp_path, morphed):
    morphed[1]["base"]["origin"] = {"zoo": [{"params": 3}]}
    with pytest.raises(ArtifactError, match=r"base\.origin .*\n  zoo\[0\]\.name: Field required"):
        write_report(write_morph(tmp_path, *morphed))


@pytest.mark.parametrize(
    "broken", ["{", "[]", '{"base": 3}', '{"base": {"source": 3}}', '{"base": {"source": "timm:x"}}']
)
def test_broken_neighbours_leave_a_reassembly_as_it_is(story, broken):
    write_report(story / "any_width")
    (story / "any_width" / "details.json").write_text(broken)
    assert links(Page(write_report(story).read_text())) == []
