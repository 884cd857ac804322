"""The pages in a real browser: what it complains of, what it loads, what a reader sees, hears and can press."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import morph_samples
import pytest
import samples

from browser import Tab, middle, nameless
from netsmith.report import write_comparison, write_report

pytestmark = pytest.mark.slow

KINDS = ("reassembly", "morph", "autoencoder", "comparison")
LOOKS = {"light and wide": (1200, False), "dark and narrow": (390, True)}

HEADINGS = "[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => Number(h.tagName[1]))"
OVERFLOW = """[...document.querySelectorAll('main *, header *')].filter(e => {
  const b = e.getBoundingClientRect();
  return b.width && b.right > innerWidth + 1 && !e.closest('.scroll, nav, pre, .hidden, .meter');
}).map(e => e.tagName + '.' + e.className).slice(0, 5)"""
# text that is drawn on the page's or a card's ground, with its contrast of WCAG 2.2 against that ground
FAINT = """(() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (e) => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c; if (c[3] > 0) return null; } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll('main *, header *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest('.hidden, [style*=fill], [style*=background]')) continue;
    const style = getComputedStyle(e), under = ground(e);
    if (!under) continue;
    const [a, b] = [light(parse(e instanceof SVGElement ? style.fill : style.color)), light(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${e.textContent.trim().slice(0, 40)}|${e.getAttribute('class')}|${ratio.toFixed(2)}`);
  }
  return [...new Set(found)].slice(0, 8);
})()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """One page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    return {
        "reassembly": write_report(samples.write_sample(folder / "reassembly", *samples.sample(4))),
        "morph": write_report(morph_samples.write_morph(folder / "morph", *morph_samples.classification())),
        "autoencoder": write_report(morph_samples.write_morph(folder / "vae", *morph_samples.generation())),
        "comparison": write_comparison(folder / "comparison.html", samples.comparison(9, 15)),
    }


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_clean_legible_and_named(browser, pages, kind, look):
    width, dark = LOOKS[look]
    file = pages[kind]
    assert file.stat().st_size < 3_000_000
    with browser.open(file, width=width, dark=dark) as tab:
        assert tab.faults() == []
        assert tab.requests() == [file.as_uri()]
        shade = tab.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert shade < 60 if dark else shade > 200
        assert tab.run(FAINT) == []
        assert tab.run(OVERFLOW) == []
        levels = tab.run(HEADINGS)
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b <= a + 1 for a, b in pairwise(levels))
        assert nameless(tab) == []
        assert len(tab.picture()) > 20_000


def test_the_reader_may_choose_the_other_colours(browser, pages):
    with browser.open(pages["morph"]) as tab:
        shade = "getComputedStyle(document.body).backgroundColor"
        before = tab.run(shade)
        assert tab.run("document.querySelector('.theme').textContent") == "Dark mode"
        tab.click(*middle(tab, ".theme"))
        assert tab.run(shade) != before
        assert tab.run("document.querySelector('.theme').textContent") == "Light mode"
        assert tab.faults() == []


def reading(tab: Tab) -> dict[str, str]:
    """What the slider's part of the page says."""
    return tab.run(
        "({ratio: document.querySelector('[data-show=ratio]').textContent,"
        " heard: document.getElementById('reading').innerText.replace(/\\s+/g, ' '),"
        " said: document.getElementById('width').getAttribute('aria-valuetext'),"
        " bars: [...document.querySelectorAll('.bar-now')].map(b => Math.round(b.getBoundingClientRect().width)),"
        " counts: [...document.querySelectorAll('.lane-count')].map(b => b.innerText).join(', ')})"
    )


def test_the_slider_follows_the_mouse(browser, pages):
    with browser.open(pages["morph"]) as tab:
        half = reading(tab)
        assert half["ratio"] == "0.5×"
        assert "measured 86.9% accuracy on test" in half["heard"]
        tab.click(*middle(tab, "#width", 0.999))
        full = reading(tab)
        assert full["ratio"] == "1×"
        assert "88.1%" in full["heard"]
        assert "269.72k 100% of the base" in full["heard"]
        assert full["counts"].startswith("16 of 16, 16 of 16")
        assert all(b == pytest.approx(2 * a, abs=2) for a, b in zip(half["bars"], full["bars"], strict=True))
        start, end = middle(tab, "#width", 0.999), middle(tab, "#width", 0.52)
        tab.mouse("mousePressed", *start)
        tab.mouse("mouseMoved", (start[0] + end[0]) / 2, start[1])
        tab.mouse("mouseMoved", *end)
        tab.mouse("mouseReleased", *end)
        between = reading(tab)
        assert between["ratio"] == "0.575×"
        assert "not measured: between 0.5× and 0.625×" in between["heard"]
        assert "about 87.2%" in between["heard"]
        tab.click(*middle(tab, ".jumps button:nth-of-type(7)"))
        assert reading(tab)["ratio"] == "0.25×"
        assert tab.run("document.querySelector('.jumps [aria-current=true]').textContent") == "0.25×"
        assert tab.faults() == []


def test_the_slider_and_the_drawings_follow_the_keyboard(browser, pages):
    with browser.open(pages["morph"]) as tab:
        for _ in range(30):
            tab.press("Tab")
            if tab.run("document.activeElement.id") == "width":
                break
        assert tab.run("document.activeElement.id") == "width"
        tab.press("ArrowRight")
        assert reading(tab)["said"] == "0.525 times the width, not measured: between 0.5× and 0.625×"
        tab.press("ArrowRight", times=4)
        assert reading(tab)["said"] == "0.625 times the width, measured"
        tab.press("Home")
        low = reading(tab)
        assert low["ratio"] == "0.125×"
        assert "measured, outside the fitted range" in low["heard"]
        tab.press("End")
        assert reading(tab)["ratio"] == "1×"
        nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
        slider = next(n for n in nodes if n.get("role", {}).get("value") == "slider")
        assert slider["name"]["value"] == "Width"
        live = {p["name"]: p["value"]["value"] for n in nodes for p in n.get("properties", []) if p["name"] == "live"}
        assert live == {"live": "polite"}
        tab.run("document.getElementById('over-0').focus()")
        tab.press("ArrowRight", times=2)
        shown = "[...document.querySelectorAll('.panel')].findIndex(p => getComputedStyle(p).display === 'block')"
        assert tab.run(shown) == 2
        assert tab.faults() == []


def test_without_scripts_the_numbers_are_there(browser, pages):
    with browser.open(pages["morph"], scripts=False) as tab:
        text = tab.run("document.querySelector('main').innerText")
        assert "The slider needs JavaScript, which is off here." in text
        assert tab.run("getComputedStyle(document.querySelector('.dial')).display") == "none"
        assert tab.run("document.querySelectorAll('#widths tbody tr').length") == len(morph_samples.WIDTHS) + 2
        assert tab.run("document.querySelector('.bar-now').getBoundingClientRect().width") > 5


def test_the_heatmap_is_read_with_arrow_keys(browser, pages):
    with browser.open(pages["comparison"]) as tab:
        tab.run("document.querySelector('svg[data-heat].wide').focus()")
        tab.press("ArrowRight", times=2)
        tab.press("ArrowDown")
        said = tab.run("document.getElementById('readout').innerText")
        assert "resnet20" in said
        assert "resnet32" in said
        assert tab.run("Number.isFinite(Number(document.querySelector('#readout .big').textContent))")
