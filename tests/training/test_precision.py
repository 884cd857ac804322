"""`precision: auto`: bfloat16 where it is faster, the same choice every time, kept by a run that goes on."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from netsmith.config import load_morph_config, load_reassemble_config, load_train_config
from netsmith.data.images import MemoryImages
from netsmith.errors import TrainingError
from netsmith.models import BUILDERS
from netsmith.networks.preprocess import Preprocess, remember
from netsmith.training import precision as module
from netsmith.training.engine import TrainSettings, evaluate, train
from netsmith.training.precision import automatic, relative_time
from netsmith.training.tasks import Classification

TASK = Classification(3)


def images(n: int = 24) -> MemoryImages:
    pixels = torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    return MemoryImages(pixels, torch.arange(n) % 3, ("a", "b", "c"))


def telling(network: nn.Module) -> nn.Module:
    """The network, which says that it takes values as they are."""
    remember(network, Preprocess((0.0,) * 3, (1.0,) * 3, (3, 8, 8)))
    return network


def wide() -> nn.Module:
    """A network whose one convolution is large enough to gain from bfloat16 at a batch of 8."""
    return telling(
        nn.Sequential(
            nn.Conv2d(3, 600, 7, padding=3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(600, 3)
        )
    )


def settings(**changes: object) -> TrainSettings:
    return TrainSettings.model_validate({"epochs": 1, "batch_size": 8, "lr": 0.001, **changes})


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Sets by how much a convolution's time changes in a 16-bit type on this processor."""

    def has(relative: float) -> None:
        monkeypatch.setattr(module, "_of_a_convolution", lambda kind: relative)

    return has


@pytest.mark.parametrize(("relative", "chosen"), [(0.5, "bf16"), (12.0, "no")])
def test_auto_is_the_faster_of_the_two(processor, relative, chosen):
    processor(relative)
    assert train(wide().eval(), (images(), images(9)), TASK, settings(batch_size=24)).precision == chosen


@pytest.mark.parametrize(
    ("name", "size", "options", "batch", "chosen"),
    [
        ("cifar_resnet20", (3, 32, 32), {}, 128, "bf16"),
        ("small_vit", (3, 32, 32), {"depth": 5}, 64, "bf16"),
        ("cifar_resnet20", (3, 32, 32), {}, 1, "no"),  # casting costs more than the products of one image gain
        ("lenet", (1, 28, 28), {}, 128, "no"),
        ("separable_cnn", (3, 32, 32), {}, 128, "no"),  # depthwise: few products for each number
        ("cifar_resnet20", (1, 8, 8), {"widths": [12, 24, 48], "in_channels": 1}, 64, "no"),
    ],
)
def test_small_and_depthwise_networks_stay_in_float32(processor, name, size, options, batch, chosen):
    processor(0.5)
    network = BUILDERS[name](**options).eval()
    assert automatic(network, torch.rand(2, *size), batch) == chosen


def test_defaults_are_auto_and_a_config_fills_what_a_section_leaves_open():
    assert TrainSettings().precision == "auto"
    assert load_train_config({"network": "netsmith:lenet", "data": "digits"}).precision == "auto"
    zoo = ["netsmith:lenet", "netsmith:plain_cnn"]
    for training, wanted in (({}, "no"), ({"precision": "bf16"}, "bf16")):
        text = {"network": "netsmith:lenet", "data": "digits", "training": training, "precision": "no", "seed": 5}
        for config in (load_train_config(text), load_morph_config(text)):
            assert config.training is not None
            assert config.filled(config.training, "precision").precision == wanted
        tuned = load_reassemble_config({"zoo": zoo, "data": "digits", "finetune": training, "precision": "no"})
        assert tuned.finetune is not None
        assert tuned.filled(tuned.finetune, "seed", "precision").precision == wanted


def test_a_run_that_goes_on_keeps_the_precision_it_began_with(processor, tmp_path):
    processor(0.5)
    chosen, data = settings(epochs=3, batch_size=24), (images(), images(9))

    def stop(what: str, done: float, total: float | None, note: str = "") -> None:
        if done == 2:
            raise KeyboardInterrupt

    def network() -> nn.Module:
        torch.manual_seed(0)
        return wide()

    whole = train(network(), data, TASK, chosen)
    with pytest.raises(KeyboardInterrupt):
        train(network(), data, TASK, chosen, checkpoint_dir=tmp_path, progress=stop)
    processor(12.0)  # as if it went on elsewhere
    result = train(network(), data, TASK, chosen, checkpoint_dir=tmp_path)
    assert result.resumed_from > 0
    assert (result.precision, result.history) == ("bf16", whole.history)
    assert train(network(), data, TASK, chosen, checkpoint_dir=tmp_path, resume=False).precision == "no"


def test_a_slower_precision_is_used_and_said(processor, caplog):
    processor(12.0)
    with caplog.at_level(logging.WARNING, logger="netsmith"):
        result = train(wide(), (images(), images(9)), TASK, settings(precision="bf16"))
    assert result.precision == "bf16"
    assert caplog.messages == [
        "precision bf16 takes 12.0 times as long as float32 on cpu; precision: auto takes the faster of the two"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="netsmith"):
        evaluate(wide(), images(9), TASK, precision="bf16")
        train(wide(), (images(), images(9)), TASK, settings(precision="no"))
    assert len(caplog.messages) == 1


def test_timing_a_precision_changes_nothing(processor):
    processor(0.9)
    results = []
    for noise in (0.9, 0.8):
        processor(noise)
        torch.manual_seed(0)
        network = telling(nn.Sequential(wide(), nn.Dropout(0.2), nn.Linear(3, 3)))
        results.append(train(network, (images(), images(9)), TASK, settings(precision="bf16")).history)
        assert all(p.grad is None for p in network.parameters())
    assert results[0] == results[1]


def test_evaluation_is_in_float32_unless_asked(processor):
    processor(0.5)
    network = wide()
    exact, fast = evaluate(network, images(9), TASK), evaluate(network, images(9), TASK, precision="auto")
    assert fast == evaluate(network, images(9), TASK, precision="bf16") != exact
    processor(12.0)
    assert evaluate(network, images(9), TASK, precision="auto") == exact == evaluate(network, images(9), TASK)


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(TrainingError, match="precision 'fp16' needs a GPU: precision: auto works everywhere"):
        train(wide(), (images(), images(9)), TASK, settings(precision="fp16"))


def test_a_processor_without_bfloat16_is_measured_as_such():
    """oneDNN is told to use older instructions, as a processor that has no others."""
    code = "import torch; from netsmith.training.precision import _of_a_convolution as f; print(f(torch.bfloat16))"
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=limited, capture_output=True, text=True, check=True)
    assert float(found.stdout) > 1


def test_a_step_is_timed_in_both(processor):
    processor(0.5)
    assert 0 < relative_time(wide(), torch.rand(2, 3, 8, 8), "bf16") < 1000
