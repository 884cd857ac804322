"""Two processes under torchrun give what one gives: tables, partition, ranking, recipe, losses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from launching import MORPH, REASSEMBLE, command, environment, netsmith

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """The same reassembly by one process with batches of 64 and by two with 32 each."""
    folder = tmp_path_factory.mktemp("reassembled")
    for processes in (1, 2):
        (folder / f"{processes}.yaml").write_text(REASSEMBLE.replace("BATCH", str(64 // processes)))
        done = netsmith(
            "reassemble", folder / f"{processes}.yaml", "--out", folder / str(processes), processes=processes
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("wrote ") == 1  # one of them speaks
    return folder / "1", folder / "2"


def test_the_recipe_is_the_same_to_the_byte(one_and_two):
    one, two = one_and_two
    assert (one / "recipe.json").read_bytes() == (two / "recipe.json").read_bytes()


def test_similarity_partition_and_ranking_are_the_same(one_and_two):
    one, two = (read(folder, "details.json") for folder in one_and_two)
    for a, b in zip(one["similarity"]["values"], two["similarity"]["values"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert one["partition"] == two["partition"]
    assert [c["blocks"] for c in one["candidates"]] == [c["blocks"] for c in two["candidates"]]
    for a, b in zip(one["candidates"], two["candidates"], strict=True):
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-5)


def test_fine_tuning_loses_as_one_process_with_the_same_batch(one_and_two):
    losses = [[e["loss"] for e in read(folder, "details.json")["chosen"]["history"]] for folder in one_and_two]
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    accuracy = [read(folder, "summary.json")["accuracy"]["finetuned"] for folder in one_and_two]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.01)


def test_nothing_is_done_twice_and_no_lock_is_left(one_and_two):
    one, two = ({p.name for p in (folder / "cache").iterdir()} for folder in one_and_two)
    assert one == two
    assert not [name for name in two if name.startswith(".")]


@pytest.mark.parametrize("apart", [0.9, 0])
def test_morphing_loses_as_one_process_with_the_same_batch(tmp_path, apart):
    """Keyframe by keyframe, with channels ranked anew, and all widths together."""
    settings = "{settings: {keyframes: [1.0, 0.5, 0.25]}}"
    (tmp_path / "base.yaml").write_text(
        MORPH.split("weights:")[0] + "data: digits\ndevice: cpu\ntraining: {epochs: 2, batch_size: 128, lr: 0.1}\n"
    )
    assert netsmith("train", tmp_path / "base.yaml", "--out", tmp_path / "base").returncode == 0
    losses = []
    for processes in (1, 2):
        text = MORPH.replace("BATCH", str(128 // processes))
        weights = tmp_path / "base/artifact/weights.safetensors"
        text = text.replace("WEIGHTS", str(weights)) + f"generator: {settings}\nfitting: {{apart: {apart}}}\n"
        (tmp_path / f"{processes}.yaml").write_text(text)
        out = tmp_path / str(processes)
        done = netsmith("morph", tmp_path / f"{processes}.yaml", "--out", out, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        fit = read(out, "details.json")["fit"]
        losses.append([e["loss"] for e in fit["history"]])
        assert fit.get("keyframes") == (2 if apart else None)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_mistake_is_said_once(tmp_path):
    (tmp_path / "wrong.yaml").write_text(REASSEMBLE.replace("BATCH", "0"))
    done = netsmith("reassemble", tmp_path / "wrong.yaml", "--out", tmp_path / "out", processes=2)
    assert done.returncode != 0
    assert done.stderr.count("netsmith: ") == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_two_runs_share_a_cache_but_not_a_folder(tmp_path):
    (tmp_path / "zoo.yaml").write_text(REASSEMBLE.replace("BATCH", "64").replace("finalists: 2", "finalists: 1"))
    words = ["reassemble", tmp_path / "zoo.yaml", "--cache", tmp_path / "cache", "--quiet", "--out"]
    pipes = {"env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command(*words, tmp_path / name), **pipes) for name in ("a", "b")]
    for process in running:
        _, errors = process.communicate(timeout=250)
        assert process.returncode == 0, errors
    alone = netsmith("reassemble", tmp_path / "zoo.yaml", "--out", tmp_path / "alone", "--quiet")
    assert alone.returncode == 0, alone.stderr
    for name in ("a", "b"):
        assert (tmp_path / name / "recipe.json").read_bytes() == (tmp_path / "alone/recipe.json").read_bytes()
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")]
