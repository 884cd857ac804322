"""Metrics stand under their own names in what a morphing writes; files of earlier versions are still read."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from netsmith.data.splits import open_data
from netsmith.morphing.pipeline import Morphed, morph
from netsmith.morphing.saving import write_results
from netsmith.networks.network import load_source
from netsmith.records.morphing import Summary, renamed
from netsmith.report import terminal_widths, write_report
from netsmith.report.morph_results import read_morph
from netsmith.training.tasks import Generation


@pytest.fixture(scope="module")
def generated() -> Morphed:
    network = load_source("netsmith:conv_vae", input_size=(1, 8, 8), options={"width": 4, "latent": 2, "image_size": 8})
    return morph(network, open_data("digits"), training=None, ratios=(1.0, 0.5), generator="nested")


def test_the_bound_of_a_generation_is_called_elbo(generated, tmp_path):
    write_results(generated, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    details = json.loads((tmp_path / "details.json").read_text())
    assert summary["metric"] == "elbo"
    card = (tmp_path / "artifact/README.md").read_text()
    error = generated.points[1].metrics["test"]["reconstruction"]
    assert "elbo is in nats a number of the image; mean squared error of reconstructed images" in card
    assert f"ratio 0.5 {error:.4g}" in card
    half = generated.model.at(0.5)
    drawn = half.decode(torch.randn(3, 2)).sigmoid()  # as the card says
    assert tuple(drawn.shape) == (3, 1, 8, 8)
    assert tuple(Generation((1, 8, 8)).images(half(drawn)).shape) == (3, 1, 8, 8)
    assert details["images"] == {"validation": len(generated.data.validation), "test": len(generated.data.test)}
    for row in (summary["base"], *summary["widths"], details["base"], *details["widths"]):
        assert "accuracy" not in row
        assert "elbo" in row
    assert Summary.from_dict(summary).to_dict() == summary
    console = Console(width=200)
    for old in (False, True):
        if old:  # as version 0.1 wrote it
            summary, details = renamed(summary, "elbo", "accuracy"), renamed(details, "elbo", "accuracy")
            (tmp_path / "summary.json").write_text(json.dumps(summary))
            (tmp_path / "details.json").write_text(json.dumps(details))
            assert "elbo" not in summary["base"]
            assert Summary.from_dict(summary).to_dict()["widths"][0]["elbo"] < 0
        results = read_morph(tmp_path)
        assert results.metric.name == "elbo"
        assert results.widths[1].accuracy.test == generated.points[1].metrics["test"]["elbo"]
        assert results.base_accuracy.validation == generated.base["validation"]["elbo"]
        for data in (summary, details):
            with console.capture() as shown:
                console.print(terminal_widths(data))
            assert "ELBO" in shown.get()
            assert f"{abs(generated.points[1].metrics['test']['elbo']):.3f}"[:4] in shown.get()
        write_report(tmp_path)
        assert "ELBO" in (tmp_path / "report.html").read_text()


def test_a_summary_without_its_metric_is_refused():
    row = {"name": "n", "params": 1, "macs": 1}
    data = {"schema": 1, "kind": "morph", "base": {**row, "miou": 0.5}, "floor": 0.1, "metric": "miou", "widths": []}
    data |= {"artifact_bytes": 1, "seconds": {}}
    assert Summary.from_dict(data).to_dict()["base"]["miou"] == 0.5
    with pytest.raises(ValidationError, match="a number under the name of the metric, 'miou'"):
        Summary.from_dict({**data, "base": row})
