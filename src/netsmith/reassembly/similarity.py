"""Similarity of all cuts of all networks at once, from one Gram matrix a cut.

Every metric here is an inner product of two `n x n` matrices, one made from each cut. So the whole table is one matrix
product: the stacked matrices, seen as (C, n^2), times their own transpose. It is taken over runs of rows of the `n x n`
matrices, float32 inside a run and float64 between runs; only the upper triangle is used, as all are symmetric. Against
float64 throughout, an entry is off by less than 1e-5 (tested). `_CHUNK` bounds the memory beyond the Gram matrices.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from netsmith.errors import ArtifactError, DataError, NetsmithError, did_you_mean
from netsmith.reassembly.names import METRICS
from netsmith.reassembly.representation import Representations

Gram = Float[Tensor, "n n"]
Metric = Callable[[Sequence[Gram], bool], Float[Tensor, "c c"]]

_METRICS: dict[str, Metric] = {}
# Numbers in one run of the stacked product: 64 MB of float32, a few times over.
_CHUNK = 1 << 24
# Directions of a representation whose variance is below this part of the largest are rounding of a float32 Gram matrix.
RANK_TOLERANCE = 1e-6


def similarity_metric(name: str) -> Callable[[Metric], Metric]:
    """Registers a metric: `f(grams, biased) -> (C, C)` float64, from the C centred Gram matrices `(n, n)`.

    `values[i, j]` is the similarity from i to j; `biased` picks the plug-in estimate where the metric has two.
    """

    def register(function: Metric) -> Metric:
        _METRICS[name] = function
        if name not in METRICS:
            METRICS.append(name)
        return function

    return register


def metric_names() -> tuple[str, ...]:
    """The registered metrics."""
    return tuple(_METRICS)


@dataclass(frozen=True, eq=False)
class SimilarityTable:
    """Similarity of every cut of a zoo to every other.

    `names[r]` is `(network, cut index)` of row r, `labels[r]` that cut's name; the rows of a network are neighbours, in
    order. `values[i, j]` (C, C) is float64; only `lr` is asymmetric (how well i predicts j).

    Examples:
        >>> chains = [netsmith.dissect(network.model, torch.rand(2, 1, 8, 8), name=network.name) for network in zoo[1:]]
        >>> table = netsmith.similarity([netsmith.represent(chain, torch.rand(16, 1, 8, 8)) for chain in chains])
        >>> table.between("plain", "vit").shape  # cuts of one, cuts of the other
        (6, 5)
    """

    names: tuple[tuple[str, int], ...]
    labels: tuple[str, ...]
    values: Float[np.ndarray, "c c"]
    metric: str
    biased: bool
    samples: int

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks, in order."""
        return tuple(dict.fromkeys(network for network, _ in self.names))

    @property
    def offsets(self) -> dict[str, int]:
        """The first row of each network."""
        return {name: self.rows(name).start for name in self.networks}

    def rows(self, network: str) -> range:
        """The rows of one network. Raises `NetsmithError` for a network that is not in the table."""
        found = [row for row, (name, _) in enumerate(self.names) if name == network]
        if not found:
            raise NetsmithError(f"no network '{network}' in this table. {did_you_mean(network, self.networks)}")
        return range(found[0], found[-1] + 1)

    def row(self, network: str, cut: int) -> int:
        """The row of one cut. Raises `NetsmithError` for a cut that the network does not have."""
        rows = self.rows(network)
        if not 0 <= cut < len(rows):
            raise NetsmithError(f"'{network}' has cuts 0 to {len(rows) - 1}, got {cut}")
        return rows[cut]

    def between(self, a: str, b: str) -> Float[np.ndarray, "a b"]:
        """The part of the table from the cuts of `a` to the cuts of `b`."""
        rows, columns = self.rows(a), self.rows(b)
        return self.values[rows.start : rows.stop, columns.start : columns.stop]

    def save(self, path: Path | str) -> Path:
        """Writes the table to one safetensors file: the values, and the rest as JSON in its header."""
        header = {"names": self.names, "labels": self.labels, "metric": self.metric}
        header |= {"biased": self.biased, "samples": self.samples}
        values = torch.from_numpy(np.ascontiguousarray(self.values))
        save_file({"values": values}, str(path), metadata={"similarity": json.dumps(header)})
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> SimilarityTable:
        """Reads what `save` wrote. Raises `ArtifactError` for any other file."""
        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {})["similarity"])
                values = file.get_tensor("values").numpy()
            names = tuple((network, cut) for network, cut in header["names"])
            labels, metric = tuple(header["labels"]), header["metric"]
            return cls(names, labels, values, metric, header["biased"], header["samples"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"expected a similarity table, could not read one from {path}: {error}") from error


def similarity(reps: Sequence[Representations], metric: str = "cka", biased: bool = False) -> SimilarityTable:
    """The similarity of all cuts of all networks (design, section 4.2).

    - `cka`: linear centred kernel alignment (Kornblith et al., ICML 2019, eq. 2); with the unbiased HSIC of Song et al.
      (JMLR 2012, eq. 5), as Nguyen et al. (ICLR 2021) use it, or with `biased=True` Kornblith's (the papers' numbers).
      The unbiased one lies around 0 for unrelated cuts and can be a little negative.
    - `rbf_cka`: the same with a Gaussian kernel of median bandwidth (Kornblith et al., section 3).
    - `lr`: R^2 of least squares from i to j (Kornblith et al., table 1); asymmetric; `biased` has no meaning for it.

    Raises `DataError` when there is nothing to compare, names repeat, the networks saw different numbers of images or
    fewer than 4, `NetsmithError` for an unknown metric.

    Examples:
        >>> chain = netsmith.dissect(zoo[1].model, torch.rand(2, 1, 8, 8), name="plain")
        >>> table = netsmith.similarity([netsmith.represent(chain, torch.rand(16, 1, 8, 8))])
        >>> table.values.shape  # all cuts with all cuts
        (6, 6)
    """
    if metric not in _METRICS:
        raise NetsmithError(f"unknown similarity '{metric}'. {did_you_mean(metric, _METRICS)}")
    counts = {rep.network: rep.samples for rep in reps}
    if len(counts) < len(reps) or not reps:
        raise DataError(f"similarity needs networks of different names, got {[rep.network for rep in reps]}")
    if len(set(counts.values())) > 1:
        raise DataError(f"networks must be compared on the same images, got different numbers of them: {counts}")
    samples = reps[0].samples
    if samples < 4:
        raise DataError(f"similarity needs at least 4 images (unbiased HSIC divides by n - 3), got {samples}")
    for rep in reps:
        if not torch.isfinite(rep.grams).all():
            raise DataError(f"the Gram matrices of '{rep.network}' hold NaN or infinity")
    grams = [gram for rep in reps for gram in rep.grams]
    values = _METRICS[metric](grams, biased).double().cpu().numpy()
    names = tuple((rep.network, cut) for rep in reps for cut in range(len(rep)))
    labels = tuple(label for rep in reps for label in rep.cuts)
    return SimilarityTable(names, labels, values, metric, biased, samples)


@similarity_metric("cka")
def cka(grams: Sequence[Gram], biased: bool) -> Float[Tensor, "c c"]:
    """Linear CKA. A representation that does not vary is like nothing: 0, with itself too."""
    return _alignment(grams, biased)


@similarity_metric("rbf_cka")
def rbf_cka(grams: Sequence[Gram], biased: bool) -> Float[Tensor, "c c"]:
    """CKA with the kernel `exp(-d^2 / (2 m))`, `m` the median of all n^2 squared distances `d^2` (as Kornblith et al.'s
    published code). The distances are read off the linear Gram matrix: `d^2_ij = G_ii + G_jj - 2 G_ij`."""
    return _alignment([_gaussian(gram) for gram in grams], biased)


@similarity_metric("lr")
def lr(grams: Sequence[Gram], biased: bool) -> Float[Tensor, "c c"]:
    """R^2 of least squares with intercept from i to j, over all columns of j together.

    With `Q_i` an orthonormal basis of the columns of the centred `X_i`: `R^2 = |Q_i^T X_j|^2 / |X_j|^2`
    `= <Q_i Q_i^T, G_j> / tr G_j`. `Q_i` are the eigenvectors of `G_i` whose eigenvalues exceed `RANK_TOLERANCE` times
    the largest. With `d_i >= n - 1` columns the fit is perfect whatever they say: take more images than channels. From
    a constant it is 0, to a constant 1.
    """
    traces = torch.stack([gram.double().diagonal().sum() for gram in grams])
    values = _products(_Plain([_projection(gram) for gram in grams]), _Plain(grams))
    values /= torch.where(traces > 0, traces, 1.0)
    values[:, traces == 0] = 1.0
    return values.clamp(0.0, 1.0)


def _gaussian(gram: Gram) -> Gram:
    exact = gram.double()
    squares = exact.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * exact).clamp_min(0)
    distances.fill_diagonal_(0)
    median = float(np.median(distances.cpu().numpy()))
    if median == 0:  # most images coincide: take the bandwidth from those that do not
        apart = distances[distances > 0]
        median = float(np.median(apart.cpu().numpy())) if apart.numel() else 1.0
    return torch.exp(-distances / (2 * median)).float()


def _projection(gram: Gram) -> Gram:
    values, vectors = torch.linalg.eigh(gram.double())
    basis = vectors[:, values > RANK_TOLERANCE * values[-1].clamp_min(0)] if values[-1] > 0 else vectors[:, :0]
    return (basis @ basis.T).float()


class _Plain:
    """Rows of a stack of matrices as they are."""

    def __init__(self, grams: Sequence[Gram]) -> None:
        self.grams = grams

    def __len__(self) -> int:
        return len(self.grams)

    def block(self, start: int, stop: int) -> Float[Tensor, "c m n"]:
        """Rows start..stop-1, columns from start on."""
        return torch.stack([gram[start:stop, start:] for gram in self.grams])


class _Centred(_Plain):
    """Rows of a stack of matrices, centred and scaled to norm 1 as they are read: no second stack is ever kept.

    Biased: `H K H` with `H = I - 1 1^T / n`. Unbiased: U-centring (Székely & Rizzo, Ann. Statist. 2014, eq. 2.2),
    for which `<A, B> / (n (n - 3))` is exactly the HSIC estimate of Song et al., eq. 5.
    """

    def __init__(self, grams: Sequence[Gram], biased: bool) -> None:
        super().__init__(grams)
        self.biased = biased
        n = grams[0].shape[0]
        off = torch.stack([gram.sum(dim=0, dtype=torch.float64) for gram in grams])
        if not biased:
            off -= torch.stack([gram.diagonal().double() for gram in grams])
        total = off.sum(dim=1, keepdim=True)
        # what is taken from entry (i, j) is means[i] + means[j], the grand mean split in two
        if biased:
            self.means = (off / n - total / (2 * n * n)).float()
        else:
            self.means = (off / (n - 2) - total / (2 * (n - 1) * (n - 2))).float()
        self.scale = torch.ones(len(grams), device=off.device)

    def block(self, start: int, stop: int) -> Float[Tensor, "c m n"]:
        """Rows start..stop-1, columns from start on, centred and scaled."""
        x = super().block(start, stop)
        x -= self.means[:, start:stop, None]
        x -= self.means[:, None, start:]
        if not self.biased:
            x.diagonal(dim1=1, dim2=2).zero_()
        return x.mul_(self.scale[:, None, None])


def _alignment(grams: Sequence[Gram], biased: bool) -> Float[Tensor, "c c"]:
    # Scaled first by the largest entry in use: squares must neither overflow nor vanish in float32. Then by the norm.
    centred = _Centred(grams, biased)
    centred.scale = torch.stack([1 / _largest(gram, biased).clamp_min(1e-30) for gram in grams])
    products = _products(centred, centred)
    norms = products.diagonal().clamp_min(0).sqrt()
    # A kernel without spread (all images alike) leaves nothing but rounding after centring.
    alive = norms > 1e-6 * len(grams[0])
    values = products / torch.where(alive, norms, 1.0).outer(torch.where(alive, norms, 1.0))
    values *= alive[:, None] & alive[None, :]
    values.diagonal()[alive] = 1.0
    return values.clamp(0.0 if biased else -1.0, 1.0)


def _largest(gram: Gram, biased: bool) -> Float[Tensor, ""]:
    return (gram if biased else gram - torch.diag(gram.diagonal())).abs().max()


def _products(left: _Plain, right: _Plain) -> Float[Tensor, "a b"]:
    """`<L_i, R_j>` for all i, j, of symmetric `n x n` matrices."""
    n = left.grams[0].shape[0]
    device = left.grams[0].device
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=device)
    start = 0
    while start < n:
        rows = max(1, _CHUNK // (len(left) * (n - start)))
        stop = min(n, start + min(rows, 64))
        a = left.block(start, stop)
        b = a if right is left else right.block(start, stop)
        # Left of `start` was counted already, by symmetry: what lies right of the square on the diagonal counts twice.
        a = a.clone() if right is left else a
        a[:, :, stop - start :] *= 2
        total += (a.flatten(1) @ b.flatten(1).T).double()
        start = stop
    return (total + total.T) / 2 if right is left else total
