"""What is exported: a network with all that a file of it should say, whether it came by source or as a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from netsmith.errors import ExportError
from netsmith.files.cache import digest
from netsmith.networks.libraries import class_names, commercial_use
from netsmith.networks.network import Network, Preprocess, Provenance, provenance_of
from netsmith.networks.preprocess import preprocess_of, remembered
from netsmith.networks.sources import parse_source
from netsmith.trace.checks import original


@dataclass(frozen=True, eq=False)
class Subject:
    """A network and what is known of it.

    Attributes:
        name: what it is called.
        source: where it comes from; `module:TYPE` for a module.
        model: the network itself.
        input_shape: of one input, without the batch.
        preprocess: from images in [0, 1] to its input; None when unknown.
        task: what it is for; "" when unknown.
        classes: names of its outputs; empty when unknown.
        sources: the networks whose weights it is made of.
        licence: of the whole.
        commercial: whether that allows commercial use; None when unknown.
        random: whether its weights are those that a library drew: nothing has trained them.
    """

    name: str
    source: str
    model: nn.Module
    input_shape: tuple[int, ...]
    preprocess: Preprocess | None
    task: str
    classes: tuple[str, ...]
    sources: tuple[Provenance, ...]
    licence: str | None
    commercial: bool | None
    random: bool = False

    def to_json(self) -> dict[str, Any]:
        """All but the network, as plain values."""
        how = {} if self.preprocess is None else self.preprocess.to_json()
        return {
            "name": self.name,
            "source": self.source,
            "task": self.task,
            "input_shape": list(self.input_shape),
            **how,
            "classes": list(self.classes),
            "licence": self.licence,
            "commercial": self.commercial,
            "sources": [asdict(s) for s in self.sources],
            **({"random_weights": True} if self.random else {}),
        }


def subject_of(
    model: nn.Module | Network,
    *,
    input_shape: Sequence[int] | None = None,
    preprocess: Preprocess | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] = (),
    name: str | None = None,
) -> Subject:
    """Gather what is known of a network or module; what is given here goes before what it says of itself.

    A module may tell by timm's attribute `pretrained_cfg` (for licences with `commercial` and `sources` beside timm's
    own keys), or by `input_size`.

    Raises:
        ExportError: nothing tells the shape of the input.
    """
    if isinstance(model, Network):
        return _of_network(model, input_shape, preprocess, (mean, std), tuple(classes), name)
    model = original(model)
    told = getattr(model, "pretrained_cfg", None)
    cfg: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    called = name or type(model).__name__.lower()
    preprocess = preprocess or remembered(model)
    own = getattr(model, "input_size", None) if preprocess is None else preprocess.input_size
    shape = _shape(called, input_shape, own)
    preprocess = _given(model, shape, preprocess, mean, std)
    licence = cfg.get("license")
    told = [row for row in cfg.get("sources") or () if isinstance(row, Mapping)]
    return Subject(
        name=called,
        source=f"module:{type(model).__name__}",
        model=model,
        input_shape=shape,
        preprocess=_at(preprocess, shape),
        task=str(getattr(model, "task", "")),
        classes=tuple(classes) or tuple(map(str, cfg.get("label_names") or ())),
        sources=provenance_of(told),
        licence=licence,
        commercial=cfg["commercial"] if "commercial" in cfg else commercial_use(licence),
    )


def _of_network(
    network: Network,
    input_shape: Sequence[int] | None,
    preprocess: Preprocess | None,
    statistics: tuple[Sequence[float] | None, Sequence[float] | None],
    classes: tuple[str, ...],
    name: str | None,
) -> Subject:
    about = network.provenance
    found = classes or network.classes
    if not found and about.weights and not network.source.startswith("module:"):
        found = class_names(parse_source(network.source))
    called = name or network.name
    shape = _shape(called, input_shape, network.preprocess.input_size)
    return Subject(
        name=called,
        source=network.source,
        model=network.model,
        input_shape=shape,
        preprocess=_at(_given(network.model, shape, preprocess or network.preprocess, *statistics), shape),
        task=network.task,
        classes=found if classes or len(found) == network.num_classes else (),
        sources=network.sources or (about,),
        licence=about.licence,
        commercial=about.commercial,
        random=_is_random(network),
    )


def _is_random(network: Network) -> bool:
    """Whether a library built it without weights, and it is as it was then."""
    about = network.provenance
    if about.weights is not None or network.source.startswith("module:"):
        return False
    if parse_source(network.source).scheme not in ("timm", "torchvision", "netsmith", "smp"):
        return False  # your own code may have loaded what it likes
    return about.sha256 == digest(network.model.state_dict())


def _given(
    model: nn.Module,
    shape: tuple[int, ...],
    preprocess: Preprocess | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Preprocess | None:
    """By `mean` and `std` where they are given, else as it is known."""
    if mean is None and std is None:
        return preprocess
    return preprocess_of(model, shape, mean, std)


def _at(preprocess: Preprocess | None, shape: tuple[int, ...]) -> Preprocess | None:
    """The same for images of another size; None where it is not known, or cannot be for inputs of that shape."""
    if preprocess is None or preprocess.mean is None or preprocess.std is None:
        return None
    if len(shape) != 3 or shape[0] != len(preprocess.mean):
        return None
    return replace(preprocess, input_size=shape)


def _shape(name: str, given: Sequence[int] | None, own: object) -> tuple[int, ...]:
    found = given if given is not None else own
    if not isinstance(found, Sequence) or not found or not all(isinstance(n, int) and n > 0 for n in found):
        raise ExportError(
            f"nothing tells which inputs '{name}' takes: give input_shape without the batch, such as (3, 32, 32)."
        )
    return tuple(int(n) for n in found)
