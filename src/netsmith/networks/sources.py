"""Source strings: what they name. Without the libraries behind them, which take seconds to load."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from netsmith.artifacts.consent import origin
from netsmith.errors import SourceError, did_you_mean
from netsmith.files.paths import as_path
from netsmith.networks.files import check_weights_file

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SCHEMES = ("timm", "torchvision", "netsmith", "smp", "py")
HELP = (
    "A source is timm:NAME, torchvision:NAME, netsmith:NAME, smp:ARCHITECTURE/ENCODER or py:PATH.py:FUNCTION, each "
    "optionally with #WEIGHTS (a local file), or the folder of an artifact, or hf:ORG/NAME, an artifact of the "
    "Hugging Face Hub."
)
OWN = (
    "conv_vae", *(f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110)), "lenet", "plain_cnn", "separable_cnn",
    "small_vit",
)  # fmt: skip
"""Names of the networks that `netsmith.models` builds."""
HUB = "hf"
"""Scheme of artifacts that are fetched before anything can be said of them."""

Fetcher = Callable[[str], Path]
_fetchers: dict[str, Fetcher] = {}


@dataclass(frozen=True)
class Source:
    """A parsed source.

    `scheme` is one of `SCHEMES` or `artifact`; paths are absolute or relative to the working folder.
    `name` is the architecture (timm's with its tag, smp's with its encoder), the path of a `py:` file, or an
    artifact's folder; `detail` the weights of torchvision, the function of `py:`, or the size of `DIR@SIZE`. An
    artifact that was fetched has its name there in `remote` (`hf:ORG/NAME`), and its folder here in `name`.
    """

    scheme: str
    name: str
    detail: str | None = None
    weights: Path | None = None
    remote: str | None = None

    def __str__(self) -> str:
        if self.scheme == "artifact":
            place = self.remote or self.name
            return place if self.detail is None else f"{place}@{self.detail}"
        joint = {"torchvision": ".", "py": ":"}.get(self.scheme, "")
        text = f"{self.scheme}:{self.name}" + (f"{joint}{self.detail}" if self.detail else "")
        return f"{text}#{self.weights}" if self.weights else text

    @property
    def default_name(self) -> str:
        """What the network is called unless the zoo says otherwise."""
        if self.scheme == "timm":
            return self.name.partition(".")[0]
        if self.scheme == "py":
            return self.detail or "network"
        if self.remote is not None:
            return self.remote.rpartition("/")[2]
        return Path(self.name).resolve().name if self.scheme == "artifact" else self.name


@dataclass(frozen=True)
class Facts:
    """What is known of a source before anything is downloaded or built."""

    weights: str | None = None
    licence: str | None = None
    commercial: bool | None = None
    url: str | None = None
    download_bytes: int = 0
    num_classes: int | None = None
    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"
    fixed_size: bool = False
    task: str = "classification"
    note: str = ""


def fetcher(scheme: str) -> Callable[[Fetcher], Fetcher]:
    """Decorator that registers what brings `SCHEME:PLACE` here: from the place to the folder of an artifact."""

    def register(function: Fetcher) -> Fetcher:
        _fetchers[scheme] = function
        return function

    return register


def parse_source(text: str, base: Path | None = None) -> Source:
    """Take a source string apart; relative paths in it are relative to `base` (default: the working folder).

    An artifact of the Hub (`hf:ORG/NAME`, `hf:ORG/NAME@SIZE`) is fetched, once, into the Hub's cache.

    Raises:
        SourceError: empty, an unknown library, or no folder of that name.
        HubError: the Hub has no such artifact, or is out of reach and it was not fetched before.
    """
    text = text.strip()
    if not text:
        raise SourceError(f"A source is empty. {HELP}")
    scheme, colon, rest = text.partition(":")
    if colon and scheme in SCHEMES:
        rest, _, weights = rest.partition("#")
        if not rest:
            raise SourceError(f"'{text}' names nothing after '{scheme}:'. {HELP}")
        file = _anchor(weights, base) if weights else None
        if scheme == "torchvision":
            rest, _, tag = rest.partition(".")
            return Source(scheme, rest, tag or None, file)
        if scheme == "py":
            path, colon, function = rest.rpartition(":")
            if not colon or not path.endswith(".py") or not function:
                raise SourceError(f"'{text}' must be py:PATH.py:FUNCTION, such as py:my/networks.py:small_net.")
            return Source(scheme, str(_anchor(path, base)), function, file)
        return Source(scheme, rest, None, file)
    if colon and scheme in _fetchers:
        place, at, size = rest.partition("@")
        return Source("artifact", str(_fetchers[scheme](place)), size if at else None, remote=f"{scheme}:{place}")
    return _parse_folder(text, base)


def _parse_folder(text: str, base: Path | None) -> Source:
    folder = _anchor(text, base)
    if folder.is_dir():
        return Source("artifact", str(folder))
    stem, at, size = text.rpartition("@")
    if at and _anchor(stem, base).is_dir():
        return Source("artifact", str(_anchor(stem, base)), size)
    scheme, colon, _ = text.partition(":")
    if colon and "/" not in scheme:
        raise SourceError(
            f"'{text}' is of an unknown kind '{scheme}:'. {did_you_mean(scheme, (*SCHEMES, *_fetchers))} {HELP}"
        )
    plain = text.partition("#")[0]
    homes = [s for s, known in _names().items() if plain.partition(".")[0] in known]
    hint = "Did you mean " + " or ".join(f"'{s}:{text}'" for s in homes) + "? " if homes else ""
    raise SourceError(f"'{text}' is neither a source nor the folder of an artifact. {hint}{HELP}")


def check_here(source: Source) -> None:
    """Check netsmith's own names and the files of a source; no library is loaded, and nothing is fetched or run.

    Raises:
        SourceError: there are none such, with the nearest names.
        WeightsError: the weights file is missing or no checkpoint.
    """
    if source.scheme == "netsmith" and source.name not in OWN:
        raise SourceError(f"There is no network 'netsmith:{source.name}'. {did_you_mean(source.name, OWN)}")
    path = Path(source.name)
    if source.scheme == "py" and not path.is_file():
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise SourceError(f"There is no file {path}. {did_you_mean(path.name, beside)}".rstrip())
    if source.weights is not None:
        check_weights_file(source.weights)


def speakable(name: str) -> str:
    """A name with everything replaced that a block's name (`network[0:3]`) or a file's could not bear."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)


def _names() -> dict[str, list[str]]:
    import timm
    import torchvision.models as tv

    return {"netsmith": list(OWN), "timm": timm.list_models(), "torchvision": tv.list_models(module=tv)}


def _anchor(path: str, base: Path | None) -> Path:
    found, read_from = as_path(path), origin()
    if base is None and read_from is not None and (Path(read_from) / found).exists():
        return Path(read_from) / found  # an artifact names files as they lie to its folder
    return found if found.is_absolute() or base is None else base / found


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A random stream of its own on the CPU; afterwards the caller's goes on as if nothing had been drawn."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
