from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from netsmith.errors import ArtifactError, DataError, NetsmithError
from netsmith.reassembly import similarity as module
from netsmith.reassembly.representation import Representations, gram
from netsmith.reassembly.similarity import SimilarityTable, metric_names, similarity, similarity_metric


def features(*widths: int, n: int = 24, seed: int = 0, offset: float = 1.0) -> list[Tensor]:
    """Correlated features of different widths and scales, so that similarities are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 6, generator=generator)
    found = []
    for i, d in enumerate(widths):
        mixed = shared @ torch.randn(6, d, generator=generator) + (i + 1) * torch.randn(n, d, generator=generator)
        found.append(torch.relu(mixed + offset) * 10 ** (i - 1))
    return found


def reps_of(rows: list[Tensor], network: str = "net") -> Representations:
    return Representations(network, tuple(f"cut{i}" for i in range(len(rows))), torch.stack([gram(x) for x in rows]))


def hsic(k: Tensor, l: Tensor, biased: bool) -> float:  # noqa: E741
    """The formulas as printed: Gretton et al. (2005); Song et al. (2012), eq. 5."""
    n = k.shape[0]
    if biased:
        h = torch.eye(n, dtype=torch.float64) - 1 / n
        return float(torch.trace(k @ h @ l @ h) / (n - 1) ** 2)
    k, l = k - torch.diag(k.diagonal()), l - torch.diag(l.diagonal())  # noqa: E741
    one = torch.ones(n, dtype=torch.float64)
    terms = (
        torch.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    )
    return float(terms / (n * (n - 3)))


def kernel(x: Tensor, metric: str) -> Tensor:
    x = x.double()
    if metric == "cka":
        return x @ x.T
    distances = torch.cdist(x, x) ** 2
    return torch.exp(-distances / (2 * np.median(distances.numpy())))


def brute_force(rows: list[Tensor], metric: str, biased: bool) -> np.ndarray:
    kernels = [kernel(x, metric) for x in rows]
    cross = np.array([[hsic(k, l, biased) for l in kernels] for k in kernels])  # noqa: E741
    return cross / np.sqrt(np.outer(cross.diagonal(), cross.diagonal()))


@pytest.mark.parametrize("metric", ["cka", "rbf_cka"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("n", [4, 5, 24, 70])
def test_cka_matches_the_printed_formulas(metric, biased, n):
    rows = features(3, 8, 40, 5, n=n)
    table = similarity([reps_of(rows[:2], "a"), reps_of(rows[2:], "b")], metric, biased)
    assert np.abs(table.values - brute_force(rows, metric, biased)).max() < 1e-5
    assert table.values.dtype == np.float64


def test_lr_matches_least_squares():
    rows = features(3, 8, 12, n=60)
    table = similarity([reps_of(rows)], "lr")
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            design = np.column_stack([x.double().numpy(), np.ones(60)])
            target = y.double().numpy()
            rest = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
            expected = 1 - (rest**2).sum() / ((target - target.mean(axis=0)) ** 2).sum()
            assert table.values[i, j] == pytest.approx(expected, abs=1e-5)
    assert np.abs(table.values - table.values.T).max() > 0.05


def test_many_cuts_in_small_chunks_agree_with_one_chunk(monkeypatch):
    reps = [reps_of(features(*[7] * 9, n=50, seed=s), str(s)) for s in range(3)]
    for metric in metric_names():
        whole = similarity(reps, metric).values
        with monkeypatch.context() as patch:
            patch.setattr(module, "_CHUNK", 1)
            assert np.abs(similarity(reps, metric).values - whole).max() < 2e-6


@pytest.mark.slow
def test_float32_products_are_accurate_at_probe_size():
    rows = features(16, 64, 256, n=512)
    for biased in (False, True):
        assert np.abs(similarity([reps_of(rows)], "cka", biased).values - brute_force(rows, "cka", biased)).max() < 1e-5


def test_an_independent_implementation_agrees():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its plotting library warns while it is imported
        cka_from_features = pytest.importorskip("cka").cka_from_features
    rows = features(3, 8, 40, n=40)
    theirs = cka_from_features([x - x.mean(dim=0) for x in rows], [x - x.mean(dim=0) for x in rows])
    ours = similarity([reps_of(rows)]).values
    assert np.abs(ours.clip(0) - theirs.numpy()).max() < 1e-3


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["cka", "rbf_cka", "lr"]),
    st.booleans(),
    st.integers(0, 999),
    st.floats(1e-3, 1e3),
    st.integers(1, 8),
)
def test_invariance_to_rotation_shift_and_scale(metric, biased, seed, scale, d):
    x, y = features(d, 5, n=20, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    moved = scale * (x @ rotation) + scale * torch.randn(d, generator=generator)
    before = similarity([reps_of([x, y])], metric, biased).values
    after = similarity([reps_of([moved, y])], metric, biased).values
    assert np.abs(before - after).max() < 1e-4


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["cka", "rbf_cka", "lr"]), st.booleans(), st.integers(0, 999))
def test_self_similarity_range_and_symmetry(metric, biased, seed):
    values = similarity([reps_of(features(2, 6, 30, n=16, seed=seed))], metric, biased).values
    assert np.abs(values.diagonal() - 1).max() < 1e-6
    assert values.max() <= 1
    assert values.min() >= (0 if biased or metric == "lr" else -1)
    if metric != "lr":
        assert np.array_equal(values, values.T)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(1, 6))
def test_lr_ignores_any_invertible_map_of_the_source(seed, d):
    x, y = features(d, 5, n=30, seed=seed)
    matrix = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed))).Q @ torch.diag(
        torch.linspace(1, 5, d)
    )
    before = similarity([reps_of([x, y])], "lr").values[0, 1]
    assert similarity([reps_of([x @ matrix, y])], "lr").values[0, 1] == pytest.approx(before, abs=1e-4)


def test_unrelated_features_have_unbiased_cka_around_zero_and_biased_far_from_it():
    rows = [torch.randn(32, 200, generator=torch.Generator().manual_seed(s)) for s in range(12)]
    off = ~np.eye(12, dtype=bool)
    assert abs(similarity([reps_of(rows)]).values[off].mean()) < 0.02
    assert similarity([reps_of(rows)], biased=True).values[off].mean() > 0.8


def test_a_constant_is_like_nothing():
    reps = reps_of([*features(3, n=10), torch.full((10, 4), 0.3)])
    for metric in ("cka", "rbf_cka"):
        assert similarity([reps], metric).values.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    assert similarity([reps], "lr").values == pytest.approx(np.array([[1.0, 1.0], [0.0, 1.0]]))


def test_gaussian_bandwidth_when_most_images_coincide():
    x = torch.zeros(8, 2)
    x[:2] = 1.0
    values = similarity([reps_of([x, *features(3, n=8)])], "rbf_cka").values
    assert np.isfinite(values).all()
    assert values[0, 0] == 1


def test_extreme_scales_do_not_overflow():
    x, y = features(3, 4)
    expected = similarity([reps_of([x, y])]).values
    for scale in (1e-12, 1e12):
        assert np.abs(similarity([reps_of([x * scale, y])]).values - expected).max() < 1e-4


def table() -> SimilarityTable:
    a, b = features(3, 4, n=9), features(5, 6, 7, n=9, seed=1)
    return similarity([reps_of(a, "a"), reps_of(b, "b")], "lr")


def test_the_table_knows_its_rows():
    found = table()
    assert found.names == (("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2))
    assert found.labels == ("cut0", "cut1", "cut0", "cut1", "cut2")
    assert found.networks == ("a", "b")
    assert found.offsets == {"a": 0, "b": 2}
    assert found.row("b", 2) == 4
    assert np.array_equal(found.between("a", "b"), found.values[:2, 2:])
    assert np.array_equal(found.between("b", "a"), found.values[2:, :2])
    with pytest.raises(NetsmithError, match="no network 'c' in this table"):
        found.between("a", "c")
    with pytest.raises(NetsmithError, match="'a' has cuts 0 to 1, got 2"):
        found.row("a", 2)


def test_a_table_is_saved_and_read(tmp_path):
    found = table()
    again = SimilarityTable.load(found.save(tmp_path / "table.safetensors"))
    assert np.array_equal(again.values, found.values)
    for field in ("names", "labels", "metric", "biased", "samples"):
        assert getattr(again, field) == getattr(found, field)
    (tmp_path / "other.safetensors").write_bytes(b"no such thing")
    for name in ("other.safetensors", "missing.safetensors"):
        with pytest.raises(ArtifactError, match=f"expected a similarity table.*{name}"):
            SimilarityTable.load(tmp_path / name)


def test_what_cannot_be_compared_is_refused():
    one = reps_of(features(3, n=8), "a")
    with pytest.raises(NetsmithError, match=re.escape("unknown similarity 'ckaa'. Did you mean 'cka'")):
        similarity([one], "ckaa")
    with pytest.raises(DataError, match=re.escape("different numbers of them: {'a': 8, 'b': 9}")):
        similarity([one, reps_of(features(3, n=9), "b")])
    with pytest.raises(DataError, match=re.escape("different names, got ['a', 'a']")):
        similarity([one, one])
    with pytest.raises(DataError, match=re.escape("different names, got []")):
        similarity([])
    with pytest.raises(DataError, match=r"at least 4 images.*got 3"):
        similarity([reps_of(features(3, n=3))])
    bad = Representations("bad", ("cut0",), torch.full((1, 8, 8), float("nan")))
    with pytest.raises(DataError, match="Gram matrices of 'bad' hold NaN"):
        similarity([one, bad])


def test_a_metric_of_ones_own(monkeypatch):
    monkeypatch.setattr(module, "_METRICS", dict(module._METRICS))

    @similarity_metric("traces")
    def traces(grams, biased):
        sizes = torch.stack([g.trace() for g in grams])
        return sizes[:, None] / sizes[None, :]

    assert "traces" in metric_names()
    assert similarity([reps_of(features(3, 4))], "traces").values[0, 0] == 1
