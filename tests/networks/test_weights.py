"""Checkpoints: what is read, what is refused, and that nothing is dropped."""

from __future__ import annotations

import argparse
import collections
import copy
import os
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from netsmith.errors import WeightsError
from netsmith.networks.weights import load_state, load_weights_file, mismatch


class Touch:
    """A payload: unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10))


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


def test_safetensors_come_back(net, tmp_path):
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    assert same(load_weights_file(tmp_path / "w.safetensors"), net.state_dict())


@pytest.mark.parametrize("suffix", ["pt", "pth", "th", "bin"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema", "model_state"])
def test_torch_files_and_wrappers(net, tmp_path, suffix, wrapper):
    state = net.state_dict()
    content = state if wrapper is None else {wrapper: state, "epoch": 3, "best": 0.5, "args": argparse.Namespace(lr=1)}
    torch.save(content, tmp_path / f"w.{suffix}")
    assert same(load_weights_file(tmp_path / f"w.{suffix}"), state)


def test_old_format_of_torch(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "old.th", _use_new_zipfile_serialization=False)
    assert same(load_weights_file(tmp_path / "old.th"), net.state_dict())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_parallel_and_compiled_training(net, tmp_path, prefix):
    torch.save({prefix + k: v for k, v in net.state_dict().items()}, tmp_path / "w.pt")
    assert same(load_weights_file(tmp_path / "w.pt"), net.state_dict())


def test_averaged_model_of_torch(net, tmp_path):
    torch.save(torch.optim.swa_utils.AveragedModel(net).state_dict(), tmp_path / "ema.pt")
    assert same(load_weights_file(tmp_path / "ema.pt"), net.state_dict())


def test_averaged_weights_win_and_the_choice_is_logged(net, tmp_path, caplog):
    plain = {k: torch.zeros_like(v) for k, v in net.state_dict().items()}
    torch.save({"state_dict": plain, "state_dict_ema": net.state_dict()}, tmp_path / "w.pt")
    assert same(load_weights_file(tmp_path / "w.pt"), net.state_dict())
    assert "taking 'state_dict_ema'" in caplog.text


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(net, tmp_path, new, nested):
    mark = tmp_path / "touched"
    content = {"state_dict": net.state_dict(), "hook": Touch(mark)} if nested else Touch(mark)
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(WeightsError, match=r"(?s)evil\.pth holds more than tensors.*system.*nothing in it was run"):
        load_weights_file(tmp_path / "evil.pth")
    assert not mark.exists()


def test_a_bare_pickle_with_code_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "touched"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"w": Touch(mark)}, protocol=2))
    with pytest.raises(WeightsError, match=r"evil\.pt"):
        load_weights_file(tmp_path / "evil.pt")
    assert not mark.exists()


def test_a_whole_pickled_module_is_refused(net, tmp_path):
    torch.save(net, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"holds more than tensors.*torch\.nn\.modules\.container\.Sequential"):
        load_weights_file(tmp_path / "net.pt")


@pytest.mark.parametrize("keep", [10, 200, 900])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_truncated_files(net, tmp_path, keep, name):
    path = tmp_path / name
    save_file(net.state_dict(), path) if name.endswith("safetensors") else torch.save(net.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=rf"{name} \({keep} bytes\) cannot be read.*truncated"):
        load_weights_file(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", b"", "is empty"),
        ("w.safetensors", b"<!DOCTYPE html><html>", "is a web page or a Git LFS pointer, not the weights"),
        ("w.pth", b"\n <html><body>404", "is a web page or a Git LFS pointer, not the weights"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer.*git lfs pull"),
        ("w.npz", b"PK", r"ends in '\.npz', expected a weights file: one of \.safetensors, \.pt"),
        ("w.safetensors", b"PK\x03\x04" + b"x" * 100, r"PyTorch's own ends in \.pth"),
        ("w.pth", b"hello" * 50, "cannot be read as a PyTorch checkpoint"),
    ],
)
def test_files_that_are_no_weights(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_weights_file(tmp_path / name)


def test_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "resnet20.safetensors").touch()
    with pytest.raises(WeightsError, match=r"no weights file .*resnet2\.safe.*Did you mean 'resnet20\.safetensors'"):
        load_weights_file(tmp_path / "resnet2.safetensors")
    with pytest.raises(WeightsError, match="nowhere does not exist either"):
        load_weights_file(tmp_path / "nowhere" / "w.pt")
    with pytest.raises(WeightsError, match="is a folder, expected a weights file"):
        load_weights_file(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "lr": 0.1}, r"epoch \(int\), lr \(float\) are not tensors, and there is none of the wrappers"),
        ({"state_dict": {"a": torch.zeros(1), "b": 3}}, r"w\.pt > state_dict is no state_dict: b \(int\) is not"),
        ({}, "holds nothing"),
        ([torch.zeros(1)], "holds a list, expected tensors by name"),
        ({"a.w": torch.zeros(1), "_orig_mod.a.w": torch.zeros(1)}, r"a\.w twice"),
    ],
)
def test_content_that_is_no_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=message):
        load_weights_file(tmp_path / "w.pt")


def test_loading_lists_all_kinds_of_faults_and_changes_nothing(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = {k: v + 1 for k, v in before.items() if k not in ("0.bias", "1.num_batches_tracked")}
    state["0.biass"] = torch.zeros(4)
    state["3.weight"] = torch.zeros(10, 5)
    with pytest.raises(WeightsError) as error:
        load_state(net, state, "w.pt")
    text = str(error.value)
    assert "The weights of w.pt do not fit Sequential:" in text
    assert "missing, 1 of 9: 0.bias\n" in text
    assert "unexpected, 1 of 8: 0.biass. Did you mean '0.bias'?" in text
    assert "misshapen, 1: 3.weight (10, 5) where the network has (10, 4)" in text
    assert same(net.state_dict(), before)


def test_long_lists_show_the_first_few_and_the_count(net):
    (line,) = mismatch(net, {})
    assert line.startswith("missing, 8 of 9: 0.weight, ")
    assert line.endswith(", ...")
    assert line.count(",") == 6


def test_another_number_of_classes_is_recognised():
    state = nn.Linear(4, 100).state_dict()
    with pytest.raises(WeightsError, match="for 100 classes: say so with num_classes"):
        load_state(nn.Linear(4, 10), state, "w.pt")


def test_the_counter_of_batch_norm_may_be_missing_and_types_are_cast(net):
    state = collections.OrderedDict(
        (k, torch.full_like(v, 0.5).half()) for k, v in net.state_dict().items() if not k.endswith("tracked")
    )
    load_state(net, state, "w.pt")
    assert all(p.dtype == torch.float32 and (p == 0.5).all() for p in net.parameters())


def test_networks_that_ask_for_the_version_of_their_weights():
    a, b = (torchvision.models.mnasnet0_5(weights=None, num_classes=3) for _ in range(2))
    load_state(b, dict(a.state_dict()), "weights.safetensors")
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.", "model.backbone.", "encoder.0."])
def test_a_prefix_of_all_names_is_passed_over_whatever_it_is(net, tmp_path, prefix):
    other = copy.deepcopy(net)
    state = {prefix + k: torch.full_like(v, 0.5) for k, v in net.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "w.pt")
    load_state(net, load_weights_file(tmp_path / "w.pt"), "w.pt")
    assert all((p == 0.5).all() for p in net.parameters())
    wrapped = nn.ModuleDict({"inner": other})
    load_state(wrapped, state, "w.pt")
    assert all((p == 0.5).all() for p in wrapped.parameters())
    plain = {k: torch.full_like(v, 0.25) for k, v in other.state_dict().items()}
    load_state(wrapped, plain, "w.pt")
    assert all((p == 0.25).all() for p in wrapped.parameters())


def test_a_prefix_with_weights_of_another_network_behind_it_is_refused(net):
    with pytest.raises(WeightsError, match=r"missing, 8 of 9: 0.weight.*\n.*unexpected, 2 of 2: model.0.weight, model"):
        load_state(net, {"model.0.weight": torch.zeros(1), "model.0.bias": torch.zeros(1)}, "w.pt")


def test_a_network_inside_a_larger_state_is_pointed_at(net):
    state = {f"model.{k}": v for k, v in net.state_dict().items()} | {"loss.weight": torch.zeros(3)}
    with pytest.raises(WeightsError) as error:
        load_state(net, state, "w.ckpt")
    assert "All of the network's are there under 'model.', beside others (loss.weight): save those" in str(error.value)
    assert "Did you mean" not in str(error.value)


def test_the_only_state_dict_of_a_checkpoint_is_found_under_any_name(net, tmp_path):
    state = net.state_dict()
    torch.save({"epoch": 3, "student": state, "optimizer": {"state": {}, "lr": 0.1}}, tmp_path / "w.pt")
    assert same(load_weights_file(tmp_path / "w.pt"), state)
    torch.save({"student": state, "teacher": state}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"student \(OrderedDict\), teacher \(OrderedDict\) are not tensors"):
        load_weights_file(tmp_path / "w.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_take_the_networks(net, dtype):
    state = {f"model.{k}": v.to(dtype) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    load_state(net, state, "w.pt")
    assert {p.dtype for p in net.parameters()} == {torch.float32}
