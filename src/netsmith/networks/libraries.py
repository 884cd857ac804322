"""The libraries behind sources: what they would download, under which licence, and how they build a network."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub
import timm
import timm.data
import timm.models
import torch
import torchvision.models as tv
from torch import nn

from netsmith.artifacts.artifact import is_artifact
from netsmith.artifacts.consent import check_code, origin
from netsmith.errors import SourceError, did_you_mean
from netsmith.files.cache import digest
from netsmith.models import BUILDERS
from netsmith.networks.building import TooLargeError, bounded, call, check_options, downloading
from netsmith.networks.smp import smp_build, smp_facts
from netsmith.networks.sources import HELP, IMAGENET_MEAN, IMAGENET_STD, Facts, Source, check_here, seeded

_log = logging.getLogger("netsmith.zoo")


def facts(source: Source, *, pretrained: bool = True) -> Facts:
    """What is known of a source without network, weights or user code.

    Raises:
        SourceError: an unknown architecture, tag or file, with the nearest names.
    """
    found = _FACTS[source.scheme](source, pretrained and source.weights is None)
    if source.weights is not None:
        # the library's licence speaks of the library's weights, not of a local file
        return replace(found, weights=str(source.weights), licence=None, commercial=None, url=None, download_bytes=0)
    return found


def check_source(source: Source) -> None:
    """Whether the names and files of a source exist; quick, and nothing is built, fetched or run.

    Raises:
        SourceError: they do not, with the nearest names. WeightsError: the weights file is missing or no checkpoint.
    """
    check_here(source)
    _FACTS[source.scheme](source, False)


def build(source: Source, *, pretrained: bool, seed: int, options: Mapping[str, Any]) -> nn.Module:
    """The module of a source that is not an artifact, with the library's weights when `pretrained`.

    Random weights are a function of `seed`; the caller's random state is left as it was.

    Raises:
        SourceError: unknown name or option, no pretrained weights, or a download that is not possible.
    """
    known = facts(source, pretrained=pretrained)
    pretrained = pretrained and source.weights is None
    if source.scheme != "py":
        if origin() is not None:  # an artifact has weights of its own: none are fetched for it
            options = {key: value for key, value in options.items() if key != "encoder_weights"}
        check_options(source, options)
        if options:
            state_values(source, options)  # on shapes alone: absurd sizes are refused before anything is allocated
        with bounded(), seeded(seed):
            return _BUILD[source.scheme](source, known, pretrained, dict(options))
    with seeded(seed):
        return _BUILD[source.scheme](source, known, pretrained, dict(options))


def class_names(source: Source) -> tuple[str, ...]:
    """What the outputs of a library's pretrained weights stand for, in order; empty where the library does not say."""
    if source.weights is not None:
        return ()  # a local file's classes are its own
    if source.scheme == "torchvision":
        return tuple(_tv_weights(source).meta["categories"])
    subset = timm.data.infer_imagenet_subset(_timm_cfg(source.name).to_dict()) if source.scheme == "timm" else None
    return tuple(timm.data.ImageNetInfo(subset).label_descriptions()) if subset else ()


def state_values(source: Source, options: Mapping[str, Any], *, parameters: bool = False) -> int:
    """Numbers in a network's state dict (or its parameters alone), given no memory where the architecture allows.

    Raises SourceError for a network that cannot be built, or that is too large for this machine.
    """
    check_options(source, options)
    with seeded(0):
        try:
            with bounded(), torch.device("meta"):
                model = _BUILD[source.scheme](source, Facts(), False, dict(options))
        except TooLargeError:
            raise
        except (RuntimeError, NotImplementedError, SourceError):  # an initialiser that needs real numbers
            with bounded():
                model = _BUILD[source.scheme](source, Facts(), False, dict(options))
    return sum(value.numel() for value in (model.parameters() if parameters else model.state_dict().values()))


# --- netsmith ---------------------------------------------------------------------------------------------------------


def _netsmith_facts(source: Source, pretrained: bool) -> Facts:
    check_here(source)
    note = "random weights: name a file with #WEIGHTS" if source.weights is None else ""
    task = getattr(BUILDERS[source.name], "task", "classification")
    return Facts(mean=IMAGENET_MEAN, std=IMAGENET_STD, note=note, task=task)


def _netsmith_build(source: Source, known: Facts, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    return call(BUILDERS[source.name], f"netsmith:{source.name}", options)


# --- timm -------------------------------------------------------------------------------------------------------------

# Of the licences that timm names, those that allow commercial use; the others are non-commercial or need reading.
_FREE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
_NOT_COMMERCIAL = ("cc-by-nc", "noncommercial", "seer-license", "apple-amlr")


def commercial_use(licence: str | None) -> bool | None:
    """Whether a licence allows commercial use; None when its name does not tell."""
    text = (licence or "").lower()
    if any(part in text for part in _NOT_COMMERCIAL) or "-nc" in text:
        return False
    return True if text in _FREE else None


def _timm_cfg(name: str) -> Any:
    bare, _, tag = name.partition(".")
    if not timm.is_model(bare):
        raise SourceError(f"timm has no architecture '{bare}'. {did_you_mean(bare, timm.list_models())}")
    try:
        return timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{bare}.*")]
        raise SourceError(f"timm's '{bare}' has no weights with the tag '{tag}'. {did_you_mean(tag, tags)}") from error


def _timm_facts(source: Source, pretrained: bool) -> Facts:
    cfg = _timm_cfg(source.name)
    known = Facts(
        num_classes=cfg.num_classes,
        input_size=tuple(cfg.input_size),
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        interpolation=cfg.interpolation,
        fixed_size=bool(cfg.fixed_input_size),
    )
    if not pretrained:
        return replace(known, note="random weights" if source.weights is None else "")
    bare = source.name.partition(".")[0]
    if not cfg.has_weights:
        tagged = timm.list_pretrained(f"{bare}.*")
        hint = f"Tags with weights: {', '.join(tagged[:5])}." if tagged else "Name a local file with #WEIGHTS."
        raise SourceError(f"timm has no pretrained weights for '{source.name}'. {hint}")
    return replace(
        known,
        weights=f"{bare}.{cfg.tag}" if cfg.tag else bare,
        licence=cfg.license,
        commercial=commercial_use(cfg.license),
        url=f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url,
        download_bytes=0 if _timm_cached(cfg) else 4 * state_values(source, {}),
    )


def _timm_cached(cfg: Any) -> str | None:
    """The file that earlier downloads left behind, if there is one."""
    if cfg.file:
        return cfg.file
    if cfg.hf_hub_id:
        names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        found = [huggingface_hub.try_to_load_from_cache(cfg.hf_hub_id, name) for name in names]
        return next((path for path in found if isinstance(path, str)), None)
    file = _hub_file(cfg.url)
    return str(file) if file.exists() else None


def _hub_file(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def _timm_build(source: Source, known: Facts, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    cached = _timm_cached(_timm_cfg(source.name)) if pretrained else None
    if cached is not None:
        # named as a file, it is read at once; by its name on the hub, timm would first ask the hub for news
        options = {"pretrained_cfg_overlay": {"file": cached}, **options}

    def make(**kwargs: Any) -> nn.Module:
        return timm.create_model(source.name, pretrained=pretrained, **kwargs)

    with downloading(source, known):
        return call(make, str(source), options)


# --- torchvision ------------------------------------------------------------------------------------------------------


def _tv_weights(source: Source) -> Any:
    names = tv.list_models(module=tv)
    if source.name not in names:
        raise SourceError(f"torchvision has no classifier '{source.name}'. {did_you_mean(source.name, names)}")
    every = tv.get_model_weights(source.name)
    if source.detail is None:
        return every.DEFAULT  # pyright: ignore[reportAttributeAccessIssue]
    tags = [w.name for w in every]
    if source.detail not in tags:
        hint = did_you_mean(source.detail, tags)
        raise SourceError(f"torchvision's '{source.name}' has no weights '{source.detail}'. {hint}")
    return every[source.detail]


def _tv_facts(source: Source, pretrained: bool) -> Facts:
    weights = _tv_weights(source)
    transform = weights.transforms()
    crop = transform.crop_size[0]
    known = Facts(
        num_classes=len(weights.meta["categories"]),
        input_size=(3, crop, crop),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
    )
    if not pretrained:
        return replace(known, note="random weights" if source.weights is None else "")
    # torchvision names a licence only where it is not its own (SWAG's is CC-BY-NC 4.0); of its own weights it says
    # that terms may derive from the training set
    swag = "SWAG" in weights.meta.get("license", "")
    return replace(
        known,
        weights=weights.name,
        licence="cc-by-nc-4.0" if swag else weights.meta.get("license", "bsd-3-clause (the library's)"),
        commercial=False if swag else None,
        url=weights.url,
        download_bytes=0 if _hub_file(weights.url).exists() else int(weights.meta["_file_size"] * 2**20),
    )


def _tv_build(source: Source, known: Facts, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    weights = _tv_weights(source) if pretrained else None
    if source.name in {"googlenet", "inception_v3"} and not pretrained:
        options.setdefault("init_weights", True)  # silences a warning about a default that is to change

    def make(**kwargs: Any) -> nn.Module:
        return tv.get_model(source.name, weights=weights, **kwargs)

    with downloading(source, known):
        if weights is not None:
            # fills the download folder through the restricted reader, so that what get_model then reads is known safe
            weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        return call(make, str(source), options)


# --- the user's own code ----------------------------------------------------------------------------------------------


def _py_facts(source: Source, pretrained: bool) -> Facts:
    check_here(source)
    return Facts(note=f"runs your code: {source.detail} of {source.name}")


def _py_build(source: Source, known: Facts, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    check_code(Path(source.name), source.detail or "")
    _log.warning("running your code: %s of %s", source.detail, source.name)
    module = _run_file(Path(source.name))
    function = getattr(module, source.detail or "", None)
    if not callable(function):
        callables = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        hint = did_you_mean(source.detail or "", callables)
        raise SourceError(f"{source.name} has no function '{source.detail}'. {hint}".rstrip())
    try:
        model = function(**options)
    except Exception as error:
        given = ", ".join(f"{k}={v!r}" for k, v in options.items())
        raise SourceError(
            f"Your function {source.detail}({given}) of {source.name} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise SourceError(
            f"Your function {source.detail} of {source.name} returned a {type(model).__name__}, "
            "expected a torch.nn.Module."
        )
    return model


def _run_file(path: Path) -> Any:
    # one module per path, kept in sys.modules as dataclasses and pickling expect
    name = f"netsmith_source_{digest(str(path.resolve()))[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent.resolve()))  # so that the file can import its neighbours
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        raise SourceError(f"Your file {path} failed while it was read: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _artifact_facts(source: Source, pretrained: bool) -> Facts:
    if not is_artifact(source.name):
        raise SourceError(f"{source.name} is a folder but no artifact: it has no manifest.json. {HELP}")
    return Facts()


_FACTS: dict[str, Callable[[Source, bool], Facts]] = {
    "netsmith": _netsmith_facts,
    "timm": _timm_facts,
    "torchvision": _tv_facts,
    "smp": smp_facts,
    "py": _py_facts,
    "artifact": _artifact_facts,
}
_BUILD: dict[str, Callable[[Source, Facts, bool, dict[str, Any]], nn.Module]] = {
    "netsmith": _netsmith_build,
    "timm": _timm_build,
    "torchvision": _tv_build,
    "smp": smp_build,
    "py": _py_build,
}
