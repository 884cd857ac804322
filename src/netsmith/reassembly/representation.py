"""What every cut of a network says about a set of images: one forward pass, reduced to one Gram matrix a cut.

A similarity of two cuts needs only the `n x n` Gram matrices of their representations, so that is all that is kept.
A Gram matrix needs all `n` rows at once; until the pass is over, the pooled rows of every cut are held: `n * d` numbers
a cut (`d` is the channel count, or `s * s` times that on a grid), never an activation. Beyond `memory_limit` these rows
live in an unlinked temporary file instead of in memory. Peak memory is therefore

    one batch of activations + min(4 n sum(d), memory_limit) + 4 n^2 (number of cuts) bytes, and the network itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from netsmith.errors import ArtifactError, DataError, DissectionError
from netsmith.trace.chain import Chain, Layout
from netsmith.trace.cost import images_at_once

PrefixTokens = Literal["drop", "append"]

# Rows whose spread is below this part of their size differ by rounding alone: the representation is a constant.
CONSTANT = 1e-6
_COLUMNS = 4096


@dataclass(frozen=True)
class Representations:
    """The representations of one network at all its cuts, on one set of `n` images.

    `grams[c]` is `X X^T` (float32) of the column-centred representation `X` (n, d) of cut `c`; the centring is done in
    float64, because the Gram matrix of raw features loses the differences between images where features share a large
    mean. Every similarity here is blind to that shift. A representation that does not vary has a Gram matrix of zeros.
    `features[c]`, kept only on request, are the rows before centring (n, d).

    Examples:
        >>> chain = netsmith.dissect(zoo[1].model, torch.rand(2, 1, 8, 8), name="plain")
        >>> netsmith.represent(chain, torch.rand(16, 1, 8, 8)).grams.shape  # cuts, images, images
        torch.Size([6, 16, 16])
    """

    network: str
    cuts: tuple[str, ...]
    grams: Float[Tensor, "c n n"]
    features: tuple[Float[Tensor, "n _"], ...] | None = None

    def __post_init__(self) -> None:
        assert len(self.cuts) == self.grams.shape[0], (len(self.cuts), self.grams.shape)

    def __len__(self) -> int:
        """The number of cuts."""
        return len(self.cuts)

    @property
    def samples(self) -> int:
        """The number of images `n`."""
        return self.grams.shape[1]

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and a JSON-able header, for a cache: `from_tensors` undoes it."""
        tensors = {"grams": self.grams}
        for i, rows in enumerate(self.features or ()):
            tensors[f"features.{i}"] = rows
        return tensors, {"network": self.network, "cuts": list(self.cuts), "features": self.features is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Representations:
        """What `to_tensors` gave away. Raises `ArtifactError` when the two do not belong together."""
        try:
            cuts = tuple(meta["cuts"])
            features = tuple(tensors[f"features.{i}"] for i in range(len(cuts))) if meta["features"] else None
            grams = tensors["grams"]
            network = meta["network"]
        except KeyError as error:
            raise ArtifactError(f"stored representations lack {error}; delete the cached entry to recompute") from error
        if grams.ndim != 3 or grams.shape[0] != len(cuts) or grams.shape[1] != grams.shape[2]:
            raise ArtifactError(
                f"stored representations of '{network}': expected Gram matrices of shape ({len(cuts)}, n, n), "
                f"got {tuple(grams.shape)}; delete the cached entry to recompute"
            )
        return cls(network, cuts, grams, features)


def on_grid(x: Tensor, layout: Layout, s: int) -> Float[Tensor, "b positions c"]:
    """A cut's tensor on `s x s` positions, row by row: `(b, s * s, channels)`, float32.

    Maps are averaged over the (adaptive) cells of the grid, and repeated where they are smaller than it. Tokens are
    first put back on their own grid; without one they are averaged along their order, as signals are; volumes are
    averaged over their depth. Prefix tokens (class token,
    distillation token, registers) have no place on a grid and are left out. A flat vector is repeated at all positions.
    """
    if layout.kind == "NC":
        return x.float()[:, None, :].expand(-1, s * s, -1)
    if layout.kind == "NLC":
        tokens = x[:, layout.prefix :].float().transpose(1, 2)
        if layout.grid is None:
            return F.adaptive_avg_pool1d(tokens, s * s).transpose(1, 2)
        maps = tokens.unflatten(2, layout.grid)
    elif layout.kind == "NCL":
        return F.adaptive_avg_pool1d(x.float(), s * s).transpose(1, 2)
    elif layout.kind == "NCDHW":
        maps = x.float().mean(dim=2)
    elif layout.kind == "NHWC":
        maps = x.float().permute(0, 3, 1, 2)
    else:
        maps = x.float()
    return F.adaptive_avg_pool2d(maps, s).flatten(2).transpose(1, 2)


def pooled(x: Tensor, layout: Layout, grid: int | None = None, prefix: PrefixTokens = "drop") -> Float[Tensor, "b d"]:
    """A cut's tensor as one row an image, float32: the mean over places, or (`grid=s`) `s * s` means side by side.

    Prefix tokens do not enter the mean. They are dropped, so that a row is the same kind of thing in a convolutional
    network and in a transformer, or (`prefix="append"`) set behind it as `layout.prefix * channels` more columns.
    """
    if grid is not None:
        rows = on_grid(x, layout, grid).flatten(1)
    elif layout.kind == "NC":
        rows = x.float()
    elif layout.kind == "NLC":
        rows = x[:, layout.prefix :].mean(dim=1, dtype=torch.float32)
    else:
        rows = x.mean(dim=(1, 2) if layout.kind == "NHWC" else tuple(range(2, x.ndim)), dtype=torch.float32)
    if prefix == "append" and layout.kind == "NLC" and layout.prefix:
        rows = torch.cat([rows, x[:, : layout.prefix].float().flatten(1)], dim=1)
    return rows


@contextmanager
def evaluating(chain: Chain) -> Iterator[None]:
    """Eval mode for the pieces of a chain, without gradients; every module's mode is put back afterwards."""
    pieces: list[nn.Module] = [chain.stem, *(unit.module for unit in chain.units)]
    modes = {module: module.training for piece in pieces for module in piece.modules()}
    try:
        for module in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def walk(chain: Chain, batch: Tensor, last: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """`(index, tensor)` of each cut in order, up to cut `last`. Use a tensor before asking for the next: units may
    work in place."""
    x = chain.stem(batch)
    yield 0, x
    for index, unit in enumerate(chain.units[:last], start=1):
        x = unit.module(x)
        yield index, x


def prefers_channels_last(chain: Chain, images: Float[Tensor, "n c h w"]) -> bool:
    """Whether batches should be handed over channels last: on a CPU convolutions are faster so (1.1 to 1.4 times, seen
    on resnet18, mobilenetv3, convnext and CIFAR ResNets), unless some code of the network views them as contiguous."""
    if device_of(chain).type != "cpu":
        return False
    try:
        with evaluating(chain):
            for _ in walk(chain, images[:1].contiguous(memory_format=torch.channels_last)):
                pass
    except RuntimeError:
        return False
    return True


def check_images(chain: Chain, images: Tensor) -> None:
    """Raises `DataError` unless `images` (n, c, h, w) have the shape the chain was dissected with."""
    if tuple(images.shape[1:]) != tuple(chain.input_shape) or images.shape[0] == 0:
        raise DataError(
            f"'{chain.name}' takes images of shape (n, {', '.join(map(str, chain.input_shape))}), "
            f"got {tuple(images.shape)}; apply the network's own preprocessing first"
        )


def check_finite(rows: Tensor, chain: Chain, cut: int, first: int) -> None:
    """Raises `DissectionError` naming network, cut and image when `rows` hold NaN or infinity."""
    # one sum is finite only if every term is, and costs no mask; a sum that overflows is then looked into
    if torch.isfinite(rows.sum()):
        return
    good = torch.isfinite(rows).flatten(1).all(dim=1)
    if not good.all():
        image = first + int((~good).nonzero()[0])
        raise DissectionError(
            f"'{chain.name}' gives NaN or infinity at cut {cut} ('{chain.cuts[cut].name}') for probe image {image}; "
            "check its weights and preprocessing, or leave it out of the zoo"
        )


def device_of(chain: Chain) -> torch.device:
    """Where the chain's first parameter lives (the CPU when it has none)."""
    for piece in (chain.stem, *(unit.module for unit in chain.units)):
        for tensor in (*piece.parameters(), *piece.buffers()):
            return tensor.device
    return torch.device("cpu")


class _Rows:
    """The `(n, d)` rows of all cuts, filled batch by batch; in a file without a name once they pass `limit` bytes."""

    def __init__(self, n: int, limit: int) -> None:
        self.n, self.left = n, limit
        self.tensors: dict[int, Tensor] = {}
        self.files: list[Any] = []

    def put(self, cut: int, first: int, rows: Tensor) -> None:
        if cut not in self.tensors:
            self.tensors[cut] = self._new(rows.shape[1])
        self.tensors[cut][first : first + rows.shape[0]] = rows

    def _new(self, d: int) -> Tensor:
        size = self.n * d
        self.left -= 4 * size
        if self.left >= 0 or not size:
            return torch.empty(self.n, d)
        file = tempfile.NamedTemporaryFile(prefix="netsmith-rows-")  # noqa: SIM115  closed, and so removed, by close()
        file.truncate(4 * size)
        self.files.append(file)
        return torch.from_file(file.name, shared=True, size=size).view(self.n, d)

    def close(self) -> None:
        self.tensors.clear()
        for file in self.files:
            file.close()


def gram(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """`X X^T` of the column-centred rows, float32 summed in float64 over runs of columns; zero for constant rows."""
    n = rows.shape[0]
    total = torch.zeros(n, n, dtype=torch.float64, device=rows.device)
    size = torch.zeros((), dtype=torch.float64, device=rows.device)
    for part in rows.split(_COLUMNS, dim=1):
        exact = part.double()
        size += exact.square().sum()
        centred = (exact - exact.mean(dim=0)).float()
        total += centred @ centred.T
    if total.diagonal().sum() <= CONSTANT**2 * size:
        return torch.zeros(n, n, device=rows.device)
    return total.float()


def represent(
    chain: Chain,
    images: Float[Tensor, "n c h w"],
    *,
    grid: int | None = None,
    prefix: PrefixTokens = "drop",
    batch_size: int | None = None,
    keep_features: bool = False,
    memory_limit: int = 2 << 30,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Representations:
    """The representations of a network at all its cuts, in one forward pass (design, section 4.1).

    `images` are preprocessed for this network. `grid=None` pools over space or tokens, as the paper does (Yang et al.,
    "Deep Model Reassembly", NeurIPS 2022); `grid=s` keeps `s x s` means. The network runs in eval mode without
    gradients, and is left as it was found. Batches, of a size that suits it unless `batch_size` is given, go to
    `device` (where the network's parameters are, unless given); the Gram matrices come back on the CPU.
    `progress(done, n)` is called after each batch.

    Raises `DataError` for images of another shape, `DissectionError` for NaN or infinity (network and cut named).

    Examples:
        >>> chain = netsmith.dissect(zoo[1].model, torch.rand(2, 1, 8, 8), name="plain")
        >>> netsmith.represent(chain, torch.rand(16, 1, 8, 8)).grams.shape  # cuts, images, images
        torch.Size([6, 16, 16])
    """
    check_images(chain, images)
    n = images.shape[0]
    device = device_of(chain) if device is None else torch.device(device)
    store = _Rows(n, memory_limit)
    order = torch.channels_last if prefers_channels_last(chain, images) else torch.contiguous_format
    try:
        with evaluating(chain):
            size = batch_size or images_at_once(chain.model, images[:1].to(device))
            for first in range(0, n, size):
                batch = images[first : first + size].to(device)
                for cut, x in walk(chain, batch.contiguous(memory_format=order)):
                    rows = pooled(x, chain.cuts[cut].layout, grid, prefix)
                    check_finite(rows, chain, cut, first)
                    store.put(cut, first, rows.cpu())
                if progress is not None:
                    progress(min(first + size, n), n)
        cuts = range(len(chain.cuts))
        kept = [store.tensors[cut].clone() for cut in cuts] if keep_features else None
        grams = torch.empty(len(cuts), n, n)
        for cut in cuts:
            # popped: each cut's rows are let go as soon as they are reduced
            grams[cut] = gram(store.tensors.pop(cut).to(device)).cpu()
            check_finite(grams[cut], chain, cut, 0)
    finally:
        store.close()
    names = tuple(cut.name for cut in chain.cuts)
    return Representations(chain.name, names, grams, None if kept is None else tuple(kept))


def represent_all(
    chains: Mapping[str, Chain], images: Mapping[str, Float[Tensor, "n _ _ _"]], **options: Any
) -> tuple[Representations, ...]:
    """`represent` for every network of a zoo, in its order; `images[name]` are preprocessed for that network."""
    check_same_images(images, list(chains))
    return tuple(represent(chain, images[name], **options) for name, chain in chains.items())


def check_same_images(images: Mapping[str, Tensor], networks: Sequence[str]) -> int:
    """The common number of images of `networks`. Raises `DataError` when one is missing or the numbers differ."""
    missing = [name for name in networks if name not in images]
    if missing:
        raise DataError(f"no probe images for {', '.join(map(repr, missing))}; got images for {sorted(images)}")
    counts = {name: images[name].shape[0] for name in networks}
    if len(set(counts.values())) > 1:
        raise DataError(f"networks are compared on the same images in the same order, got different numbers: {counts}")
    return next(iter(counts.values()), 0)
