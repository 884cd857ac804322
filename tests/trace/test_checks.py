"""Networks that do not run, or not as they are: one error each, with the cause and the way out."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netsmith
from netsmith.data.images import MemoryImages
from netsmith.errors import NetsmithError, TrainingError
from netsmith.trace.checks import explained, original
from netsmith.trace.cost import count_macs, measure_latency, memory_bytes

SHAPE = (3, 8, 8)
X = torch.randn(2, *SHAPE)


def plain_cnn() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1)]
    for _ in range(5):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def loaded(model: nn.Module) -> netsmith.Network:
    return netsmith.load_source(model, input_size=SHAPE, mean=[0.0] * 3, std=[1.0] * 3)


def exported(model: nn.Module) -> object:
    return netsmith.export(model, Path("never.pt2"), input_shape=SHAPE)


RUNS: dict[str, Callable[[nn.Module], Any]] = {
    "dissect": lambda m: netsmith.dissect(m, X),
    "width_groups": lambda m: netsmith.width_groups(m, X),
    "fold_batch_norms": lambda m: netsmith.fold_batch_norms(m, X),
    "smooth": lambda m: netsmith.smooth(m, X),
    "measure_latency": lambda m: measure_latency(m, X),
    "export": exported,
    "load_source": loaded,
}
COUNTS: dict[str, Callable[[nn.Module], Any]] = {
    "count_macs": lambda m: count_macs(m, SHAPE),
    "memory_bytes": lambda m: memory_bytes(m, SHAPE, 2),
}
TRACED = ("dissect", "width_groups", "fold_batch_norms", "smooth")


def refuses(names: Any, model: nn.Module, message: str) -> None:
    for name in names:
        with pytest.raises(NetsmithError, match=message):
            {**RUNS, **COUNTS}[name](model)
    assert not Path("never.pt2").exists()


def test_weights_on_the_meta_device():
    with torch.device("meta"):
        model = plain_cnn()
    refuses(RUNS, model, r"0.weight is on the meta device and has no values. Load the weights first: model.to_empty\(")
    assert count_macs(model, SHAPE) == count_macs(plain_cnn(), SHAPE)


def test_lazy_layers():
    model = nn.Sequential(nn.LazyConv2d(8, 3), *plain_cnn()[1:])
    refuses(TRACED, model, r"the size of 0.weight is not known yet \(a lazy layer\). Run the network once on a batch")


class FixedBatch(nn.Module):
    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch, self.features, self.head = batch, plain_cnn()[:-3], nn.Linear(8 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).view(self.batch, -1))


@pytest.mark.parametrize("batch", [1, 8])
def test_a_batch_size_fixed_in_the_code(batch):
    message = rf"it runs on a batch of {batch} but not of [12]: its code fixes the batch size. Take that from the input"
    names = ["load_source", *COUNTS] if batch > 1 else []
    refuses([*TRACED, "export", "measure_latency", *names], FixedBatch(batch), message)


def test_a_program_of_torch_export_counts_and_is_refused_elsewhere():
    program = torch.export.export(plain_cnn().eval(), (X[:1],)).module()
    assert count_macs(program, SHAPE) == count_macs(plain_cnn(), SHAPE)
    refuses([*TRACED, "export", "load_source"], program, "it is a program of torch.export, made for one mode and the")


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_is_named(how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model: Any = torch.jit.script(plain_cnn()) if how == "script" else torch.jit.trace(plain_cnn().eval(), X)
    refuses(
        TRACED, model, rf"code that torch does not see \(TorchScript, by torch.jit.{how}\); load it as plain PyTorch"
    )


@pytest.mark.parametrize("how", ["dynamic", "static"])
def test_quantised_networks_are_named(how):
    quantization = torch.ao.quantization
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "dynamic":
            model = quantization.quantize_dynamic(plain_cnn().eval(), {nn.Linear})
        else:
            model = nn.Sequential(quantization.QuantStub(), plain_cnn(), quantization.DeQuantStub()).eval()
            model.qconfig = quantization.default_qconfig  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
            prepared = quantization.prepare(model)
            prepared(X)
            model = quantization.convert(prepared)
        layer = r"18 \(Linear\)" if how == "dynamic" else r"1.0 \(Conv2d\)"
        refuses(TRACED, model, rf"Sequential is quantised: {layer} keeps its weights packed as integers, which can be")


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = plain_cnn()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x) + self.layer(y)


class NeedsMask(TwoInputs):
    def forward(self, *inputs: Tensor, mask: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.layer(inputs[0] * mask)


@pytest.mark.parametrize(("kind", "needs"), [(TwoInputs, r"2 inputs \(x, y\)"), (NeedsMask, r"1 input \(mask\)")])
def test_networks_of_several_inputs(kind, needs):
    refuses([*RUNS, *COUNTS], kind(), f"its forward needs {needs}; wrap it in a module whose forward takes one")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_network_of_another_precision_than_its_input(dtype):
    name = str(dtype).removeprefix("torch.")
    message = rf"its weights are {name} and its input is float32. Convert one of them: model.to\(torch.float32"
    refuses([*TRACED, "measure_latency", "load_source"], plain_cnn().to(dtype), message)


def test_a_network_of_another_precision_is_dissected_and_counted_in_it():
    model = plain_cnn().double()
    chain = netsmith.dissect(model, X.double())
    assert len(chain) == 5
    assert count_macs(model.bfloat16(), SHAPE) == chain.macs
    with pytest.raises(NetsmithError, match="its weights are bfloat16 and its input is float32"):
        chain(X)


def test_weights_of_several_precisions():
    model = plain_cnn()
    model[4].half()
    message = r"its weights are of several types \(float32, float16\), and its input is float32. Make them one: model"
    refuses([*RUNS, *COUNTS], model, message)


def test_weights_on_another_device_than_the_input():
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(NetsmithError, match=r"its weights are on cpu and its input is on meta. Move one of them"):
        measure_latency(model, torch.empty(2, 8, device="meta"))


def test_other_failures_keep_the_words_of_torch_and_the_remedy_of_the_place():
    message = "RuntimeError: .*to have 3 channels, but got 5 channels instead. Give an example of the size it was built"
    with pytest.raises(NetsmithError, match=message):
        netsmith.dissect(plain_cnn(), torch.randn(1, 5, 8, 8))
    with (
        pytest.raises(NetsmithError, match=r"it: KeyError: 'a'. Do this"),
        explained(plain_cnn(), X[:0], "it", "Do this"),
    ):
        raise KeyError("a")


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = itertools.count(1)

    def forward(self, x: Tensor) -> Tensor:
        return x * next(self.calls)


@pytest.mark.parametrize("kind", [Noisy, Counting])
def test_outputs_that_differ_from_run_to_run_name_the_first_layer(kind):
    model = plain_cnn()
    model[9] = kind()
    refuses(TRACED, model, rf"gives another output each time it runs in eval mode, first in 9 \({kind.__name__}\)")
    if kind is Noisy:
        refuses(["export"], model, "gives another output each time it runs, so the file cannot be checked")


def test_a_random_hook_is_seen_too():
    model = plain_cnn()
    model[6].register_forward_hook(lambda _, args, out: torch.rand(()).add(out))
    refuses(TRACED, model, r"first in 6 \(ReLU\), so nothing can be shown of it")


@pytest.mark.parametrize("place", [("4",), ("",), ("3", "4", "5"), ("0.0", "1", "2.0")])
def test_hooks_that_change_outputs_are_part_of_the_network(place):
    model: nn.Module = plain_cnn()
    if place[0] == "0.0":
        model = nn.Sequential(
            *[nn.Sequential(nn.Conv2d(3 if i == 0 else 8, 8, 3), nn.BatchNorm2d(8)) for i in range(6)]
        )
    for name in place:
        model.get_submodule(name).register_forward_hook(lambda _, args, out: out * 2 + 1)
        model.get_submodule(name).register_forward_pre_hook(lambda _, args: (args[0] - 0.5,))
    x = torch.randn(2, 3, 16, 16)
    chain = netsmith.dissect(model, x)
    assert len(chain) >= 4
    y = torch.randn(3, 3, 16, 16)
    model.eval()
    assert torch.equal(chain(y), model(y))


@pytest.mark.parametrize("where", ["whole", "part", "in place"])
def test_compiled_networks_run_as_plain_ones(where):
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        compiled.append(inputs)
        return graph.forward

    plain = plain_cnn().eval()
    model: Any = copy.deepcopy(plain)
    if where == "whole":
        model = torch.compile(model, backend=backend)
    elif where == "part":
        model[4] = torch.compile(model[4], backend=backend)
    else:
        model.compile(backend=backend)
    chain = netsmith.dissect(model, X)
    assert [u.name.replace("._orig_mod", "") for u in chain.units] == [u.name for u in netsmith.dissect(plain, X).units]
    groups, names = netsmith.width_groups(model, X).accepted, [g.name for g in netsmith.width_groups(plain, X)]
    assert [g.name.replace("._orig_mod", "") for g in groups] == names
    half, reference = (
        netsmith.resize(model, groups, 0.5),
        netsmith.resize(plain, netsmith.width_groups(plain, X).accepted, 0.5),
    )
    assert [p.shape for p in half.parameters()] == [p.shape for p in reference.parameters()]
    netsmith.fold_batch_norms(model, X)
    netsmith.smooth(model, X)
    assert count_macs(model, SHAPE) == chain.macs
    assert memory_bytes(model, SHAPE, 1) == memory_bytes(plain, SHAPE, 1)
    if where == "whole":
        assert loaded(model).model is original(model)
    assert not compiled


def test_wrappers_of_parallel_training_are_taken_off():
    plain = plain_cnn()
    wrapped = nn.DataParallel(plain)
    assert [u.name for u in netsmith.dissect(wrapped, X).units] == [u.name for u in netsmith.dissect(plain, X).units]
    assert [g.name for g in netsmith.width_groups(wrapped, X)] == [g.name for g in netsmith.width_groups(plain, X)]
    assert original(wrapped) is plain
    assert original(plain) is plain
    assert count_macs(wrapped, SHAPE) == count_macs(plain, SHAPE)


def small_images() -> MemoryImages:
    return MemoryImages(torch.randint(0, 255, (6, *SHAPE)).to(torch.uint8), torch.arange(6) % 3, ("a", "b", "c"))


def test_evaluate_and_train_say_why_a_network_cannot_run():
    task, data = netsmith.Classification(3), small_images()
    with torch.device("meta"):
        empty = plain_cnn()
    quiet = netsmith.TrainSettings(epochs=1)
    for model, message in [
        (nn.DataParallel(empty), "0.weight is on the meta device and has no values"),
        (TwoInputs(), r"its forward needs 2 inputs \(x, y\)"),
        (FixedBatch(8), "it runs on a batch of 8 but not of 2: its code fixes the batch size"),
        (plain_cnn().double(), "its weights are float64 and its input is float32"),
    ]:
        with pytest.raises(TrainingError, match=message):
            netsmith.evaluate(model, data, task, mean=(0.0,) * 3, std=(1.0,) * 3)
        with pytest.raises(TrainingError, match=message):
            netsmith.train(model, (data, data), task, quiet, mean=(0.0,) * 3, std=(1.0,) * 3)


WRONG = """
import torch, netsmith
from torch import nn
net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
calls = {
    "a shape": lambda: netsmith.dissect(net, (1, 6)),
    "None": lambda: netsmith.width_groups(net, None),
    "a dict": lambda: netsmith.count_macs(net, {"x": 1}),
    "an empty batch": lambda: netsmith.count_macs(net, torch.zeros(0, 6)),
    "no batch": lambda: netsmith.measure_latency(net, (7,)),
    "no network": lambda: netsmith.count_macs(torch.export.export(net, (torch.zeros(2, 6),)), (6,)),
    "a text": lambda: netsmith.open_data("digits", size="24x32"),
    "three sides": lambda: netsmith.open_data("digits", size=(3, 24, 32)),
    "modules": lambda: netsmith.reassemble([net, net], netsmith.open_data("digits")),
    "a module": lambda: netsmith.morph(net, netsmith.open_data("digits")),
}
for name, call in calls.items():
    try:
        call()
        print("no error:", name)
    except netsmith.NetsmithError as error:
        assert "expected" in str(error) or "not" in str(error), error
    except Exception as error:
        print("traceback:", name, repr(error))
"""


def test_arguments_of_another_kind_are_refused_without_a_traceback():
    """In a process of its own, where types are not checked at run time."""
    ran = subprocess.run([sys.executable, "-c", WRONG], capture_output=True, text=True, timeout=200, check=False)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stdout + ran.stderr
