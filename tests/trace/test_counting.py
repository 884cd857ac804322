"""Multiply-adds of layers that hide them: counted as by hand, on every route, or refused by name."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

import netsmith
from netsmith.errors import DissectionError
from netsmith.trace.cost import count_macs, count_params, memory_bytes

N, D, HEADS = 50, 32, 4
ATTENTION = 2 * N * N * D  # queries by keys, and what comes of it by values
PROJECTIONS = N * D * 3 * D + N * D * D


class Attention(nn.Module):
    """Self-attention, spelt in several ways; `looks` makes its code ask for a value, which needs real tensors."""

    def __init__(self, spelling: str, *, looks: bool) -> None:
        super().__init__()
        self.spelling, self.looks = spelling, looks
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        if self.looks and x.mean().item() > 1e9:
            return x
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(b, n, D))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.spelling == "fused":
            return F.scaled_dot_product_attention(q, k, v)
        if self.spelling == "causal":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.spelling == "grouped":
            return F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True)
        if self.spelling == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
            return torch.einsum("bhij,bhjd->bhid", scores, v)
        a, b, c = (t.flatten(0, 1) for t in (q, k, v))
        scores = torch.baddbmm(torch.zeros((), device=q.device), a, b.mT).softmax(-1)
        return (scores @ c).view_as(q)


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("spelling", ["fused", "causal", "grouped", "einsum", "baddbmm"])
def test_attention_counts_however_it_is_written_and_run(spelling, looks):
    assert count_macs(Attention(spelling, looks=looks), (N, D)) == PROJECTIONS + ATTENTION


class Looks(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x) if x.abs().sum().item() >= 0 else x
        return out[0] if isinstance(out, tuple) else out


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (SelfAttention(D, HEADS, batch_first=True), PROJECTIONS + ATTENTION),
        (nn.TransformerEncoderLayer(D, HEADS, 64, batch_first=True), PROJECTIONS + ATTENTION + 2 * N * D * 64),
        (nn.LSTM(D, 16, 2, batch_first=True), N * 4 * 16 * (D + 16 + 16 + 16)),
        (nn.GRU(D, 16, batch_first=True, bidirectional=True), 2 * N * 3 * 16 * (D + 16)),
        (nn.RNN(D, 16, batch_first=True), N * 16 * (D + 16)),
    ],
)
def test_torchs_own_fast_paths_count_in_full(layer, macs, looks):
    assert count_macs(Looks(layer) if looks else nn.Sequential(layer), (N, D)) == macs


class Product(nn.Module):
    def __init__(self, product, *shape: int) -> None:
        super().__init__()
        self.product, self.weight = product, nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)


@pytest.mark.parametrize(
    ("product", "shape", "macs"),
    [
        (lambda x, w: torch.mv(x[0], w)[None], (8,), 5 * 8),
        (lambda x, w: torch.addmv(x[0, :, 0], x[0], w)[None], (8,), 5 * 8),
        (lambda x, w: torch.dot(x[0, 0], w)[None], (8,), 8),
        (lambda x, w: torch.addbmm(x[0, :, :3], x, w)[None], (1, 8, 3), 5 * 8 * 3),
        (lambda x, w: torch.addmm(w[0, :3], x[0], w[:, :3])[None], (8, 4), 5 * 8 * 3),
        (lambda x, w: torch.tensordot(x, w, 1), (8, 3), 5 * 8 * 3),
        (lambda x, w: F.bilinear(x, x, w), (3, 8, 8), 5 * 3 * 8 * 8),
        (lambda x, w: torch.cdist(x, w), (6, 8), 5 * 6 * 8),
        (lambda x, w: F.conv1d(x, w, padding=1), (4, 5, 3), 4 * 5 * 3 * 8),
        (lambda x, w: F.conv_transpose1d(x, w, stride=2), (5, 4, 2), 5 * 8 * 4 * 2),
        (lambda x, w: (x.to(torch.complex64) @ w.to(torch.complex64)).abs(), (8, 3), 5 * 8 * 3),
    ],
)
def test_products_without_a_layer_count(product, shape, macs):
    assert count_macs(Product(product, *shape), (5, 8)) == macs


def quantised_statically(net: nn.Module, example: Tensor) -> nn.Module:
    quantization = torch.ao.quantization
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = nn.Sequential(quantization.QuantStub(), net, quantization.DeQuantStub()).eval()
        whole.qconfig = quantization.default_qconfig  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        prepared = quantization.prepare(whole)
        prepared(example)
        return quantization.convert(prepared)


def quantised(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell}
        return torch.ao.quantization.quantize_dynamic(net.eval(), kinds, dtype=torch.qint8)


def test_quantised_layers_count_as_they_did_before():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 10))
    small = quantised(net)
    assert count_params(small) == count_params(net)
    assert count_macs(small, (3, 2, 2)) == count_macs(net, (3, 2, 2)) == 12 * 64 + 64 * 10
    assert 12 * 64 + 64 * 10 <= memory_bytes(small, (3, 2, 2), 1) < memory_bytes(net, (3, 2, 2), 1) / 2


def test_quantised_convolutions_count_as_they_did_before():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.ConvTranspose2d(8, 4, 2, 2), nn.Flatten(),
        nn.Linear(4 * 20 * 20, 3),
    )  # fmt: skip
    small = quantised_statically(net, torch.randn(2, 3, 14, 14))
    assert count_params(small) == count_params(net)
    assert count_macs(small, (3, 14, 14)) == count_macs(net, (3, 14, 14))


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


@pytest.mark.parametrize("net", [Looks(nn.LSTM(8, 16, 2, batch_first=True)), Looks(nn.GRU(8, 16, batch_first=True))])
def test_quantised_recurrent_layers_count_as_they_did_before(net):
    small = quantised(net)
    assert count_macs(small, (5, 8)) == count_macs(net, (5, 8))
    assert count_params(small) == count_params(net)


def test_a_quantised_cell_counts():
    assert count_macs(quantised(Cell()), (8,)) == 4 * 16 * (8 + 16)


@pytest.fixture
def custom():
    """A product that torch knows nothing of."""
    library = torch.library.Library("netsmith_tests", "FRAGMENT")
    library.define("product(Tensor a, Tensor b) -> Tensor")
    library.impl("product", torch.matmul, "CompositeExplicitAutograd")
    yield torch.ops.netsmith_tests.product
    flop_registry.pop(torch.ops.netsmith_tests.product, None)
    library._destroy()


def test_an_unknown_operation_is_named_and_can_be_given_a_formula(custom):
    net = nn.Sequential(nn.Linear(8, 8), Product(lambda x, w: custom(x, w), 8, 4))
    with pytest.raises(DissectionError, match="the multiply-adds of netsmith_tests::product are not known"):
        count_macs(net, (5, 8))
    register_flop_formula(custom)(lambda a, b, **_: 2 * 5 * 8 * 4)
    assert count_macs(net, (5, 8)) == 5 * 8 * 8 + 5 * 8 * 4


class InNumPy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() @ w.detach().numpy())


def test_numpy_is_named():
    with pytest.raises(DissectionError, match=r"Product computes in NumPy \(Tensor.numpy\), where"):
        count_macs(Product(InNumPy.apply, 8, 4), (5, 8))


def test_an_operation_of_torch_that_multiplies_without_a_formula_is_named():
    net = Product(lambda x, w: torch._weight_int8pack_mm(x[0], w.to(torch.int8), x[0, 0, :4])[None], 4, 8)
    with pytest.raises(DissectionError, match="the multiply-adds of aten::_weight_int8pack_mm are not known"):
        count_macs(net, (5, 8))


def test_scripted_and_traced_networks_count():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted, traced = torch.jit.script(net), torch.jit.trace(net, torch.randn(1, 3, 8, 8))
    macs = 36 * 27 * 8 + 16 * 72 * 4
    assert count_macs(scripted, (3, 8, 8)) == count_macs(traced, (3, 8, 8)) == macs  # pyright: ignore[reportArgumentType]
    with pytest.raises(DissectionError, match="the memory of TorchScript cannot be estimated"):
        memory_bytes(scripted, (3, 8, 8), 1)  # pyright: ignore[reportArgumentType]


class TokenNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, D)
        self.blocks = nn.Sequential(*[nn.TransformerEncoderLayer(D, HEADS, 64, batch_first=True) for _ in range(5)])
        self.out = nn.Linear(D, 40)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.blocks(self.table(ids)))


def test_token_ids_are_counted_by_an_example_and_asked_for_without_one():
    ids = torch.randint(0, 40, (3, N))
    macs = 5 * (PROJECTIONS + ATTENTION + 2 * N * D * 64) + N * D * 40
    assert count_macs(TokenNet(), ids) == macs
    assert memory_bytes(TokenNet(), ids, 2) > 4 * count_params(TokenNet())
    with pytest.raises(DissectionError, match=r"TokenNet does not run on one input of 50: it looks up token ids, and"):
        count_macs(TokenNet(), (N,))
    chain = netsmith.dissect(TokenNet(), ids)
    assert [u.name for u in chain.units] == [f"blocks.{i}" for i in range(5)]
    assert chain.macs == macs


def test_memory_of_a_network_without_layers_is_not_that_of_its_weights_alone():
    net = Product(torch.matmul, 8, 4)
    assert memory_bytes(net, (5, 8), 1) == 4 * (8 * 4 + 5 * 8 + 5 * 4)


@pytest.mark.parametrize("count", [count_params, lambda net: count_macs(net, (4,))])
def test_lazy_layers_are_asked_for_a_run(count):
    net = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(DissectionError, match=r"0.weight is not known yet \(a lazy layer\). Run the network once"):
        count(net)
    net(torch.ones(1, 4))
    assert count(net) in (15, 12)
