"""Every accepted group, of whatever kind and however it is spelled, keeps the function; the others say why not."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netsmith.errors import ChannelError
from netsmith.widths.groups import WidthGroups, permute, resize, width_groups


class Net(nn.Module):
    """A network given as a function of its layers and numbers."""

    def __init__(self, forward: Callable[..., Tensor], **parts: object) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over (batch, heads, tokens, entries), heads side by side again."""
    out = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


NUMBERS = {"h": 4}
# Every way to write (b, n, heads * entries) as heads; `m.h` and `m.d` are 4 and 3.
SPELLINGS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "view(b, n, h, -1)": lambda m, y: y.view(y.shape[0], y.shape[1], m.h, -1).transpose(1, 2),
    "view(b, n, -1, d)": lambda m, y: y.view(y.shape[0], y.shape[1], -1, m.d).transpose(1, 2),
    "view(b, n, h, d)": lambda m, y: y.view(y.shape[0], y.shape[1], m.h, m.d).transpose(1, 2),
    "unflatten(h, -1)": lambda m, y: y.unflatten(2, (m.h, -1)).transpose(1, 2),
    "width // h": lambda m, y: y.reshape(y.shape[0], y.shape[1], m.h, y.shape[2] // m.h).permute(0, 2, 1, 3),
}


def attention(spelling: Callable[[nn.Module, Tensor], Tensor], **numbers: object) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.proj(attend(*(spelling(m, layer(x)) for layer in (m.q, m.k, m.v))))

    parts = {n: nn.Linear(10, 12) for n in "qkv"}
    inner = Net(forward, proj=nn.Linear(12, 10), h=4, d=3, **parts)
    return Net(lambda m, x: m.last(m.attn(m.first(x))), first=nn.Linear(6, 10), attn=inner, last=nn.Linear(10, 4))


class Shared(nn.Module):
    """Two attentions whose number of heads is one attribute of the network around them."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.a, self.b = nn.Linear(6, 12), nn.Linear(6, 12)
        self.proj, self.out, self.last = nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(6, 4)

    def split(self, y: Tensor) -> Tensor:
        return y.view(y.shape[0], y.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = self.split(self.a(x))
        x = x + self.proj(attend(a, a, a))
        b = self.split(self.b(x))
        return self.last(x + self.out(attend(b, b, b)))


class Tied(nn.Module):
    """A language model whose table reads and writes."""

    def __init__(self, lookup: Callable[[nn.Embedding, Tensor], Tensor]) -> None:
        super().__init__()
        self.tok = nn.Embedding(11, 8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.tok.weight
        self.lookup = lookup

    def forward(self, x: Tensor) -> Tensor:
        x = self.lookup(self.tok, x)
        return self.head(x + self.down(F.relu(self.up(x))))


def gqa(m: nn.Module, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = (layer(x).view(b, n, -1, 3).transpose(1, 2) for layer in (m.q, m.k, m.v))
    return m.proj(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


def twice(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer(F.relu(layer(x)))


IMAGE, ROW, TOKENS = torch.randn(2, 3, 8, 8), torch.randn(2, 6), torch.randn(2, 5, 6)
NETS: dict[str, tuple[Callable[[], nn.Module], Tensor, set[str]]] = {
    # name: network, example, groups that have to be proved
    **{s: (lambda f=f: attention(f), TOKENS, {"first", "attn.q", "attn.proj"}) for s, f in SPELLINGS.items()},
}
NETS |= {
    "a number in the code": (
        lambda: attention(lambda m, y: y.view(y.shape[0], y.shape[1], 4, -1).transpose(1, 2)),
        TOKENS,
        {"first", "attn.proj"},
    ),
    "a number of the file": (
        lambda: attention(lambda m, y: y.view(y.shape[0], y.shape[1], NUMBERS["h"], -1).transpose(1, 2)),
        TOKENS,
        {"first", "attn.proj"},
    ),
    "a least number": (
        lambda: attention(
            lambda m, y: y.view(y.shape[0], y.shape[1], max(m.h, 4), -1).transpose(1, 2)
        ),  # wrong below 4
        TOKENS,
        {"first", "attn.proj"},
    ),
    "one number for two blocks": (Shared, TOKENS, set()),
    "MultiheadAttention": (
        lambda: Net(
            lambda m, x: m.last(m.two(F.relu(m.one(m.attn(x, x, x, need_weights=False)[0])))),
            attn=nn.MultiheadAttention(6, 2, batch_first=True),
            one=nn.Linear(6, 8),
            two=nn.Linear(8, 6),
            last=nn.Linear(6, 3),
        ),
        TOKENS,
        {"one", "two"},
    ),
    "keys shared by heads": (
        lambda: Net(gqa, q=nn.Linear(6, 12), k=nn.Linear(6, 6), v=nn.Linear(6, 6), proj=nn.Linear(12, 3)),
        TOKENS,
        {"q"},
    ),
    "a sum without weights": (
        lambda: Net(lambda m, x: m.b(m.a(x).relu().sum(1, keepdim=True)), a=nn.Linear(6, 8), b=nn.Linear(1, 3)),
        ROW,
        set(),
    ),
    "softmax over channels": (
        lambda: Net(lambda m, x: m.b(m.a(x).softmax(1)), a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        ROW,
        set(),
    ),
    "normalised channels": (
        lambda: Net(lambda m, x: m.b(F.normalize(m.a(x), dim=1)), a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        ROW,
        set(),
    ),
    "a table that reads and writes": (lambda: Tied(lambda t, x: t(x)), torch.randint(11, (2, 5)), {"up"}),
    "a table read by index": (lambda: Tied(lambda t, x: t.weight[x]), torch.randint(11, (2, 5)), {"up"}),
    "a layer used twice": (
        lambda: Net(lambda m, x: m.c(twice(m.b, m.a(x))), a=nn.Linear(6, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 3)),
        ROW,
        {"a"},
    ),
    "a layer used on two groups": (
        lambda: Net(
            lambda m, x: m.c(torch.cat([m.s(m.a(x)), m.s(m.b(x))], 1)),
            a=nn.Linear(6, 8),
            b=nn.Linear(6, 8),
            s=nn.Linear(8, 5),
            c=nn.Linear(10, 3),
        ),
        ROW,
        {"a", "s"},
    ),
    "a weight that is transposed, too": (
        lambda: Net(
            lambda m, x: m.d(F.conv_transpose2d(F.relu(m.b(m.a(x))), m.b.weight)),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(8, 6, 3),
            d=nn.Conv2d(8, 2, 1),
        ),
        IMAGE,
        set(),
    ),
}


def parameter_of_two() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    net[3].weight = net[1].weight
    return net


NETS |= {
    "a parameter of two modules": (parameter_of_two, ROW, {"0"}),
    "transposed and grouped, then grouped": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 12, 1),
            nn.ConvTranspose2d(12, 24, 2, groups=4),
            nn.Conv2d(24, 12, 3, groups=12),
            nn.ConvTranspose2d(12, 6, 2, groups=2),
            nn.Conv2d(6, 2, 1),
        ),
        IMAGE,
        {"0"},
    ),
    "pixels shuffled": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 20, 3),
            nn.PixelShuffle(2),
            nn.ReLU(),
            nn.Conv2d(5, 4, 3),
            nn.PixelUnshuffle(2),
            nn.Conv2d(16, 2, 1),
        ),
        IMAGE,
        {"0", "3"},
    ),
    "pixels shuffled by hand": (
        lambda: Net(
            lambda m, x: m.b(
                (y := m.a(x)).view(len(y), -1, 2, 2, 6, 6).permute(0, 1, 4, 2, 5, 3).reshape(len(y), -1, 12, 12)
            ),
            a=nn.Conv2d(3, 20, 3),
            b=nn.Conv2d(5, 2, 3),
        ),
        IMAGE,
        {"a"},
    ),
    "unflattened by a module": (
        lambda: nn.Sequential(nn.Linear(6, 80), nn.Unflatten(1, (5, 4, 4)), nn.ReLU(), nn.ConvTranspose2d(5, 2, 3)),
        ROW,
        {"0"},
    ),
    "unflattened by a view": (
        lambda: Net(
            lambda m, x: m.b(F.interpolate(m.a(x).view(-1, m.c, 4, 4), scale_factor=2)),
            a=nn.Linear(6, 80),
            b=nn.Conv2d(5, 2, 3),
            c=5,
        ),
        ROW,
        {"a"},
    ),
    "one argument of where": (
        lambda: Net(
            lambda m, x: m.b(F.relu(m.a(x))) + len(torch.where(m.side(x) > 0)[0]) * 1e-3,
            a=nn.Linear(6, 8),
            b=nn.Linear(8, 3),
            side=nn.Linear(6, 7),
        ),
        ROW,
        {"a"},
    ),
    "one slope for all": (
        lambda: Net(
            lambda m, x: m.b(F.prelu(m.a(x), m.slope)),
            a=nn.Linear(6, 8),
            b=nn.Linear(8, 3),
            slope=nn.Parameter(torch.tensor(0.3)),
        ),
        ROW,
        {"a"},
    ),
}


def proved(model: nn.Module, x: Tensor) -> WidthGroups:
    try:
        return width_groups(model, x[:1])
    except ChannelError:
        return WidthGroups((), ())


def difference(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        out, expected = a.eval()(x), b.eval()(x)
    return float((out - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", NETS)
def test_every_accepted_group_keeps_the_function(name):
    build, x, expected = NETS[name]
    torch.manual_seed(0)
    model = build().eval()
    groups = proved(model, x)
    assert {g.name for g in groups} == expected
    for some in [*([g] for g in groups), *itertools.combinations(groups, 2), groups.accepted]:
        if some:
            assert difference(resize(model, groups.accepted, {g.name: 2 * g.width for g in some}), model, x) < 1e-4
            small = resize(model, groups.accepted, {g.name: max(1, g.width // 2) for g in some})
            with torch.no_grad():
                assert small(x).shape == model(x).shape
    for g in groups:
        twin = resize(model, groups.accepted, {})
        permute(twin, g, torch.randperm(g.width).tolist())
        assert difference(twin, model, x) < 1e-4
