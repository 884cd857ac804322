"""`netsmith export` and `netsmith sample --format`: a reassembled, a morphable and a sampled network in each format."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import netsmith
from netsmith.artifacts.artifact import read_manifest
from netsmith.cli.main import main
from netsmith.reassembly.recipe import InputSpec, NetworkRef
from netsmith.reassembly.stitch import assemble, plan_recipe
from netsmith.search.blocks import Block
from netsmith.trace.chain import dissect

SIZE = (1, 8, 8)
X = torch.randn(5, *SIZE, generator=torch.Generator().manual_seed(6))
CLASSES = [str(n) for n in range(10)]
FORMATS = ("onnx", "pt2", "safetensors")
KINDS = ("reassembled", "morphable", "sampled")


def reassembled(folder):
    """Blocks of a CNN and a transformer, put together by hand; one of them may not be used commercially."""
    options = {"residual": {"widths": [4, 6, 8]}, "tokens": {"dim": 12, "depth": 3, "heads": 2}}
    sources = {"residual": "netsmith:cifar_resnet20", "tokens": "netsmith:small_vit"}
    how = InputSpec((0.5,), (0.25,), SIZE)
    chains, refs = {}, {}
    for name, source in sources.items():
        found = netsmith.load_source(source, name=name, num_classes=10, input_size=SIZE, options=options[name], seed=1)
        chains[name] = dissect(found.model, X, name=name)
        refs[name] = NetworkRef(name, source, "ab" * 32, 10, how, options[name])
    recipe = plan_recipe([Block("residual", 0, 4), Block("tokens", 1, 3)], chains, refs)
    module = assemble(recipe, chains)
    rows = [
        {"source": s, "sha256": "ab" * 32, "licence": "cc-by-nc-4.0", "commercial": False} for s in sources.values()
    ]
    about = {"provenance": [{"weights": None, "url": None, **row} for row in rows], "licence": "cc-by-nc-4.0"}
    module.facts = {"name": "reassembled", "classes": CLASSES, "commercial": False, **about}
    module.save_pretrained(folder)


def morphable(folder):
    """Not fitted; its batch norms stay."""
    options = {"widths": [8, 12], "depth": 2}
    base = netsmith.load_source("netsmith:plain_cnn", input_size=SIZE, num_classes=10, options=options)
    result = netsmith.morph(base, netsmith.open_data("digits"), norms="keep", ratios=(1.0, 0.5))
    netsmith.save_morphed(result, folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    reassembled(folder / "reassembled")
    morphable(folder / "morph")
    words = ["sample", str(folder / "morph"), "--ratio", "0.75", "--out", str(folder / "sampled"), "--quiet"]
    assert main(words) == 0
    return folder


def source_of(kind, home):
    return f"{home / 'morph'}@0.5" if kind == "morphable" else str(home / kind)


@pytest.fixture(scope="module")
def exported(home):
    """Each kind of network in each format, in a folder of its own; what PyTorch gives; and what was printed."""
    pytest.importorskip("onnxruntime")
    out = home / "exported"
    for kind in KINDS:
        for form in FORMATS:
            words = ["export", source_of(kind, home), "--format", form, "--out", str(out / kind / form), "--quiet"]
            assert main(words) == 0
        with torch.no_grad():
            expected = netsmith.load_source(source_of(kind, home)).model(X)
        np.savez(out / kind / "expected.npz", x=X.numpy(), y=expected.numpy())
    return out


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_network_computes_the_same_in_each_format(kind, form, home, exported):
    network = netsmith.load_source(source_of(kind, home))
    file = exported / kind / form / f"model.{form}"
    card = (file.parent / "README.md").read_text()
    facts = json.loads((file.parent / "export.json").read_text())
    assert facts["classes"] == CLASSES
    assert (facts["mean"], facts["std"]) == (list(network.preprocess.mean), list(network.preprocess.std))
    assert ("**non-commercial**" in card) == (kind == "reassembled")
    assert facts["sources"][0]["source"].startswith("netsmith:")
    expected = network.model(X)
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file))
        found = torch.from_numpy(session.run(["output"], {"input": X.numpy()})[0])
        assert json.loads(session.get_modelmeta().custom_metadata_map["mean"]) == facts["mean"]
    elif form == "pt2":
        found = torch.export.load(str(file)).module()(X)
    else:
        state = load_file(file)
        assert state.keys() == network.model.state_dict().keys()
        network.model.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()})
        network.model.load_state_dict(state)
        found = network.model(X)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


ALONE = """
import sys
sys.path[:0] = sys.argv[2:]
try:
    import netsmith
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("netsmith can be imported, so this test shows nothing: " + netsmith.__file__)
import numpy as np
from pathlib import Path
for folder in sorted(Path(sys.argv[1]).iterdir()):
    held = np.load(folder / "expected.npz")
    def check(what, found):
        worst = np.abs(found - held["y"]).max() / np.abs(held["y"]).max()
        print(folder.name, what, found.shape, "same" if worst < 1e-4 else worst)
    import onnxruntime
    session = onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"))
    check("onnx", session.run(["output"], {"input": held["x"]})[0])
    assert folder.name != "morphable" or "torch" not in sys.modules, "the first ONNX must need no torch"
    import torch
    module = torch.export.load(str(folder / "pt2" / "model.pt2")).module()
    with torch.no_grad():
        check("pt2", module(torch.from_numpy(held["x"])).numpy())
assert not [name for name in sys.modules if name.split(".")[0] in ("netsmith", "timm")]
"""


@pytest.mark.slow
def test_they_run_without_netsmith(exported):
    """A process of its own that sees the libraries, but neither this package nor the folder it is in."""
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    command = [sys.executable, "-I", "-S", "-c", ALONE, str(exported), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=exported)
    assert done.returncode == 0, done.stderr + done.stdout
    lines = [f"{kind} {form} (5, 10) same" for kind in sorted(KINDS) for form in ("onnx", "pt2")]
    assert done.stdout.splitlines() == lines


# --- what a user sees -------------------------------------------------------------------------------------------------


def test_what_was_written_is_said(home, tmp_path, capsys):
    assert main(["export", str(home / "reassembled"), "--out", str(tmp_path / "net.safetensors")]) == 0
    text = capsys.readouterr().out
    assert f"wrote {tmp_path / 'net.safetensors'}: 0.0" in text
    assert "; read back the same" in text
    assert "preprocessing: images in [0, 1] of 1x8x8 (bilinear), minus [0.5], over [0.25]" in text
    assert "licence: cc-by-nc-4.0" in text
    assert "NON-COMMERCIAL: a source forbids commercial use, and so this file must not be used so" in text


def test_batch_norms_of_another_width_are_spoken_of_or_mended(home, tmp_path, capsys, monkeypatch):
    closer = iter((1.0, 0.0))
    monkeypatch.setattr("netsmith.morphing.recalibrating._Drawn.distance", lambda *_: next(closer))
    half = source_of("morphable", home)
    assert main(["export", half, "--out", str(tmp_path / "a.safetensors")]) == 0
    assert "cost accuracy at this size: give --data SOURCE" in capsys.readouterr().out
    assert main(["export", half, "--data", "digits", "--out", str(tmp_path / "b.safetensors")]) == 0
    assert "statistics of batch norms estimated anew on training images of digits" in capsys.readouterr().err
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    changed = {name.rpartition(".")[2] for name in a if not torch.equal(a[name], b[name])}
    assert {"running_mean", "running_var"} <= changed <= {"running_mean", "running_var", "num_batches_tracked"}
    words = ["export", str(home / "reassembled"), "--data", "digits", "--out", str(tmp_path / "c.safetensors")]
    assert main(words) == 0
    assert "--data is not needed" in capsys.readouterr().err


def test_a_sample_can_be_a_file_that_runs_by_itself(home, tmp_path, capsys):
    words = ["sample", str(home / "morph"), "--ratio", "0.5", "--data", "digits", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "half.pt2")]) == 0
    text = capsys.readouterr().out
    assert f"wrote {tmp_path / 'half.pt2'}: " in text
    assert "loaded again 0e+00 from PyTorch at most" in text
    assert main([*words, "--out", str(tmp_path / "half"), "--format", "safetensors"]) == 0
    assert read_manifest(tmp_path / "half")["kind"] == "sampled"
    with torch.no_grad():
        module = torch.export.load(str(tmp_path / "half.pt2")).module()
        assert torch.allclose(module(X), netsmith.load(tmp_path / "half")(X), atol=1e-6)
    assert main([*words, "--out", str(tmp_path / "half.pt2")]) == 2
    assert "exists. Pass --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{home}/reassembled", "--out", "{out}/net"], "nothing tells the format of {out}/net"),
        (["{home}/reassembled", "--out", "{out}/net.pt2", "--format", "onnx"], "ends as pt2 does"),
        (["{home}/reassembled", "--out", "{out}/net.pt2", "--opset", "18"], "opset is for ONNX only"),
        (["{home}/reassembled@0.5", "--out", "{out}/net.pt2"], "only a morphable artifact has sizes"),
        (["{home}/nothing", "--out", "{out}/net.pt2"], "is neither a source nor the folder of an artifact"),
        (["{home}/morph", "--format", "pt2", "--out", "{home}/sampled"], "exists and is not empty. Pass --overwrite"),
        (["{home}/morph", "--formt", "pt2", "--out", "{out}/a"], "Did you mean '--format'"),
    ],
)
def test_mistakes_are_one_message(home, tmp_path, words, message, capsys):
    place = {"home": home, "out": tmp_path}
    assert main(["export", *(w.format(**place) for w in words)]) == 2
    text = capsys.readouterr().err
    assert message.format(**place) in text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_an_exported_folder_is_no_artifact_and_says_so(home, tmp_path, capsys):
    assert main(["export", str(home / "sampled"), "--format", "safetensors", "--out", str(tmp_path / "out")]) == 0
    assert main(["evaluate", str(tmp_path / "out"), "--data", "digits"]) == 2
    assert "is a folder but no artifact: it has no manifest.json" in capsys.readouterr().err


def test_a_saved_morphable_model_is_copied_and_an_unsaved_one_says_how(home, tmp_path):
    model = netsmith.from_pretrained(home / "morph")
    assert isinstance(model, netsmith.MorphableModel)
    model.save_pretrained(tmp_path / "copy")
    again = netsmith.MorphableModel.from_pretrained(tmp_path / "copy")
    with torch.no_grad():
        assert torch.equal(again.at(0.5)(X), model.at(0.5)(X))
    fresh = netsmith.MorphableModel(model.morphable, model.input_shape)
    with pytest.raises(netsmith.NetsmithError, match=r"never saved.* netsmith.save_morphed.result, FOLDER"):
        fresh.save_pretrained(tmp_path / "other")
