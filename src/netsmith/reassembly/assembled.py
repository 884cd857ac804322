"""The assembled network: a stem, blocks of several networks with adapters between them, a head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from netsmith.reassembly.recipe import Recipe


class Assembled(nn.Module):
    """A network put together after a recipe; a plain module with a plain `state_dict`.

    `adapters[i]` runs before `blocks[i]`, the last adapter before the head. Weights are its own: the networks that the
    blocks came from are not touched.

    Attributes:
        recipe: what it was built from.
        stem: of the recipe's stem network.
        adapters: one more than blocks; `nn.Identity` where nothing is to be matched.
        blocks: parts of the networks.
        head: up to the logits.
    """

    def __init__(
        self,
        recipe: Recipe,
        stem: nn.Module,
        blocks: Sequence[nn.Module],
        adapters: Sequence[nn.Module],
        head: nn.Module,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.adapters = nn.ModuleList(adapters)
        self.head = head
        self._frozen = False

    def forward(self, x: Tensor) -> Tensor:
        """From preprocessed images `(n, c, h, w)` to logits `(n, num_classes)`."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """What reaches the head, in the layout of the head network's last cut."""
        x = self.stem(x)
        for adapter, block in zip(self.adapters, self.blocks, strict=False):
            x = block(adapter(x))
        return self.adapters[len(self.blocks)](x)

    def freeze(self, frozen: bool = True) -> None:
        """Let only adapters and head train: stem and blocks get no gradient, and their norms stay in eval mode."""
        self._frozen = frozen
        for module in self._borrowed():
            module.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Assembled:
        """As any module's; what is frozen stays in eval mode."""
        super().train(mode)
        if self._frozen:
            for module in self._borrowed():
                module.eval()
        return self

    def _borrowed(self) -> Iterator[nn.Module]:
        yield self.stem
        yield from self.blocks
