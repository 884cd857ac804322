"""Sources of segmentation-models-pytorch."""

from __future__ import annotations

import socket
import sys

import pytest
import torch
from safetensors.torch import save_file

from netsmith.errors import MissingDependencyError, SourceError
from netsmith.networks.sources import parse_source
from netsmith.networks.zoo import describe_source, load_source

SMALL = {"decoder_channels": [16, 8, 8, 4, 4]}


@pytest.fixture
def offline(monkeypatch):
    def refuse(host, *_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


def test_a_unet_with_a_resnet_encoder(tmp_path):
    source = "smp:Unet/resnet18"
    assert str(parse_source(source)) == source
    given = {"num_classes": 4, "input_size": (1, 32, 32), "mean": (0.4,), "std": (0.2,), "options": SMALL}
    net = load_source(source, pretrained=False, **given)
    assert (net.name, net.source, net.task, net.num_classes) == ("Unet_resnet18", source, "segmentation", 4)
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        expected = net.model(net.preprocess(images))
    assert expected.shape == (2, 4, 32, 32)
    save_file(net.model.state_dict(), tmp_path / "unet.safetensors")
    again = load_source(f"{source}#{tmp_path}/unet.safetensors", seed=3, **given)
    with torch.no_grad():
        assert torch.equal(again.model(again.preprocess(images)), expected)


def test_only_the_encoder_has_weights_to_fetch(offline):
    info = describe_source("smp:Unet/resnet18")
    assert info.url == "https://huggingface.co/smp-hub/resnet18.imagenet"
    assert 4 * 11_176_512 < info.download_bytes < 4 * 11_190_000
    assert info.params is not None
    assert 4 * info.params > info.download_bytes
    assert "encoder only" in info.note
    assert describe_source("smp:Unet/resnet18", pretrained=False).download_bytes == 0
    with pytest.raises(
        SourceError, match=r"44\.7 MB from https://huggingface\.co/smp-hub/resnet18\.imagenet .*reached"
    ):
        load_source("smp:Unet/resnet18", num_classes=3)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("smp:Unet", r"must be smp:ARCHITECTURE/ENCODER, such as smp:Unet/resnet18"),
        ("smp:", "names nothing after 'smp:'"),
        ("smp:Unett/resnet18", r"has no architecture 'Unett'\. Did you mean 'Unet'"),
        ("smp:Unet/resnet8", r"has no encoder 'resnet8'\. Did you mean 'resnet18'"),
        ("smp:Unet/tu-resnet8", r"has no encoder 'tu-resnet8'\. Did you mean 'tu-resnet"),
        ("smp:Unet/mobileone_s1#nowhere.safetensors", "There is no weights file nowhere"),
    ],
)
def test_unknown_names(source, message):
    with pytest.raises(ValueError, match=message):
        load_source(source, pretrained=False)


def test_options_of_the_class():
    with pytest.raises(SourceError, match=r"no option 'decoder_chanels'\. Did you mean 'decoder_channels'.*Its opt"):
        load_source("smp:Unet/resnet18", pretrained=False, options={"decoder_chanels": [1]})
    with pytest.raises(SourceError, match=r"cannot be built with .*encoder_depth=9"):
        load_source("smp:Unet/resnet18", pretrained=False, options={"encoder_depth": 9})


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'netsmith\[seg\]'"):
        load_source("smp:Unet/resnet18")
