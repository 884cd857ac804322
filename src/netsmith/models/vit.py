"""A small plain vision transformer (Dosovitskiy et al., 2021; pre-norm) for images of 32x32 or 8x8 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .plain import conv_norm_act


class Attention(nn.Module):
    """Multi-head self-attention over tokens."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(n, length, dim)` to the same shape."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        # written out, not the fused kernel: for so few tokens it trains twice as fast in bfloat16 on a CPU
        weights = torch.softmax((q * self.scale) @ k.transpose(-2, -1), dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Pre-norm attention and pre-norm MLP, each added to the stream."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(n, length, dim)` to the same shape."""
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class TokenEmbedding(nn.Module):
    """From an image to tokens: patches (or small convolutions), an optional class token, learned positions."""

    def __init__(
        self, in_channels: int, grid: int, patch: int, dim: int, *, conv_stem: bool, class_token: bool
    ) -> None:
        super().__init__()
        self.patches = (
            _conv_stem(in_channels, patch, dim) if conv_stem else nn.Conv2d(in_channels, dim, patch, stride=patch)
        )
        self.class_token = nn.Parameter(torch.empty(1, 1, dim)) if class_token else None
        self.positions = nn.Parameter(torch.empty(1, grid * grid + int(class_token), dim))
        nn.init.trunc_normal_(self.positions, std=0.02)
        if self.class_token is not None:
            nn.init.trunc_normal_(self.class_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """From images `(n, in_channels, h, w)` to tokens `(n, length, dim)`, the class token first."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        return x + self.positions


class SmallViT(nn.Module):
    """A vision transformer of a few hundred thousand parameters.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        image_size: side of the square images in pixels.
        patch: side of a patch in pixels; by default 4, or 2 below 16 pixels.
        dim: width of the tokens.
        depth: transformer blocks.
        heads: attention heads; divides `dim`.
        mlp_ratio: hidden width of the MLP over `dim`.
        pool: "mean" over the tokens, or "token" for a class token.
        conv_stem: 3x3 convolutions, one of stride 2 per halving, in place of the patch projection: trains better on
            small data (Xiao et al., "Early Convolutions Help Transformers See Better", 2021). Needs a `patch` that is
            a power of two.
        dropout: on both branches of every block.

    Raises:
        ValueError: sizes that do not divide, or an unknown pooling.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        patch: int | None = None,
        dim: int = 96,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: float = 2.0,
        pool: str = "mean",
        conv_stem: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        patch = patch or (4 if image_size >= 16 else 2)
        if image_size % patch:
            raise ValueError(f"patches of {patch} pixels do not divide images of {image_size} pixels")
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}")
        if pool not in ("mean", "token"):
            raise ValueError(f'pool must be "mean" or "token", not {pool!r}')
        self.input_size = (in_channels, image_size, image_size)
        self.pool = pool
        self.embed = TokenEmbedding(
            in_channels, image_size // patch, patch, dim, conv_stem=conv_stem, class_token=pool == "token"
        )
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, mlp_ratio, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """From images `(n, in_channels, image_size, image_size)` to logits `(n, num_classes)`."""
        x = self.norm(self.blocks(self.embed(x)))
        x = x[:, 0] if self.pool == "token" else x.mean(dim=1)
        return self.head(x)


def _conv_stem(in_channels: int, patch: int, dim: int) -> nn.Sequential:
    """Convolutions that halve the image until one pixel is one patch; the last one is linear, without a norm."""
    halvings = patch.bit_length() - 1
    if patch < 2 or 2**halvings != patch:
        raise ValueError(f"a convolutional stem needs patches of 2, 4, 8, ... pixels, not {patch}")
    widths = [max(8, dim // 2 ** (halvings - i)) for i in range(halvings)]
    layers: list[nn.Module] = []
    previous = in_channels
    for i, width in enumerate(widths):
        layers.append(conv_norm_act(previous, width, stride=2 if i else 1))
        previous = width
    return nn.Sequential(*layers, nn.Conv2d(previous, dim, 3, stride=2, padding=1))
