"""Closed-form fit of an assembled network: adapters in order by ridge regression, norms by their statistics, the head.

Each adapter is fitted on what really reaches it, towards what the next block saw at its input in its own network on the
same images. No gradient step is taken anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from netsmith.closed_form.ridge import Moments, fit_ridge
from netsmith.errors import RecipeError, did_you_mean
from netsmith.reassembly.adapters import Adapter
from netsmith.reassembly.assembled import Assembled
from netsmith.reassembly.heads import HeadFit, classifier_weights, fit_classifier, head_features, set_classifier
from netsmith.reassembly.probe import (
    PrefixState,
    Probe,
    ProbeCache,
    TargetRows,
    device_of,
    evaluating,
    sample_places,
    spans,
)
from netsmith.reassembly.recipe import Recipe
from netsmith.trace.chain import Chain
from netsmith.trace.cost import in_parts
from netsmith.training.checkpoint import copied_state
from netsmith.widths.folding import recalibrate


@dataclass(frozen=True)
class JointFit:
    """How one adapter was fitted: `index` of the block behind it, the ridge taken, R² on the held-out images."""

    index: int
    ridge: float
    r2: float

    @property
    def cost(self) -> float:
        """`1 - R²`: the share of the variance of the block's own input that does not reach it."""
        return 1 - self.r2


@dataclass(frozen=True)
class FitReport:
    """What a fit did: every adapter that is no identity, and the head. `accuracy` is on held-out probe images."""

    joints: tuple[JointFit, ...]
    head: HeadFit

    @property
    def accuracy(self) -> float:
        """Share of the held-out probe images that are classified rightly, 0..1."""
        return self.head.accuracy

    @property
    def cost(self) -> float:
        """Sum of the joints' costs."""
        return sum(j.cost for j in self.joints)


def fit(
    assembled: Assembled, chains: Mapping[str, Chain], probe: Probe, *, cache: ProbeCache | None = None
) -> FitReport:
    """Fit adapters, norm statistics and head of an assembled network, in order and in closed form.

    Settings and seed are the recipe's. Where it leaves open whether batch norms keep their statistics, both are fitted,
    and the lower cross-entropy on the held-out images decides; the network's recipe then says which it was. The network
    is left in eval mode.

    Args:
        assembled: changed in place.
        chains: the networks of the recipe, by name; not changed.
        probe: images that may be looked at: never test images.
        cache: shared between fits to the same probe; changes the time, not the result.

    Raises:
        RecipeError: a network or its preprocessing is missing, or activations are not finite.

    Examples:
        >>> chains = {n.name: netsmith.dissect(n.model, torch.rand(2, 1, 8, 8), name=n.name) for n in zoo}
        >>> probe = netsmith.Probe(*netsmith.probe_set(data, 64), {n.name: n.preprocess for n in zoo})
        >>> model = netsmith.assemble(result.recipe, chains, init="random")
        >>> report = netsmith.fit(model, chains, probe)  # adapters and head of `model`, in closed form
    """
    for ref in assembled.recipe.networks:
        if ref.name not in chains:
            raise RecipeError(
                f"the recipe needs network '{ref.name}', which was not given. {did_you_mean(ref.name, chains)}"
            )
    assembled.eval()
    cache, recipe, state = cache or ProbeCache(), assembled.recipe, copied_state(assembled)
    best: tuple[FitReport, Recipe, dict[str, Tensor]] | None = None
    with evaluating(assembled):
        for anew in _statistics(assembled):
            assembled.recipe = replace(recipe, fit=replace(recipe.fit, recalibrate=anew))
            assembled.load_state_dict(state)
            report = _Fit(assembled, chains, probe, cache).run()
            if best is None or report.head.loss < best[0].head.loss:
                best = report, assembled.recipe, copied_state(assembled)
        assert best is not None
        report, assembled.recipe, state = best
        assembled.load_state_dict(state)
    return report


def _statistics(assembled: Assembled) -> tuple[bool, ...]:
    """What to try as `recalibrate`: what the recipe says, or both where batch norms are behind an adapter."""
    if assembled.recipe.fit.recalibrate is not None:
        return (assembled.recipe.fit.recalibrate,)
    first = next((i for i, a in enumerate(assembled.adapters) if isinstance(a, Adapter)), None)
    behind = [] if first is None else [*assembled.blocks[first:], assembled.head]
    modules = [m for piece in behind for m in piece.modules()]
    return (False, True) if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules) else (False,)


class _Fit:
    """One fit in progress."""

    def __init__(self, assembled: Assembled, chains: Mapping[str, Chain], probe: Probe, cache: ProbeCache) -> None:
        self.net, self.chains, self.probe, self.cache = assembled, chains, probe, cache
        self.recipe, self.spec = assembled.recipe, assembled.recipe.fit
        self.device = device_of(assembled)
        self.spans = spans(len(probe.images), self.spec.batch_size)
        self.held = self._held_out()
        shared = (self.recipe.stem, self.recipe.seed, self.spec.ridges, self.spec.rows, self.spec.holdout)
        self.shared = (*shared, self.spec.batch_size)

    def run(self) -> FitReport:
        joints = []
        disturbed = False
        for index, adapter in enumerate(self.net.adapters):
            disturbed = disturbed or isinstance(adapter, Adapter)
            state = self._joint(index, disturbed)
            if isinstance(adapter, Adapter):
                joints.append(JointFit(index, state.ridge, state.r2))
        return FitReport(tuple(joints), self._head())

    def _held_out(self) -> Bool[Tensor, " n"]:
        count = len(self.probe.images)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.recipe.seed))
        held = torch.zeros(count, dtype=torch.bool)
        held[order[: round(count * self.spec.holdout)]] = True
        return held

    def _key(self, stop: int) -> object:
        """What the activations after block `stop - 1` depend on, beside the probe and the chains."""
        adapters = self.recipe.adapters[:stop]
        anew = self.spec.recalibrate and any(a.style != "identity" for a in adapters)
        return (*self.shared, anew, adapters, self.recipe.blocks[:stop])

    def _behind(self, index: int) -> nn.Module:
        """The piece that adapter `index` feeds."""
        return self.net.head if index == len(self.net.blocks) else self.net.blocks[index]

    def _joint(self, index: int, disturbed: bool) -> PrefixState:
        adapter, piece = self.net.adapters[index], self._behind(index)
        last = index == len(self.net.blocks)
        behind = self.recipe.head if last else self.recipe.blocks[index]
        key = (self._key(index), self.spec.recalibrate, self.recipe.adapters[index], behind)
        known = self.cache.states.get(key)
        if known is not None:
            adapter.load_state_dict(known.adapter)
            piece.load_state_dict(known.buffers, strict=False)
            return known
        ridge, r2 = self._fit_adapter(index, adapter) if isinstance(adapter, Adapter) else (0.0, 1.0)
        if disturbed and self.spec.recalibrate:
            # held-out images are left out: what is measured on them is not what they have shaped
            reaching = zip(self.spans, self._reaching(index), strict=True)
            seen = (adapter(x[~self.held[start:stop].to(x.device)]) for (start, stop), x in reaching)
            recalibrate(piece, (x for x in seen if len(x)))
        buffers = {n: b.clone() for n, b in piece.named_buffers() if n in piece.state_dict()}
        state = PrefixState({n: t.clone() for n, t in adapter.state_dict().items()}, buffers, r2, ridge)
        self.cache.states[key] = state
        return state

    def _reaching(self, index: int) -> Iterator[Tensor]:
        """Batches of what reaches adapter `index`, kept for the next pass where memory allows."""
        key = ("reaching", self._key(index))
        known = self.cache.activations(key)
        if known is not None:
            yield from known
            return
        if index == 0:
            inputs = self.probe.batches(self.recipe.stem, self.spec.batch_size, self.device)
            source = (in_parts(self.net.stem, x) for x in inputs)
        else:
            adapter, block = self.net.adapters[index - 1], self.net.blocks[index - 1]
            source = (in_parts(nn.Sequential(adapter, block), x) for x in self._reaching(index - 1))
        kept: list[Tensor] | None = []
        for x in source:
            if kept is not None:
                kept.append(x)
                if not self.cache.fits(x.numel() * x.element_size() * len(self.spans)):
                    kept = None
            yield x
        if kept is not None:
            self.cache.keep(key, tuple(kept))

    def _target(self, index: int) -> tuple[Chain, int]:
        """Network and cut that adapter `index` is to imitate."""
        if index == len(self.net.blocks):
            chain = self.chains[self.recipe.head.network]
            return chain, len(chain)
        block = self.recipe.blocks[index]
        return self.chains[block.network], block.start

    def _fit_adapter(self, index: int, adapter: Adapter) -> tuple[float, float]:
        """Fit one adapter in place; its ridge and held-out R²."""
        spec = adapter.spec
        places = spec.target_grid[0] * spec.target_grid[1]
        positions = sample_places(places, len(self.probe.images), self.spec.rows, self.recipe.seed).to(self.device)
        target = self.cache.targets(self.probe, *self._target(index), positions, self.spec.batch_size)
        sums = _Sums(adapter, target, positions, self.device)
        for (start, stop), x in zip(self.spans, self._reaching(index), strict=True):
            sums.add(x, start, stop, self.held[start:stop].to(self.device))
        return sums.solve(self.spec.ridges)

    def _head(self) -> HeadFit:
        head, spec = self.net.head, self.recipe.head
        last = len(self.net.blocks)
        batches = [head_features(head, spec, self.net.adapters[last](x)) for x in self._reaching(last)]
        keep = None if spec.fresh else classifier_weights(head, spec)
        weights, found = fit_classifier(
            torch.cat(batches),
            self.probe.labels.to(self.device),
            self.held.to(self.device),
            spec.classes,
            method=self.spec.head,
            keep=keep,
        )
        set_classifier(head, spec, weights)
        return found


class _Sums:
    """The streamed sums behind one adapter: the map of places, and one regression a prefix token."""

    def __init__(self, adapter: Adapter, target: TargetRows, positions: Tensor, device: torch.device) -> None:
        self.adapter, self.target, self.positions = adapter, target, positions
        c, d, p = adapter.spec.source.channels, adapter.spec.target.channels, len(positions)
        inputs = c * adapter.spec.kernel**2
        # index 0: images the fit sees, index 1: held-out images
        self.places = [Moments(p, inputs, d, device) for _ in range(2)]
        tokens = 0 if adapter.spec.prefix_source == "none" else adapter.spec.target.prefix
        self.prefix = [[Moments(1, c, d, device) for _ in range(2)] for _ in range(tokens)]
        self.mean = torch.zeros(c, *adapter.spec.target_grid, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, x: Tensor, start: int, stop: int, held: Bool[Tensor, " b"]) -> None:
        """Take in what reaches the adapter on probe images `start .. stop - 1`."""
        features, tokens = self.adapter.inputs(x)
        rows, wanted = self.adapter.rows(features, self.positions), self.target.rows[start:stop]
        for moments, chosen in zip(self.places, (~held, held), strict=True):
            moments.add(rows[chosen], wanted[chosen])
            if tokens is None:
                continue
            assert self.target.prefix is not None
            for i, token in enumerate(self.prefix):
                into = token[0 if moments is self.places[0] else 1]
                into.add(tokens[chosen, i : i + 1], self.target.prefix[start:stop][chosen, i : i + 1])
        self.mean += features.double().sum(0)
        self.count += len(x)

    def solve(self, ridges: tuple[float, ...]) -> tuple[float, float]:
        """Set the adapter's weights; the ridge taken and R² on held-out images, of the map of places."""
        adapter, spec = self.adapter, self.adapter.spec
        fit, held = self.places
        found = fit_ridge(fit, held, ridges, by_place=spec.positional)
        bias = found.bias
        if spec.positional:
            every = torch.arange(self.target.means.shape[0], device=self.mean.device)
            seen = adapter.rows(self.mean[None] / self.count, every)[0]
            bias = self.target.means - seen @ found.weight
        if spec.style == "dery":
            both = fit + held
            mean, _, rows = both.means(by_place=False)
            adapter.set_norm(mean[0], (both.xx.diagonal() / rows - mean[0].square()).clamp_min(0))
        adapter.set_linear(found.weight, bias)
        for i, (fit, held) in enumerate(self.prefix):
            token = fit_ridge(fit, held, ridges)
            adapter.set_prefix(i, token.weight, token.bias[0])
        return found.ridge, found.r2
