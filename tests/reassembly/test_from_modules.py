"""A network reassembled from modules: saved to a folder named by a text, and loaded with the modules it needs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import netsmith
from netsmith.errors import RecipeError
from netsmith.models import BUILDERS


def modules() -> dict[str, nn.Module]:
    return {
        "plain": BUILDERS["plain_cnn"](widths=[8, 12], depth=2, in_channels=1).eval(),
        "residual": BUILDERS["cifar_resnet20"](widths=[8, 12, 16], in_channels=1).eval(),
    }


def test_what_came_as_modules_is_loaded_with_them(tmp_path):
    networks = [
        netsmith.load_source(module, name=name, input_size=(1, 8, 8), num_classes=10, mean=(0.3,), std=(0.3,))
        for name, module in modules().items()
    ]
    result = netsmith.reassemble(
        networks, netsmith.open_data("digits"), partition={"k": 2, "eps": 1.0, "restarts": 2},
        search={"candidates": 1, "distinct_sets": False}, probe={"images": 16}, stitch={"images": 50},
        score={"images": 50},
    )  # fmt: skip
    netsmith.write_results(result, str(tmp_path))
    needed = "netsmith.load_reassembled(folder, networks={'plain': module, 'residual': module})"
    with pytest.raises(RecipeError) as refusal:
        netsmith.load(tmp_path / "artifact")
    assert needed in str(refusal.value)
    with pytest.raises(RecipeError, match="'residual' was given as a module"):
        netsmith.load_reassembled(tmp_path / "artifact", networks={"plain": modules()["plain"]})
    again = netsmith.load_reassembled(tmp_path / "artifact", networks=modules())
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(again(x), result.module(x))
