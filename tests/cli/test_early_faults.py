"""What is wrong with a config is said before anything slow is loaded."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from netsmith.config import load_reassemble_config
from netsmith.data import names as data_names
from netsmith.data.registry import data_source
from netsmith.data.splits import DATA_SOURCES
from netsmith.errors import ConfigError
from netsmith.models import BUILDERS
from netsmith.morphing import settings as morph_names
from netsmith.morphing.kinds import GENERATORS
from netsmith.networks.sources import OWN
from netsmith.reassembly import names, scores
from netsmith.reassembly import similarity as similarities
from netsmith.reassembly.scores import score
from netsmith.reassembly.similarity import similarity_metric

SLOW = ("torch", "timm", "torchvision", "sklearn", "numpy", "scipy")
ZOO = "zoo: [netsmith:lenet, timm:resnet18]\ndata: digits\n"
MORPH = "network: timm:resnet18\ndata: digits\n"
TRAIN = "network: py:mine.py:net\ndata: folder:images\n"

_RUN = """
import contextlib, io, json, sys
from netsmith.cli.main import main
found = []
for words in json.loads(sys.argv[1]):
    text = io.StringIO()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
        code = main(words)
    found.append((code, text.getvalue(), [name for name in {slow} if name in sys.modules]))
print(json.dumps(found))
"""


def run(lines: list[list[str]], folder: Path) -> list[tuple[int, str, list[str]]]:
    """Exit code, words and slow modules loaded after each of these command lines, in one process of their own."""
    code = _RUN.replace("{slow}", repr(SLOW))
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)], cwd=folder, capture_output=True, text=True, check=True
    )
    return [(code, words, loaded) for code, words, loaded in json.loads(done.stdout)]


def test_faults_of_configs_are_told_before_torch_is_loaded(tmp_path):
    (tmp_path / "zoo.yaml").write_text("networks:\n- timm:resnet18\n- {source: timm:resnet34, nam: x}\n")
    (tmp_path / "mine.py").touch()
    cases = [
        ("reassemble", ZOO + "partion: {k: 3}\n", "line 3: partion: unknown key. Did you mean 'partition'"),
        ("reassemble", ZOO + "score: {name: naswott}\n", "line 3: score.name: expected one of "),
        ("reassemble", ZOO + "similarity: {metric: cca}\n", "line 3: similarity.metric: expected one of cka, rbf_cka"),
        ("reassemble", ZOO + "budget: {params: 0.5X}\n", "budget.params: expected a number such as 500000"),
        ("reassemble", ZOO.replace("lenet", "lenett"), "There is no network 'netsmith:lenett'. Did you mean 'lenet'"),
        ("reassemble", ZOO.replace("timm:resnet18", "hf:me/lenet"), "Two networks of the zoo are called 'lenet'"),
        ("reassemble", "zoo: zoo.yaml\ndata: digits\n", "line 3: networks.1.nam: unknown key. Did you mean 'name'"),
        ("morph", MORPH + "generator: gird\n", "generator: expected 'nested', 'grid' or 'inr', got 'gird'"),
        ("morph", MORPH + "order: {solver: 4opt}\n", "order.solver: expected 'auto', 'exact'"),
        ("morph", MORPH + "fitting: {draws: [fulll]}\n", "line 3: fitting.draws.0: expected 'full'"),
        ("reassemble", ZOO.replace("lenet", "lenet#gone.pt"), "There is no weights file"),
        ("train", TRAIN.replace("mine", "yours"), "yours.py. Known: 'mine.py'"),
        ("train", TRAIN + "training: {epochs: ten}\n", "line 3: training.epochs: expected a whole number, got 'ten'"),
        ("train", TRAIN + "precision: bf17\n", "line 3: precision: expected 'auto', 'no', 'bf16' or 'fp16'"),
        ("train", TRAIN.replace("folder:images", "foldr:images"), "unknown data source 'foldr:images'. Did you mean"),
    ]
    lines = []
    for i, (verb, text, _) in enumerate(cases):
        (tmp_path / f"{i}.yaml").write_text(text)
        lines.append([verb, f"{i}.yaml", "--out", "out"])
    lines += [["zoo", "check", "zoo.yaml"], ["morph", "demo_morph"], ["reassemble", "demo"]]
    lines += [["reassemble", "0.yaml", "--out", "out", "--set", "zoo.1.name=resnet50"]]
    lines += [["compare", "netsmith:lenet", "netsmith:plain_cnn", "--data", "digits", "--metric", "cca"]]
    expected = [text for _, _, text in cases]
    expected += ["networks.1.nam: unknown key", *2 * ["--out DIR is missing"], cases[0][2], "unknown metric 'cca'"]
    for words, text, (code, said, loaded) in zip(lines, expected, run(lines, tmp_path), strict=True):
        assert (code, loaded) == (2, []), (words, said)
        assert text in said
    assert not (tmp_path / "out").exists()


def test_help_and_the_config_models_load_nothing_slow(tmp_path):
    verbs = ["reassemble", "morph", "train", "sample", "compare", "zoo", "demo", "evaluate"]
    for code, said, loaded in run([["--help"], *([verb, "--help"] for verb in verbs)], tmp_path):
        assert (code, loaded) == (0, []), said
    code = f"import sys, netsmith.config; print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_networks_of_libraries_are_looked_up_once_all_else_is_right(tmp_path):
    zoo = "zoo: [netsmith:lenet, 'timm:resnet81']\ndata: digits\n"
    with pytest.raises(ConfigError, match=r"(?s)1 fault.*zoo\.1: timm has no architecture 'resnet81'"):
        load_reassemble_config(zoo)
    with pytest.raises(ConfigError, match=r"(?s)1 fault.*partion: unknown key"):
        load_reassemble_config(zoo + "partion: {k: 3}\n")
    (tmp_path / "zoo.yaml").write_text("networks: [netsmith:lenet, 'timm:resnet81']\n")
    (tmp_path / "config.yaml").write_text("zoo: zoo.yaml\ndata: digits\n")
    with pytest.raises(ConfigError, match=r"(?s)zoo\.yaml has 1 fault.*timm has no architecture 'resnet81'"):
        load_reassemble_config(tmp_path / "config.yaml")


def own(registry: dict) -> set[str]:
    """Names in a registry that are netsmith's own, not those that other tests registered."""
    return {name for name, function in registry.items() if function.__module__.startswith("netsmith.")}


def test_the_names_are_those_that_are_registered():
    assert set(runpy.run_path(str(names.__file__))["SCORES"]) == own(scores._SCORES)
    assert runpy.run_path(str(names.__file__))["METRICS"] == [
        n for n in similarities._METRICS if n in own(similarities._METRICS)
    ]
    assert set(runpy.run_path(str(data_names.__file__))["KINDS"]) == own(DATA_SOURCES)
    assert set(get_args(morph_names.Kind)) == set(GENERATORS)
    assert set(OWN) == set(BUILDERS)


def test_what_a_user_registers_may_be_named_in_a_config(monkeypatch):
    monkeypatch.setattr(scores, "_SCORES", dict(scores._SCORES))
    monkeypatch.setattr(similarities, "_METRICS", dict(similarities._METRICS))
    try:
        score("mine")(lambda ctx: 0.0)
        similarity_metric("ours")(lambda grams, biased: grams[0])
        data_source("theirs")(lambda argument, options: None)  # pyright: ignore[reportArgumentType]
        config = load_reassemble_config(
            "zoo: [netsmith:lenet, netsmith:plain_cnn]\ndata: theirs:x\n"
            "score: {name: mine}\nsimilarity: {metric: ours}\n"
        )
        assert (config.score.name, config.similarity.metric, config.data.source) == ("mine", "ours", "theirs:x")
    finally:
        names.SCORES.remove("mine")
        names.METRICS.remove("ours")
        data_names.KINDS.remove("theirs")
        del DATA_SOURCES["theirs"]
