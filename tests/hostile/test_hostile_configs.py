"""Configs made to do harm: no tag runs, nothing explodes, absurd numbers are refused before anything is allocated."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from attacks import LIMIT_MB, memory_of, refused, tree

from netsmith.config import load_morph_config, load_reassemble_config, load_train_config
from netsmith.errors import ConfigError, DataError, NetsmithError, SourceError
from netsmith.files.yaml_text import MOST_BYTES, read_yaml
from netsmith.networks.zoo import load_source, load_zoo_file

GOOD = "zoo: [netsmith:lenet, netsmith:small_vit]\ndata: digits\n"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join(['*' + chr(97 + k)] * 10)}]\n" for k in range(9)
)


def config(folder: Path, text: str | bytes) -> Path:
    file = folder / "config.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return file


def both(capsys, folder: Path, text: str | bytes, match: str) -> str:
    """Refused by the function and by every verb that reads such a file."""
    file = config(folder, text)
    before = tree(folder)
    with pytest.raises(ConfigError, match=match):
        load_reassemble_config(file)
    said = refused(capsys, "reassemble", file, "--out", folder / "out", "--plan")
    refused(capsys, "morph", file, "--out", folder / "out")
    refused(capsys, "train", file, "--out", folder / "out")
    refused(capsys, "zoo", "check", file)
    assert tree(folder) == before
    return said


@pytest.mark.parametrize(
    "tag",
    [
        '!!python/object/apply:os.system ["touch {canary}"]',
        '!!python/object/new:os.system ["touch {canary}"]',
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/object/apply:subprocess.check_call [[touch, '{canary}']]",
        "!!binary aGk=",
        "!!timestamp 2020-01-01",
        "!own x",
        "!!set {{a}}",
    ],
)
def test_tags_are_refused_and_nothing_runs(tmp_path, capsys, tag):
    canary = tmp_path / "canary"
    both(capsys, tmp_path, GOOD + f"x: {tag.format(canary=canary)}\n", "the tag .* is refused")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (LAUGHS, "its aliases expand to more than 20000 values"),
        ("x: [" + "a," * 400_000 + "a]", "expected at most 200000"),
        (GOOD + "x: &x [*x]\n", "an alias contains itself"),
        (GOOD + "x: &x {<<: *x}\n", "an alias contains itself"),
        ("[" * 10_000, "nested too deeply|no YAML"),
        ("{a: " * 10_000, "nested too deeply|no YAML"),
        ("- " * 5000 + "x", "nested too deeply|no YAML"),
        (GOOD + "data: digits\n", "this key is there twice, first in line 2"),
        (GOOD + "seed: " + "9" * 5000, "is no int"),
        (GOOD + "seed: 99999999999999999999", "at most 9223372036854775807"),
        (GOOD + "seed: 1e999", "whole number|finite"),
        (GOOD + 'x: "\\ud800"', "no Unicode"),
        (GOOD + 'device: "\\ud800"', "no Unicode"),
        (GOOD + '"\\ud800": 1', "no Unicode"),
        (GOOD + "x: \x00", "no YAML"),
        (b"\xff\xfe" + GOOD.encode(), "not UTF-8"),
        (b"zoo: \xff", "not UTF-8"),
        ("x" * (MOST_BYTES + 1), f"expected at most {MOST_BYTES}"),
        ("---\na: 1\n---\nb: 2\n", "no YAML"),
        ("%YAML 9.9\n---\na: 1", "no YAML"),
    ],
    ids=lambda v: None if isinstance(v, bytes) or len(v) > 40 else v,
)
def test_texts_that_are_no_configs_are_refused_in_a_line(tmp_path, capsys, text, match):
    began = time.monotonic()
    said = both(capsys, tmp_path, text, match)
    assert len(said) < 2000
    assert time.monotonic() - began < 60


def test_a_hundred_megabytes_are_refused_unread(tmp_path, capsys):
    file = tmp_path / "config.yaml"
    with file.open("wb") as out:
        out.truncate(100 << 20)
    with pytest.raises(ConfigError, match="104857600 bytes, expected at most 200000"):
        load_reassemble_config(file)
    refused(capsys, "reassemble", file, "--out", tmp_path / "out")
    with pytest.raises(ConfigError, match="expected at most"):
        load_reassemble_config(Path("/dev/zero"))


ABSURD = {
    "reassemble": [
        ("probe: {images: 1000000000}", "probe.images: expected a whole number of at most 50000, got 1000000000"),
        ("probe: {batch_size: 1000000000}", "probe: batch_size has never changed anything, and is gone"),
        ("probe: {grid: 1000000000}", "probe.grid"),
        ("partition: {k: 1000000000}", "partition.k: expected a whole number of at most 1000"),
        ("partition: {restarts: 1000000000}", "partition.restarts"),
        ("partition: {eps: .inf}", "partition.eps"),
        ("search: {candidates: 1000000000}", "search.candidates: expected a whole number of at most 100000"),
        ("stitch: {images: 1000000000}", "stitch.images"),
        ("stitch: {ridge: [.nan]}", "stitch.ridge"),
        ("score: {images: 1000000000}", "score.images"),
        ("score: {finalists: 1000000000}", "finalists"),
        ("finetune: {epochs: 1000000000}", "finetune.epochs: expected a whole number of at most 1000000"),
        ("finetune: {batch_size: 1000000000}", "finetune.batch_size"),
        ("finetune: {lr: .nan}", "finetune.lr"),
        ("finetune: {lr: 1e999}", "finetune.lr"),
        ("finetune: {lr: -1}", "finetune.lr"),
        ("budget: {params: 1e999}", "budget.params"),
        ("budget: {params: -1}", "budget.params"),
        ("budget: {latency_batch: 1000000000}", "latency_batch"),
        ("data: {source: digits, size: 1000000000}", "data.size: expected a whole number of at most 16384"),
        ("data: {source: digits, validation_fraction: .nan}", "validation_fraction"),
        ("seed: -1", "seed"),
        ("device: 'cuda:99999999999999999999'", "device"),
        ("device: 'cuda:300'", "device: expected auto, cpu, cuda, cuda:N or mps, got 'cuda:300'"),
        ("device: 'cuda:²'", "device: expected"),
        ("device: meta", "device: expected auto, cpu, cuda, cuda:N or mps, got 'meta'"),
        ("device: vulkan", "device: expected"),
        ("zoo: [{source: netsmith:lenet, input_size: [3, 1000000000, 1000000000]}, netsmith:small_vit]", "input_size"),
        ("zoo: [{source: netsmith:lenet, num_classes: 1000000000}, netsmith:small_vit]", "num_classes"),
        ("zoo: [{source: netsmith:lenet, mean: [.nan]}, netsmith:small_vit]", "mean"),
        ('zoo: ["timm:\\e[31mred\\0", netsmith:lenet]', "zoo.0"),
        ('data: "folder:a\\0b"', "holds the character"),
        (f"data: folder:{'a' * 5000}", "too long"),
        ("data: folder:~nobody-of-that-name/x", "home directory|nobody"),
    ],
    "morph": [
        ("space: {widths: [1, 1000000000]}", "a width is at most 1048576"),
        ("space: {widths: [0.5, 1000000000.0]}", "a width is at most"),
        ("space: {widths: [-1, 2]}", "a width must be above 0"),
        ("order: {images: 1000000000}", "order.images"),
        ("fitting: {per_step: 1000000000}", "fitting.per_step"),
        ("fitting: {views: 1000000000}", "fitting.views"),
        ("fitting: {temperature: .inf}", "fitting.temperature"),
        ("ratios: [1000000000.0]", "ratios go up to 8"),
        ("ratios: [.nan]", "ratios"),
        ("training: {batch_size: 1000000000}", "training.batch_size"),
    ],
    "train": [
        ("training: {epochs: 1000000000}", "training.epochs"),
        ("training: {accumulate: 1000000000}", "training.accumulate"),
        ("training: {weight_decay: .inf}", "training.weight_decay"),
        ("training: {warmup_epochs: .nan}", "training.warmup_epochs"),
    ],
}
BASE = {
    "reassemble": ("zoo: [netsmith:lenet, netsmith:small_vit]", "data: digits"),
    "morph": ("network: netsmith:lenet", "data: digits"),
    "train": ("network: netsmith:lenet", "data: digits"),
}
LOADERS = {"reassemble": load_reassemble_config, "morph": load_morph_config, "train": load_train_config}


@pytest.mark.parametrize(
    ("verb", "line", "match"), [(verb, *case) for verb, cases in ABSURD.items() for case in cases], ids=lambda v: v[:40]
)
def test_absurd_numbers_are_refused_with_what_came_and_what_is_allowed(tmp_path, capsys, verb, line, match):
    lines = [given for given in BASE[verb] if given.partition(":")[0] != line.partition(":")[0]]
    text = "\n".join([*lines, line]) + "\n"
    with pytest.raises(ConfigError, match=match):
        LOADERS[verb](config(tmp_path, text))
    before = tree(tmp_path)
    said = refused(capsys, verb, tmp_path / "config.yaml", "--out", tmp_path / "out")
    assert "line " in said
    assert not any(ord(c) < 32 and c not in "\n\t" for c in said), "a control character reached the terminal"
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "text", ["probe.images=1000000000", "seed=1e999", "data.size=.nan", "x=!!python/name:os.system", "device=meta"]
)
def test_overrides_are_held_to_the_same(tmp_path, capsys, text):
    file = config(tmp_path, GOOD)
    with pytest.raises(ConfigError, match="--set"):
        load_reassemble_config(file, [text])
    assert "--set" in refused(capsys, "reassemble", file, "--out", tmp_path / "out", "--set", text)


@pytest.mark.parametrize("text", ["zoo.²=x", "zoo.99999999999999999999=x", "zoo.٣.source=x", "a" + ".a" * 3000 + "=1"])
def test_odd_keys_of_overrides_are_refused(tmp_path, text):
    with pytest.raises(ConfigError):
        load_reassemble_config(config(tmp_path, GOOD), [text])


def test_zoo_files_alike(tmp_path, capsys):
    for line, match in [
        ("networks: [!!python/name:os.system '']", "the tag"),
        (LAUGHS + "networks: *j\n", "its aliases expand"),
        ("networks: [{source: netsmith:lenet, input_size: [1, 1000000000, 1]}]", "at most 4096 channels, 16384 pixels"),
        ('networks: ["netsmith:lenet#a\\0b"]', "holds the character"),
        ('networks: ["../../etc/passwd"]', "neither a source"),
    ]:
        with pytest.raises(ConfigError, match=match):
            load_zoo_file(config(tmp_path, line))
        refused(capsys, "zoo", "check", tmp_path / "config.yaml")


OPTIONS = [
    ("netsmith:cifar_resnet20", {"widths": [10**9, 10**9, 10**9]}),
    ("netsmith:plain_cnn", {"widths": [300_000, 300_000]}),
    ("netsmith:plain_cnn", {"depth": 900_000, "widths": [8]}),
    ("netsmith:small_vit", {"depth": 10**9}),
    ("netsmith:small_vit", {"dim": 10**6}),
    ("timm:vit_tiny_patch16_224", {"depth": 10**9}),
    ("timm:vit_tiny_patch16_224", {"embed_dim": 900_000}),
    ("timm:resnet18", {"layers": [10**9, 1, 1, 1]}),
    ("torchvision:resnet18", {"width_per_group": 10**9}),
    ("netsmith:lenet", {"num_classes": -1}),
    ("netsmith:lenet", {"num_classes": float("nan")}),
    ("netsmith:lenet", {"num_classes": [[[[10**9]]]]}),
]


@pytest.mark.slow
def test_absurd_networks_are_refused_within_the_memory_that_is_promised():
    rose, out = memory_of(
        f"""
        from netsmith.networks.zoo import load_source, describe_source, ZooEntry
        from netsmith.errors import SourceError
        import warnings, os
        warnings.simplefilter('ignore')
        os.environ['NETSMITH_MEMORY'] = '16'
        for source, options in {OPTIONS!r}:
            for read in (lambda: load_source(source, pretrained=False, options=options),
                         lambda: describe_source(ZooEntry(source=source, options=options), pretrained=False)):
                try:
                    read()
                    print('built', source, options)
                except SourceError as error:
                    assert source.partition(':')[2].partition('.')[0] in str(error), error
        """.replace("float('nan')", "nan").replace("nan", "float('nan')"),
    )
    assert "built" not in out, out
    assert rose < LIMIT_MB, f"{rose} MB"


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_options_by_which_a_library_would_read_files_are_refused(tmp_path, option):
    with pytest.raises(SourceError, match=f"the option '{option}' reads files unchecked"):
        load_source("timm:resnet18", pretrained=False, options={option: str(tmp_path / "x.pth")})


def test_sizes_of_python_calls_are_held_to_the_same():
    from netsmith.data.splits import open_data

    with pytest.raises(DataError, match="at most 16384, not 1000000000"):
        open_data("digits", size=10**9)
    for size in [(3, 10**9, 10**9), (10**9, 1, 1), (4096, 16384, 16384), (0, 1, 1), (-1, 3, 3)]:
        with pytest.raises(SourceError, match="input_size is"):
            load_source("netsmith:lenet", input_size=size)
    with pytest.raises(SourceError, match="num_classes is a number from 0 to 1000000"):
        load_source("netsmith:lenet", num_classes=10**9)


@pytest.mark.parametrize(
    "words",
    [
        ("dissect", "netsmith:lenet", "--input-size", "1x1000000000x1000000000"),
        ("dissect", "netsmith:lenet", "--input-size", "99999999999999999999"),
        ("dissect", "netsmith:lenet@1e9"),
        ("dissect", "a" * 5000),
        ("dissect", "netsmith:\x1b[31m"),
        ("compare", "netsmith:lenet", "x\ty", "--data", "digits"),
        ("evaluate", "netsmith:lenet", "--data", "digits", "--size", "1000000000"),
        ("evaluate", "netsmith:lenet", "--data", "folder:" + "a" * 5000),
        ("evaluate", "netsmith:lenet", "--data", "folder:~nobody-of-that-name"),
        ("report", "/dev/null"),
    ],
    ids=lambda w: " ".join(w)[:40],
)
def test_absurd_words_on_the_command_line_are_refused(capsys, words):
    said = refused(capsys, *words)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in said), "a control character reached the terminal"


def test_every_error_is_one_of_ours():
    """What `attacks.refused` relies on: named errors alone become messages."""
    assert issubclass(ConfigError, NetsmithError)
    assert not read_yaml(GOOD).faults
    assert os.environ.get("NETSMITH_DEBUG", "") in ("", "0")
