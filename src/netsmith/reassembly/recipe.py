"""Recipe: the frozen, printable description of an assembled network, with every choice already made.

The same recipe, zoo and probe images give the same network to the last bit: what is scored is what is saved.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from netsmith import limits
from netsmith.closed_form.ridge import RIDGES
from netsmith.errors import RecipeError, did_you_mean
from netsmith.reassembly.adapters import AdapterSpec
from netsmith.reassembly.names import HeadMethod
from netsmith.search.blocks import Block

VERSION = 1


@dataclass(frozen=True)
class InputSpec:
    """How images in [0, 1] become the input of a network.

    Attributes:
        mean: subtracted, one a channel.
        std: divided by, one a channel.
        input_size: (channels, height, width) that the network takes.
        interpolation: how images of another size are brought to it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int, int]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        fault = limits.input_fault(self.input_size)
        if fault is not None:
            raise RecipeError(f"'input_size' is wrong: {fault}")
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)) or not all(v > 0 for v in self.std):
            raise RecipeError("'mean' must hold finite numbers, 'std' such above 0")


@dataclass(frozen=True)
class NetworkRef:
    """One network that a recipe takes blocks from.

    Attributes:
        name: its name in the zoo and in the recipe's blocks.
        source: the source string it is loaded from.
        sha256: hash of its weights; None when it has random weights.
        options: what its builder was called with.
        num_classes: outputs of its own head.
        input: its preprocessing.
    """

    name: str
    source: str
    sha256: str | None
    num_classes: int
    input: InputSpec
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.num_classes <= limits.CLASSES:
            raise RecipeError(f"'num_classes' must be from 0 to {limits.CLASSES}, not {self.num_classes}")


@dataclass(frozen=True)
class HeadSpec:
    """The end of the network.

    Attributes:
        network: whose head it is.
        kind: "classifier": that head, with its last linear layer (or 1x1 convolution) at `path` refitted or kept;
            "pooled": the mean over all places and one new linear layer, for heads that do not end in a classifier.
        path: name of the classifier inside the head; "" when pooled.
        features: inputs of the classifier.
        classes: its outputs.
        fresh: whether the classifier is a new one (another number of classes, or no bias) or the pretrained.
    """

    network: str
    kind: Literal["classifier", "pooled"]
    path: str
    features: int
    classes: int
    fresh: bool

    def __post_init__(self) -> None:
        if not 0 <= self.classes <= limits.CLASSES or not 0 <= self.features <= limits.WIDTH:
            raise RecipeError(
                f"a head has 0 to {limits.CLASSES} classes and at most {limits.WIDTH} features, not {self.classes} and "
                f"{self.features}"
            )


@dataclass(frozen=True)
class FitSpec:
    """How adapters and head are fitted in closed form.

    Attributes:
        ridges: tried for every adapter, relative to the mean variance of its inputs; one on held-out images wins.
        rows: most rows (images times places) that one regression sees.
        holdout: share of the probe images on which ridges, statistics of batch norms and the head are chosen.
        recalibrate: whether batch norms behind the first adapter get their statistics anew from what reaches them;
            None until a fit has decided by the held-out images.
        head: "keep" the pretrained classifier, "ridge", "lda", or "auto", the best of them on the held-out images.
        batch_size: images at once; part of the recipe because it decides the last bits of sums.
    """

    ridges: tuple[float, ...] = RIDGES
    rows: int = 100_000
    holdout: float = 0.2
    recalibrate: bool | None = None
    head: HeadMethod = "auto"
    batch_size: int = 250

    def __post_init__(self) -> None:
        if not self.ridges or not all(0 <= r < math.inf for r in self.ridges):
            raise RecipeError(f"'ridges' must be one or more numbers of at least 0, not {self.ridges}")
        if not 0 <= self.holdout < 1:
            raise RecipeError(f"'holdout' is a share of the probe images, at least 0 and below 1, not {self.holdout}")
        if self.rows < 1 or self.batch_size < 2:
            raise RecipeError(f"'rows' must be at least 1 and 'batch_size' 2, not {self.rows} and {self.batch_size}")
        if self.rows > limits.IMAGES or self.batch_size > limits.BATCH:
            raise RecipeError(
                f"'rows' must be at most {limits.IMAGES} and 'batch_size' {limits.BATCH}, not {self.rows} and "
                f"{self.batch_size}"
            )


@dataclass(frozen=True)
class Recipe:
    """An assembled network on paper.

    `adapters[i]` sits before `blocks[i]`, the last one before the head; where nothing is to be matched it is the
    identity.

    Attributes:
        networks: those that something is taken from, sorted by name.
        stem: name of the network whose stem and preprocessing are used.
        blocks: in the order in which they run.
        adapters: one more than blocks.
        head: the end of the network.
        num_classes: outputs.
        fit: how it is fitted.
        seed: of random adapters, of the places that regressions see, of the held-out images.

    Raises:
        RecipeError: parts of it contradict each other.

    Examples:
        >>> netsmith.Recipe.from_json(result.recipe.to_json()) == result.recipe
        True
    """

    networks: tuple[NetworkRef, ...]
    stem: str
    blocks: tuple[Block, ...]
    adapters: tuple[AdapterSpec, ...]
    head: HeadSpec
    num_classes: int
    fit: FitSpec = FitSpec()
    seed: int = 0
    version: int = VERSION

    def __post_init__(self) -> None:
        names = [n.name for n in self.networks]
        if len(set(names)) < len(names):
            raise RecipeError(f"every network of a recipe needs a name of its own, got {', '.join(names)}")
        if not self.blocks:
            raise RecipeError("a recipe needs at least one block, got none")
        if len(self.blocks) > limits.BLOCKS:
            raise RecipeError(f"a recipe has at most {limits.BLOCKS} blocks, got {len(self.blocks)}")
        if not 0 <= self.seed <= limits.INTEGER:
            raise RecipeError(f"'seed' must be from 0 to {limits.INTEGER}, not {self.seed}")
        for role, name in [
            ("stem", self.stem),
            ("head", self.head.network),
            *[("block", b.network) for b in self.blocks],
        ]:
            if name not in names:
                raise RecipeError(
                    f"the {role} is of network '{name}', which the recipe does not list. {did_you_mean(name, names)}"
                )
        if len(self.adapters) != len(self.blocks) + 1:
            raise RecipeError(
                f"a recipe of {len(self.blocks)} blocks needs {len(self.blocks) + 1} adapters (one before each block, "
                f"one before the head; the identity where nothing is to be matched), got {len(self.adapters)}"
            )
        if self.head.classes != self.num_classes:
            raise RecipeError(f"the head has {self.head.classes} classes, the recipe {self.num_classes}")

    def network(self, name: str) -> NetworkRef:
        """The network of that name."""
        return next(n for n in self.networks if n.name == name)

    @property
    def input(self) -> InputSpec:
        """Preprocessing of the assembled network: that of the network its stem is from."""
        return self.network(self.stem).input

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, two spaces, one newline at the end. Equal recipes give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises:
            RecipeError: the text is no JSON, of a version that this release does not know, lacks fields, has others,
                or has values of the wrong kind. Each fault is named with its place.
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise RecipeError(f"expected a recipe in JSON, but the text cannot be read: {error}") from error
        if not isinstance(raw, dict):
            raise RecipeError(f"expected a recipe (a JSON object), got {type(raw).__name__}")
        if raw.get("version") != VERSION:
            raise RecipeError(
                f"expected a recipe of version {VERSION}, got version {raw.get('version')!r}; "
                "install the release of netsmith that wrote it, or assemble it anew"
            )
        try:
            recipe = _ADAPTER.validate_python(raw)
        except ValidationError as error:
            faults = [f"{_place(e['loc'])}: {e['msg']}, got {e['input']!r:.80}" for e in error.errors()[:20]]
            raise RecipeError("the recipe has faults:\n" + "\n".join(f"  {f}" for f in faults)) from error
        unknown = _unknown(raw, json.loads(recipe.to_json()))
        if unknown:
            raise RecipeError(f"the recipe has fields that version {VERSION} does not know: {', '.join(unknown)}")
        return recipe

    def __hash__(self) -> int:
        return hash(self.digest)

    def __str__(self) -> str:
        images = self.input
        sources = len({b.network for b in self.blocks})
        lines = [
            f"recipe {self.digest[:12]}: {len(self.blocks)} blocks of {sources} network{'s' * (sources > 1)}, "
            f"{self.num_classes} classes, seed {self.seed}",
            f"  input    {'x'.join(map(str, images.input_size))}, mean {images.mean}, std {images.std}",
            f"  stem     {self.stem}",
        ]
        for adapter, block in zip(self.adapters, self.blocks, strict=False):
            if adapter.style != "identity":
                lines.append(f"  adapter  {adapter}")
            lines.append(f"  block    {block}")
        if self.adapters[-1].style != "identity":
            lines.append(f"  adapter  {self.adapters[-1]}")
        if self.fit.recalibrate is not None:
            lines.append(f"  norms    statistics {'estimated anew' if self.fit.recalibrate else 'kept'}")
        state = "new" if self.head.fresh else "pretrained"
        lines.append(f"  head     {self.head.network}, {state} classifier {self.head.features} -> {self.head.classes}")
        lines += [f"  from     {n.name}: {n.source} (sha256 {(n.sha256 or 'none')[:12]})" for n in self.networks]
        return "\n".join(lines)


_ADAPTER = TypeAdapter(Recipe)


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "recipe"


def _unknown(raw: Any, known: Any, place: str = "") -> list[str]:
    """Places of keys in `raw` that are not in `known`: what the decoder dropped."""
    found: list[str] = []
    if isinstance(raw, dict) and isinstance(known, dict):
        for key, value in raw.items():
            where = f"{place}.{key}" if place else key
            found += _unknown(value, known[key], where) if key in known else [where]
    elif isinstance(raw, list) and isinstance(known, list):
        for i, (a, b) in enumerate(zip(raw, known, strict=True)):
            found += _unknown(a, b, f"{place}.{i}")
    return found
