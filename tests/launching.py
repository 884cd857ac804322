"""Runs of the command line in processes of their own: alone, under torchrun, killed on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "NETSMITH_DEBUG": "", "TOKENIZERS_PARALLELISM": "false"}

REASSEMBLE = """
zoo:
  - {source: "netsmith:cifar_resnet20", name: residual, num_classes: 10, input_size: [1, 8, 8],
     options: {widths: [8, 16, 32]}}
  - {source: "netsmith:small_vit", name: vit, num_classes: 10, input_size: [1, 8, 8], options: {dim: 24, depth: 4}}
  - {source: "netsmith:plain_cnn", name: plain, num_classes: 10, input_size: [1, 8, 8]}
pretrained: false
data: digits
device: cpu
probe: {images: 64}
partition: {k: 2, eps: 0.5, restarts: 20}
budget: {params: 150k}
search: {candidates: 6, distinct_sets: false}
stitch: {images: 200}
score: {also: [params, naswot], finalists: 2}
finetune: {epochs: 2, batch_size: BATCH, lr: 0.01, warmup_epochs: 0, augment: true}
"""

MORPH = """
network: {source: "netsmith:plain_cnn", name: tiny, num_classes: 10, input_size: [1, 8, 8],
          options: {widths: [8, 12], depth: 1}}
weights: WEIGHTS
data: digits
device: cpu
training: {epochs: 2, batch_size: BATCH, lr: 0.02, augment: true}
ratios: [1.0, 0.5, 0.25]
"""


def netsmith(*words: object, processes: int = 1, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """One command line, to its end."""
    return subprocess.run(
        command(*words, processes=processes), capture_output=True, text=True, check=False, cwd=cwd, env=environment()
    )


def command(*words: object, processes: int = 1) -> list[str]:
    """Its words, launched by torchrun where there are several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *(launcher if processes > 1 else []), "-m", "netsmith", *map(str, words)]


def environment() -> dict[str, str]:
    """One thread a process."""
    return {**os.environ, **ENVIRONMENT}
