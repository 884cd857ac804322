"""One small, sound specimen of everything that Netsmith reads."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save

from netsmith.data.splits import open_data
from netsmith.morphing.pipeline import morph
from netsmith.morphing.sampled import save_sampled
from netsmith.morphing.saving import save_morphed
from netsmith.networks.network import load_source
from netsmith.networks.trained import save_network
from netsmith.reassembly.members import study
from netsmith.reassembly.stitch import assemble, plan_recipe
from netsmith.search.blocks import Block
from netsmith.trace.chain import dissect

CNN = {"widths": [4, 6, 8]}
VIT = {"dim": 12, "depth": 3, "heads": 2, "patch": 4, "pool": "token"}

CONFIGS: dict[str, dict[str, Any]] = {
    "reassemble": {
        "zoo": [
            {"source": "netsmith:cifar_resnet20", "name": "a", "num_classes": 10, "input_size": [1, 8, 8]},
            {"source": "netsmith:small_vit", "mean": [0.5], "std": [0.5], "options": VIT, "licence": "mit"},
            "netsmith:lenet",
        ],
        "pretrained": False,
        "data": {"source": "digits", "size": 8, "validation_fraction": 0.1, "seed": 0},
        "probe": {"images": 64, "grid": 2, "batch_size": 32},
        "similarity": {"metric": "cka", "biased": False},
        "partition": {"k": 3, "eps": 0.2, "size": "units", "restarts": 20},
        "budget": {"params": "0.5M", "macs": {"min": 1000, "max": "3G"}, "latency_ms": 10, "latency_batch": 1},
        "search": {"candidates": 4, "mix": True},
        "stitch": {"style": "auto", "init": "lstsq", "ridge": [0.1, 1.0], "head": "auto", "images": 200},
        "score": {"name": "stitch", "also": ["params"], "images": 100, "finalists": 2},
        "finetune": {"epochs": 2, "batch_size": 64, "lr": 0.01, "schedule": "onecycle", "ema": 0.9, "clip_grad": 1.0},
        "trainable": "all",
        "seed": 1,
        "device": "cpu",
        "precision": "no",
    },
    "morph": {
        "network": {"source": "netsmith:cifar_resnet20", "num_classes": 10, "options": CNN},
        "data": "digits",
        "task": "classification",
        "space": {"blocks": ["all"], "widths": [0.25, 1.0], "streams": False},
        "norms": "fold",
        "order": {"by": "smooth", "solver": "auto", "images": 128},
        "generator": {"kind": "grid", "settings": {"keyframes": [1.0, 0.5], "coarse": 0.125}},
        "fitting": {"draws": ["full", "random"], "per_step": 1, "distillation": 0.5, "views": 2, "cache_mb": 16},
        "training": {"epochs": 1, "batch_size": 32, "lr": 0.03, "mixup": 0.0},
        "ratios": [1.0, 0.5],
        "latency": False,
        "seed": 0,
    },
    "train": {
        "network": "netsmith:lenet",
        "data": {"source": "digits"},
        "task": "classification",
        "training": {"epochs": 2, "batch_size": 64, "optimizer": "adamw", "lr": 0.001, "warmup_epochs": 0.5},
        "device": "auto",
    },
    "zoo": {"networks": ["netsmith:lenet", {"source": "netsmith:cifar_resnet20", "name": "b", "options": CNN}]},
}
"""A config of every kind, with most of its keys."""


@dataclass(frozen=True)
class Specimens:
    """Sound inputs: folders of artifacts by kind, a recipe, files as bytes, and what reports are drawn from."""

    artifacts: dict[str, Path]
    recipe: str
    files: dict[str, bytes]
    reports: dict[str, tuple[Any, Any]]


def make_specimens(folder: Path) -> Specimens:
    """Make them all in an empty folder; takes some ten seconds."""
    torch.manual_seed(0)
    digits = open_data("digits")
    source = "netsmith:plain_cnn"
    plain = load_source(source, input_size=(1, 8, 8), num_classes=10, options={"widths": [8, 12], "depth": 2})
    found = {"network": folder / "network", "morph": folder / "morph", "inr": folder / "inr"}
    save_network(found["network"], plain, counts={"params": 1, "macs": 1}, metrics={"accuracy": 0.5}, config={})
    for kind in ("grid", "inr"):
        settings = {"layers": 2, "hidden": 4, "frequencies": 2, "warm_start": 0} if kind == "inr" else None
        made = morph(plain, digits, training=None, ratios=(0.5,), generator={"kind": kind, "settings": settings or {}})
        save_morphed(made, found["morph" if kind == "grid" else kind])
        if kind == "grid":
            found["sampled"] = folder / "sampled"
            save_sampled(made.model.at(0.5), found["sampled"])
    found["reassembly"] = folder / "reassembly"
    recipe = _reassembled(found["reassembly"])
    return Specimens(found, recipe, _files(), _reports())


def _reassembled(folder: Path) -> str:
    """A reassembly of two tiny networks, put together but not fitted; gives its recipe."""
    size = (3, 16, 16)
    networks = [
        load_source("netsmith:cifar_resnet20", name="residual", num_classes=4, input_size=size, options=CNN),
        load_source("netsmith:small_vit", name="tokens", num_classes=4, input_size=size, options=VIT),
    ]
    parents = study(networks, torch.zeros(1, *size))
    chains = {p.name: dissect(p.network.model, torch.zeros(1, *size), name=p.name) for p in parents}
    blocks = [Block("residual", 0, 4), Block("tokens", 1, 3)]
    recipe = plan_recipe(blocks, chains, {p.name: p.ref for p in parents})
    assemble(recipe, chains).save_pretrained(folder)
    return recipe.to_json()


def _files() -> dict[str, bytes]:
    state = {"conv.weight": torch.zeros(2, 1, 3, 3), "fc.bias": torch.ones(4), "n": torch.tensor(3)}
    zipped, legacy, table = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, zipped)
    torch.save({"state_dict": state, "epoch": 3}, legacy, _use_new_zipfile_serialization=False)
    pictures = [_picture(k, "PNG") for k in range(6)]
    rows = [{"bytes": p, "path": None} for p in pictures]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["no", "yes"]}}
    said = json.dumps({"info": {"features": features}})
    columns = pa.table({"image": rows, "label": [0, 1, 0, 1, 0, 1]}).replace_schema_metadata({"huggingface": said})
    pq.write_table(columns, table)
    return {
        "safetensors": save(state),
        "zip": zipped.getvalue(),
        "legacy": legacy.getvalue(),
        "parquet": table.getvalue(),
        "png": _picture(0, "PNG"),
        "jpeg": _picture(1, "JPEG"),
        "gif": _picture(2, "GIF"),
        "tiff": _picture(3, "TIFF"),
        "webp": _picture(4, "WEBP"),
        "bmp": _picture(5, "BMP"),
    }


def _picture(seed: int, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def _reports() -> dict[str, tuple[Any, Any]]:
    """Summary and details of a reassembly and of a morph: those that the tests of the report draw."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "report"))
    from morph_samples import classification
    from samples import sample

    return {"reassembly": sample(4, candidates=3), "morph": classification()}
