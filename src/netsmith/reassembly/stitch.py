"""From blocks to a recipe, and from a recipe to a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from netsmith import limits
from netsmith.errors import RecipeError, did_you_mean
from netsmith.reassembly.adapters import Adapter, AdapterSpec, adapter_cost, adapter_spec, build_adapter, spec_cost
from netsmith.reassembly.assembled import Assembled
from netsmith.reassembly.fitting import FitReport, JointFit, fit
from netsmith.reassembly.heads import build_head, head_cost, plan_head
from netsmith.reassembly.probe import Probe, ProbeCache
from netsmith.reassembly.recipe import FitSpec, HeadSpec, NetworkRef, Recipe
from netsmith.search.blocks import Block
from netsmith.trace.chain import Chain

__all__ = [
    "Assembled",
    "FitReport",
    "JointFit",
    "Probe",
    "ProbeCache",
    "adapter_cost",
    "assemble",
    "fit",
    "join",
    "plan_recipe",
    "recipe_cost",
]


def join(before: Block | str, after: Block | str, chains: Mapping[str, Chain], style: str = "auto") -> AdapterSpec:
    """The adapter between two neighbours; a network's name stands for its stem (before) or its head (after).

    It is the identity when they follow each other in one network.
    """
    source, at = (before, 0) if isinstance(before, str) else (before.network, before.stop)
    chain = chains[after] if isinstance(after, str) else chains[after.network]
    to = len(chain) if isinstance(after, str) else after.start
    target = after if isinstance(after, str) else after.network
    left, right = chains[source].cuts[at], chain.cuts[to]
    return adapter_spec(left, right, "identity" if (source, at) == (target, to) else style)


def plan_recipe(
    blocks: Sequence[Block],
    chains: Mapping[str, Chain],
    networks: Mapping[str, NetworkRef],
    *,
    style: str = "auto",
    num_classes: int | None = None,
    stem: str | None = None,
    fit: FitSpec | None = None,
    seed: int = 0,
) -> Recipe:
    """Write down the network that runs `blocks` in order.

    The stem and the preprocessing are those of the first block's network, the head that of the last block's network.
    A first block that does not start at unit 0 gets an adapter from the stem's output to its input; a last block that
    ends early gets one from its end to the head's input.

    Args:
        blocks: any blocks of `chains`, in any order.
        chains: dissected networks by name.
        networks: where each network comes from, by name.
        style: of the adapters, see `adapters.STYLES`.
        num_classes: outputs; None for those of the head's network.
        stem: name of another network whose stem to use.
        fit: how to fit in closed form.
        seed: of all that is drawn.

    Raises:
        RecipeError: no blocks, an unknown network, a block beyond its network's last unit, an unknown style.

    Examples:
        >>> chains = {n.name: netsmith.dissect(n.model, torch.rand(2, 1, 8, 8), name=n.name) for n in zoo}
        >>> references = {reference.name: reference for reference in result.recipe.networks}
        >>> netsmith.plan_recipe(result.recipe.blocks, chains, references).blocks == result.recipe.blocks
        True
    """
    if not blocks:
        raise RecipeError("a recipe needs at least one block, got none")
    for block in blocks:
        _check_block(block, chains)
    stem = stem or blocks[0].network
    if stem not in chains:
        raise RecipeError(f"the stem is of network '{stem}', which is not in the zoo. {did_you_mean(stem, chains)}")
    used = sorted({stem, *(b.network for b in blocks)})
    for name in used:
        if name not in networks:
            raise RecipeError(f"nothing is known of where network '{name}' comes from. {did_you_mean(name, networks)}")
    head = plan_head(chains[blocks[-1].network], num_classes)
    stops: list[Block | str] = [stem, *blocks, blocks[-1].network]
    return Recipe(
        networks=tuple(replace(networks[name], name=name) for name in used),
        stem=stem,
        blocks=tuple(blocks),
        adapters=tuple(join(a, b, chains, style) for a, b in pairwise(stops)),
        head=head,
        num_classes=head.classes,
        fit=fit or FitSpec(),
        seed=seed,
    )


def recipe_cost(recipe: Recipe, chains: Mapping[str, Chain]) -> tuple[int, int]:
    """Parameters and MACs (one image) of the network of a recipe, without building it."""
    params, macs = head_cost(chains[recipe.head.network], recipe.head)
    params += chains[recipe.stem].stem_params
    macs += chains[recipe.stem].stem_macs
    for block in recipe.blocks:
        units = chains[block.network].units[block.start : block.stop]
        params += sum(u.params for u in units)
        macs += sum(u.macs for u in units)
    for spec in recipe.adapters:
        more_params, more_macs = spec_cost(spec)
        params, macs = params + more_params, macs + more_macs
    return params, macs


def assemble(
    recipe: Recipe,
    chains: Mapping[str, Chain],
    *,
    init: str | None = None,
    probe: Probe | None = None,
    cache: ProbeCache | None = None,
) -> Assembled:
    """Build the network of a recipe, in eval mode. Blocks, stem and head are copies.

    Args:
        recipe: what to build.
        chains: its networks, dissected, by name.
        init: "random" draws adapters (and a new classifier) with the recipe's seed; "lstsq" also fits them in closed
            form on `probe`, and is the default where one is given.
        probe: images for the fit.
        cache: see `fit`.

    Raises:
        RecipeError: the recipe does not fit the chains, or "lstsq" came without a probe.

    Examples:
        >>> chains = {n.name: netsmith.dissect(n.model, torch.rand(2, 1, 8, 8), name=n.name) for n in zoo}
        >>> netsmith.assemble(result.recipe, chains, init="random")(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if init not in (None, "random", "lstsq"):
        raise RecipeError(f"init must be 'random' or 'lstsq', not {init!r}")
    if init == "lstsq" and probe is None:
        raise RecipeError("init='lstsq' fits adapters on probe images; give probe=Probe(images, labels, preprocess)")
    _check_recipe(recipe, chains)
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights that are then replaced
        adapters = [build_adapter(spec) for spec in recipe.adapters]
        head = build_head(chains[recipe.head.network], recipe.head, generator)
    for adapter in adapters:
        if isinstance(adapter, Adapter):
            adapter.reset(generator)
    blocks = [copy.deepcopy(chains[b.network].part(b.start, b.stop)) for b in recipe.blocks]
    like = next(chains[recipe.stem].model.parameters(), torch.zeros(()))
    assembled = Assembled(recipe, copy.deepcopy(chains[recipe.stem].stem), blocks, adapters, head).to(like.device)
    assembled.eval()
    if init != "random" and probe is not None:
        fit(assembled, chains, probe, cache=cache)
    return assembled


def _check_block(block: Block, chains: Mapping[str, Chain]) -> None:
    if block.network not in chains:
        raise RecipeError(
            f"block {block} is of network '{block.network}', which is not in the zoo. "
            f"{did_you_mean(block.network, chains)}"
        )
    units = len(chains[block.network])
    if block.stop > units:
        raise RecipeError(f"block {block} ends after the last unit: '{block.network}' has {units} units")


def _check_head(spec: HeadSpec, chain: Chain) -> None:
    """That the head is the one that this network has, so that nothing is made in the size that a file claims."""
    fits = plan_head(chain, max(spec.classes, 1))
    if (spec.kind, spec.path, spec.features) != (fits.kind, fits.path, fits.features):
        raise RecipeError(
            f"the head of the recipe is a {spec.kind} of {spec.features} features at '{spec.path[:80]}', and that of "
            f"'{spec.network}' is a {fits.kind} of {fits.features} at '{fits.path}': the recipe was made from another "
            "network"
        )
    size = 4 * spec.features * spec.classes
    if size > limits.memory():
        raise RecipeError(f"a classifier of {spec.features} features and {spec.classes} classes takes too much memory")


def _check_recipe(recipe: Recipe, chains: Mapping[str, Chain]) -> None:
    for name in (recipe.stem, recipe.head.network):
        if name not in chains:
            raise RecipeError(f"the recipe needs network '{name}', which was not given. {did_you_mean(name, chains)}")
    for block in recipe.blocks:
        _check_block(block, chains)
    _check_head(recipe.head, chains[recipe.head.network])
    stops: list[Block | str] = [recipe.stem, *recipe.blocks, recipe.head.network]
    for i, (spec, (a, b)) in enumerate(zip(recipe.adapters, pairwise(stops), strict=True)):
        now = join(a, b, chains, spec.style)
        if spec.style == "identity" and now.source_shape == now.target_shape and now.source == now.target:
            continue
        if now != spec:
            raise RecipeError(
                f"adapter {i} of the recipe is '{spec}', but between {a} and {b} of the networks given it has to be "
                f"'{now}'; the recipe was made from other networks or another input size"
            )
