"""What is fuzzed: for every kind of input, how one is made, and the public function that reads it."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_changes import ATOMS, as_json, changed, changed_bytes, changed_safetensors, changed_text
from fuzz_made import made_config
from fuzz_specimens import CONFIGS, Specimens

import netsmith
from netsmith.artifacts import artifact
from netsmith.cli.main import main as command_line
from netsmith.config import load_morph_config, load_reassemble_config, load_train_config
from netsmith.data.splits import open_data
from netsmith.errors import NetsmithError
from netsmith.files.yaml_text import write_yaml
from netsmith.networks.weights import load_weights_file
from netsmith.networks.zoo import describe_source, load_source, load_zoo_file
from netsmith.reassembly.recipe import Recipe
from netsmith.report import write_report

LOADERS: dict[str, Callable[..., Any]] = {
    "reassemble": load_reassemble_config,
    "morph": load_morph_config,
    "train": load_train_config,
}


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    name: str
    make: Callable[[random.Random], Any]
    run: Callable[[Any], Any]


def targets(specimens: Specimens, work: Path) -> dict[str, Target]:
    """All of them; `work` is an empty folder for files."""
    work.mkdir(parents=True)
    every = [
        Target("config", _config, lambda made: LOADERS[made[0]](made[1])),
        Target("config text", _config_text, lambda made: LOADERS[made[0]](made[1] + "\n")),
        Target("overrides", _overrides, lambda made: LOADERS[made[0]](copy.deepcopy(CONFIGS[made[0]]), made[1])),
        Target("made config", made_config, lambda made: LOADERS[made[0]](made[1])),
        Target("zoo file", _zoo_text, lambda made: _zoo_file(made, work)),
        Target("manifest", lambda rng: _manifest(rng, specimens), lambda made: _load(made, specimens, work)),
        Target("recipe", lambda rng: _recipe(rng, specimens), Recipe.from_json),
        Target("safetensors", lambda rng: changed_safetensors(specimens.files["safetensors"], rng), _weights(work)),
        Target("checkpoint", lambda rng: _checkpoint(rng, specimens), _weights(work, "pth")),
        Target("image", lambda rng: _image(rng, specimens), lambda made: _folder(made, work)),
        Target(
            "parquet", lambda rng: changed_bytes(specimens.files["parquet"], rng), lambda made: _parquet(made, work)
        ),
        Target("report", lambda rng: _report(rng, specimens), lambda made: _write_report(made, work)),
        Target("command line", lambda rng: _words(rng, specimens, work), _command),
    ]
    return {target.name: target for target in every}


# --- configs ----------------------------------------------------------------------------------------------------------


def _config(rng: random.Random) -> tuple[str, Any]:
    kind = rng.choice(list(LOADERS))
    value = changed(CONFIGS[kind], rng)
    return kind, value if isinstance(value, dict) else {"zoo": value}


def _yaml(value: Any) -> str:
    try:
        return write_yaml(value)
    except Exception:  # it is a text that is wanted, whatever is in it
        return as_json(value)


def _config_text(rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(list(LOADERS))
    value = changed(CONFIGS[kind], rng) if rng.random() < 0.5 else CONFIGS[kind]
    return kind, changed_text(_yaml(value), rng)


def _overrides(rng: random.Random) -> tuple[str, list[str]]:
    kind = rng.choice(list(LOADERS))
    keys = ["seed", "data", "data.size", "zoo.0.source", "network.options.a", "partition.k", "training.lr", "ratios.1"]
    found = []
    for _ in range(rng.choice((1, 1, 3))):
        key, value = rng.choice(keys), rng.choice(ATOMS)
        text = f"{key}={as_json(value) if rng.random() < 0.5 else value}"
        found.append(changed_text(text, rng) if rng.random() < 0.6 else text)
    return kind, found


def _zoo_text(rng: random.Random) -> bytes:
    text = _yaml(changed(CONFIGS["zoo"], rng))
    data = (changed_text(text, rng) if rng.random() < 0.5 else text).encode("utf-8", "surrogatepass")
    return changed_bytes(data, rng) if rng.random() < 0.3 else data


def _zoo_file(data: bytes, work: Path) -> None:
    (work / "zoo.yaml").write_bytes(data)
    load_zoo_file(work / "zoo.yaml")


# --- artifacts and recipes --------------------------------------------------------------------------------------------


def _manifest(rng: random.Random, specimens: Specimens) -> tuple[str, str]:
    kind = rng.choice(list(specimens.artifacts))
    record = json.loads((specimens.artifacts[kind] / "manifest.json").read_text())
    part = rng.choice([k for k in record if k not in ("versions", "sha256")])
    if rng.random() < 0.7:  # the parts that build the network, more often than not
        part = rng.choice([k for k in ("recipe", "base", "space", "generator", "groups", "widths", "source", "options",
                                       "preprocess", "files", "provenance", "folded") if k in record])  # fmt: skip
    record = {**record, part: changed({part: record[part]}, rng)}
    if isinstance(record[part], dict) and part in record[part]:
        record[part] = record[part][part]
    if rng.random() < 0.2:
        record = changed(record, rng)
    if isinstance(record, dict) and rng.random() < 0.98:
        with contextlib.suppress(Exception):  # what cannot be hashed goes without
            record["sha256"] = artifact._manifest_hash(record)
    text = as_json(record)
    return kind, changed_text(text, rng) if rng.random() < 0.05 else text


def _load(made: tuple[str, str], specimens: Specimens, work: Path) -> None:
    kind, text = made
    folder = work / kind
    if not folder.exists():
        shutil.copytree(specimens.artifacts[kind], folder)
    (folder / "manifest.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    describe_source(str(folder))
    if hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0] % 2:
        load_source(str(folder))
    else:
        netsmith.load(folder)


def _recipe(rng: random.Random, specimens: Specimens) -> str:
    text = as_json(changed(json.loads(specimens.recipe), rng))
    return changed_text(text, rng) if rng.random() < 0.2 else text


# --- weights, images, tables ------------------------------------------------------------------------------------------


def _weights(work: Path, ending: str = "safetensors") -> Callable[[bytes], Any]:
    def run(data: bytes) -> None:
        (work / f"w.{ending}").write_bytes(data)
        load_weights_file(work / f"w.{ending}")

    return run


def _checkpoint(rng: random.Random, specimens: Specimens) -> bytes:
    return changed_bytes(specimens.files[rng.choice(("zip", "legacy"))], rng)


def _image(rng: random.Random, specimens: Specimens) -> tuple[str, bytes]:
    kind = rng.choice(("png", "jpeg", "gif", "tiff", "webp", "bmp"))
    return kind, changed_bytes(specimens.files[kind], rng)


def _folder(made: tuple[str, bytes], work: Path) -> None:
    folder = work / "images"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(3):
            if not (folder / name / f"{k}.png").exists():
                _sound(folder / name / f"{k}.png")
    target = folder / "a" / f"changed.{made[0]}"
    for old in (folder / "a").glob("changed.*"):
        old.unlink()
    target.write_bytes(made[1])
    open_data(f"folder:{folder}", size=8)


def _sound(path: Path) -> None:
    from PIL import Image

    Image.new("L", (8, 8), 3).save(path)


def _parquet(data: bytes, work: Path) -> None:
    (work / "t.parquet").write_bytes(data)
    open_data(f"parquet:{work / 't.parquet'}", validation_fraction=0.3)


# --- reports and the command line -------------------------------------------------------------------------------------


def _report(rng: random.Random, specimens: Specimens) -> tuple[str, str]:
    summary, details = specimens.reports[rng.choice(list(specimens.reports))]
    if rng.random() < 0.3:
        return as_json(changed(summary, rng)), as_json(details)
    return as_json(summary), as_json(changed(details, rng))


def _write_report(made: tuple[str, str], work: Path) -> None:
    folder = work / "run"
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(made[0])
    (folder / "details.json").write_text(made[1])
    write_report(folder)


def _words(rng: random.Random, specimens: Specimens, work: Path) -> list[str]:
    odd = [str(a) for a in ATOMS if isinstance(a, str | int | float) and "\0" not in str(a)]
    morph = str(specimens.artifacts["morph"])
    (work / "config.yaml").write_bytes(_config_text(rng)[1].encode("utf-8", "replace"))
    lines: list[list[str]] = [
        ["sample", morph, f"--{rng.choice(('ratio', 'params', 'macs', 'width'))}", rng.choice(odd), "--out", "{out}"],
        ["sample", morph, "--ratio", "0.5", "--reads", rng.choice(odd), "--noise", rng.choice(odd), "--out", "{out}"],
        ["dissect", rng.choice((f"{morph}@{rng.choice(odd)}", *odd))],
        ["dissect", "netsmith:lenet", "--input-size", rng.choice((*odd, "1x1000000x1000000", "99999"))],
        ["reassemble", str(work / "config.yaml"), "--out", "{out}", "--plan"],
        ["morph", str(work / "config.yaml"), "--out", "{out}", "--plan"],
        ["zoo", "check", str(work / "config.yaml"), "--offline"],
        ["report", rng.choice((str(work), *odd))],
        ["evaluate", "netsmith:lenet", "--data", rng.choice(odd), "--batch", rng.choice(odd)],
        ["presets", "copy", rng.choice(odd)],
        [rng.choice(odd), rng.choice(odd)],
    ]
    return [word.replace("{out}", str(work / "out")) for word in rng.choice(lines)]


def _command(words: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line(words)
    place = Path(words[words.index("--out") + 1]) if "--out" in words else None
    if place is not None and place.is_dir():
        shutil.rmtree(place)
    if "Traceback" in err.getvalue():
        raise AssertionError(err.getvalue())
    if code == 2 and err.getvalue().strip():
        raise NetsmithError(err.getvalue())
    if code != 0:
        raise AssertionError(f"exit code {code}: {err.getvalue()}")
