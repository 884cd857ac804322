"""What the hostile tests share: canaries, the command line as a user meets it, and a memory limit."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netsmith.artifacts import artifact
from netsmith.cli.main import main

LIMIT_MB = 1024
"""Memory that any refusal may take beyond what importing the library takes; `docs/hostile-input.md` promises it."""


class Canary:
    """A pickle of this runs a shell command that makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.file}'",))


def refused(capsys: Any, *words: object) -> str:
    """The one message of a command line that must end with code 2, without a traceback."""
    code = main([str(w) for w in words])
    out = capsys.readouterr()
    assert code == 2, f"exit code {code}: {out.out}{out.err}"
    assert "Traceback" not in out.err + out.out
    assert out.err.strip(), "no message came"
    return out.err


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file under a folder with size and time: what must not change."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns)
        for p in folder.rglob("*")
        if not p.is_dir()
    }


def resign(folder: Path, change: Any = None) -> dict[str, Any]:
    """Change a manifest and give it the hash that belongs to it, as somebody with intent would."""
    record = json.loads((folder / "manifest.json").read_text())
    if change is not None:
        record = change(record) or record
    for name in record.get("files", {}) if isinstance(record.get("files"), dict) else ():
        if isinstance(name, str) and "\0" not in name and len(name) < 200 and (folder / name).is_file():
            data = (folder / name).read_bytes()
            if isinstance(record["files"][name], dict) and record["files"][name].get("resign", True):
                record["files"][name].update(bytes=len(data), sha256=artifact.hashlib.sha256(data).hexdigest())
    record["sha256"] = artifact._manifest_hash(record)
    (folder / "manifest.json").write_text(json.dumps(record))
    return record


def safetensors_bytes(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header, and any length claimed for it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def memory_of(code: str, *, address_space_gb: int | None = None) -> tuple[int, str]:
    """Runs Python code in a process of its own: MB that its peak rose above the imports', and what it printed.

    The code follows the imports of the library; the process has one thread.
    """
    program = textwrap.dedent(
        """
        import resource, sys
        import torch, numpy, netsmith, netsmith.networks.zoo, netsmith.data.splits, netsmith.config, netsmith.cli.main
        import netsmith.reassembly.saving, netsmith.morphing.saving, netsmith.morphing.sampled
        torch.set_num_threads(1)
        torch.nn.Conv2d(3, 8, 3)(torch.zeros(1, 3, 8, 8))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        """
    )
    if address_space_gb is not None:
        program += f"resource.setrlimit(resource.RLIMIT_AS, ({address_space_gb} << 30,) * 2)\n"
    program += textwrap.dedent(code)
    program += "\nprint('MB', (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    out, _, rose = done.stdout.rpartition("MB ")
    print(f"rose by {int(rose)} MB")  # for the table in docs/hostile-input.md: pytest -rP
    return int(rose), out + done.stderr
