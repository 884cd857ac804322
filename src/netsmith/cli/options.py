"""Options that several verbs share, and the types of their values."""

from __future__ import annotations

import argparse
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path

from netsmith.artifacts.consent import code_allowed
from netsmith.training.devices import is_device_name

from .session import Session


def add_common(
    parser: argparse.ArgumentParser, *, seed: bool = True, device: bool = True, usual: str = "the best there is"
) -> None:
    """Add --seed, --run-code, --device, --quiet and --debug; `usual` is the device without --device."""
    group = parser.add_argument_group("common options")
    if seed:
        group.add_argument(
            "--seed", type=natural, metavar="N", help="seed of everything random (default: the config's, or 0)"
        )
        group.add_argument(
            "--run-code",
            action="store_true",
            help="artifacts may run the code that they name (py: sources); for your own only",
        )
        run = parser.get_default("run")
        if run is not None:
            parser.set_defaults(run=_consenting(run))
    if device:
        group.add_argument(
            "--device", type=device_name, metavar="NAME", help=f"cpu, cuda, cuda:1, mps (default: {usual})"
        )
    group.add_argument("--quiet", action="store_true", help="no progress bars and notes; results and errors only")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error (also NETSMITH_DEBUG=1)")


def _consenting(run: Callable[..., int]) -> Callable[..., int]:
    """A verb's function that heeds --run-code."""

    @functools.wraps(run)
    def consenting(arguments: argparse.Namespace, session: Session) -> int:
        with code_allowed(arguments.run_code):
            return run(arguments, session)

    return consenting


def add_output(parser: argparse.ArgumentParser, *, required: bool, what: str) -> None:
    """Add --out and --overwrite."""
    parser.add_argument("--out", type=Path, metavar="DIR", required=required, help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace DIR when it exists")


def add_images(parser: argparse.ArgumentParser, size: str = "images for networks without a size of their own") -> None:
    """Add --input-size, --mean and --std."""
    parser.add_argument("--input-size", type=image_shape, metavar="CxHxW", help=size)
    add_statistics(parser)


def add_statistics(parser: argparse.ArgumentParser, of: str = "what the source tells") -> None:
    """Add --mean and --std, which a network needs where it meets images and its source does not tell them."""
    for name, what in (("mean", "mean"), ("std", "standard deviation")):
        text = f"{what} of images in [0, 1], per channel, such as --{name} 0.5 0.5 0.5 (default: {of})"
        parser.add_argument(f"--{name}", type=finite, nargs="+", metavar="X", help=text)


def add_size(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add --size, with further names."""
    text = "pixels to which the data's images are resized, their middle being kept: a square's side, or height x width"
    parser.add_argument("--size", *names, type=picture_size, metavar="N|HxW", help=text)


def add_overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Add the repeatable --set KEY=VALUE."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        type=override,
        metavar="KEY=VALUE",
        help=f"change one key of the config, e.g. {example}; may be given many times",
    )


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"a whole number of at least 0 was expected, '{text}' came")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 was expected, '{text}' came")
    return int(text)


def fraction(text: str) -> float:
    """A number between 0 and 1, both left out."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"a number between 0 and 1 was expected, '{text}' came")
    return value


def finite(text: str) -> float:
    """A number."""
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"a number was expected, '{text}' came")
    return value


def ratios(text: str) -> list[float]:
    """``1,0.5,0.25``: positive numbers, each once."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < float("inf") for value in values) or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"positive numbers, such as 1,0.5,0.25, were expected, '{text}' came")
    return values


def picture_size(text: str) -> int | tuple[int, int]:
    """``224`` for a square, or ``224x320`` (height x width)."""
    numbers = text.lower().split("x")
    if len(numbers) <= 2 and all(n.isdigit() and int(n) > 0 for n in numbers):
        return int(numbers[0]) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))
    raise argparse.ArgumentTypeError(f"a size such as 224, or 224x320 (height x width), was expected, '{text}' came")


def size_override(size: int | tuple[int, int] | None) -> list[str]:
    """--size as an override of a config."""
    return [] if size is None else [f"data.size={size if isinstance(size, int) else list(size)}"]


def image_shape(text: str) -> tuple[int, int, int]:
    """``3x224x224`` (channels, height, width), or ``224`` for three channels and a square."""
    numbers = re.split(r"[x×,]", text.lower())
    if all(n.strip().isdigit() and int(n) > 0 for n in numbers):
        sizes = [int(n) for n in numbers]
        if len(sizes) == 3:
            return (sizes[0], sizes[1], sizes[2])
        if len(sizes) == 1:
            return (3, sizes[0], sizes[0])
    raise argparse.ArgumentTypeError(
        f"a size such as 3x224x224 (channels x height x width) was expected, '{text}' came"
    )


def override(text: str) -> str:
    """``key.subkey=value``."""
    key, equals, _ = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.\[\]-]*", key):
        raise argparse.ArgumentTypeError(f"KEY=VALUE was expected, such as budget.params.max=0.4M; '{text}' came")
    return text


def device_name(text: str) -> str:
    """A device of torch by its name; whether it is there is checked when it is used."""
    if not is_device_name(text):
        raise argparse.ArgumentTypeError(f"cpu, cuda, cuda:1, xpu or mps was expected, '{text}' came")
    return text
