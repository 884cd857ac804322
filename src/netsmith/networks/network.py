"""One network: loaded by source, its weights checked, its preprocessing and provenance known."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from netsmith import limits
from netsmith.artifacts import artifact
from netsmith.errors import ArtifactError, SourceError
from netsmith.files.cache import digest
from netsmith.files.output import sha256_file
from netsmith.networks import hub as _hub  # noqa: F401  artifacts of the Hub (hf:) are sources
from netsmith.networks.libraries import build, class_names, commercial_use, facts
from netsmith.networks.preprocess import INTERPOLATIONS, Preprocess, per_channel, remember, remembered
from netsmith.networks.sources import SCHEMES, Facts, Source, parse_source, speakable
from netsmith.networks.structure import structure
from netsmith.networks.weights import load_state, load_weights_file, mismatch
from netsmith.records.architecture import is_noted, note
from netsmith.trace.checks import explained, original, unusable

_log = logging.getLogger("netsmith.zoo")


@dataclass(frozen=True)
class Provenance:
    """Where a network comes from; `sha256` is of the weights file or, without a local one, of the state dict."""

    source: str
    weights: str | None = None
    sha256: str | None = None
    licence: str | None = None
    url: str | None = None
    commercial: bool | None = None


@dataclass
class Network:
    """A loaded network, in eval mode, on the CPU.

    It gives `(n, num_classes)` for images that `preprocess` prepared, or `(n, num_classes, h, w)` when its task is
    segmentation; `num_classes` 0 means that it has no classifier and gives features, or images (generation).

    Examples:
        >>> network = netsmith.load_source("netsmith:small_vit", num_classes=10, input_size=(1, 8, 8))
        >>> network.name, network.num_classes, network.preprocess.input_size
        ('small_vit', 10, (1, 8, 8))
    """

    name: str
    source: str
    model: nn.Module
    preprocess: Preprocess
    num_classes: int
    provenance: Provenance
    options: Mapping[str, Any] = field(default_factory=dict)
    """What was asked of the function that builds it, beyond classes and input size."""
    task: str = "classification"
    """What the source says that it is for (see `core.tasks`)."""
    classes: tuple[str, ...] = ()
    """Names of its outputs, where an artifact tells them."""
    sources: tuple[Provenance, ...] = ()
    """Of an artifact: the networks whose weights it was made of."""
    code: str | None = None
    """SHA-256 of the file of a `py:` source."""

    def __post_init__(self) -> None:
        """Note on the module of a library, or of a file of code, how it is built."""
        if self.source.partition(":")[0] in SCHEMES and not is_noted(self.model):
            about = {
                "kind": "network",
                "name": self.name,
                "source": self.source.partition("#")[0],
                "options": dict(self.options),
                "num_classes": self.num_classes or None,
                "task": self.task,
                "classes": list(self.classes),
                "preprocess": self.preprocess.to_json(),
                "provenance": [asdict(self.provenance)],
                "licence": self.provenance.licence,
                "commercial": self.provenance.commercial,
            }
            note(self.model, about)

    def identity(self) -> str:
        """Digest of all that decides what it computes now: what is kept of its results is kept under this.

        Weights and buffers, its layers as they print themselves, the file of a `py:` source, options, preprocessing
        with input size, classes and task. The same in every process and on every machine, wherever its files lie, and
        under any name. It is computed anew at each call: ask before it runs.
        """
        return digest(
            "network", self.model.state_dict(), structure(self.model, dict(self.options)), self.code,
            self.preprocess.to_json(), self.num_classes, self.task,
        )  # fmt: skip


def load_source(
    source: str | nn.Module,
    *,
    name: str | None = None,
    pretrained: bool = True,
    num_classes: int | None = None,
    input_size: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    licence: str | None = None,
    options: Mapping[str, Any] | None = None,
    base: Path | None = None,
    run_code: bool = False,
) -> Network:
    """Load a network by its source string, or take a module as it is.

    Args:
        source: `timm:NAME`, `torchvision:NAME`, `netsmith:NAME`, `smp:ARCHITECTURE/ENCODER`, `py:PATH.py:FUNCTION`
            (your code: it is run), each optionally with `#WEIGHTS`, a local file; the folder of an artifact;
            `hf:ORG/NAME`, one of the Hugging Face Hub; or a module, which is put into eval mode (its parameters are
            shared, not copied).
        name: what to call it.
        pretrained: whether to fetch the library's weights (timm, torchvision; smp: its encoder's); otherwise they are
            random.
        num_classes: classes of the head, where the source does not tell; must agree where it does.
        input_size: (channels, height, width) of its input, where the source does not tell or another one is wanted.
        mean: per channel, of images in [0, 1]; where it is left out, it is the library's, the artifact's, or what
            the module's `pretrained_cfg` (timm's) says. It is never guessed: a network without it has no
            preprocessing, and is refused where it meets images.
        std: likewise.
        seed: of random weights.
        licence: of the weights, where the source does not tell.
        options: further arguments of the function that builds the network.
        base: folder that relative paths in `source` start from; default: the working folder.
        run_code: whether an artifact may run the code that it names; a `py:` source that is given here is run.

    Raises:
        SourceError: nothing of that name, or it cannot be built or fetched.
        MissingDependencyError: `smp:` without the `seg` extra.
        WeightsError: the weights file cannot be read or does not fit.
        ArtifactError: an artifact folder is damaged.
        HubError: the Hub has no such artifact, or is out of reach.

    Examples:
        >>> netsmith.load_source("timm:resnet18", pretrained=False, num_classes=10).preprocess.input_size
        (3, 224, 224)
    """
    size = None if input_size is None else _triple(input_size)
    if num_classes is not None and not 0 <= num_classes <= limits.CLASSES:
        raise SourceError(f"num_classes is a number from 0 to {limits.CLASSES}, got {num_classes}.")
    manifest: Mapping[str, Any] = {}
    code = None
    source = original(source) if isinstance(source, nn.Module) else source
    parsed = None if isinstance(source, nn.Module) else parse_source(source, base)
    called = name or (type(source).__name__.lower() if parsed is None else speakable(parsed.default_name))
    if parsed is None:
        assert isinstance(source, nn.Module)
        known, model, weights_hash = Facts(), source, None
    elif parsed.scheme == "artifact":
        (known, model, manifest), weights_hash = _open_artifact(parsed, run_code), None
    else:
        known = facts(parsed, pretrained=pretrained)
        code = sha256_file(Path(parsed.name)) if parsed.scheme == "py" else None
        wanted = builder_options(parsed, known, num_classes, size, options, pretrained)
        model = build(parsed, pretrained=pretrained, seed=seed, options=wanted)
        weights_hash = _load_local(parsed, model)
        manifest = manifest_of(parsed.weights, weights_hash)
        known = told(known, manifest)
    if reason := unusable(model):
        raise SourceError(f"'{called}': {reason}.")
    model.eval()
    known = _completed(known, model)
    preprocess = _preprocess(called, model, known, size, mean, std)
    if parsed is not None:
        remember(model, preprocess, _names(parsed, known, manifest))
    classes, dense = _count_classes(called, model, preprocess, num_classes)
    text = f"module:{type(model).__name__}" if parsed is None else str(parsed)
    return Network(
        name=called,
        source=text,
        model=model,
        preprocess=preprocess,
        num_classes=classes,
        provenance=Provenance(
            source=text,
            weights=known.weights,
            sha256=weights_hash or digest(model.state_dict()),
            licence=licence or known.licence,
            url=known.url,
            commercial=commercial_use(licence) if licence else known.commercial,
        ),
        options=dict(options or {}),
        task="segmentation" if dense else known.task,
        classes=tuple(map(str, manifest.get("classes", ()))),
        sources=provenance_of(manifest.get("provenance", ())),
        code=code,
    )


def check_network(network: object) -> None:
    """Raise SourceError for what is no Network, such as a module that was given as it is."""
    if not isinstance(network, Network):
        raise SourceError(
            f"expected a network that load_source gave, got a {type(network).__name__}. Load it first: "
            "netsmith.load_source(module, name=..., input_size=..., mean=..., std=...)."
        )


def provenance_of(rows: Iterable[Mapping[str, Any]]) -> tuple[Provenance, ...]:
    """What a manifest keeps under `provenance`, read back; keys that this release does not know are left out."""
    known = {f.name for f in fields(Provenance)}
    return tuple(Provenance(**{k: v for k, v in row.items() if k in known}) for row in rows if "source" in row)


def _triple(size: Sequence[int]) -> tuple[int, int, int]:
    fault = limits.input_fault(list(size))
    if fault is not None:
        raise SourceError(f"input_size is (channels, height, width): {fault}.")
    return (int(size[0]), int(size[1]), int(size[2]))


def _open_artifact(source: Source, run_code: bool) -> tuple[Facts, nn.Module, Mapping[str, Any]]:
    known = facts(source)
    manifest = artifact.read_manifest(source.name)
    if source.detail is not None and manifest["kind"] != "morph":
        raise SourceError(
            f"'{source}': only a morphable artifact has sizes, and {source.name} is of kind '{manifest['kind']}'. "
            f"Name it without '@{source.detail}'."
        )
    ratio = _ratio(source) if source.detail is not None else None
    known = replace(told(known, manifest), weights="weights.safetensors")
    model = artifact.load(source.name, run_code=run_code)
    if manifest["kind"] == "morph":
        assert isinstance(model, artifact.Sized)
        model = model.at(1.0 if ratio is None else ratio)
    return known, model, manifest


def told(known: Facts, manifest: Mapping[str, Any]) -> Facts:
    """What an artifact's manifest says of its network, in the place of what its source does; an empty one changes
    nothing."""
    if not manifest:
        return known
    known = replace(known, licence=manifest.get("licence"), commercial=manifest.get("commercial"))
    known = replace(known, num_classes=manifest.get("num_classes"), task=str(manifest.get("task", known.task)))
    if "preprocess" in manifest:
        found = Preprocess.from_json(manifest["preprocess"])
        known = replace(known, mean=found.mean, std=found.std)
        known = replace(known, input_size=found.input_size, interpolation=found.interpolation)
    return known


def _names(source: Source, known: Facts, manifest: Mapping[str, Any]) -> Sequence[str] | None:
    """What a network's outputs stand for, by its artifact or its library; empty where they stand for nothing yet."""
    if manifest:
        return tuple(map(str, manifest.get("classes", ())))
    if source.scheme == "py":
        return None  # your own code may have built what it likes
    return class_names(source) if known.weights is not None else ()


def _completed(known: Facts, model: nn.Module) -> Facts:
    """With what the module itself says of its images, where its source says nothing."""
    found = remembered(model)
    if found is None or known.mean is not None or known.std is not None:
        return known
    size = known.input_size or found.input_size
    return replace(known, mean=found.mean, std=found.std, input_size=size, interpolation=found.interpolation)


def manifest_of(weights: str | Path | None, sha256: str | None = None) -> Mapping[str, Any]:
    """The manifest of the network's artifact in which a weights file lies; empty where it is of none.

    `sha256` is the file's, where it is known: another file that was put there is not what the manifest speaks of.
    """
    if weights is None or not artifact.is_artifact(Path(weights).parent):
        return {}
    try:
        manifest = artifact.read_manifest(Path(weights).parent, "network")
    except ArtifactError as error:
        _log.warning("%s: its preprocessing, licence and classes are not known. %s", weights, error)
        return {}
    entry = manifest["files"].get(Path(weights).name)
    return manifest if entry is not None and sha256 in (None, entry["sha256"]) else {}


def _ratio(source: Source) -> float:
    """The size behind the @ of a morphable artifact."""
    try:
        ratio = float(source.detail or "")
    except ValueError:
        ratio = 0.0
    if not 0.0 < ratio < float("inf"):
        raise SourceError(f"'{source}': behind the @ goes a ratio above 0, such as {source.remote or source.name}@0.5.")
    return ratio


def builder_options(
    source: Source,
    known: Facts,
    num_classes: int | None,
    size: tuple[int, int, int] | None,
    options: Mapping[str, Any] | None,
    pretrained: bool,
) -> dict[str, Any]:
    """What a builder is told of classes and input, in the words of its library; the user's own options win."""
    wanted: dict[str, Any] = {}
    fetched = pretrained and source.weights is None and source.scheme in {"timm", "torchvision"}
    if num_classes is not None and source.scheme != "py":
        if fetched and known.num_classes not in (None, num_classes):
            raise SourceError(
                f"The weights of '{source}' have {known.num_classes} classes, not {num_classes}; another head would be "
                "random. Leave num_classes out (a new head is fitted to your data later), or set pretrained: false."
            )
        wanted["classes" if source.scheme == "smp" else "num_classes"] = num_classes
    if size is not None and source.scheme == "netsmith":
        if size[1] != size[2]:
            raise SourceError(f"'{source}' takes square images, got input_size {list(size)}.")
        wanted.update(in_channels=size[0], image_size=size[1])
    if size is not None and source.scheme == "smp":
        wanted["in_channels"] = size[0]
    if size is not None and source.scheme == "timm":
        if size[0] != 3:
            wanted["in_chans"] = size[0]
        if known.fixed_size and size != known.input_size:
            wanted["img_size"] = size[1:]
    return {**wanted, **(options or {})}


def _load_local(source: Source, model: nn.Module) -> str | None:
    """Load the file of `#WEIGHTS`; returns its hash."""
    if source.weights is None:
        return None
    state = load_weights_file(source.weights)
    if source.scheme == "timm" and mismatch(model, state):
        # timm translates the names in the original checkpoints of many papers
        translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if translate is not None:
            try:
                translated = translate(dict(state), model)
            except Exception as error:
                _log.info("timm's translation does not apply to %s: %s", source.weights, error)
            else:
                state = translated if not mismatch(model, translated) else state
    load_state(model, state, str(source))
    return sha256_file(source.weights)


def _preprocess(
    name: str,
    model: nn.Module,
    known: Facts,
    size: tuple[int, int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Preprocess:
    size = size or known.input_size
    if size is None:
        own = getattr(model, "input_size", None)
        if not isinstance(own, tuple | list) or len(own) != 3:
            raise SourceError(
                f"Nothing tells which images '{name}' takes. Give input_size: [channels, height, width], "
                "such as [3, 32, 32] (--input-size 3x32x32)."
            )
        size = _triple(own)
    means, stds = _per_channel("mean", mean, known.mean, size), _per_channel("std", std, known.std, size)
    mode = known.interpolation if known.interpolation in INTERPOLATIONS else "bicubic"
    return Preprocess(means, stds, size, mode, name)


def _per_channel(
    what: str, given: Sequence[float] | None, known: Sequence[float] | None, size: tuple[int, int, int]
) -> tuple[float, ...] | None:
    if given is not None:
        return per_channel(what, given, size[0])
    if known is None or len(known) == size[0]:
        return None if known is None else tuple(known)
    return (sum(known) / len(known),) * size[0]  # images of other channels than the source speaks of: their mean


def _count_classes(name: str, model: nn.Module, preprocess: Preprocess, claimed: int | None) -> tuple[int, bool]:
    """Classes that one blank image gives and whether its pixels have them; finds out if the network runs at all."""
    own = getattr(model, "num_classes", None)
    if isinstance(own, int) and not isinstance(own, bool) and claimed in (None, own):
        return own, False
    image = torch.zeros(1, *preprocess.input_size)
    what = f"'{name}' does not run on images of {list(preprocess.input_size)}"
    with torch.inference_mode(), explained(model, image, what, "Give the right input_size.", SourceError):
        out = model(image)
    if not isinstance(out, Tensor) or out.ndim not in (2, 4):
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise SourceError(
            f"'{name}' gives {shape} for one image, expected one row of class scores, (1, classes), or one for every "
            "pixel, (1, classes, height, width)."
        )
    if claimed is not None and out.shape[1] != claimed:
        raise SourceError(f"'{name}' gives {out.shape[1]} classes, but num_classes says {claimed}.")
    return out.shape[1], out.ndim == 4
