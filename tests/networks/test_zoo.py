"""Sources, preprocessing, provenance and zoo files. Nothing here touches the network."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from netsmith.artifacts import artifact
from netsmith.artifacts.artifact import loader, save_artifact
from netsmith.errors import ArtifactError, ConfigError, DataError, SourceError, WeightsError
from netsmith.files.output import sha256_file
from netsmith.models import BUILDERS
from netsmith.networks.libraries import commercial_use
from netsmith.networks.sources import parse_source
from netsmith.networks.trained import save_network
from netsmith.networks.zoo import (
    Preprocess,
    ZooEntry,
    check_names,
    describe_source,
    load_source,
    load_zoo,
    load_zoo_file,
)


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """No name resolves, and nothing is in a download folder."""

    def refuse(host, *_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


def equal(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# --- parsing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "timm:resnet18",
        "timm:resnet18.a1_in1k#/w/r.pth",
        "torchvision:resnet18.IMAGENET1K_V1",
        "netsmith:cifar_resnet20#/w/r20.safetensors",
        "py:/my/nets.py:small#/w/x.pt",
    ],
)
def test_sources_print_as_they_were_written(text):
    assert str(parse_source(text)) == text


def test_parts_of_sources_and_names():
    tv = parse_source("torchvision:resnet18.IMAGENET1K_V1")
    assert (tv.name, tv.detail, tv.default_name) == ("resnet18", "IMAGENET1K_V1", "resnet18")
    assert parse_source("timm:resnet18.a1_in1k").default_name == "resnet18"
    py = parse_source("py:nets.py:small", Path("/base"))
    assert (py.name, py.detail, py.default_name) == ("/base/nets.py", "small", "small")
    assert parse_source("netsmith:lenet#w.pt", Path("/base")).weights == Path("/base/w.pt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "A source is empty. A source is timm:NAME"),
        ("tim:resnet18", r"unknown kind 'tim:'\. Did you mean 'timm'"),
        ("resnet18", r"neither a source nor the folder .* Did you mean 'timm:resnet18' or 'torchvision:resnet18'"),
        ("runs/nowhere", "'runs/nowhere' is neither a source nor the folder of an artifact"),
        ("timm:", "names nothing after 'timm:'"),
        ("hf:net", "must be hf:ORG/NAME"),
        ("py:nets.py", r"must be py:PATH\.py:FUNCTION"),
        ("timm:resnet118", r"timm has no architecture 'resnet118'\. Did you mean 'resnet18'"),
        ("timm:resnet18.a4_in1k", r"no weights with the tag 'a4_in1k'\. Did you mean 'a3_in1k'"),
        ("torchvision:resnet19", r"torchvision has no classifier 'resnet19'\. Did you mean 'resnet18'"),
        ("torchvision:resnet18.IMAGENET1K_V7", r"no weights 'IMAGENET1K_V7'\. Did you mean 'IMAGENET1K_V1'"),
        ("netsmith:cifar_resnet21", r"no network 'netsmith:cifar_resnet21'\. Did you mean 'cifar_resnet"),
    ],
)
def test_unknown_sources(text, message):
    with pytest.raises(SourceError, match=message):
        load_source(text)


# --- netsmith's own ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", sorted(set(BUILDERS) - {"cifar_resnet110", "cifar_resnet56", "cifar_resnet44", "conv_vae"})
)
def test_own_networks_load_and_run(name):
    net = load_source(f"netsmith:{name}")
    assert (net.name, net.num_classes, net.model.training) == (name, 10, False)
    images = torch.rand(2, *net.preprocess.input_size)
    assert net.model(net.preprocess(images)).shape == (2, 10)
    assert net.provenance.weights is None
    assert len(net.provenance.sha256 or "") == 64


def test_random_weights_follow_the_seed_and_leave_the_callers_stream():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = (load_source("netsmith:lenet", seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert equal(a.model, b.model)
    assert not equal(a.model, c.model)
    assert a.provenance.sha256 == b.provenance.sha256 != c.provenance.sha256


def test_classes_input_and_options_reach_the_builder():
    net = load_source("netsmith:cifar_resnet20", num_classes=7, input_size=(1, 16, 16), options={"shortcut": "B"})
    assert net.num_classes == 7
    assert net.preprocess == Preprocess((0.449,), (0.226,), (1, 16, 16)) or net.preprocess.mean[0] == pytest.approx(
        0.449
    )
    assert any("shortcut" in k for k in net.model.state_dict())
    assert net.options == {"shortcut": "B"}
    with pytest.raises(SourceError, match=r"cannot be built with .*shortcutt='B'.*"):
        load_source("netsmith:cifar_resnet20", options={"shortcutt": "B"})
    with pytest.raises(SourceError, match="takes square images"):
        load_source("netsmith:lenet", input_size=(1, 28, 32))
    with pytest.raises(SourceError, match=r"mean has 2 values"):
        load_source("netsmith:cifar_resnet20", mean=(0.5, 0.5))


def test_a_local_file_is_loaded_hashed_and_checked(tmp_path):
    net = load_source("netsmith:lenet", seed=3).model
    save_file(net.state_dict(), tmp_path / "l.safetensors")
    found = load_source("netsmith:lenet#l.safetensors", base=tmp_path, licence="mit")
    assert equal(found.model, net)
    assert found.provenance.sha256 == sha256_file(tmp_path / "l.safetensors")
    assert found.provenance.weights == str(tmp_path / "l.safetensors")
    assert (found.provenance.licence, found.provenance.commercial) == ("mit", True)
    with pytest.raises(WeightsError, match=r"do not fit CifarResNet:\n  missing"):
        load_source("netsmith:cifar_resnet20#l.safetensors", base=tmp_path)
    with pytest.raises(WeightsError, match=r"Did you mean 'l\.safetensors'"):
        load_source("netsmith:lenet#ll.safetensors", base=tmp_path)


@pytest.fixture
def kept(tmp_path):
    """The artifact of a network with a normalisation, classes and a licence of its own."""
    network = load_source(
        "netsmith:plain_cnn", num_classes=3, input_size=(1, 8, 8), mean=[0.25], std=[0.5], licence="cc-by-nc-4.0"
    )
    network.classes = ("a", "b", "c")
    return save_network(tmp_path / "kept", network, counts={"params": 1, "macs": 1}, metrics={}, config={})


def beside(folder, **given):
    source = f"netsmith:plain_cnn#{folder / 'weights.safetensors'}"
    return load_source(source, num_classes=3, input_size=(1, 8, 8), **given)


def test_weights_of_an_artifact_bring_what_is_known_of_them(kept):
    network = beside(kept)
    assert (network.preprocess.mean, network.preprocess.std) == ((0.25,), (0.5,))
    assert network.classes == ("a", "b", "c")
    assert (network.provenance.licence, network.provenance.commercial) == ("cc-by-nc-4.0", False)
    plan = describe_source(f"netsmith:plain_cnn#{kept / 'weights.safetensors'}")
    assert (plan.licence, plan.commercial) == ("cc-by-nc-4.0", False)
    given = beside(kept, mean=[0.0], std=[1.0], licence="mit")  # who says something else knows better
    assert (given.preprocess.mean, given.preprocess.std) == ((0.0,), (1.0,))
    assert given.provenance.licence == "mit"


def test_other_weights_in_the_folder_of_an_artifact_are_not_what_it_speaks_of(kept, caplog):
    state = load_source("netsmith:plain_cnn", num_classes=3, input_size=(1, 8, 8), seed=5).model.state_dict()
    save_file(state, kept / "mine.safetensors")
    source = f"netsmith:plain_cnn#{kept / 'mine.safetensors'}"
    assert load_source(source, num_classes=3, input_size=(1, 8, 8)).provenance.licence is None
    save_file(state, kept / "weights.safetensors")
    assert beside(kept).preprocess.mean != (0.25,)
    assert not caplog.records
    (kept / "manifest.json").write_text("{}")
    assert beside(kept).provenance.licence is None
    assert "its preprocessing, licence and classes are not known." in caplog.text


@pytest.mark.parametrize("depth", [20, 32, 56])
def test_the_trained_networks(shared_zoo, depth):
    net = load_source(f"netsmith:cifar_resnet{depth}#{shared_zoo}/resnet{depth}_cifar10_jpeg.safetensors")
    assert net.preprocess == Preprocess((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (3, 32, 32))
    assert net.num_classes == 10


# --- libraries --------------------------------------------------------------------------------------------------------


def test_timm_with_random_weights():
    net = load_source("timm:resnet18.a1_in1k", pretrained=False, seed=1)
    assert (net.name, net.num_classes) == ("resnet18", 1000)
    cfg = timm.create_model("resnet18").pretrained_cfg
    assert net.preprocess == Preprocess(cfg["mean"], cfg["std"], cfg["input_size"], "bicubic")
    assert net.provenance.licence is None  # that licence is of weights that were not loaded


def test_timm_adapts_to_classes_channels_and_size():
    net = load_source("timm:vit_tiny_patch16_224", pretrained=False, num_classes=7, input_size=(1, 32, 32))
    assert net.model(torch.rand(1, 1, 32, 32)).shape == (1, 7)
    assert net.preprocess == Preprocess((0.5,), (0.5,), (1, 32, 32), "bicubic")


def test_timm_without_a_classifier_has_no_classes():
    assert load_source("timm:vit_small_patch16_224.dino", pretrained=False).num_classes == 0


def test_timm_from_a_local_file_in_the_papers_own_names(tmp_path):
    # DeiT's and MAE's files wrap the weights in `model`; the original Swin's carry buffers that timm no longer has
    net = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    torch.save({"model": net.state_dict(), "epoch": 1}, tmp_path / "deit.pth")
    found = load_source(f"timm:vit_tiny_patch16_224#{tmp_path}/deit.pth", num_classes=5)
    assert equal(found.model, net)
    assert found.provenance.licence is None
    with pytest.raises(WeightsError, match="for 5 classes: say so with num_classes"):
        load_source(f"timm:vit_tiny_patch16_224#{tmp_path}/deit.pth")


@pytest.mark.parametrize(
    ("source", "size"),
    [("timm:resnet18", r"46\.8 MB from https://huggingface\.co/timm/resnet18"), ("torchvision:resnet18", r"46\.8 MB")],
)
def test_offline_says_what_is_needed_and_what_to_do(source, size):
    with pytest.raises(SourceError, match=rf"{size}.*cannot be reached\).*name a local file \('{source}#.*pretrained"):
        load_source(source)


def test_offline_by_setting(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        load_source("timm:resnet18")


def test_an_earlier_download_is_used_without_asking_the_hub(monkeypatch, tmp_path):
    net = timm.create_model("resnet18")
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "model.safetensors"))
    found = load_source("timm:resnet18")
    assert equal(found.model, net)
    assert found.provenance.licence == "apache-2.0"
    assert describe_source("timm:resnet18").download_bytes == 0


def test_a_download_that_breaks_off(monkeypatch):
    build = timm.create_model

    def broken(*args, pretrained, **kwargs):
        if pretrained:
            raise ConnectionResetError("Connection reset by peer")
        return build(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    monkeypatch.setattr("timm.create_model", broken)
    with pytest.raises(SourceError, match=r"needs weights that are not on this machine.*\(Connection reset by peer\)"):
        load_source("timm:resnet18", num_classes=1000)


def test_other_classes_than_the_weights_have_are_no_silent_new_head():
    with pytest.raises(SourceError, match="have 1000 classes, not 10; another head would be random"):
        load_source("timm:resnet18", num_classes=10)


def test_timm_architectures_without_weights():
    name = next(n for n in timm.list_models() if not timm.models.is_model_pretrained(n))
    with pytest.raises(SourceError, match=f"timm has no pretrained weights for '{name}'"):
        load_source(f"timm:{name}")


@pytest.mark.parametrize("name", ["resnet18", pytest.param("googlenet", marks=pytest.mark.slow), "squeezenet1_0"])
def test_torchvision_with_random_weights(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = load_source(f"torchvision:{name}", pretrained=False, num_classes=6)
    assert (net.name, net.num_classes) == (name, 6)
    assert net.preprocess.input_size == (3, 224, 224)


def test_licences():
    assert commercial_use("apache-2.0") is True
    assert commercial_use("cc-by-nc-4.0") is False
    assert commercial_use("seer-license") is False
    assert commercial_use("gemma") is None
    assert commercial_use(None) is None


@pytest.mark.parametrize(
    ("source", "params", "size", "licence", "commercial"),
    [
        ("timm:resnet18.a1_in1k", 11_689_512, 46_796_528, "apache-2.0", True),
        ("timm:convnextv2_atto", 3_708_400, 14_833_600, "cc-by-nc-4.0", False),
        ("timm:regnety_320.seer", 141_333_770, 565_968_492, "seer-license", False),
        ("torchvision:regnet_y_16gf.IMAGENET1K_SWAG_LINEAR_V1", 83_590_140, 335_009_546, "cc-by-nc-4.0", False),
        ("netsmith:cifar_resnet20", 269_722, 0, None, None),
    ],
)
def test_plans_need_no_network(source, params, size, licence, commercial):
    info = describe_source(source)
    assert (info.params, info.download_bytes, info.licence, info.commercial) == (params, size, licence, commercial)


def test_nothing_is_downloaded_for_local_files_or_random_weights(tmp_path):
    save_file(load_source("netsmith:lenet").model.state_dict(), tmp_path / "l.safetensors")
    assert describe_source(f"netsmith:lenet#{tmp_path}/l.safetensors").download_bytes == 0
    info = describe_source("timm:resnet18", pretrained=False)
    assert (info.download_bytes, info.licence, info.note) == (0, None, "random weights")


# --- user code, modules, artifacts ------------------------------------------------------------------------------------


CODE = """
from dataclasses import dataclass
import torch
from helper_of_nets import width

@dataclass
class Settings:
    width: int = width

class Net(torch.nn.Sequential):
    pass

def small(width=Settings().width, classes=3):
    return Net(torch.nn.Conv2d(3, width, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
               torch.nn.Linear(width, classes))

def broken():
    raise RuntimeError("no luck")

def number():
    return 3
"""


@pytest.fixture
def nets(tmp_path) -> Path:
    (tmp_path / "helper_of_nets.py").write_text("width = 5\n")
    (tmp_path / "nets.py").write_text(CODE)
    return tmp_path / "nets.py"


def test_user_code_is_run_and_the_message_says_so(nets, caplog):
    net = load_source(f"py:{nets}:small", input_size=(3, 8, 8), options={"classes": 4})
    assert "running your code: small of" in caplog.text
    assert (net.name, net.num_classes) == ("small", 4)
    assert net.preprocess == Preprocess(None, None, (3, 8, 8))
    again = load_source(f"py:{nets}:small", input_size=(3, 8, 8), options={"classes": 4})
    assert equal(net.model, again.model)
    info = describe_source(f"py:{nets}:small")
    assert (info.params, info.note) == (None, f"runs your code: small of {nets}")


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("smal", {}, r"has no function 'smal'\. Did you mean 'small'"),
        ("broken", {}, r"Your function broken\(\) of .* failed: RuntimeError: no luck"),
        ("number", {}, r"returned a int, expected a torch\.nn\.Module"),
        ("small", {"depth": 3}, r"small\(depth=3\) of .* failed: TypeError"),
        ("small", {}, r"Nothing tells which images 'small' takes\. Give input_size: \[channels, height, width\]"),
    ],
)
def test_faults_in_user_code(nets, function, options, message):
    with pytest.raises(SourceError, match=message):
        load_source(f"py:{nets}:{function}", options=options)


def test_missing_and_broken_files_of_user_code(nets):
    with pytest.raises(SourceError, match=r"There is no file .*net\.py\. Did you mean 'nets\.py'"):
        load_source(f"py:{nets.parent}/net.py:small")
    nets.write_text("def small(:\n")
    with pytest.raises(SourceError, match="failed while it was read: SyntaxError"):
        load_source(f"py:{nets}:small")


def test_a_network_that_does_not_fit_its_input(nets):
    with pytest.raises(SourceError, match=r"'small' does not run on images of \[1, 8, 8\]: .*the right input_size"):
        load_source(f"py:{nets}:small", input_size=(1, 8, 8))
    with pytest.raises(SourceError, match="gives 3 classes, but num_classes says 5"):
        load_source(f"py:{nets}:small", input_size=(3, 8, 8), num_classes=5)


def test_a_module_in_python():
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    net = load_source(module, name="mine", input_size=(3, 2, 2), mean=(0.5,) * 3, std=(0.25,) * 3)
    assert net.model is module
    assert (net.name, net.source, net.num_classes) == ("mine", "module:Sequential", 4)
    assert not module.training
    with pytest.raises(SourceError, match=r"gives \(1, 3, 4\) for one image, expected one row of class scores"):
        load_source(nn.Flatten(2), input_size=(3, 2, 2))


# --- what tells networks apart ----------------------------------------------------------------------------------------


ACTING = """
import torch
from acting_helper import act

SCALE = 2.0

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(12, 3)

    def forward(self, x):
        return SCALE * torch.relu(act(self.layer(x.flatten(1))))

def build(loud=False):
    return Net()
"""
HELPER = "import torch\n\ndef act(x):\n    return torch.tanh(x)\n"


def acting(folder: Path, code: str = ACTING, helper: str = HELPER, **options) -> str:
    """The identity of a network of one's own code, written to `folder` with what it imports."""
    folder.mkdir(exist_ok=True)
    (folder / "acting.py").write_text(code)
    (folder / "acting_helper.py").write_text(helper)
    sys.modules.pop("acting_helper", None)
    return load_source(f"py:{folder}/acting.py:build", input_size=(3, 2, 2), options=options).identity()


def test_networks_of_equal_weights_are_told_apart_by_their_options():
    nets = [load_source("netsmith:small_vit", options={"dim": 24, "depth": 1, "heads": n}) for n in (4, 1, 4)]
    assert equal(nets[0].model, nets[1].model)
    assert nets[0].identity() != nets[1].identity()
    assert nets[0].identity() == nets[2].identity()


def test_networks_of_equal_weights_are_told_apart_by_their_code(tmp_path):
    found = [
        acting(tmp_path),
        acting(tmp_path, ACTING.replace("torch.relu", "torch.sigmoid")),
        acting(tmp_path, ACTING.replace("2.0", "30.0")),
        acting(tmp_path, loud=True),
    ]
    assert len(set(found)) == len(found)
    assert acting(tmp_path) == found[0]


def test_networks_are_told_apart_by_weights_and_preprocessing():
    def identity(seed=0, size=(3, 8, 8), mean=None):
        return load_source("netsmith:plain_cnn", seed=seed, input_size=size, mean=mean).identity()

    found = [identity(), identity(1), identity(size=(3, 16, 16)), identity(mean=(0.4, 0.4, 0.4))]
    assert len(set(found)) == len(found)
    net = load_source("netsmith:plain_cnn", input_size=(3, 8, 8))
    assert net.identity() == found[0]
    with torch.no_grad():
        next(net.model.parameters()).add_(1)
    assert net.identity() != found[0], "weights that were changed after loading"


def test_modules_in_python_are_told_apart_by_what_is_not_a_tensor():
    class Scaled(nn.Sequential):
        def __init__(self, scale, act, inner=None):
            super().__init__(nn.Flatten(), nn.Linear(12, 3, bias=False))
            nn.init.ones_(self[1].weight)
            self.scale, self.act, self.inner = scale, act, inner

        def forward(self, input):
            return self.act(super().forward(input)) * self.scale

    class Louder(Scaled):
        def forward(self, input):
            return super().forward(input) + 1

    def identity(module):
        return load_source(module, input_size=(3, 2, 2)).identity()

    made = [
        Scaled(1.0, torch.relu),
        Scaled(2.0, torch.relu),
        Scaled(1.0, torch.relu, [1, 2]),
        Louder(1.0, torch.relu),
        nn.Sequential(Scaled(1.0, torch.relu)),
    ]
    found = [identity(module) for module in made]
    assert len(set(found)) == len(found)
    assert identity(Scaled(2.0, torch.relu)) == found[1]
    ran = Scaled(1.0, torch.relu)
    ran.last = torch.rand(2)  # what a forward pass keeps is none of the network's
    kept = identity(ran)
    ran.last = torch.rand(3)
    ran.train().register_forward_hook(lambda *_: None)
    assert identity(ran) == kept


def test_an_identity_is_the_same_in_another_process_and_place(tmp_path):
    """With another seed of hashes, more threads, and the code in another folder."""
    wanted = [acting(tmp_path / "here"), load_source("timm:levit_128s", pretrained=False).identity()]
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    code = (
        "import sys, torch; torch.set_num_threads(3)\n"
        "from netsmith.networks.network import load_source\n"
        "print(load_source(sys.argv[1], input_size=(3, 2, 2)).identity())\n"
        "print(load_source('timm:levit_128s', pretrained=False).identity())\n"
    )
    words = [sys.executable, "-c", code, f"py:{tmp_path}/there/acting.py:build"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    assert done.stdout.split() == wanted


def test_what_a_network_is_for():
    assert load_source("netsmith:lenet").task == "classification"
    dense = load_source(nn.Conv2d(3, 5, 1), input_size=(3, 2, 2))
    assert (dense.task, dense.num_classes) == ("segmentation", 5)
    images = load_source("netsmith:conv_vae", input_size=(1, 8, 8), options={"latent": 2, "width": 2})
    assert (images.task, images.num_classes) == ("generation", 0)
    assert images.model(torch.zeros(1, 1, 8, 8)).shape == (1, 64 + 4)
    with pytest.raises(SourceError, match=r"conv_vae cannot be built .* has no classes, 10 were asked for"):
        load_source("netsmith:conv_vae", num_classes=10)


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(artifact, "_loaders", dict(artifact._loaders))

    @loader("toy")
    def _load(folder: Path) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))

    preprocess = Preprocess((0.5,) * 3, (0.25,) * 3, (3, 2, 2), "bicubic")
    manifest = {"preprocess": preprocess.to_json(), "licence": "cc-by-nc-4.0", "commercial": False, "params": 52}
    return save_artifact(tmp_path / "my net", kind="toy", tensors={}, manifest=manifest, card="")


def test_an_artifact_is_a_source(toy):
    net = load_source(str(toy))
    assert net.preprocess == Preprocess((0.5,) * 3, (0.25,) * 3, (3, 2, 2), "bicubic")
    assert (net.name, net.num_classes) == ("my_net", 4)
    assert (net.provenance.licence, net.provenance.commercial) == ("cc-by-nc-4.0", False)
    assert load_source("my net", base=toy.parent).source == str(toy)
    info = describe_source(str(toy))
    assert (info.params, info.download_bytes, info.licence) == (52, 0, "cc-by-nc-4.0")


def test_only_morphable_artifacts_have_sizes(toy):
    with pytest.raises(SourceError, match=r"only a morphable artifact has sizes, .*of kind 'toy'.*without '@0\.5'"):
        load_source(f"{toy}@0.5")


def test_folders_that_are_no_artifact(tmp_path, toy):
    with pytest.raises(SourceError, match="is a folder but no artifact"):
        load_source(str(tmp_path))
    (toy / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="it is damaged"):
        load_source(str(toy))


# --- preprocessing ----------------------------------------------------------------------------------------------------


def test_preprocessing_normalises_each_channel():
    images = torch.rand(2, 3, 4, 4)
    out = Preprocess((0.1, 0.2, 0.3), (1.0, 2.0, 4.0), (3, 4, 4))(images)
    for c, (mean, std) in enumerate([(0.1, 1), (0.2, 2), (0.3, 4)]):
        torch.testing.assert_close(out[:, c], (images[:, c] - mean) / std)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("size", [(3, 16, 16), (3, 5, 7)])
def test_preprocessing_resizes_within_range(mode, size):
    images = (torch.rand(2, 3, 8, 8) > 0.5).float()
    out = Preprocess((0.0,) * 3, (1.0,) * 3, size, mode)(images)
    assert out.shape == (2, *size)
    assert out.min() >= 0
    assert out.max() <= 1
    flat = Preprocess((0.0,) * 3, (1.0,) * 3, size, mode)(torch.full((1, 3, 8, 8), 0.25))
    torch.testing.assert_close(flat, torch.full((1, *size), 0.25))


def test_preprocessing_refuses_other_channels():
    with pytest.raises(DataError, match=r"takes images of 3 channels and these have 1 \(shape \(2, 1, 8, 8\)\)"):
        Preprocess((0.0,) * 3, (1.0,) * 3, (3, 8, 8))(torch.rand(2, 1, 8, 8))


def test_preprocessing_through_json():
    preprocess = Preprocess((0.1, 0.2, 0.3), (1.0, 2.0, 4.0), (3, 4, 5), "bicubic")
    assert Preprocess.from_json(preprocess.to_json()) == preprocess


# --- zoo files --------------------------------------------------------------------------------------------------------


def test_a_zoo_file_with_relative_paths(tmp_path, nets, monkeypatch):
    save_file(load_source("netsmith:lenet", seed=3).model.state_dict(), tmp_path / "l.safetensors")
    (tmp_path / "zoo.yaml").write_text("""
networks:
  - netsmith:cifar_resnet20
  - {source: netsmith:lenet#l.safetensors, name: digits_lenet, licence: mit}
  - source: py:nets.py:small
    input_size: [3, 8, 8]
    mean: [0.5, 0.5, 0.5]
    options: {classes: 6}
""")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    entries = load_zoo_file(Path("../zoo.yaml"))
    assert entries[0] == ZooEntry(source="netsmith:cifar_resnet20")
    assert entries[1].source == f"netsmith:lenet#{tmp_path}/l.safetensors"
    networks = load_zoo(entries)
    assert [n.name for n in networks] == ["cifar_resnet20", "digits_lenet", "small"]
    assert [n.num_classes for n in networks] == [10, 10, 6]
    assert networks[1].provenance.licence == "mit"
    assert networks[2].preprocess.mean == (0.5, 0.5, 0.5)


def test_two_entries_of_one_name():
    entries = [ZooEntry(source="timm:resnet18.a1_in1k"), ZooEntry(source="timm:resnet18.a2_in1k")]
    message = r"Two networks of the zoo are called 'resnet18': .*a1_in1k and .*a2_in1k\. .*such as name: resnet18_2"
    with pytest.raises(SourceError, match=message):
        check_names(entries)
    with pytest.raises(SourceError, match=message):
        load_zoo(entries)


def test_all_faults_of_a_zoo_file_at_once(tmp_path):
    (tmp_path / "zoo.yaml").write_text("""networks:
  - timm:resnet118
  - {source: netsmith:lenet#gone.pt, nam: x}
  - source: netsmith:lenet
    num_classes: many
    input_size: [3, 0, 32]
    std: [0.5, 0.0, 0.5]
    name: a[0]
""")
    with pytest.raises(ConfigError) as error:
        load_zoo_file(tmp_path / "zoo.yaml")
    faults = "\n".join(error.value.faults)
    assert len(error.value.faults) == 6
    assert "line 3: networks.1.nam: unknown key. Did you mean 'name'?" in faults
    assert "no weights file" in faults
    assert "line 5: networks.2.num_classes: expected a whole number, got 'many'" in faults
    assert "line 6: networks.2.input_size: expected three numbers of at least 1" in faults
    assert "line 7: networks.2.std: expected numbers greater than 0" in faults
    assert "line 8: networks.2.name: a name is letters" in faults
    # timm, which takes seconds to load, is asked once all else is right
    (tmp_path / "zoo.yaml").write_text("networks: [timm:resnet118, netsmith:lenet]\n")
    with pytest.raises(ConfigError, match=r"1 fault:\n  line 1: networks.0: .*Did you mean 'resnet18'"):
        load_zoo_file(tmp_path / "zoo.yaml")


def test_zoo_files_that_are_empty_or_missing(tmp_path):
    (tmp_path / "zoo.yaml").write_text("networks: []\n")
    with pytest.raises(ConfigError, match="line 1: networks: the list is empty: name the networks"):
        load_zoo_file(tmp_path / "zoo.yaml")
    with pytest.raises(ConfigError, match=r"There is no config file .*zo\.yaml\. Did you mean 'zoo\.yaml'"):
        load_zoo_file(tmp_path / "zo.yaml")
