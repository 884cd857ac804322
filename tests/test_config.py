"""Configs: every fault at once with its line, what YAML may hold, overrides, and the way back to YAML."""

from __future__ import annotations

import math
import re
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file

from netsmith.cli import execution, networks
from netsmith.config import (
    HEADER,
    MorphConfig,
    ReassembleConfig,
    TrainConfig,
    apply_overrides,
    dump_config,
    load_config,
    load_morph_config,
    load_reassemble_config,
    load_train_config,
)
from netsmith.data.splits import open_data
from netsmith.errors import ConfigError
from netsmith.files.yaml_text import read_yaml, write_yaml
from netsmith.networks.zoo import load_source
from netsmith.training.settings import TrainSettings

GOOD = """
zoo:
  - netsmith:cifar_resnet20
  - {source: netsmith:small_vit, name: vit, options: {dim: 32}}
data: digits
budget: {params: 0.5M, macs: {min: 1M, max: 3G}, latency_batch: 4}
finetune: {epochs: 3, precision: no, lr: 1e-3}
"""


def faults(text: str, model: type[BaseModel] = ReassembleConfig, overrides: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(text, model, overrides)
    count = len(error.value.faults)
    assert str(error.value).startswith(f"the configuration has {count} fault{'s' if count > 1 else ''}:\n")
    assert all(fault in str(error.value) for fault in error.value.faults)
    return list(error.value.faults)


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_config_and_its_defaults():
    config = load_reassemble_config(GOOD)
    assert [e.called() for e in config.zoo] == ["cifar_resnet20", "vit"]
    assert config.data.source == "digits"
    assert config.budget.params is not None
    assert config.budget.params.max == 500_000
    assert config.budget.macs is not None
    assert (config.budget.macs.min, config.budget.macs.max, config.budget.latency_batch) == (1e6, 3e9, 4)
    assert config.finetune is not None
    assert (config.finetune.epochs, config.finetune.precision, config.finetune.lr) == (3, "no", 1e-3)
    assert isinstance(config.finetune, TrainSettings)
    assert (config.probe.images, config.partition.k, config.search.candidates) == (None, 4, 20)
    assert (config.similarity.metric, config.score.name, config.trainable) == ("cka", "stitch", "all")


def test_finetune_may_be_left_out():
    config = load_reassemble_config(GOOD.replace("finetune: {epochs: 3, precision: no, lr: 1e-3}", "finetune: null"))
    assert config.finetune is None


def test_train_config():
    config = load_train_config("network: netsmith:lenet\ndata: {source: digits, size: 28}\ntraining: {epochs: 2}\n")
    assert (config.network.source, config.data.size, config.training.epochs) == ("netsmith:lenet", 28, 2)
    assert not config.pretrained


def test_a_mapping_is_read_like_a_file():
    raw = {"zoo": ["netsmith:lenet", "netsmith:small_vit"], "data": {"source": "digits"}}
    assert load_config(raw, ReassembleConfig).data.source == "digits"
    assert raw["data"] == {"source": "digits"}


@pytest.mark.parametrize(
    "text", [GOOD, GOOD.replace("digits", "{source: digits, size: 16}") + "stitch: {ridge: 1e-3}\n"]
)
def test_a_dump_loads_back_equal(text, tmp_path):
    config = load_reassemble_config(text)
    dumped = dump_config(config)
    assert dumped.startswith(HEADER)
    (tmp_path / "config.yaml").write_text(dumped)
    assert load_reassemble_config(tmp_path / "config.yaml") == config
    assert dump_config(load_reassemble_config(dumped)) == dumped


def test_relative_paths_start_from_the_file(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    folder.mkdir()
    save_file(load_source("netsmith:lenet").model.state_dict(), folder / "l.safetensors")
    (folder / "zoo.yaml").write_text("networks: [netsmith:lenet#l.safetensors, netsmith:small_vit]\n")
    (folder / "a.yaml").write_text("zoo: zoo.yaml\ndata: parquet:images\n")
    (folder / "b.yaml").write_text("zoo: [netsmith:lenet#l.safetensors, netsmith:small_vit]\ndata: folder:/abs\n")
    monkeypatch.chdir(tmp_path)
    a, b = load_reassemble_config("configs/a.yaml"), load_reassemble_config(Path("configs/b.yaml"))
    assert a.zoo == b.zoo
    assert a.zoo[0].source == f"netsmith:lenet#{folder}/l.safetensors"
    assert a.data.source == f"parquet:{folder}/images"
    assert b.data.source == "folder:/abs"
    assert load_reassemble_config(dump_config(a)) == a


def test_relative_paths_of_overrides_start_from_the_working_folder(tmp_path, monkeypatch):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "a.yaml").write_text("zoo: gone.yaml\ndata: {source: digits, size: 32}\n")
    (tmp_path / "here.yaml").write_text("networks: [netsmith:lenet, netsmith:small_vit]\n")
    save_file(load_source("netsmith:lenet").model.state_dict(), tmp_path / "l.safetensors")
    monkeypatch.chdir(tmp_path)
    overrides = ["zoo=here.yaml", "data=folder:images"]
    config = load_reassemble_config(folder / "a.yaml", overrides)
    assert (config.data.source, config.data.size) == (f"folder:{tmp_path}/images", 32)
    assert len(config.zoo) == 2
    (folder / "c.yaml").write_text("zoo: [netsmith:lenet, netsmith:small_vit]\ndata: digits\n")
    config = load_reassemble_config(folder / "c.yaml", ["zoo.0.source=netsmith:lenet#l.safetensors"])
    assert config.zoo[0].source == f"netsmith:lenet#{tmp_path}/l.safetensors"


# --- faults -----------------------------------------------------------------------------------------------------------


def test_all_faults_at_once_in_the_order_of_lines():
    found = faults("""zoo:
  - netsmith:lenet
  - {source: netsmith:cifar_resnet23, name: a b}
  - source: netsmith:small_vit
    nam: x
    input_size: [3, 32]
data: {source: digitz, validation_fraction: 1.5}
probe: {images: true, grid: two}
similarity: {metric: cca}
partition:
  k: 1
  eps: -0.1
  size: unit
  restarts: 2.5
budgets: {}
budget: {params: 0.5X, macs: {max: 1, mim: 2}, latency_batch: 0}
stitch: {head: lds, ridge: -1}
score: {name: naswott, also: params}
finetune: {lr: 0, epochs: ten}
device: gpu
seed: -1
""")
    expected = [
        "line 3: zoo.1.source: There is no network 'netsmith:cifar_resnet23'. Did you mean",
        "line 3: zoo.1.name: a name is letters, digits, '_', '.' and '-', got 'a b'",
        "line 5: zoo.2.nam: unknown key. Did you mean 'name'?",
        "line 6: zoo.2.input_size: expected at least 3 entries, got the list [3, 32]",
        "line 7: data.source: unknown data source 'digitz'. Did you mean 'digits'?",
        "line 7: data.validation_fraction: expected a number less than 1, got 1.5",
        "line 8: probe.images: expected a number, got true",
        "line 8: probe.grid: expected a whole number, got 'two'",
        "line 9: similarity.metric: expected one of cka, rbf_cka, lr",  # and what a user registers
        "line 11: partition.k: expected a whole number of at least 2, got 1",
        "line 12: partition.eps: expected a number of at least 0, got -0.1",
        "line 13: partition.size: expected 'units', 'params' or 'macs', got 'unit'. Did you mean 'units'?",
        "line 14: partition.restarts: expected a whole number, got 2.5",
        "line 15: budgets: unknown key. Did you mean 'budget'?",
        "line 16: budget.params: expected a number such as 500000, '0.5M' or '3G', not '0.5X'",
        "line 16: budget.macs: a bound has the keys min and max, not 'mim'",
        "line 16: budget.latency_batch: expected a whole number of at least 1, got 0",
        "line 17: stitch.head: expected ",
        "line 17: stitch.ridge: expected one or more numbers of at least 0, got [-1.0]",
        "line 18: score.name: expected one of ",
        "line 18: score.also: expected a list, got 'params'",
        "line 19: finetune.lr: expected a number greater than 0, got 0",
        "line 19: finetune.epochs: expected a whole number, got 'ten'",
        "line 20: device: expected auto, cpu, cuda, cuda:N or mps, got 'gpu'",
        "line 21: seed: expected a whole number of at least 0, got -1",
    ]
    for text in expected:
        assert any(f.startswith(text) for f in found), text
    assert any(f.startswith("line 9:") and f.endswith("got 'cca'. Did you mean 'cka'?") for f in found)
    assert len(found) == len(expected)
    lines = [int(re.match(r"line (\d+)", f).group(1)) for f in found]  # pyright: ignore[reportOptionalMemberAccess]
    assert lines == sorted(lines)
    assert "Did you mean 'lda'" in "".join(found)
    assert "Did you mean 'naswot'" in "".join(found)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("data: digits\n", "line 1: zoo: this key is required and missing"),
        ("zoo: [netsmith:lenet]\ndata: digits\n", "line 1: zoo: the zoo has one network, and reassembly needs two"),
        ("zoo: []\ndata: digits\n", "line 1: zoo: the zoo has no network"),
        ("zoo: 3\ndata: digits\n", "line 1: zoo: expected a list, got 3"),
        ("zoo: [netsmith:lenet, netsmith:lenet]\ndata: digits\n", "line 1: zoo: Two networks of the zoo are called"),
        ("zoo: nowhere.yaml\ndata: digits\n", "line 1: zoo: There is no config file"),
        (GOOD + "score: {finalists: 30}\n", "score.finalists (30) exceeds search.candidates (20)"),
        (GOOD + "data: digits\n", "line 8: data: this key is there twice, first in line 5. Keep one"),
        (GOOD + "probe: 3\n", "line 8: probe: expected a section (keys and values), got 3"),
        (GOOD + "partition: {a: [1, 2], k: null}\n", "line 8: partition.k: expected a whole number, got nothing"),
        (GOOD + "partition: {eps: .nan}\n", "line 8: partition.eps: expected a number that is finite, got nan"),
        (GOOD + "pretrained: maybe\n", "line 8: pretrained: expected true or false, got 'maybe'"),
        ("- 1\n- 2\n", "line 1: expected keys and values, got the list [1, 2]"),
        ("just a text\n", "line 1: expected keys and values, got 'just a text'"),
    ],
)
def test_single_faults(text, fault):
    assert any(fault in f for f in faults(text)), faults(text)


def test_faults_inside_the_zoo_file_come_with_their_own_lines(tmp_path):
    (tmp_path / "zoo.yaml").write_text("networks:\n  - netsmith:lenet\n  - netsmith:lenett\n")
    (tmp_path / "a.yaml").write_text("data: digits\nzoo: zoo.yaml\nsead: 1\n")
    with pytest.raises(
        ConfigError, match=r"(?s)a\.yaml has 2 .*line 2: zoo: .*zoo\.yaml has 1 fault.*line 3:.*'lenet'"
    ):
        load_reassemble_config(tmp_path / "a.yaml")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "cifar10.yaml").touch()
    with pytest.raises(ConfigError, match=r"There is no config file .*cifar\.yaml\. Did you mean 'cifar10\.yaml'"):
        load_reassemble_config(tmp_path / "cifar.yaml")
    with pytest.raises(ConfigError, match="is a folder, expected a YAML file"):
        load_reassemble_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_reassemble_config(tmp_path / "latin.yaml")
    (tmp_path / "big.yaml").write_text("# " + "x" * 200_001)
    with pytest.raises(ConfigError, match="is it a config"):
        load_reassemble_config(tmp_path / "big.yaml")
    (tmp_path / "empty.yaml").write_text("\n")
    with pytest.raises(ConfigError, match="network: this key is required and missing"):
        load_train_config(tmp_path / "empty.yaml")


# --- YAML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: [1\nb: 2\n", r"line 2: this is no YAML: .*expected ',' or '\]'"),
        ("a: b: c\n", "line 1: this is no YAML: mapping values are not allowed here"),
        ("\tx: 1\n", r"line 1: this is no YAML: .*Indent with spaces"),
        ("a: 1\n---\nb: 2\n", "this is no YAML: expected a single document"),
        ("a: *b\n", "this is no YAML: .*undefined alias"),
        ("a: \x00\n", "this is no YAML"),
        ("a: &a [*a]\n", "an alias contains itself"),
        ("? [1, 2]\n: 3\n", "line 1: a key must be a word"),
        ("a: !!int x\n", "line 1: a: 'x' is no int"),
        ("a: !!python/object/apply:os.system [ls]\n", r"line 1: a: the tag !!python/object/apply:os.system is refused"),
        ("a: !mine 3\n", "line 1: a: the tag !mine is refused"),
        ("a: {b: 1, b: 2}\n", "line 1: a.b: this key is there twice, first in line 1"),
        ("a:\n  <<: 3\n", "'<<' takes a section"),
        ("a: " + "[" * 1500 + "\n", "nested too deeply|this is no YAML"),
    ],
)
def test_faults_of_yaml(text, fault):
    found = read_yaml(text).faults
    assert found
    assert re.search(fault, str(found[0]))


def test_aliases_work_within_reason():
    document = read_yaml("base: &b {x: 1, y: 2}\na: *b\nc: {<<: *b, y: 3}\nd: {<<: [{y: 9}, *b]}\n")
    assert not document.faults
    assert document.value["a"] == {"x": 1, "y": 2}
    assert document.value["c"] == {"x": 1, "y": 3}
    assert document.value["d"] == {"x": 1, "y": 9}
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for i in range(1, 9):
        bomb += f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n"
    (fault,) = read_yaml(bomb).faults
    assert "its aliases expand to more than 20000 values" in str(fault)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("off", "off"), ("yes", "yes"), ("true", True), ("False", False), ("1e-3", 1e-3), ("1.", 1.0),
        ("1_000", "1_000"), ("12:30", "12:30"), ("010", 10), ("0x10", 16), ("0o10", 8), ("2020-01-01", "2020-01-01"),
        (".inf", math.inf), ("-.inf", -math.inf), ("~", None), ("", None), ("null", None), ("'1'", "1"), ("-5", -5),
        ("=", "="), ("0.5M", "0.5M"),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema(text, value):
    document = read_yaml(f"a: {text}\n")
    assert not document.faults
    assert document.value == {"a": value}
    assert type(document.value["a"]) is type(value)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


@settings(deadline=None, max_examples=60)
@example({"\x85": "a\u2028b\r\n", "no": "1e3", "a: b": "# c"})
@given(st.dictionaries(st.text(), VALUES, max_size=3))
def test_what_is_written_is_read_back(value):
    document = read_yaml(write_yaml(value))
    assert not document.faults
    assert document.value == value


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides():
    raw = {"budget": {"params": "0.5M"}, "zoo": ["a:b", {"source": "c:d"}], "data": "digits", "finetune": None}
    overrides = [
        "budget.params.max=0.4M",
        "budget.macs.min=1e6",
        "zoo.1.name=x",
        "zoo.0.name=y",
        "data.size=16",
        "finetune.epochs=3",
        "partition={k: 3}",
        "seed=1",
        "seed=2",
        "score.also=[params, knn]",
    ]
    assert apply_overrides(raw, overrides) == {
        "budget": {"params": {"max": "0.4M"}, "macs": {"min": 1e6}},
        "zoo": [{"source": "a:b", "name": "y"}, {"source": "c:d", "name": "x"}],
        "data": {"source": "digits", "size": 16},
        "finetune": {"epochs": 3},
        "partition": {"k": 3},
        "seed": 2,
        "score": {"also": ["params", "knn"]},
    }
    assert raw["budget"] == {"params": "0.5M"}
    assert apply_overrides({"budget": {"params": "0.5M"}}, ["budget.params.min=1k"])["budget"]["params"] == {
        "max": "0.5M",
        "min": "1k",
    }
    assert apply_overrides({"data": {"source": "a", "size": 3}}, ["data=digits"])["data"] == {
        "source": "digits",
        "size": 3,
    }


def test_overridden_configs():
    config = load_reassemble_config(
        GOOD, ["budget.params.max=0.4M", "data.size=16", "finetune.epochs=5", "partition.k=3"]
    )
    assert config.budget.params is not None
    assert config.finetune is not None
    assert (config.budget.params.max, config.data.size, config.finetune.epochs) == (400_000, 16, 5)
    assert (config.finetune.lr, config.partition.k) == (1e-3, 3)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("oops", "--set: expected KEY=VALUE such as partition.k=3, got 'oops'"),
        ("a b=3", "--set: expected KEY=VALUE"),
        ("data.size=[1", "--set: data.size: this is no YAML"),
        ("zoo.7.name=x", "--set: zoo.7: the list has 2 entries, numbered from 0; got '7'"),
        ("partition.k=1", "--set: partition.k: expected a whole number of at least 2, got 1"),
        ("budget.latncy.max=3", "--set: budget.latncy: unknown key. Did you mean 'latency_ms'"),
        ("partitoin.k=3", "--set: partitoin: unknown key. Did you mean 'partition'"),
        ("seed=", "--set: seed: expected a whole number, got nothing"),
    ],
)
def test_faults_of_overrides_say_where_they_come_from(override, fault):
    (found,) = faults(GOOD, overrides=(override,))
    assert found.startswith(fault)


def test_malformed_overrides_of_a_mapping_raise():
    with pytest.raises(ConfigError, match="expected KEY=VALUE such as"):
        apply_overrides({}, ["nonsense"])


# --- other models -----------------------------------------------------------------------------------------------------


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = Field(ge=1)
    rate: float = 0.1


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    parts: dict[str, Inner] = {}
    rows: list[Inner] = []
    pair: tuple[int, str] = (1, "a")


def test_models_in_lists_and_mappings():
    found = faults(
        "parts: {a: {size: 0}, b: {sise: 1}}\nrows:\n- {size: true}\n- {size: 2, rate: false}\npair: [1, 2]\n", Outer
    )
    assert found == [
        "line 1: parts.a.size: expected a whole number of at least 1, got 0",
        "line 1: parts.b.size: this key is required and missing",
        "line 1: parts.b.sise: unknown key. Did you mean 'size'?",
        "line 3: rows.0.size: expected a number, got true",
        "line 4: rows.1.rate: expected a number, got false",
        "line 5: pair.1: expected text, got 2",
    ]


def test_train_config_faults():
    found = faults("network: {sorce: netsmith:lenet}\ndata: digits\ntraining: {warmup_epochs: 20}\n", TrainConfig)
    assert found[0] == "line 1: network.source: this key is required and missing"
    assert found[1] == "line 1: network.sorce: unknown key. Did you mean 'source'?"
    assert found[2] == "line 3: training: warmup_epochs (20) must be below epochs (10)"


# --- morphing ---------------------------------------------------------------------------------------------------------

MORPH = "network: netsmith:plain_cnn\ndata: digits\n"


def test_a_generator_in_short_takes_further_keys():
    config = load_morph_config(MORPH + "generator: inr\n", ["generator.settings.hidden=64"])
    assert (config.generator.kind, config.generator.settings) == ("inr", {"hidden": 64})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "space: {widths: [8.5, 16]}",
            "space.widths: 8.5 to 16 are ratios, as not both are whole numbers, and go up to 8",
        ),
        ("space: {widths: [.nan, 1.0]}", "space.widths.0: expected a number that is finite"),
    ],
)
def test_faults_of_a_morph(text, fault):
    (found,) = faults(MORPH + text, MorphConfig)
    assert found.startswith(f"line 3: {fault}")


def test_weights_of_a_morph_start_from_the_config_the_working_folder_or_the_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "morph.yaml"
    file.write_text(MORPH + "weights: a.safetensors\n")
    assert load_morph_config(file).weights == tmp_path / "sub/a.safetensors"
    assert load_morph_config(file, base=tmp_path).weights == tmp_path / "a.safetensors"
    assert load_morph_config(file, ["weights=b.safetensors"]).weights == tmp_path / "b.safetensors"


def leaves(model: type[BaseModel], path: str = "") -> set[str]:
    return {
        leaf
        for key, field in model.model_fields.items()
        for leaf in (
            leaves(field.annotation, f"{path}{key}.")
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            else {f"{path}{key}"}
        )
    }


CHANGES = """
probe.images=100 probe.grid=2 similarity.metric=lr similarity.biased=true partition.k=3 partition.eps=0.3
partition.size=macs partition.restarts=7 budget.params=1M budget.macs=1G budget.latency_ms=9 budget.memory_mb=99
budget.latency_batch=2 search.candidates=21 search.distinct_sets=false search.mix=false
stitch.style=linear stitch.init=random stitch.ridge=0.5 stitch.head=lda stitch.recalibrate=true stitch.images=99
score.name=knn score.also=[knn] score.images=99 score.finalists=2 finetune=null trainable=adapters seed=3
precision=no data.size=12 data.ignore=1 data.validation_fraction=0.2 data.seed=4 data.source=folder:x
pretrained=false zoo=[netsmith:lenet,netsmith:small_vit]
"""


def test_every_key_of_a_reassembly_reaches_the_library(monkeypatch):
    splits, seen = open_data("digits"), []

    def recorded(*arguments, **settings):
        seen.append((arguments, {key: value for key, value in settings.items() if key != "cache"}))
        return splits

    def called(*overrides: str) -> str:
        seen.clear()
        config = load_reassemble_config("zoo: [netsmith:lenet, netsmith:plain_cnn]\ndata: digits\n", overrides)
        with pytest.raises(jaxtyping.TypeCheckError):  # it gives splits, where a network was due
            execution._reassemble(config, cache=Path("cache"), checkpoints=None, device="cpu", progress=None)
        assert len(seen) == 3
        seen[2] = (seen[2][0][2:], seen[2][1])  # without the networks and the splits
        return repr(seen)

    monkeypatch.setattr(networks, "open_data", recorded)
    for name in ("load_zoo", "reassemble"):
        monkeypatch.setattr(execution, name, recorded)
    plain = called()
    for change in CHANGES.split():
        assert called(change) != plain, change
    # the device is read by the command line
    assert {change.partition("=")[0] for change in CHANGES.split()} == leaves(ReassembleConfig) - {"device"}


def test_a_batch_size_of_the_probe_is_refused_with_the_reason():
    (found,) = faults(GOOD + "probe: {batch_size: 64}\n")
    assert found.startswith("line 8: probe: batch_size has never changed anything, and is gone")
    (found,) = faults(GOOD, overrides=("probe.batch_size=64",))
    assert "is gone" in found
