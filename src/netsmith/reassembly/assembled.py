"""The assembled network: a stem, blocks of several networks with adapters between them, a head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from netsmith.errors import RecipeError
from netsmith.networks.pretrained import Pretrained
from netsmith.reassembly.adapters import AdapterSpec, to_map
from netsmith.reassembly.facts import facts_of_recipe
from netsmith.reassembly.heads import classifier_of, head_features, with_classifier
from netsmith.reassembly.recipe import Recipe


class Assembled(Pretrained, nn.Module):
    """A network put together after a recipe; a plain module with a plain `state_dict`.

    `adapters[i]` runs before `blocks[i]`, the last adapter before the head. Weights are its own: the networks that the
    blocks came from are not touched.

    It can be used as timm's networks are: `num_classes`, `reset_classifier`, `forward_features`, `forward_head`,
    `feature_info`, `forward_intermediates`, `pretrained_cfg`; and kept as on the Hugging Face Hub: `save_pretrained`,
    `from_pretrained`, `push_to_hub`.

    Attributes:
        recipe: what it was built from.
        stem: of the recipe's stem network.
        adapters: one more than blocks; `nn.Identity` where nothing is to be matched.
        blocks: parts of the networks.
        head: up to the logits.
        facts: what is known beside the recipe (sources, licence, measures); empty for one assembled by hand.

    Examples:
        >>> result.module(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    artifact_kind = "reassembly"

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
        self.facts: Mapping[str, Any] = {}
        self._frozen = False

    # --- running ------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """From preprocessed images `(n, c, h, w)` to logits `(n, num_classes)`."""
        return self.head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """What reaches the head, in the layout of the head network's last cut."""
        x = self.stem(x)
        for adapter, block in zip(self.adapters, self.blocks, strict=False):
            x = block(adapter(x))
        return self.adapters[len(self.blocks)](x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From `forward_features` to logits `(n, num_classes)`, or to what the classifier sees, `(n, num_features)`."""
        return head_features(self.head, self.recipe.head, x) if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Float[Tensor, "n _c _h _w"]] | tuple[Tensor, list[Float[Tensor, "n _c _h _w"]]]:
        """The features at the cuts: after the stem (index 0) and after every block, as maps `(n, c, h, w)`.

        Tokens are laid out on their grid, without class token and registers; `feature_info` has the shapes.

        Args:
            x: preprocessed images `(n, c, h, w)`.
            indices: which features, negative ones from the end; a number means the last so many; None means all.
            norm: as in timm's networks; there is no norm between blocks to apply, so it changes nothing.
            stop_early: do not run what comes after the last feature asked for.
            output_fmt: `NCHW`, the only one there is.
            intermediates_only: give the features alone.

        Returns:
            The features; before them, unless `intermediates_only`, what `forward_features` gives (with `stop_early`:
            what the last block that ran gives).

        Raises:
            RecipeError: an index that is no cut, or another format.
        """
        if output_fmt != "NCHW":
            raise RecipeError(f"features come as NCHW, not '{output_fmt}': permute them")
        wanted = self._indices(indices)
        last = max(wanted, default=-1) if stop_early else len(self.blocks)
        found = {}
        x = self.stem(x)
        for i, block in enumerate([None, *self.blocks]):
            if i > last:
                break
            if block is not None:
                x = block(self.adapters[i - 1](x))
            if i in wanted:
                found[i] = to_map(x, self.recipe.adapters[i].source)[0]
        features = [found[i] for i in wanted]
        if intermediates_only:
            return features
        return (x if last < len(self.blocks) else self.adapters[len(self.blocks)](x)), features

    def features(self, x: Tensor, indices: int | Sequence[int] | None = None) -> list[Float[Tensor, "n _c _h _w"]]:
        """The features alone: `forward_intermediates(x, indices, stop_early=True, intermediates_only=True)`."""
        found = self.forward_intermediates(x, indices, stop_early=True, intermediates_only=True)
        assert isinstance(found, list)
        return found

    def _indices(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.blocks) + 1
        if indices is None:
            return list(range(count))
        if isinstance(indices, int):
            indices = range(count - indices, count) if 0 < indices <= count else [indices]
        wrong = [i for i in indices if not -count <= i < count]
        if wrong:
            raise RecipeError(
                f"there is no feature {wrong[0]}: 0 is the stem's, 1 to {count - 1} those of the blocks, and negative "
                "ones count from the end"
            )
        return [i % count for i in indices]

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Outputs; 0 after `reset_classifier(0)`."""
        return self.recipe.num_classes

    @property
    def num_features(self) -> int:
        """Numbers that the classifier sees."""
        return self.recipe.head.features

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Of every feature of `forward_intermediates`: `num_chs`, `shape` (c, h, w), `reduction`, `module`, `index`.

        `reduction` is how many pixels of the image one place stands for, along one side (a mean of both sides).
        """
        names = ["stem", *(f"blocks.{i}" for i in range(len(self.blocks)))]
        height, width = self.recipe.input.input_size[1:]
        rows = []
        for i, (name, spec) in enumerate(zip(names, self.recipe.adapters, strict=True)):
            shape = _map_shape(spec)
            reduction = math.sqrt(height * width / (shape[1] * shape[2]))
            exact = round(reduction) if abs(reduction - round(reduction)) < 1e-6 else reduction
            rows.append({"num_chs": shape[0], "shape": shape, "reduction": exact, "module": name, "index": i})
        return rows

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Preprocessing, outputs and licence in timm's words, as `timm.data.resolve_model_data_config` reads them."""
        known = self.facts or facts_of_recipe(self.recipe)
        classes = list(known.get("classes", ()))
        return {
            **asdict(self.recipe.input),
            "crop_pct": 1.0,
            "num_classes": self.num_classes,
            "label_names": classes if len(classes) == self.num_classes else None,
            "license": known["licence"],
            "commercial": known["commercial"],
            "sources": known["provenance"],
        }

    # --- the head -----------------------------------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """The last layer: linear or a 1x1 convolution; an identity after `reset_classifier(0)`."""
        return nn.Identity() if self.num_classes == 0 else classifier_of(self.head, self.recipe.head)

    def reset_classifier(self, num_classes: int, *, seed: int | None = None) -> None:
        """A new, untrained classifier of so many outputs; 0 leaves it out, so that the network gives its features.

        The recipe is changed with it, so that the network can be saved and loaded.

        Args:
            num_classes: outputs, at least 0.
            seed: of its weights; default: the recipe's.

        Raises:
            RecipeError: a negative number.
        """
        if num_classes < 0:
            raise RecipeError(f"num_classes must be at least 0, not {num_classes}")
        spec = replace(self.recipe.head, classes=num_classes, fresh=True)
        generator = torch.Generator().manual_seed(self.recipe.seed if seed is None else seed)
        with torch.random.fork_rng(devices=[]):  # the constructors draw weights that are then replaced
            self.head = with_classifier(self.head, spec, generator)
        self.recipe = replace(self.recipe, head=spec, num_classes=num_classes)

    def netsmith_manifest(self) -> dict[str, Any]:
        """Return the manifest, without weights, that builds it again: so that what is made of it can be saved."""
        about = {**(self.facts or facts_of_recipe(self.recipe)), "preprocess": asdict(self.recipe.input)}
        return {"kind": self.artifact_kind, **about, "recipe": self.recipe, "num_classes": self.num_classes}

    # --- training -----------------------------------------------------------------------------------------------------

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


def _map_shape(spec: AdapterSpec) -> tuple[int, int, int]:
    """Shape `(c, h, w)` of what comes into an adapter when it is laid out as a map."""
    return (spec.source.channels, *spec.source_grid)
