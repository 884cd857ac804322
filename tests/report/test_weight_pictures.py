from __future__ import annotations

import base64
import io

import numpy as np
from morph_samples import write_morph
from pages import Page
from PIL import Image

from netsmith.report import write_report


def page_of(folder, sample) -> Page:
    return Page(write_report(write_morph(folder, *sample)).read_text())


def test_the_order_shows_variation_and_both_pictures(tmp_path, morphed):
    summary, details = morphed
    page = page_of(tmp_path, morphed)
    smooth = details["smooth"]
    change = 100 * (smooth["after"] / smooth["before"] - 1)
    assert f"went from {smooth['before']:.4g} to {smooth['after']:.4g} (−{-change:.1f}%)" in page.text
    assert f"no order can go below {smooth['bound']:.4g}" in page.text
    assert "Solver: fast-tsp, whose answer may differ from run to run" in page.text
    pictures = [a["src"] or "" for t, a in page.tags if t == "img"]
    assert len(pictures) == 2
    before, after = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(p.partition(",")[2]))), dtype=float) for p in pictures
    )
    assert before.shape == (64, 48)
    given = np.array(smooth["picture"]["after"])
    assert np.corrcoef(after.ravel(), given.ravel())[0, 1] > 0.99
    assert abs(np.diff(after, axis=0)).mean() < abs(np.diff(before, axis=0)).mean()
    assert "Lower bound" in page.text
    assert "Weights by output channel (down)" in page.text
    for group in smooth["groups"]:
        del group["bound"]
    assert "Lower bound" not in page_of(tmp_path, morphed).text
    wide = {**details, "smooth": {**smooth, "order": "importance", "deterministic": True, "picture": None}}
    page = page_of(tmp_path, (summary, wide))
    assert "in order of importance" in page.text
    assert not any(t == "img" for t, _ in page.tags)


def test_magnitudes_have_a_scale_of_their_own(tmp_path, morphed):
    picture = morphed[1]["smooth"]["picture"]
    for part in ("before", "after"):
        picture[part] = (0.02 + np.abs(np.array(picture[part]))).tolist()
    page = page_of(tmp_path, morphed)
    assert "Mean magnitude of the weights by output channel (down)" in page.text
    after = next(a["src"] or "" for t, a in page.tags if t == "img" and "after" in (a["alt"] or ""))
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(after.partition(",")[2]))), dtype=float)
    assert np.corrcoef(found.ravel(), np.array(picture["after"]).ravel())[0, 1] > 0.98
    assert (found.min(), found.max()) == (0, 254)  # the whole scale is used though no value is near 0
