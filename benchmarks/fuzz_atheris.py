"""The readers of texts and headers under coverage-guided mutations: `python benchmarks/fuzz.py --atheris`.

Needs the library atheris, which nothing else here does: `pip install atheris`. Every reader is fuzzed in a process of
its own, beginning with a sound specimen; whatever it raises that is not named ends that process with an error.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

READERS = ("config", "recipe", "safetensors", "legacy", "zip")


def run(inputs: int, seed: int) -> int:
    """So many inputs for each reader; 0 when none of them was a finding."""
    failed = []
    for name in READERS:
        with tempfile.TemporaryDirectory() as corpus:
            words = [sys.executable, __file__, name, corpus, str(inputs), str(seed)]
            done = subprocess.run(words, check=False, capture_output=True, text=True)
        last = [line for line in done.stderr.splitlines() if line.startswith(("Done", "stat", "#"))][-1:]
        print(f"atheris, {name}: {' '.join(last) or done.stderr[-300:]}")
        if done.returncode:
            failed.append(name)
            print(done.stderr[-3000:], file=sys.stderr)
    return 1 if failed else 0


def fuzz_one(name: str, corpus: Path, inputs: int, seed: int) -> None:
    """Fuzz one reader; the process ends here."""
    import atheris  # pyright: ignore[reportMissingImports]

    with atheris.instrument_imports(include=["netsmith", "yaml"]):
        from netsmith.config import load_reassemble_config
        from netsmith.errors import NetsmithError
        from netsmith.files.safetensors_header import check_header
        from netsmith.networks.torch_file import look_through
        from netsmith.reassembly.recipe import Recipe
    from fuzz_specimens import CONFIGS, _files, _reassembled

    from netsmith.files.yaml_text import write_yaml

    scratch = corpus / "input"

    def torch_file(data: bytes) -> None:
        scratch.write_bytes(data)
        look_through(scratch)

    readers = {
        "config": lambda data: load_reassemble_config(data.decode("utf-8", "surrogateescape") + "\n"),
        "recipe": Recipe.from_json,
        "safetensors": lambda data: check_header(data, len(data)),
        "legacy": torch_file,
        "zip": torch_file,
    }
    if name == "config":
        specimen = write_yaml(CONFIGS["reassemble"]).encode()
    elif name == "recipe":
        specimen = _reassembled(corpus.parent / f"{corpus.name}_recipe").encode()
    else:
        specimen = _files()[name]
    seeds = corpus / "seeds"
    seeds.mkdir()
    (seeds / "sound").write_bytes(specimen)

    def one(data: bytes) -> None:
        # what the two headers raise is named by who calls them
        with contextlib.suppress(NetsmithError, ValueError):
            readers[name](data)

    options = [f"-runs={inputs}", f"-seed={seed + 1}", "-max_len=20000", "-rss_limit_mb=4096", str(seeds)]
    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    fuzz_one(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
