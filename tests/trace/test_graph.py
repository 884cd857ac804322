"""Dissection: units, exactness, training of a part, and refusals, on tiny networks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netsmith.errors import DissectionError
from netsmith.reassembly.representation import on_grid, pooled
from netsmith.trace.chain import dissect


def plain_cnn(*, inplace: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in [(3, 8), (8, 16), (16, 16), (16, 32), (32, 32)]:
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=inplace)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def test_a_plain_cnn_gives_conv_norm_act_groups():
    model = plain_cnn()
    chain = dissect(model, torch.randn(1, 3, 16, 16), name="plain")
    assert [[type(m).__name__ for m in u.module.children()] for u in chain.units] == [
        ["Conv2d", "BatchNorm2d", "ReLU"]
    ] * 4
    assert [u.out_shape for u in chain.units] == [(16, 16, 16), (16, 16, 16), (32, 16, 16), (32, 16, 16)]
    assert [type(m).__name__ for m in chain.head.children()] == ["AdaptiveAvgPool2d", "Flatten", "Linear"]
    assert chain.units[0].layout.kind == "NCHW"
    assert chain.units[0].layout.grid == (16, 16)
    assert chain.units[0].params == 8 * 16 * 9 + 16 + 32
    assert chain.units[0].macs == 8 * 16 * 9 * 256
    assert chain.params == sum(p.numel() for p in model.parameters())
    assert chain.cuts[0].shape == (8, 16, 16)
    assert len(chain.cuts) == len(chain) + 1


def test_the_parts_in_order_are_the_network():
    model = plain_cnn().eval()
    chain = dissect(model, torch.randn(1, 3, 16, 16))
    x = torch.randn(5, 3, 16, 16)
    assert torch.equal(chain(x), model(x))
    middle = chain.run(0, 2, chain.stem(x))
    assert torch.equal(chain.head(chain.part(2, 4)(middle)), model(x))


class SelfMade(nn.Module):
    """A residual transformer in plain code: lists of pairs, a class token, batch size read from the input."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, d, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 17, d))
        self.token = nn.Parameter(torch.randn(1, 1, d))
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d), nn.GELU(), nn.Linear(d, d)) for _ in "ab"])
            for _ in range(3)
        )
        self.head = nn.Linear(d, 10)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(n, -1, -1), x], 1) + self.position
        x = F.dropout(x, 0.5, self.training)
        for attention, feed_forward in self.layers:
            x = attention(x) + x
            x = feed_forward(x) + x
        return self.head(x[:, 0].reshape(n, -1))


def test_code_with_lists_tokens_and_batch_sizes_is_cut_between_its_residual_branches():
    model = SelfMade()
    model.train()
    chain = dissect(model, torch.randn(1, 1, 8, 8))
    assert model.training
    assert [u.name for u in chain.units] == [f"layers.{i}.{j}" for i in range(3) for j in range(2)]
    layout = chain.units[0].layout
    assert (layout.kind, layout.channels, layout.grid, layout.prefix) == ("NLC", 16, (4, 4), 1)
    model.eval()
    x = torch.randn(7, 1, 8, 8)
    assert torch.equal(chain(x), model(x))


def test_dropout_in_plain_code_follows_train_and_eval():
    chain = dissect(SelfMade(), torch.randn(1, 1, 8, 8))
    stem = copy.deepcopy(chain.stem)
    x = torch.randn(2, 1, 8, 8)
    stem.eval()
    assert torch.equal(stem(x), stem(x))
    stem.train()
    assert (stem(x) == 0).float().mean() > 0.3


def test_a_part_trains_alone_and_keeps_its_names():
    model = plain_cnn()
    chain = dissect(model, torch.randn(1, 3, 16, 16))
    part = copy.deepcopy(chain.part(1, 3))
    assert set(part.state_dict()) == {k for k in model.state_dict() if k.split(".")[0] in ("6", "7", "9", "10")}
    part.train()
    x = torch.randn(6, 16, 16, 16, requires_grad=True)
    before = part.get_buffer("7.running_mean").clone()
    part(x).square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in part.named_parameters() if "weight" in n)
    assert not torch.equal(part.get_buffer("7.running_mean"), before)
    assert torch.equal(model.get_buffer("7.running_mean"), torch.zeros(16))
    assert part.to(torch.float64)(torch.randn(2, 16, 16, 16, dtype=torch.float64)).dtype == torch.float64


def test_a_part_that_would_change_its_input_gets_a_copy():
    class PreAct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(x, inplace=True)
            return self.conv2(F.relu(self.conv1(x))) + x

    model = nn.Sequential(nn.Conv2d(3, 4, 1), *[PreAct() for _ in range(5)], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    chain = dissect(model.eval(), torch.randn(1, 3, 8, 8))
    x = torch.randn(2, *chain.cuts[1].shape)
    kept = x.clone()
    chain.part(1, 3)(x)
    chain.units[1].module(x)
    assert torch.equal(x, kept)


def test_mode_buffers_and_random_state_are_left_as_found():
    model = plain_cnn().train()
    model[1].eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    dissect(model, torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.training
    assert not model[1].training
    assert model[4].training is True


class Deciding(nn.Module):
    """A block whose code depends on data: fine as a whole, impossible to look into."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = plain_cnn()[3], nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return y if y.mean() > 0 else y + x


def test_data_dependent_code_inside_a_block_stays_inside():
    blocks = nn.Sequential(nn.Conv2d(3, 8, 1), *[Deciding() for _ in range(5)], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    chain = dissect(blocks, torch.randn(1, 3, 8, 8))
    assert [u.name for u in chain.units] == ["1", "2", "3", "4", "5"]


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.mix = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)) for _ in "abcde"
        )
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        for m in self.mix:
            x = x + m(x)
        return self.head(x.mean((1, 2)))


def test_channels_last_is_told_from_channels_first():
    # a grid of 8x8 with 8 channels: only what the network does with it can tell
    chain = dissect(ChannelsLast(), torch.randn(1, 3, 32, 32))
    assert {c.layout.kind for c in chain.cuts} == {"NHWC"}
    first = nn.Sequential(*[nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU()) for _ in range(6)])
    assert {c.layout.kind for c in dissect(first, torch.randn(1, 8, 8, 8)).cuts} == {"NCHW"}


class TorchTransformer(nn.Module):
    """torch's own encoder, for which eval mode has a fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 5, enable_nested_tensor=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def test_torchs_transformer_gives_its_layers():
    model = TorchTransformer().eval()
    chain = dissect(model, torch.randn(2, 6, 8))
    assert len(chain) == 5
    assert torch.backends.mha.get_fastpath_enabled()
    x = torch.randn(3, 6, 8)
    with torch.no_grad():
        assert torch.allclose(chain(x), model(x), atol=1e-5)  # the model runs the fused kernel


class Recurrent(nn.Module):
    """Layers that hand on outputs and states, between others."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 16))
        self.first = nn.GRU(16, 12, batch_first=True)
        self.between = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 12))
        self.second = nn.LSTM(12, 8, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.first(self.embed(x))
        x, (_, _) = self.second(x + self.between(x))
        return self.head(x[:, -1])


def test_recurrent_layers_stay_whole_within_a_unit():
    model = Recurrent().eval()
    chain = dissect(model, torch.randn(2, 6, 8))
    x = torch.randn(5, 6, 8)
    assert torch.equal(chain(x), model(x))
    assert len(chain) >= 2


def test_a_network_that_is_one_recurrent_layer_cannot_be_cut():
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 16, 2, batch_first=True)
            self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x[:, 0])[0][:, -1])

    with pytest.raises(DissectionError, match="Last cannot be cut into units: no two points were found"):
        dissect(Last(), torch.randn(2, 1, 6, 8))  # behind it there are vectors only


class Mixer(nn.Module):
    """Mixes tokens by a linear layer before anything speaks of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.channels = nn.Linear(16, 16), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)


def test_token_mixing_is_not_taken_for_channels():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.blocks = nn.Conv2d(3, 8, 2, 2), nn.Sequential(*[Mixer() for _ in range(4)])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1)

    chain = dissect(Net(), torch.randn(1, 3, 8, 8))
    assert [str(c.layout) for c in chain.cuts] == ["NLC 8 4x4"] * 5


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = plain_cnn()

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            x = -x
        return self.layers(x)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Two(nn.Module):
    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return image * mask


def test_refusals_say_what_was_expected_and_what_came():
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(DissectionError, match=r"reads the values of a tensor .*test_graph.py:\d+\): dynamic control"):
        dissect(Decides(), x)
    with pytest.raises(DissectionError, match="returns one tensor, but it returns a tuple of 2"):
        dissect(Pair(), x)
    with pytest.raises(DissectionError, match=r"takes one tensor, but its forward needs 2 inputs \(image, mask\)"):
        dissect(Two(), x)
    with pytest.raises(DissectionError, match="fails on an example of shape 2x4x16x16: RuntimeError"):
        dissect(plain_cnn(), torch.randn(1, 4, 16, 16))
    with pytest.raises(DissectionError, match=r"example batch .* has shape 16"):
        dissect(plain_cnn(), torch.randn(16))
    with pytest.raises(DissectionError, match="lin cannot be cut into units: no two points"):
        dissect(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), x, name="lin")
    broken = plain_cnn()
    nn.init.constant_(broken[6].weight, float("nan"))
    with pytest.raises(DissectionError, match=r"NaN or infinite values on the example, first in 6 \(Conv2d\)"):
        dissect(broken, x)
    with pytest.raises(
        DissectionError, match=r"SelfMade fails on an example of shape 2x1x16x16: .*size it was built for"
    ):
        dissect(SelfMade(), torch.randn(1, 1, 16, 16))
    chain = dissect(plain_cnn(), x)
    with pytest.raises(DissectionError, match="dissected for inputs of 3x16x16, but this batch is of 3x8x8; resize"):
        chain(torch.randn(1, 3, 8, 8))
    with pytest.raises(IndexError, match="units 0 to 3; there is no 2:6"):
        chain.part(2, 6)


def chain_of(dims: int) -> nn.Sequential:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
    layers: list[nn.Module] = [conv(3, 8, 3, padding=1)]
    for _ in range(5):
        layers += [conv(8, 8, 3, padding=1), norm(8), nn.ReLU()]
    return nn.Sequential(*layers, pool(1), nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize(("dims", "kind"), [(1, "NCL"), (2, "NCHW"), (3, "NCDHW")])
def test_signals_images_and_volumes_are_cut_alike(dims, kind):
    model = chain_of(dims).eval()
    sizes = (6, 7, 8)[:dims]
    chain = dissect(model, torch.randn(1, 3, *sizes))
    assert len(chain) == 5
    assert {(u.layout.kind, u.layout.channels) for u in chain.units} == {(kind, 8)}
    assert chain.units[0].macs == 8 * 8 * 3**dims * int(torch.tensor(sizes).prod())
    x = torch.randn(3, 3, *sizes)
    assert torch.equal(chain(x), model(x))
    value = chain.run(0, 2, chain.stem(x))
    assert torch.allclose(pooled(value, chain.cuts[2].layout), value.flatten(2).mean(2), atol=1e-6)
    assert torch.allclose(on_grid(value, chain.cuts[2].layout, 1)[:, 0], value.flatten(2).mean(2), atol=1e-6)
    assert on_grid(value, chain.cuts[2].layout, 2).shape == (3, 4, 8)


def test_a_strided_signal_with_a_residual_has_its_channels_first():
    class Residual(nn.Module):
        def __init__(self, stride: int) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(6, 6, 3, stride, 1), nn.Conv1d(6, 6, 3, padding=1)
            self.stride = stride

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.b(F.relu(self.a(x))) + F.max_pool1d(x, 1, self.stride))

    net = nn.Sequential(nn.Conv1d(2, 6, 7, padding=3), *[Residual(1 + i % 2) for i in range(5)], nn.Flatten())
    chain = dissect(net, torch.randn(1, 2, 64))
    assert [u.name for u in chain.units] == ["1", "2", "3", "4", "5"]
    assert [u.out_shape for u in chain.units] == [(6, 64), (6, 32), (6, 32), (6, 16), (6, 16)]
    assert {u.layout.kind for u in chain.units} == {"NCL"}


class Stacked(nn.Module):
    """Recurrent layers, of whose outputs only the sequence is read."""

    def __init__(self, kind: Callable[..., nn.RNNBase], *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.first = nn.Linear(3, 8)
        self.layers = nn.ModuleList([kind(8, 8, batch_first=batch_first) for _ in range(5)])
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x if self.batch_first else x.transpose(0, 1)
        for layer in self.layers:
            x, _ = layer(x)
        return self.last(x[:, -1] if self.batch_first else x[-1])


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_are_units_where_nobody_reads_their_states(kind):
    model = Stacked(kind, batch_first=True).eval()
    chain = dissect(model, torch.randn(1, 6, 3))
    assert [u.name for u in chain.units][:4] == [f"layers.{i}" for i in range(4)]
    x = torch.randn(3, 6, 3)
    assert torch.equal(chain(x), model(x))


class Pairs(nn.Module):
    """A layer that hands on a second tensor, which nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 4, 1, 1)), nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = F.conv2d(x, self.a).sigmoid()
        return x + F.conv2d(weights * x, self.b, padding=1), weights


def test_a_second_output_that_nobody_reads_does_not_hide_a_layer():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks = nn.Conv2d(3, 4, 1), nn.ModuleList([Pairs() for _ in range(5)])

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)[0]
            return x.mean((2, 3))

    model = Net().eval()
    chain = dissect(model, torch.randn(1, 3, 8, 8))
    assert [u.name for u in chain.units] == [f"blocks.{i}" for i in range(5)]
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(chain(x), model(x))


def test_sequences_before_the_batch_are_refused_with_the_true_cause():
    message = r"the batch is the second axis, after the sequence \(6x1x.*batch_first=True"
    with pytest.raises(DissectionError, match=message):
        dissect(Stacked(nn.GRU, batch_first=False), torch.randn(1, 6, 3))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 8)
            self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 5, enable_nested_tensor=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(self.first(x).transpose(0, 1)).mean(0)

    with pytest.raises(DissectionError, match=message):
        dissect(Transformer(), torch.randn(1, 6, 3))


class Addmm(nn.Module):
    """The linear layer of GPT-2 in transformers (Conv1D)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 4), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class Mm(Addmm):
    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1) + self.bias


class Baddbmm(Addmm):
    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight.expand(x.shape[0], -1, -1))


@pytest.mark.parametrize("layer", [Addmm, Mm, Baddbmm])
def test_products_of_matrices_are_layers_however_they_are_called(layer):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(8), layer(8, 16), layer(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(F.gelu(self.up(self.norm(x))))

    model = nn.Sequential(layer(3, 8), *[Block() for _ in range(5)], nn.LayerNorm(8)).eval()
    chain = dissect(model, torch.randn(1, 6, 3))
    assert [u.name for u in chain.units] == ["1", "2", "3", "4", "5"]
    assert chain.units[0].macs == 2 * 6 * 8 * 16
    x = torch.randn(3, 6, 3)
    assert torch.equal(chain(x), model(x))
