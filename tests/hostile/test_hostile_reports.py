"""Results and uploads made to do harm: no script reaches a page, nothing grows, nothing is written elsewhere."""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks import refused, resign, tree
from PIL import Image

from netsmith.cli.main import main
from netsmith.errors import ArtifactError, DataError
from netsmith.report import write_report

SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"' onload='alert(3)"


class Page(HTMLParser):
    """Counts scripts and handlers of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts, self.handlers, self.images = 0, [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.images += [value for name, value in attrs if name == "src"]


def poisoned(value: Any, kept: tuple[str, ...] = ()) -> Any:
    """Every text of a result, and every key under which names stand, with a script in it."""
    if isinstance(value, dict):
        return {key: inner if key in kept else poisoned(inner, kept) for key, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(inner, kept) for inner in value]
    return value + SCRIPT if isinstance(value, str) else value


def write(folder: Path, summary: object, details: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "details.json").write_text(json.dumps(details))
    (folder / "config.yaml").write_text(f"seed: 0 # {SCRIPT}\n")
    return folder


def named(details: Any, old: str, new: str) -> Any:
    """A result in which a network has another name, wherever it stands."""
    return json.loads(json.dumps(details).replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1]))


@pytest.mark.parametrize("kind", ["reassembly", "morph"])
def test_no_text_of_a_result_becomes_markup(specimens, tmp_path, kind):
    summary, details = specimens.reports[kind]
    clean = Page(write_report(write(tmp_path / "clean", summary, details)).read_text())
    places = ("kind", "layout", "layout_in", "layout_out", "blocks", "assignment", "medoid", "primary", "order")
    if kind == "reassembly":
        name = details["networks"][0]["name"]
        spoilt = poisoned(
            named(details, name, name + "<script>alert(4)</script>"), (*places, "network", "networks", "name")
        )
        short = named(summary, name, name + "<script>alert(4)</script>")
    else:
        spoilt, short = poisoned(details, places), summary
    folder = write(tmp_path / "spoilt", short, spoilt)
    (folder / "artifact").mkdir()
    (folder / "artifact" / "manifest.json").write_text(json.dumps({"kind": SCRIPT, "name": SCRIPT, "config": SCRIPT}))
    text = write_report(folder).read_text()
    page = Page(text)
    assert "alert(" in text, "nothing of what was put in reached the page: the test tests nothing"
    assert page.scripts == clean.scripts
    assert set(page.handlers) == set(clean.handlers)
    assert "x" not in page.images
    assert "<script>alert" not in text


def test_names_of_classes_and_networks_are_escaped_in_drawings(specimens, tmp_path):
    summary, details = copy.deepcopy(specimens.reports["reassembly"])
    for network in details["networks"]:
        for unit in network["units"]:
            unit["name"] += SCRIPT
    details["data"] = {"name": SCRIPT, "classes": [SCRIPT, "b"]}
    text = write_report(write(tmp_path / "run", summary, details)).read_text()
    assert "<script>alert" not in text
    assert "<img src=x" not in text


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * 100_000, "cannot be read"),
        ("{}", "a report is drawn for kind"),
        ("[]", "a report is drawn for kind"),
        ('{"kind": "morph"', "is no JSON"),
    ],
    ids=lambda v: v[:20],
)
def test_texts_that_are_no_results_are_refused(tmp_path, capsys, text, match):
    folder = write(tmp_path / "run", {}, {})
    (folder / "summary.json").write_text(text)
    before = tree(tmp_path)
    with pytest.raises(ArtifactError, match=match):
        write_report(folder)
    refused(capsys, "report", folder)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("value", [10**9, 10**18, 1e300, -1, "x", [], {}])
def test_absurd_numbers_in_results_neither_crash_nor_grow(specimens, tmp_path, capsys, value):
    for kind, (summary, details) in specimens.reports.items():
        for key in ("widths", "fit", "networks", "partition", "candidates", "similarity"):
            if key not in details:
                continue
            spoilt = copy.deepcopy(details)
            spoilt[key] = json.loads(json.dumps(spoilt[key]), parse_float=lambda _: value, parse_int=lambda _: value)
            folder = write(tmp_path / kind, summary, spoilt)
            if main(["report", str(folder)]) != 0:
                refused(capsys, "report", folder)
            else:
                assert (folder / "report.html").stat().st_size < 20_000_000


def test_a_report_is_not_written_through_a_link(specimens, tmp_path):
    outside = tmp_path / "outside.html"
    outside.write_text("mine")
    folder = write(tmp_path / "run", *specimens.reports["morph"])
    (folder / "report.html").symlink_to(outside)
    (folder / f".report.html.{os.getpid()}.tmp").symlink_to(outside)
    write_report(folder)
    assert outside.read_text() == "mine"
    assert not (folder / "report.html").is_symlink()


# --- the page of explore ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_uploaded_bomb_is_refused_undecoded(tmp_path):
    from netsmith.ui.explorer import uploaded

    sys.path.insert(0, str(Path(__file__).parent))
    from test_hostile_data import png

    for data in (png(40_000, 40_000), png(10_000, 10_000), b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b""):
        (tmp_path / "x.png").write_bytes(data)
        with pytest.raises(DataError, match="what was uploaded"):
            uploaded(tmp_path / "x.png")
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "x.png")
    assert uploaded(tmp_path / "x.png").shape == (8, 9, 3)


def test_the_page_escapes_what_an_artifact_is_called(specimens, tmp_path):
    pytest.importorskip("gradio", reason="the extra `ui` is not installed")
    from netsmith.ui.explorer import Explorer
    from netsmith.ui.page import described

    folder = Path(shutil.copytree(specimens.artifacts["morph"], tmp_path / "a"))

    def spoil(record: dict) -> None:
        record["name"] = SCRIPT
        record["metrics"] = {SCRIPT: 0.5, "x": "no number", "y": None}

    resign(folder, spoil)
    explorer = Explorer(folder)
    assert "<script>" not in described(explorer, explorer.shape(), None)
