"""The page of `netsmith explore` in a real browser: an image put in, the slider by mouse and keys, a time asked for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from morph_pages import saved, served
from PIL import Image

from browser import Browser, Tab, middle, nameless

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="the extra `ui` is not installed")

RANGE = "#ratio input[type=range]"
ROUNDED = 0.05  # channels are whole, so the ratio is that of the slider but for this
READING = """(() => {
  const facts = document.querySelector('#facts').innerText;
  const lines = [...document.querySelectorAll('#facts .width')];
  return {facts, label: document.querySelector('#prediction').innerText,
    slider: Number(document.querySelector('%s').value),
    widths: lines.map(e => e.lastElementChild.textContent),
    bars: lines.map(e => Math.round(e.querySelector('.lane span').getBoundingClientRect().width)),
    lane: Math.round(document.querySelector('#facts .lane').getBoundingClientRect().width)};
})()"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[str]:
    with served(saved(tmp_path_factory.mktemp("page") / "artifact")) as found:
        yield found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "grey.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24), dtype=np.uint8)).save(path)
    return path


def reading(tab: Tab) -> dict[str, Any]:
    """What the page shows; `params`, `macs` and `ms` as it writes them."""
    found = tab.run(READING % RANGE)
    for key, pattern in {"params": r"([\d.]+\w?) params", "macs": r"([\d.]+\w?) MACs", "ms": r"([\d.]+) ms"}.items():
        hit = re.search(pattern, found["facts"])
        found[key] = hit and hit[1]
    found["ratio"] = float(re.search(r"ratio ([\d.]+)", found["facts"])[1])
    return found


def until(tab: Tab, true: Callable[[dict[str, Any]], object], seconds: float = 60.0) -> dict[str, Any]:
    """What the page shows once something holds of it."""
    end = time.monotonic() + seconds
    while not true(found := reading(tab)):
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return found


def opened(browser: Browser, address: str, **look: Any) -> Tab:
    tab = browser.open(address, **look)
    end = time.monotonic() + 60
    while not tab.run(f"!!document.querySelector('{RANGE}') && !!document.querySelector('#facts .size')"):
        assert time.monotonic() < end, "the page did not build itself"
        time.sleep(0.1)
    return tab


def put(tab: Tab, file: Path) -> None:
    """Give the page a file, as its upload button does."""
    root = tab.call("DOM.getDocument")["root"]["nodeId"]
    field = tab.call("DOM.querySelector", nodeId=root, selector="#photo input[type=file]")["nodeId"]
    tab.call("DOM.setFileInputFiles", nodeId=field, files=[str(file)])


def type_time(tab: Tab, text: str) -> None:
    """Replace the number of milliseconds and press the button."""
    tab.run("(() => { const e = document.querySelector('#target input'); e.focus(); e.select(); })()")
    tab.call("Input.insertText", text=text)
    tab.click(*middle(tab, "#fit"))


@pytest.mark.parametrize("look", [{}, {"width": 390, "dark": True}], ids=["light and wide", "dark and narrow"])
def test_an_image_is_answered_and_the_slider_follows_the_mouse(browser, address, image, look):
    with opened(browser, address, **look) as tab:
        shade = tab.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert shade < 60 if look else shade > 200
        empty = reading(tab)
        assert empty["ms"] is None
        assert (empty["params"], empty["macs"]) == ("2.98k", "76.15k")
        put(tab, image)
        full = until(tab, lambda r: r["ms"])
        assert len(re.findall(r"\d+%", full["label"])) == 5, "the five surest classes"
        assert float(full["ms"]) > 0
        assert full["widths"] == ["8 of 8", "8 of 8", "12 of 12", "12 of 12"]
        assert full["bars"] == [full["lane"]] * 4
        tab.click(*middle(tab, RANGE, 0.02))
        low = until(tab, lambda r: r["ratio"] == pytest.approx(r["slider"], abs=ROUNDED) and r["slider"] < 0.35)
        assert low["widths"][0] == "2 of 8"
        assert low["bars"][0] == pytest.approx(low["lane"] / 4, abs=1)
        assert low["params"] != full["params"]
        assert low["macs"] != full["macs"]
        assert low["label"] != full["label"], "another network, another confidence"
        assert "Outside the range that was fitted" in low["facts"]
        start, end = middle(tab, RANGE, 0.02), middle(tab, RANGE, 0.5)
        tab.mouse("mousePressed", *start)
        tab.mouse("mouseMoved", *end)
        tab.mouse("mouseReleased", *end)
        half = until(tab, lambda r: 0.5 < r["ratio"] == pytest.approx(r["slider"], abs=ROUNDED))
        assert 0.55 < half["ratio"] < 0.7
        assert "Outside" not in half["facts"]
        assert tab.run("document.documentElement.scrollWidth") <= look.get("width", 1200)
        assert tab.faults() == []
        assert all(url.startswith((address, "blob:")) for url in tab.requests()), "nothing is asked of another machine"


def test_the_slider_follows_the_keyboard_and_says_what_it_is(browser, address, image):
    with opened(browser, address) as tab:
        put(tab, image)
        full = until(tab, lambda r: r["ms"])
        for _ in range(30):
            tab.press("Tab")
            if tab.run("document.activeElement.type") == "range":
                break
        assert tab.run("document.activeElement.type") == "range"
        tab.press("ArrowLeft", times=20)
        smaller = until(tab, lambda r: r["widths"][0] == "6 of 8" and r["widths"][3] == "10 of 12")
        assert smaller["slider"] == pytest.approx(0.8)
        assert smaller["ratio"] == pytest.approx(0.79), "of whole channels"
        assert smaller["params"] != full["params"]
        tab.press("Home")
        assert until(tab, lambda r: r["ratio"] == 0.25)["widths"][0] == "2 of 8"
        tab.press("End")
        assert until(tab, lambda r: r["ratio"] == 1.0)["params"] == full["params"]
        nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
        slider = next(n for n in nodes if n.get("role", {}).get("value") == "slider")
        assert slider["name"]["value"].endswith("size (ratio of every width)")
        assert not [text for text in nameless(tab) if "'slider'" in text or "'button'" in text]
        assert tab.faults() == []


def test_a_time_gives_a_size_and_one_that_no_size_meets_is_explained(browser, address, image):
    with opened(browser, address) as tab:
        put(tab, image)
        until(tab, lambda r: r["ms"])
        tab.click(*middle(tab, RANGE, 0.02))
        until(tab, lambda r: r["ratio"] < 0.35)
        type_time(tab, "1000")
        full = until(tab, lambda r: r["ratio"] == 1.0)
        assert until(tab, lambda r: r["slider"] == 1.0)["params"] == full["params"]
        assert float(full["ms"]) < 1000
        type_time(tab, "0.000001")
        end = time.monotonic() + 60
        while "below the smallest network of this artifact" not in tab.run("document.body.innerText"):
            assert time.monotonic() < end, "no message came"
            time.sleep(0.1)
        assert reading(tab)["ratio"] == 1.0
        assert tab.faults() == []
