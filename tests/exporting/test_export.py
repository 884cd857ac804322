"""Export of plain modules: formats, checks, cards, metadata; and every refusal, which leaves nothing behind."""

from __future__ import annotations

import copy
import json
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from netsmith.artifacts.artifact import is_artifact
from netsmith.errors import ExportError, MissingDependencyError, OutputError
from netsmith.exporting import formats as exporters
from netsmith.exporting.export import FORMATS, export
from netsmith.networks.network import Preprocess, Provenance, load_source

X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(9))
SHAPE = (3, 8, 8)


class Net(nn.Module):
    """A convolution, a norm that has seen something, a dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)
        assert self.norm.running_mean is not None
        self.norm.running_mean.fill_(0.25)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


class Wrong(nn.Module):
    """A linear layer with something that cannot be exported behind it."""

    def __init__(self, after) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.after = after

    def forward(self, x):
        return self.after(self.layer(x))


@pytest.fixture
def net():
    return Net()


def network(net, **about):
    found = load_source(net, name="net", input_size=SHAPE, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    for key, value in about.items():
        setattr(found, key, value)
    return found


def traces(folder):
    return sorted(p.name for p in folder.rglob("*"))


# --- pt2 --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_pt2_computes_the_same_at_any_batch_and_carries_its_facts(net, tmp_path):
    made = export(network(net, classes=("cat", "dog")), tmp_path / "net.pt2")
    notes = {exporters.NOTES: ""}
    module = torch.export.load(str(made.path), extra_files=notes).module()
    for batch in (1, 2, 5):
        assert torch.equal(module(X[:batch]), net.eval()(X[:batch]))
    facts = json.loads(notes[exporters.NOTES])
    assert facts["mean"] == [0.1, 0.2, 0.3]
    assert facts["input_size"] == [3, 8, 8]
    assert facts["classes"] == ["cat", "dog"]
    assert facts["params"] == sum(p.numel() for p in net.parameters())
    assert made.difference == 0
    assert made.files == (made.path,)
    assert traces(tmp_path) == ["net.pt2"]


def test_a_pt2_holds_no_pickle_and_no_path_of_this_machine(net, tmp_path):
    made = export(net, tmp_path / "net.pt2", input_shape=SHAPE)
    with zipfile.ZipFile(made.path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert not [name for name, data in contents.items() if data[:1] == b"\x80" or b"data.pkl" in data]
    assert not [name for name, data in contents.items() if b"test_export" in data and b".py" in data]


# --- safetensors ------------------------------------------------------------------------------------------------------


def test_safetensors_hold_the_state_and_say_what_it_is(net, tmp_path):
    made = export(network(net), tmp_path / "deep" / "net.safetensors")
    state = load_file(made.path)
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())
    with safe_open(made.path, "pt") as file:
        about = file.metadata()
    assert about["format"] == "pt"
    assert json.loads(about["std"]) == [0.5, 0.5, 0.5]


def test_what_comes_back_otherwise_is_refused(net, tmp_path, monkeypatch):
    monkeypatch.setattr(exporters, "load_file", lambda path: {})
    with pytest.raises(ExportError, match=r"conv.weight, .* came back otherwise than written"):
        export(net, tmp_path / "net.safetensors", input_shape=SHAPE)
    assert traces(tmp_path) == []


# --- folders and metadata ---------------------------------------------------------------------------------------------


def test_random_weights_are_said_until_something_has_trained_them(tmp_path):
    network = load_source("netsmith:plain_cnn", input_size=(1, 8, 8), num_classes=10, options={"widths": [4]})
    made = export(network, tmp_path / "random", format="safetensors")
    assert made.facts["random_weights"] is True
    assert "**Its weights are random**" in (tmp_path / "random" / "README.md").read_text()
    with torch.no_grad():
        next(network.model.parameters()).add_(0.1)
    made = export(network, tmp_path / "trained", format="safetensors")
    assert "random_weights" not in made.facts
    assert "random" not in (tmp_path / "trained" / "README.md").read_text()


def test_a_folder_has_a_card_with_sources_licence_and_how_to_load(net, tmp_path):
    sources = (
        Provenance("timm:a", "a.in1k", "ab" * 32, "apache-2.0", "https://example.org/a", True),
        Provenance("timm:b", "b.in1k", "cd" * 32, "cc-by-nc-4.0", None, False),
    )
    about = Provenance("x", licence="apache-2.0 AND cc-by-nc-4.0", commercial=False)
    made = export(
        network(net, sources=sources, provenance=about, classes=("cat", "dog")), tmp_path / "out", format="safetensors"
    )
    assert [p.name for p in made.files] == ["model.safetensors", "README.md", "export.json"]
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (
        "**non-commercial**",
        "- licence: apache-2.0 AND cc-by-nc-4.0",
        f"- `timm:a`, sha256 `{'ab' * 32}`, licence apache-2.0, https://example.org/a",
        "- images: RGB, values in [0, 1], resized to 8x8 (bilinear), then per channel minus `[0.1, 0.2, 0.3]`",
        "- output: `(batch, 2)`, one score a class (logits)",
        "- classes, in order: cat, dog",
        'load_file("model.safetensors")',
    ):
        assert text in card, text
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (record["kind"], record["schema"], record["format"]) == ("export", 1, "safetensors")
    assert record["commercial"] is False
    assert not is_artifact(tmp_path / "out")


def test_what_is_there_is_replaced_only_when_asked(net, tmp_path):
    for out, how in ((tmp_path / "out", {"format": "safetensors"}), (tmp_path / "net.safetensors", {})):
        export(net, out, input_shape=SHAPE, **how)
        with pytest.raises(OutputError, match="Pass --overwrite"):
            export(net, out, input_shape=SHAPE, **how)
        export(net, out, input_shape=SHAPE, overwrite=True, **how)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(OutputError, match="did not write"):
        export(net, tmp_path / "mine", format="safetensors", input_shape=SHAPE, overwrite=True)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OutputError, match="is a folder, where a file is to go"):
        export(net, tmp_path / "folder.safetensors", input_shape=SHAPE, overwrite=True)


def test_a_data_file_beside_an_onnx_is_replaced_only_when_asked(net, tmp_path, monkeypatch):
    def write(program, path, *_):
        path.write_text("graph")
        path.with_name(path.name + ".data").write_text("weights")

    monkeypatch.setattr(exporters, "require_onnx", lambda: None)
    monkeypatch.setattr(exporters, "write_onnx", write)
    monkeypatch.setattr(exporters, "open_onnx", lambda path: lambda x: copy.deepcopy(net).eval()(x))
    (tmp_path / "net.onnx.data").write_text("mine")
    with pytest.raises(OutputError, match=r"net.onnx.data exists. Pass --overwrite"):
        export(net, tmp_path / "net.onnx", input_shape=SHAPE)
    assert (tmp_path / "net.onnx.data").read_text() == "mine"
    assert traces(tmp_path) == ["net.onnx.data"]
    made = export(net, tmp_path / "net.onnx", input_shape=SHAPE, overwrite=True)
    assert [p.read_text() for p in made.files] == ["graph", "weights"]
    assert made.bytes == len("graph") + len("weights")


def test_the_network_stays_as_it_is(net, tmp_path):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    export(net, tmp_path / "net.pt2", input_shape=SHAPE)
    assert all(m.training for m in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_module_tells_its_preprocessing_as_those_of_timm_do(net, tmp_path):
    net.pretrained_cfg = {
        "input_size": SHAPE,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "interpolation": "bicubic",
        "license": "cc-by-nc-4.0",
        "label_names": ["a", "b"],
    }
    facts = export(net, tmp_path / "net.safetensors").facts
    assert (facts["mean"], facts["interpolation"], facts["classes"]) == ([0.5, 0.5, 0.5], "bicubic", ["a", "b"])
    assert (facts["licence"], facts["commercial"]) == ("cc-by-nc-4.0", False)
    other = export(net, tmp_path / "other.safetensors", input_shape=(3, 12, 12)).facts
    assert other["input_size"] == [3, 12, 12]


def test_what_is_given_goes_before_what_is_known(net, tmp_path):
    how = Preprocess((0.0,) * 3, (1.0,) * 3, SHAPE, "nearest")
    facts = export(network(net), tmp_path / "n.safetensors", preprocess=how, classes=("x", "y"), name="mine").facts
    assert (facts["name"], facts["classes"], facts["interpolation"]) == ("mine", ["x", "y"], "nearest")


def test_pretrained_weights_of_a_library_bring_their_classes_names():
    from netsmith.networks.libraries import class_names
    from netsmith.networks.sources import parse_source

    assert class_names(parse_source("torchvision:resnet18"))[:2] == ("tench", "goldfish")
    assert class_names(parse_source("timm:resnet18.a1_in1k"))[0].startswith("tench")
    assert class_names(parse_source("netsmith:cifar_resnet20")) == ()
    assert class_names(parse_source("timm:resnet18#mine.safetensors")) == ()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "how", "message"),
    [
        ("net", {}, "nothing tells the format of .*net: give a file that ends in .onnx, .pt2, .safetensors"),
        ("net", {"format": "onx"}, "unknown format 'onx'. Did you mean 'onnx'"),
        ("net.onnx", {"format": "pt2"}, "net.onnx ends as onnx does, and the format is pt2"),
        ("net.pt2", {"opset": 18}, "opset is for ONNX only"),
        ("net.pt2", {"input_shape": None}, "nothing tells which inputs 'net' takes: give input_shape"),
        ("net.pt2", {"input_shape": (1, 8, 8)}, "does not run on an input of 1x8x8: .*Give the input_shape"),
    ],
)
def test_what_makes_no_sense_is_refused(net, tmp_path, out, how, message):
    with pytest.raises(ExportError, match=message):
        export(net, tmp_path / out, **{"input_shape": SHAPE, **how})
    assert traces(tmp_path) == []


def test_files_are_listed_under_the_name_of_their_format():
    assert FORMATS == {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda y: y * 2 if y.sum() > 0 else y, "its code decides by the values of tensors"),
        (lambda y: y.reshape(2, 3), "takes batches of one size only"),
        (lambda y: y + len(y.tolist()), "cannot be exported: .*or keep the weights alone"),
    ],
)
def test_code_that_cannot_be_captured_is_named(after, message, tmp_path, capfd):
    with pytest.raises(ExportError, match=message):
        export(Wrong(after), tmp_path / "net.pt2", input_shape=(4,))
    assert traces(tmp_path) == []
    assert capfd.readouterr() == ("", ""), "torch's own account of it must not be shown"


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda y: (y, y), "gives a tuple for a batch of 2, expected one tensor"),
        (lambda y: y.mean(), "gives .* for a batch of 2, expected one tensor with the batch first"),
        (lambda y: y / 0, "NaN or infinity"),
    ],
)
def test_outputs_that_cannot_be_compared_are_refused(after, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export(Wrong(after), tmp_path / "net.pt2", input_shape=(4,))
    assert traces(tmp_path) == []


@pytest.mark.parametrize(
    ("opened", "message"),
    [
        (lambda path: lambda x: Net().eval()(x) * 0 + 1, "differs from PyTorch by .* at most 1e-04 is allowed"),
        (lambda path: lambda x: x, "a batch of 1 gives 1x3x8x8, expected 1x2"),
        (lambda path: lambda x: torch.linalg.inv(x[:, 0, :2]), "it fails on a batch of 1"),
        (lambda path: 1 / 0, "cannot be loaded: division by zero"),
    ],
)
def test_a_file_that_computes_something_else_does_not_stay(net, opened, message, tmp_path, monkeypatch):
    monkeypatch.setattr(exporters, "open_pt2", opened)
    for out in (tmp_path / "net.pt2", tmp_path / "out"):
        with pytest.raises(ExportError, match=message):
            export(net, out, format="pt2", input_shape=SHAPE)
    assert traces(tmp_path) == []


def test_a_failure_leaves_what_was_there(net, tmp_path, monkeypatch):
    export(net, tmp_path / "net.pt2", input_shape=SHAPE)
    before = (tmp_path / "net.pt2").read_bytes()
    monkeypatch.setattr(exporters, "open_pt2", lambda path: lambda x: x)
    with pytest.raises(ExportError):
        export(net, tmp_path / "net.pt2", input_shape=SHAPE, overwrite=True)
    assert (tmp_path / "net.pt2").read_bytes() == before
    assert traces(tmp_path) == ["net.pt2"]


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_onnx_without_its_extra_says_how_to_get_it(net, missing, tmp_path, monkeypatch):
    real = exporters.importlib.util.find_spec
    monkeypatch.setattr(exporters.importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    with pytest.raises(
        MissingDependencyError, match=rf"and {missing} is not installed: pip install 'netsmith\[onnx\]'"
    ):
        export(net, tmp_path / "net.onnx", input_shape=SHAPE)


def test_onnx_with_an_old_torch_says_so(net, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(MissingDependencyError, match=r"needs torch 2.6 or newer, and 2.5.1"):
        export(net, tmp_path / "net.onnx", input_shape=SHAPE)


# --- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_an_onnx_computes_the_same_at_any_batch_and_carries_its_facts(net, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    made = export(network(net, classes=("cat", "dog")), tmp_path / "out", format="onnx")
    session = ort.InferenceSession(str(made.path))
    for batch in (1, 2, 5):
        (out,) = session.run(["output"], {"input": X[:batch].numpy()})
        assert torch.allclose(torch.from_numpy(out), net.eval()(X[:batch]), rtol=1e-4, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["mean"]) == [0.1, 0.2, 0.3]
    assert json.loads(about["classes"]) == ["cat", "dog"]
    assert about["name"] == "net"
    assert 0 <= made.difference < 1e-4
    assert "onnxruntime.InferenceSession" in (tmp_path / "out" / "README.md").read_text()
    assert b"test_export.py" not in made.path.read_bytes()


@pytest.mark.slow
def test_an_operator_that_onnx_lacks_is_named_with_a_way_out(tmp_path):
    pytest.importorskip("onnxruntime")
    message = "uses the operator .*bessel_j0, which has no counterpart there. Replace it .* pt2 "
    with pytest.raises(ExportError, match=message):
        export(Wrong(torch.special.bessel_j0), tmp_path / "net.onnx", input_shape=(4,))
    assert traces(tmp_path) == []
    export(Wrong(torch.special.bessel_j0), tmp_path / "net.pt2", input_shape=(4,))
