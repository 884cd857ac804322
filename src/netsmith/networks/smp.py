"""Networks of segmentation-models-pytorch: sources `smp:ARCHITECTURE/ENCODER`, such as `smp:Unet/resnet18`."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import huggingface_hub
import timm
import torch
from torch import nn

from netsmith.errors import MissingDependencyError, SourceError, did_you_mean
from netsmith.networks.building import call, downloading
from netsmith.networks.preprocess import Preprocess, remember
from netsmith.networks.sources import Facts, Source, seeded

_INPUT = (3, 224, 224)
_TIMM = "tu-"
"""What the library puts before the names of timm's networks when they are to be encoders."""


def smp_facts(source: Source, pretrained: bool) -> Facts:
    """What is known of a segmentation network; `pretrained` is of its encoder, the rest always starts at random.

    Raises:
        SourceError: an unknown architecture or encoder, with the nearest names, or an encoder without weights.
        MissingDependencyError: without the `seg` extra.
    """
    _, encoder = _parts(source)
    known = Facts(input_size=_INPUT, task="segmentation", note="random weights")
    if not pretrained:
        return known if source.weights is None else replace(known, note="")
    if encoder.startswith(_TIMM):
        weights, url = encoder.removeprefix(_TIMM), f"https://huggingface.co/timm/{encoder.removeprefix(_TIMM)}"
        cached = None
    else:
        settings = _library().encoders.encoders[encoder]["pretrained_settings"]
        if "imagenet" not in settings:
            having = ", ".join(settings) or "none"
            raise SourceError(
                f"The encoder of '{source}' has no ImageNet weights (it has: {having}). Name one with "
                "options: {encoder_weights: ...} and pretrained: false, or take another encoder, such as resnet18."
            )
        repository, revision = settings["imagenet"]["repo_id"], settings["imagenet"]["revision"]
        weights, url = "imagenet", f"https://huggingface.co/{repository}"
        cached = huggingface_hub.try_to_load_from_cache(repository, "model.safetensors", revision=revision)
    return replace(
        known,
        weights=weights,
        url=url,
        download_bytes=0 if isinstance(cached, str) else 4 * _encoder_values(source),
        note="weights of the encoder only: the rest is random",
    )


def smp_build(source: Source, known: Facts, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """The network, with its encoder's weights when `pretrained`; `options` are those of its class."""
    architecture, encoder = _parts(source)
    allowed = [name for name in inspect.signature(architecture).parameters if name != "kwargs"]
    for option in options:
        # the library passes what it does not know on to the encoder, where only timm's ever look at it
        if option not in allowed and not encoder.startswith(_TIMM):
            hint = did_you_mean(option, allowed)
            raise SourceError(f"'{source}' has no option '{option}'. {hint} Its options: {', '.join(allowed)}.")
    weights = (True if encoder.startswith(_TIMM) else "imagenet") if pretrained else None
    options = {"encoder_name": encoder, "encoder_weights": weights, **options}
    with downloading(source, known):
        model = call(architecture, str(source), options)
        if options["encoder_weights"]:
            remember(model, _images_of(encoder, options["encoder_weights"], known))
    return model


def _images_of(encoder: str, weights: str | bool, known: Facts) -> Preprocess:
    """What the weights of an encoder want of images in [0, 1]; the library has it beside them, on the Hub."""
    told = _library().encoders.get_preprocessing_params(encoder, "imagenet" if weights is True else weights)
    high = told["input_range"][1]
    mean, std = (tuple(value / high for value in told[name]) for name in ("mean", "std"))
    return Preprocess(mean, std, known.input_size or _INPUT)


def _parts(source: Source) -> tuple[Any, str]:
    """The class and the name of the encoder."""
    name, slash, encoder = source.name.partition("/")
    if not slash or not encoder:
        raise SourceError(f"'{source}' must be smp:ARCHITECTURE/ENCODER, such as smp:Unet/resnet18.")
    library = _library()
    known = {found.__name__: found for found in library.MODEL_ARCHITECTURES_MAPPING.values()}
    found = library.MODEL_ARCHITECTURES_MAPPING.get(name.lower())
    if found is None:
        raise SourceError(f"segmentation-models-pytorch has no architecture '{name}'. {did_you_mean(name, known)}")
    own = library.encoders.encoders
    there = timm.is_model(encoder.removeprefix(_TIMM).partition(".")[0]) if _TIMM in encoder else encoder in own
    if not there:
        names = [*own, *(f"{_TIMM}{n}" for n in timm.list_models())]
        raise SourceError(f"segmentation-models-pytorch has no encoder '{encoder}'. {did_you_mean(encoder, names)}")
    return found, encoder


def _encoder_values(source: Source) -> int:
    """Numbers in the encoder's state dict."""
    architecture, encoder = _parts(source)
    with seeded(0), torch.device("meta"):
        model = architecture(encoder_name=encoder, encoder_weights=None)
    return sum(value.numel() for value in model.encoder.state_dict().values())


def _library() -> Any:
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        raise MissingDependencyError(
            "sources of the kind smp: need the library segmentation-models-pytorch: pip install 'netsmith[seg]'"
        ) from error
    return segmentation_models_pytorch
