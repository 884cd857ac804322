"""Parents: the networks of a zoo as reassembly sees them, loaded, dissected, and judged on the data at hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from netsmith.artifacts.consent import origin, recorded
from netsmith.data.classes import by_name
from netsmith.data.splits import ImageSet
from netsmith.distributed.processes import own_device
from netsmith.errors import DataError, DissectionError, RecipeError, ZooError
from netsmith.files.output import to_json
from netsmith.networks.network import Network, load_source
from netsmith.networks.running import check_runs
from netsmith.networks.sources import SCHEMES
from netsmith.networks.trained import architecture
from netsmith.reassembly.recipe import InputSpec, NetworkRef, Recipe
from netsmith.search.budget import Budget
from netsmith.trace.chain import Chain, dissect
from netsmith.training.engine import evaluate
from netsmith.training.session import placed
from netsmith.training.settings import Precision
from netsmith.training.tasks import Classification


@dataclass(frozen=True, eq=False)
class Parent:
    """One network of the zoo with its chain; `accuracy` (0..1, validation) is None where its classes are not ours."""

    network: Network
    chain: Chain
    accuracy: float | None = None

    @property
    def name(self) -> str:
        """Its name in the zoo."""
        return self.network.name

    @property
    def ref(self) -> NetworkRef:
        """How a recipe speaks of it: all that builds it again."""
        network, pre = self.network, self.network.preprocess
        source, options = network.source, dict(network.options)
        if not source.startswith("module:"):
            source, options = architecture(source, options)
        return NetworkRef(
            name=network.name,
            source=source,
            sha256=network.provenance.sha256,
            num_classes=network.num_classes,
            input=InputSpec(*pre.statistics, pre.input_size, pre.interpolation),
            options=json.loads(to_json(options)),  # as a recipe that is read back has them
        )


def study(networks: Sequence[Network], images: Float[Tensor, "n c h w"]) -> tuple[Parent, ...]:
    """Dissect every network of a zoo, with one of `images` (in [0, 1]) as its example.

    Raises:
        ZooError: fewer than two networks, or two of one name.
        DissectionError: networks that cannot be cut; all of them are named.
        DataError: the images have other channels than a network takes.
    """
    names = [n.name for n in networks]
    if len(names) < 2:
        raise ZooError(
            f"Reassembly needs a zoo of at least two networks, got {len(names)}"
            + (f" ('{names[0]}'). " if names else ". ")
            + "Add networks to 'zoo', or use `netsmith train` to train or tune a single one."
        )
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ZooError(f"Every network of a zoo needs a name of its own; used more than once: {', '.join(twice)}.")
    parents, faults = [], []
    for network in networks:
        try:
            example = network.preprocess(images[:1])
            parents.append(Parent(network, dissect(network.model, example, name=network.name)))
        except DataError as error:
            raise DataError(f"'{network.name}' cannot take the images of this data: {error}") from error
        except DissectionError as error:
            faults.append(str(error))
    if faults:
        raise DissectionError("\n".join([f"{len(faults)} of {len(names)} networks cannot be used:", *faults]))
    return tuple(parents)


def judge(
    parent: Parent, images: ImageSet, classes: int, *, device: str = "cpu", precision: Precision = "no"
) -> float | None:
    """Accuracy (0..1) of a parent by itself, or None where its head has other classes than the data.

    This process measures it alone, whatever others do.
    """
    network = parent.network
    if network.num_classes != classes:
        return None
    try:
        images = by_name(network.model, images, classes)
    except DataError:
        return None  # as many classes, but other ones
    task = Classification(classes)
    metrics = evaluate(
        network.model, images, task, preprocess=network.preprocess, precision=precision, device=device, alone=True
    )
    return metrics["accuracy"]


@contextmanager
def on_device(parents: Iterable[Parent], device: str) -> Iterator[None]:
    """These networks and their chains are on this process's device of that kind; then where they were."""
    there = own_device(device)
    with ExitStack() as stack:
        for parent in parents:
            # a piece that was cut out of a network's code has buffers of its own, beside those of the network
            for piece in (parent.network.model, parent.chain.stem, *(unit.module for unit in parent.chain.units)):
                stack.enter_context(placed(piece, there, channels_last=False))
        yield


def with_accuracy(parent: Parent, accuracy: float | None) -> Parent:
    """The same parent with its accuracy on validation."""
    return replace(parent, accuracy=accuracy)


def chains_of(parents: Sequence[Parent]) -> dict[str, Chain]:
    """The chains by name."""
    return {p.name: p.chain for p in parents}


def preprocessing_of(parents: Sequence[Parent]) -> dict[str, Callable[[Tensor], Tensor]]:
    """For each network the function from images in [0, 1] to its input."""
    return {p.name: p.network.preprocess for p in parents}


def rebuild(recipe: Recipe, given: Mapping[str, torch.nn.Module] | None = None) -> dict[str, Chain]:
    """Chains of the networks of a recipe, with random weights: the architecture to load an artifact's weights into.

    `given` holds modules by name for networks that were handed over as modules and have no source.

    Raises:
        RecipeError: such a network is not in `given`.
        SourceError: a source names nothing any more.
    """
    chains = {}
    for ref in recipe.networks:
        module = (given or {}).get(ref.name)
        if module is None and ref.source.startswith("module:"):
            wanted = ", ".join(f"'{r.name}': module" for r in recipe.networks if r.source.startswith("module:"))
            raise RecipeError(
                f"'{ref.name}' was given as a module ({ref.source[7:]}), which no source string builds again. "
                f"Build it and pass it: netsmith.load_reassembled(folder, networks={{{wanted}}})."
            )
        source = ref.source.partition("#")[0]  # the architecture alone: weights come from the artifact
        if module is None and source.partition(":")[0] not in SCHEMES:
            raise RecipeError(
                f"'{ref.name}' of the recipe has the source '{source[:200]}', expected an architecture: one of "
                f"{', '.join(f'{scheme}:' for scheme in SCHEMES)} and a name."
            )
        with recorded(origin() or "the recipe"):
            network = load_source(
                module if module is not None else source,
                name=ref.name,
                pretrained=False,
                num_classes=ref.num_classes,
                input_size=ref.input.input_size,
                options=ref.options,
            )
        check_runs(network.model, ref.input.input_size, ref.name)
        example = torch.zeros(1, *ref.input.input_size)
        chains[ref.name] = dissect(network.model, example, name=ref.name)
    return chains


def members_within(parents: Iterable[Parent], budget: Budget) -> str:
    """Return a sentence that names the networks of a zoo that keep a budget's params and MACs; empty without one."""
    within = [p.name for p in parents if not budget.check(params=p.chain.params, macs=p.chain.macs)]
    return f" In the zoo, {', '.join(within)} would keep its params and MACs." if within else ""
