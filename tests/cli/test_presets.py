"""`netsmith presets`, and the CONFIG argument that takes a preset's name."""

from __future__ import annotations

import re

import pytest

from netsmith import presets
from netsmith.cli.configs import config_path
from netsmith.cli.main import main
from netsmith.config import load_morph_config, load_reassemble_config, load_train_config
from netsmith.errors import ConfigError
from netsmith.networks.zoo import load_zoo_file
from netsmith.search.budget import Bound


def test_list_names_every_preset_with_what_it_is(capsys):
    assert main(["presets", "list"]) == 0
    text = capsys.readouterr().out
    for name in presets.names():
        assert name in text
        assert presets.describe(name) in text
        assert len(presets.describe(name)) > 10


def test_copy_takes_the_files_along_that_it_names(tmp_path, capsys):
    assert main(["presets", "copy", "dery_10m", "--out", str(tmp_path / "configs")]) == 0
    assert {p.name for p in (tmp_path / "configs").iterdir()} == {"dery_10m.yaml", "dery_zoo.yaml"}
    assert (tmp_path / "configs" / "dery_10m.yaml").read_text() == presets.read("dery_10m")
    assert capsys.readouterr().out.count("wrote ") == 2


def test_copy_replaces_nothing_unasked(tmp_path, capsys):
    (tmp_path / "dery_zoo.yaml").write_text("mine")
    assert main(["presets", "copy", "dery_10m", "--out", str(tmp_path)]) == 2
    assert "dery_zoo.yaml exists already. Give --overwrite" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["dery_zoo.yaml"]
    assert (tmp_path / "dery_zoo.yaml").read_text() == "mine"
    assert main(["presets", "copy", "dery_10m", "--out", str(tmp_path), "--overwrite"]) == 0
    assert (tmp_path / "dery_zoo.yaml").read_text() == presets.read("dery_zoo")


def test_two_presets_that_name_one_file_are_copied_one_after_the_other(tmp_path, capsys):
    assert main(["presets", "copy", "cifar10", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["presets", "copy", "morph_cifar10", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"{tmp_path / 'train_resnet20_cifar10.yaml'} is there" in text
    assert f"wrote {tmp_path / 'morph_cifar10.yaml'}" in text


def test_unknown_preset_names_the_nearest(capsys):
    assert main(["presets", "copy", "dery_10"]) == 2
    assert "there is no preset 'dery_10'. Did you mean 'dery_10m'" in capsys.readouterr().err


def test_config_is_a_file_or_a_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_path("cifar10") == presets.path("cifar10")
    (tmp_path / "cifar10").write_text("")
    assert str(config_path("cifar10")) == "cifar10"
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(
        ConfigError, match=r"no config file min\.yaml, and no preset of that name\. Did you mean 'mine.yaml'"
    ):
        config_path("min.yaml")
    with pytest.raises(ConfigError, match="is a folder, where a config file"):
        config_path(".")


def _folders(zoo, base):
    """The artifacts that a zoo file of ours names, empty: a config only asks whether they are there."""
    for source in re.findall(r"source: (zoo/[\w/]+)", zoo):
        (base / source).mkdir(parents=True)
        (base / source / "manifest.json").touch()


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_parses(name, tmp_path):
    assert main(["presets", "copy", name, "--out", str(tmp_path)]) == 0
    file = tmp_path / f"{name}.yaml"
    for text in (presets.read(other) for other in (name, *presets.companions(name))):
        if not (tmp_path / "zoo").exists():
            _folders(text, tmp_path)
    if name.endswith("_zoo"):
        assert len(load_zoo_file(file)) >= 2
    elif name.startswith("morph_") or name == "demo_morph":
        (tmp_path / "artifact").mkdir()
        (tmp_path / "artifact" / "manifest.json").touch()
        morph = load_morph_config(file)
        assert morph.network.name or morph.network.source.startswith("timm:")
        assert morph.space.widths[0] < morph.space.widths[1] == 1.0
    elif name.startswith(("train_", "demo_")):
        config = load_train_config(file)
        assert config.network.name
    else:
        config = load_reassemble_config(file)
        assert len(config.zoo) >= 2
        assert config.budget.params is not None


@pytest.mark.parametrize("name", presets.names())
def test_no_preset_asks_for_a_precision_that_a_processor_may_not_have(name):
    assert "precision" not in presets.read(name)


@pytest.mark.parametrize(("params", "macs"), [(10, 3), (20, 5), (30, 6), (50, 10), (90, 20)])
def test_the_papers_budgets(params, macs):
    config = load_reassemble_config(presets.path(f"dery_{params}m"))
    assert config.budget.params == Bound(max=params * 1e6)
    assert config.budget.macs == Bound(max=macs * 1e9)
    assert len(config.zoo) == 21
    assert (config.partition.k, config.partition.eps, config.partition.restarts) == (4, 0.2, 200)
    assert config.finetune is not None
    assert config.finetune.epochs == 100


@pytest.mark.slow
def test_the_first_preset_plans_offline(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["reassemble", "dery_10m", "--set", "data=folder:imagenet", "--plan"]) == 0
    text = capsys.readouterr().out
    assert "zoo: 21 networks, 1.31G params in all" in text
    assert "GB in all" in text
    assert re.search(r"resnext50_32x4d .* licence cc-by-nc-4\.0 \(NON-COMMERCIAL\)", text)
    assert "budget: params at most 10M, macs at most 3G" in text
