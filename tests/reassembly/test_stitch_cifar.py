"""The real check: blocks of trained CIFAR ResNets, stitched without a gradient step, judged on validation images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from netsmith.data.splits import open_data, probe_set
from netsmith.networks.network import load_source
from netsmith.reassembly.probe import Probe, ProbeCache
from netsmith.reassembly.recipe import InputSpec, NetworkRef
from netsmith.reassembly.stitch import assemble, plan_recipe, recipe_cost
from netsmith.search.blocks import Block
from netsmith.trace.chain import dissect

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_blocks_of_two_trained_networks_reach_80_percent_below_half_a_million_parameters(
    shared_data: Path, shared_zoo: Path
):
    splits = open_data(f"parquet:{shared_data}")
    networks = {}
    for depth in (20, 32):
        file = shared_zoo / f"resnet{depth}_cifar10_jpeg.safetensors"
        networks[f"resnet{depth}"] = load_source(f"netsmith:cifar_resnet{depth}#{file}", mean=MEAN, std=STD)
    chains = {n: dissect(net.model, torch.zeros(1, 3, 32, 32), name=n) for n, net in networks.items()}
    spec = InputSpec(MEAN, STD, (3, 32, 32))
    references = {n: NetworkRef(n, net.source, net.provenance.sha256, 10, spec) for n, net in networks.items()}
    images, labels = probe_set(splits, 600)
    cache, probe = ProbeCache(), Probe(images, labels, {n: net.preprocess for n, net in networks.items()})
    accuracy = {}
    for style in ("linear", "conv3"):
        recipe = plan_recipe([Block("resnet20", 0, 6), Block("resnet32", 10, 15)], chains, references, style=style)
        assert recipe_cost(recipe, chains)[0] < 500_000
        net = assemble(recipe, chains, init="lstsq", probe=probe, cache=cache)
        right = 0
        for start in range(0, 1000, 250):
            chosen = torch.arange(start, start + 250)
            with torch.no_grad():
                out = net(networks["resnet20"].preprocess(splits.validation.images(chosen)))
            right += int((out.argmax(1) == splits.validation.labels[chosen]).sum())
        accuracy[style] = right / 1000
    assert accuracy["linear"] > 0.80
    assert accuracy["conv3"] > accuracy["linear"]
