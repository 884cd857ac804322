from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from morph_samples import CONFIG, WIDTHS, generation, write_morph
from pages import Page

from netsmith.errors import ArtifactError
from netsmith.report import write_report
from netsmith.report.morph_results import read_morph


def page_of(folder: Path, sample, **options) -> Page:
    return Page(write_report(write_morph(folder, *sample, **options)).read_text())


def plots(page: Page) -> list[str]:
    """Accessible names of the drawings, without the slider's."""
    names = [s.get("aria-label", "") for s in page.svgs if s.get("role") == "img"]
    return [name for name in names if " over ratio" not in name]


def marks(page: Page) -> list[str]:
    """Classes of the marks of the first drawing over params."""
    svg = next(s for s in page.svgs if " over params" in s.get("aria-label", ""))
    return [e.get("class", "") for e in svg.iter("path") if e.get("class", "").startswith("mark")]


@pytest.mark.parametrize("kind", ["morphed", "autoencoder"])
def test_the_page_is_well_formed_small_and_whole(tmp_path, request, kind):
    path = write_report(write_morph(tmp_path, *request.getfixturevalue(kind)))
    assert path == tmp_path / "report.html"
    assert path.stat().st_size < 250_000
    html = path.read_text()
    page = Page(html)
    for anchor in re.findall(r'(?:href="#|url\(#)([\w-]+)', html):
        assert anchor in page.ids
    tips = json.loads(page.scripts[0])["tips"]
    assert {int(t) for t in re.findall(r'data-tip="(\d+)"', html)} == set(range(len(tips)))
    for svg in page.svgs:
        assert svg.get("aria-hidden") == "true" or (svg.get("role") == "img" and svg.get("aria-label"))
    for tag, attrs in page.tags:
        if tag == "th":
            assert attrs.get("scope") in ("col", "row")
        if tag == "img":
            assert attrs.get("alt")
    assert "nan" not in page.text.lower().split()
    assert "None" not in page.text


def test_the_verdict_is_one_sentence_of_three_widths_and_the_bytes(tmp_path, morphed):
    page = page_of(tmp_path, morphed)
    assert "resnet20 at any width from 0.25× to 1×" in page.text
    assert (
        "resnet20: 88.1% at full width (269.72k params), 86.9% at half (136.48k params), 76.0% at a quarter "
        "(69.86k params); one artifact of 1.9× the base's bytes."
    ) in page.text
    assert "The base network has 88.4% on test; without the morphed layers 10.2% would be left" in page.text
    assert (
        "The best rival of the same number of params has 87.2% at half width (Torch-Pruning Taylor) and 80.1% at a "
        "quarter (trained alone)."
    ) in page.text
    assert "Widths vary in 9 width groups; counts are of the whole network." in page.text


def test_widths_that_are_not_the_usual_ones_are_named_by_their_ratio(tmp_path, morphed):
    summary, details = morphed
    details["widths"] = [w for w in details["widths"] if w["ratio"] in (0.375, 0.625, 0.875)]
    page = page_of(tmp_path, (summary, details))
    assert "resnet20: 87.9% at 0.875× the width (236.41k params), 87.4% at 0.625× (169.79k params)" in page.text


def test_a_width_outside_the_fitted_range_is_hollow_and_never_a_headline(tmp_path, morphed):
    summary, details = morphed
    page = page_of(tmp_path / "a", morphed)
    assert marks(page).count("mark hollow") == 1
    assert "outside the range that was fitted" in page.text
    assert "outside the fitted range" in page.text
    for w in details["widths"]:
        w["fitted"] = w["ratio"] != 0.5
    head = page_of(tmp_path / "b", (summary, details)).text.partition("one artifact of")[0]
    assert "at half" not in head


def test_every_rival_and_the_base_are_drawn_over_params_and_over_macs(tmp_path, morphed):
    summary, details = morphed
    page = page_of(tmp_path, morphed)
    drawn = 1 + len(WIDTHS) + sum(len(r["points"]) for r in details["rivals"])
    assert len(marks(page)) == drawn
    for text in ("over params", "over MACs", "over params, close-up", "over MACs, close-up"):
        assert text in page.text
    assert "accuracy on test over params. read from this artifact: 17.1% to 88.1% in 8 values; " in plots(page)[0]
    assert "skip-only floor: 10.2%" in plots(page)[0]
    assert "Torch-Pruning L1, same total of steps" in page.text
    del summary["floor"], details["floor"]
    assert "skip-only floor" not in page_of(tmp_path, (summary, details)).text


def test_the_close_up_holds_three_quarters_of_the_values_and_is_cut_off_there(tmp_path, morphed):
    page = page_of(tmp_path, morphed)
    svg = next(s for s in page.svgs if s.find("clipPath") is not None)
    shown = [e for e in svg.iter("path") if e.get("class", "").startswith("mark")]
    everything = len(marks(page))
    assert 0.7 * everything <= len(shown) < everything
    assert all(
        0 <= float(n) <= 960 for e in shown for n in re.findall(r"M([\d.]+),", e.get("d", ""))
    )  # nothing beyond the drawing


def test_rivals_are_held_against_the_artifact_at_as_many_params(tmp_path, morphed):
    page = page_of(tmp_path / "a", morphed)
    assert "nested same total of steps 4,000 0.75 203.10k 30.76M" in page.text
    assert "77.1% 76.0% −1.1" in page.text  # nested at a quarter is better, and it is said
    summary, details = morphed
    params = round((69_862 * 136_482) ** 0.5)  # the middle of two widths on a logarithmic scale
    point = {"ratio": None, "params": params, "macs": None, "accuracy": {"test": 0.8}}
    far = {"ratio": 0.1, "params": 20_000, "macs": None, "accuracy": {"test": 0.4}}
    details["widths"] = [w for w in details["widths"] if w["ratio"] in (0.25, 0.5)]
    details["rivals"] = [{"name": "other", "note": None, "steps": None, "points": [point, far]}]
    page = page_of(tmp_path / "b", (summary, details))
    assert "other – – 97.65k – 80.0% 81.5% +1.5" in page.text
    assert "other – 0.1 20.00k – 40.0% – –" in page.text


def test_the_space_names_ranges_and_reasons_for_refusal(tmp_path, morphed):
    page = page_of(tmp_path, morphed)
    assert "9 width groups (all)" in page.text
    assert "layer3.2.conv1 inner 64 16 64" in page.text
    assert "1 group refused" in page.text
    assert "layer2.0 padded shortcut: the output differs by 0.31" in page.text


def test_few_values_far_from_the_floor_have_a_close_up_of_all_of_them(tmp_path, morphed):
    summary, details = morphed
    details["rivals"] = []
    details["widths"] = [w for w in details["widths"] if w["ratio"] in (1.0, 0.75, 0.5)]
    page = page_of(tmp_path, (summary, details))
    assert "over params, close-up" in page.text
    svg = next(s for s in page.svgs if s.find("clipPath") is not None)
    assert sum(e.get("class", "").startswith("mark") for e in svg.iter("path")) == 4  # three widths and the base
    ticks = [e.text for e in svg.iter("text") if e.get("text-anchor") == "end" and (e.text or "").endswith("%")]
    assert len(set(ticks)) == len(ticks) > 2


def test_the_fit_follows_the_metric_at_three_widths(tmp_path, morphed):
    summary, details = morphed
    page = page_of(tmp_path, morphed)
    assert "4,000 steps in 28 min 32 s." in page.text
    assert "1× wide 0.5× wide 0.25× wide" in page.text
    assert sum("accuracy on validation over step" in p for p in plots(page)) == 2
    history = [{**h, "epoch": i, "step": None} for i, h in enumerate(details["fit"]["history"], start=1)]
    details["fit"] = {"epochs": 80, "best_epoch": 72, "seconds": None, "history": history}
    page = page_of(tmp_path, (summary, details))
    assert "80 epochs, the best of them number 72." in page.text
    details["fit"]["best_epoch"] = 0
    undone = page_of(tmp_path, (summary, details)).text
    assert "80 epochs, none of them better than what it began with, so it stayed that." in undone
    assert any("training loss over epoch" in (s.get("aria-label") or "") for s in page.svgs)


def test_keyframes_and_the_coarse_set_are_told_apart(tmp_path, morphed):
    summary, details = morphed
    keys = ["0.5", "0.5", "0.75", "coarse set"]
    history = [{"epoch": i, "loss": 1 / i, "metric": {key: 0.8}} for i, key in enumerate(keys, start=1)]
    details["fit"] = {"epochs": 4, "seconds": 60, "history": history, "keyframes": 2, "keyframe_epochs": 3}
    text = page_of(tmp_path, (summary, details)).text
    assert "3 for 2 keyframes, each trained by itself, and then 1 for the coarse set." in text
    assert "0.75× wide 0.5× wide coarse set" in text
    assert "made worse" not in text
    details["fit"]["undone"] = ["0.75", "coarse set"]
    text = page_of(tmp_path, (summary, details)).text
    assert "for the coarse set. Training made worse, so stayed as it began: 0.75×, coarse set." in text


def test_a_long_history_is_thinned_and_stays_small(tmp_path, morphed):
    summary, details = morphed
    details["fit"]["history"] = [
        {"step": i, "loss": 1 / (1 + i), "metric": {"1.0": 0.5 + i / 1e5, "x<y": 0.4}} for i in range(2_000)
    ]
    path = write_report(write_morph(tmp_path, summary, details))
    assert path.stat().st_size < 250_000
    assert "200 of 2,000 rows; all are in details.json." in Page(path.read_text()).text


def test_generator_licence_and_bytes_are_stated(tmp_path, morphed):
    summary, details = morphed
    page = page_of(tmp_path / "a", morphed)
    assert "generator weights 2.06 MB, 1.89× the base's" in page.text
    assert "artifact 2.07 MB, 1.90× the base's" in page.text
    assert "residual.scale 0.3" in page.text
    assert "all steps 1 h 05 min" in page.text
    assert "torch_pruning 1.6.0" in page.text
    assert "Seeds seed 0" in page.text
    assert CONFIG.splitlines()[1] in page.text
    details["base"].update(commercial=False, licence="CC-BY-NC-4.0")
    page = page_of(tmp_path / "b", (summary, details))
    assert "Not for commercial use: the artifact is made of the weights of resnet20 (CC-BY-NC-4.0)." in page.text


def test_a_metric_that_is_no_percentage(tmp_path, autoencoder):
    page = page_of(tmp_path, autoencoder)
    assert "conv_vae, its last block at any width from 0.25× to 1×" in page.text
    assert (
        "conv_vae: ELBO −0.4213 at full width (240k params), −0.4388 at half (110.71k params), −0.4901 at a quarter"
    ) in page.text
    assert "ELBO against size" in page.text
    assert "−0.4891 −0.4901 −0.07" in page.text
    assert "in the last block alone" in page.text
    hero = page.text.partition("Generator and artifact")[0]
    assert "%" not in hero.replace("% of the base", "")
    assert "accuracy" not in hero.lower()


def test_mean_iou_is_a_percentage_under_its_own_name(tmp_path, morphed):
    summary, details = morphed
    details["task"] = {"name": "segmentation", "primary": "miou", "higher_is_better": True}
    page = page_of(tmp_path, (summary, details))
    assert "resnet20: mean IoU 88.1% at full width" in page.text
    assert "Mean IoU against size" in page.text
    assert "IoU of each class" not in page.text


def test_the_iou_of_each_class_stands_beside_the_widths(tmp_path, morphed):
    summary, details = morphed
    details["task"] = {"name": "segmentation", "primary": "miou", "higher_is_better": True}
    details["base"]["metrics"] = {"test": {"miou": 0.7, "iou/road": 0.81, "iou/a/b <i>": 0.59}}
    for width in details["widths"]:
        width["metrics"] = {"test": {"miou": 0.6, "iou/road": 0.713}}
    page = page_of(tmp_path, (summary, details))
    assert "IoU of each class, test" in page.text
    assert "road 81.0% 71.3%" in page.text
    assert "a/b <i> 59.0% – –" in page.text


def test_lower_may_be_better(tmp_path, morphed):
    summary, details = morphed
    details["task"] = {"name": "other", "primary": "perplexity", "higher_is_better": False}
    page = page_of(tmp_path, (summary, details))
    assert "Lower is better." in page.text
    assert "The best rival of the same number of params has 0.8551 at half width (Torch-Pruning L1)" in page.text


def test_the_metric_may_be_named_by_the_summary_alone(tmp_path):
    summary, details = generation()
    summary["metric"] = "elbo"
    del details["task"]
    assert "conv_vae: ELBO −0.4213 at full width" in page_of(tmp_path, (summary, details)).text


@pytest.mark.parametrize(
    "part",
    ["task", "floor", "space", "smooth", "generator", "fit", "widths", "rivals", "artifact", "seconds", "machine"],
)
@pytest.mark.parametrize("gone", ["absent", "null"])
def test_a_missing_part_leaves_the_rest(tmp_path, morphed, part, gone):
    summary, details = morphed
    if gone == "null":
        details[part] = None
    else:
        del details[part]
    page = page_of(tmp_path, (summary, details))
    # summary.json still has the widths
    assert "resnet20: 88.1% at full width (269.72k params)" in page.text
    says = {"rivals": "No rival was measured in this run.", "fit": "details.json holds no history of the fit."}
    says |= {"space": "details.json does not record the morph space."}
    says |= {"smooth": "The channels were left in the order in which they were trained."}
    assert says.get(part, "") in page.text


def test_everything_missing_at_once(tmp_path):
    page = page_of(
        tmp_path, ({"kind": "morph", "schema": 1}, {"schema": 1, "base": {"name": "a", "accuracy": None}}), config=None
    )
    assert "a: no width has been measured yet." in page.text
    assert "No width has both a size and a value yet" in page.text
    assert "no config.yaml" in page.text


@pytest.mark.parametrize("inner", ["accuracy", "params", "macs", "widths", "latency_ms", "ratio"])
def test_fields_of_a_width_may_be_null(tmp_path, morphed, inner):
    summary, details = morphed
    for w in details["widths"][::2]:
        w[inner] = None
    for rival in details["rivals"]:
        for p in rival["points"]:
            p[inner] = None
    for g in (*details["space"]["groups"], *details["smooth"]["groups"]):
        g.update(width=None, min=None, before=None, bound=None)
    page = page_of(tmp_path, (summary, details))
    assert "Rivals" in page.text


def test_only_validation_was_measured(tmp_path, morphed):
    summary, details = morphed
    for holder in (details["base"], *details["widths"], *(p for r in details["rivals"] for p in r["points"])):
        del holder["accuracy"]["test"]
    page = page_of(tmp_path, (summary, details))
    assert "accuracy on validation" in page.text
    assert "on test" not in page.text
    assert "Test" not in page.text


def test_names_are_escaped_wherever_they_appear(tmp_path, morphed):
    evil = "<script>alert(1)</script>\"'&--"
    details = morphed[1]
    details["base"].update(name=evil, source=evil, licence=evil)
    details["space"]["groups"][0].update(name=evil, kind=evil)
    details["space"]["refused"][0].update(name=evil, reason=evil)
    details["smooth"].update(solver=evil)
    details["smooth"]["groups"][0]["name"] = evil
    details["smooth"]["picture"]["tensor"] = evil
    details["generator"].update(kind=evil, settings={evil: evil})
    details["rivals"][0].update(name=evil, note=evil)
    details["widths"][0]["widths"][evil] = 3
    details["fit"]["history"][7]["metric"][evil] = 0.5
    details["task"]["primary"] = evil
    details["machine"][evil] = evil
    page = page_of(tmp_path, morphed, config=f"# {evil}\n")
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert "alert(1)" not in page.scripts[1]
    assert page.text.count(evil) > 12


def test_nothing_is_loaded_from_anywhere(tmp_path, morphed):
    html = write_report(write_morph(tmp_path, *morphed)).read_text()
    assert "http:" not in html
    assert "https:" not in html
    for tag, attrs in Page(html).tags:
        assert tag not in {"link", "iframe", "object", "embed"}
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            address = attrs.get(name)
            assert address is None or address.startswith(("#", "data:image/png;base64,"))
    assert set(re.findall(r"url\(([^)]*)\)", html)) <= set(re.findall(r"url\((#clip-[\w-]+)\)", html))


def test_the_same_results_give_the_same_page(tmp_path, morphed):
    first = write_report(write_morph(tmp_path, *morphed)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_numbers_that_are_not_finite_are_dashes(tmp_path, morphed):
    details = morphed[1]
    details["widths"][2]["accuracy"]["test"] = float("nan")
    details["fit"]["history"][3]["loss"] = float("inf")
    details["smooth"]["picture"]["before"][0][0] = None
    details["artifact"]["ratio_to_base"] = float("nan")
    page = page_of(tmp_path, morphed)
    assert "nan" not in page.text.lower().split()
    assert "one artifact of 1.9× the base's bytes" in page.text  # from the bytes themselves


def test_the_files_are_read_leniently_about_more_fields(tmp_path, morphed):
    details = morphed[1]
    details["widths"][0]["more"] = {"test": {"loss": 0.3}}
    details["news"] = 1
    results = read_morph(write_morph(tmp_path, *morphed))
    assert results.widths[0].extra == {"more": {"test": {"loss": 0.3}}}
    assert [w.ratio for w in results.widths] == sorted(WIDTHS, reverse=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s, d: d.update(schema=2), r"details\.json has schema 2, and this netsmith reads up to 1"),
        (lambda s, d: s.update(schema=9), r"summary\.json has schema 9"),
        (lambda s, d: d.pop("base"), r"details\.json does not have .*\n  base: Field required"),
        (lambda s, d: d.update(kind="reassembly"), r"kind: Input should be 'morph', came 'reassembly'"),
        (lambda s, d: d["widths"][3].update(params="many"), r"widths\[3\]\.params: .*valid number.*, came 'many'"),
        (lambda s, d: d["widths"][0].update(accuracy="best"), r"widths\[0\]\.accuracy: .*, came 'best'"),
        (lambda s, d: d["rivals"][1].pop("name"), r"rivals\[1\]\.name: Field required"),
        (lambda s, d: d["space"].update(fitted=[1]), r"space\.fitted\[1\]: Field required"),
        (lambda s, d: d["smooth"]["picture"]["after"].pop(), r"smooth\.picture\.after: expected 64 rows of 48 numbers"),
        (lambda s, d: d["smooth"]["picture"].update(before="x"), r"smooth\.picture\.before: expected 1 to 256 rows"),
        (
            lambda s, d: d["smooth"]["picture"].update(before=[[0.0] * 300]),
            r"smooth\.picture\.before: .*came 1 rows of 300",
        ),
    ],
)
def test_malformed_results_are_named_with_their_place(tmp_path, morphed, change, match):
    change(*morphed)
    with pytest.raises(ArtifactError, match=match):
        write_report(write_morph(tmp_path, *morphed))
    assert not (tmp_path / "report.html").exists()


def test_all_faults_come_at_once(tmp_path, morphed):
    morphed[1]["widths"][0]["params"] = "a"
    morphed[1]["rivals"][0]["steps"] = "b"
    with pytest.raises(ArtifactError, match=r"(?s)widths\[0\]\.params.*rivals\[0\]\.steps"):
        write_report(write_morph(tmp_path, *morphed))


def test_a_truncated_file(tmp_path, morphed):
    write_morph(tmp_path, *morphed)
    (tmp_path / "details.json").write_text(json.dumps(morphed[1])[:2000])
    with pytest.raises(ArtifactError, match=r"details\.json is no JSON \(line 1, column \d+: .*truncated or edited\?"):
        write_report(tmp_path)


def test_a_range_in_channels_is_told_in_channels(tmp_path, morphed):
    """No ratio may then be within it: what was measured is told all the same."""
    summary, details = morphed
    for width in summary["widths"]:
        width["fitted"] = False
    for width in details["widths"]:
        width["fitted"] = False
    for group in details["space"]["groups"]:
        group |= {"min": 6, "max": 12}
    page = page_of(tmp_path, (summary, details))
    assert "resnet20 at any width from 6 to 12 channels" in page.text
    assert "resnet20: 88.1% at full width (269.72k params)" in page.text
