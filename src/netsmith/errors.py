"""The errors a user can meet. Each message says what was expected, what came, where, and what to type next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_UNPRINTED = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for span in (
        range(9),
        range(11, 32),
        range(127, 160),
        range(0x202A, 0x202F),
        range(0x2066, 0x206A),
        range(0xD800, 0xE000),
    )
    for code in span
}


def printable(text: str) -> str:
    """A text that does nothing to a terminal and can be written: controls and halves of surrogate pairs as `\\x1b`.

    Names in messages come from files that somebody else may have made.
    """
    return text.translate(_UNPRINTED)


class NetsmithError(ValueError):
    """Base of every error that a user's input can cause. The command line prints it and exits with code 2.

    Examples:
        >>> try:
        ...     netsmith.load_source("timm:resnet999")
        ... except netsmith.NetsmithError as error:
        ...     print("no such network:", type(error).__name__)
        no such network: SourceError
    """

    def __init__(self, *parts: object) -> None:
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in parts))


class SourceError(NetsmithError):
    """A source string names nothing that can be loaded (unknown library, architecture, file or function)."""


class WeightsError(NetsmithError):
    """A checkpoint cannot be read, or its keys and shapes are not the network's."""


class DissectionError(NetsmithError):
    """A network cannot be traced or cut, or its pieces do not reproduce it."""


class ZooError(NetsmithError):
    """The networks at hand do not make a zoo: fewer than two, or two of one name."""


class DataError(NetsmithError):
    """A data source is unknown, unreadable, or does not fit the network."""


class ConfigError(NetsmithError):
    """A configuration file has faults; `faults` holds one line for each of them."""

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(printable(fault) for fault in faults)


class BudgetError(NetsmithError):
    """No network fits the budget; the message names the bound and the nearest feasible value."""


class PartitionError(NetsmithError):
    """No partition satisfies K and the size bound; the message names the smallest feasible eps."""


class RecipeError(NetsmithError):
    """A recipe is malformed, or does not fit the zoo it is built from."""


class ArtifactError(NetsmithError):
    """A folder is no artifact, or one that is truncated, altered, too new, or of another kind."""


class ExportError(NetsmithError):
    """A network cannot be written in a format, or what was written computes something else; nothing is left behind."""


class HubError(NetsmithError):
    """The Hugging Face Hub cannot be reached, has nothing of that name, or does not let you in."""


class OutputError(NetsmithError):
    """The output folder exists, or cannot be written."""


class TrainingError(NetsmithError):
    """Training cannot start or go on (loss not finite, classes that do not match the head)."""


class ChannelError(NetsmithError):
    """No width group is provable, a named one does not exist, or a width or order does not fit a group."""


class MorphError(NetsmithError):
    """A morph space, a generator or a request for a width is impossible; the message says what is possible."""


class MissingDependencyError(NetsmithError):
    """An optional library is needed; the message names the extra that brings it."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(name: str, options: Iterable[str], *, most: int = 3) -> str:
    """A clause that names the options nearest to `name`, or, when none is near, the first few of them.

    Returns a sentence such as ``Did you mean 'resnet18' or 'resnet10t'?``, or ``""`` when there are no options.
    """
    choices = list(dict.fromkeys(options))
    near = difflib.get_close_matches(name, choices, n=most, cutoff=0.55)
    if near:
        return "Did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    if not choices:
        return ""
    shown = ", ".join(f"'{c}'" for c in choices[:8])
    return f"Known: {shown}{', ...' if len(choices) > 8 else ''}."
