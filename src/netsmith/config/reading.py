"""YAML to models, every fault of a file at once with its line, overrides, and back to YAML."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from netsmith.config.overrides import override
from netsmith.config.sections import anchored
from netsmith.errors import ConfigError, NetsmithError
from netsmith.files.document import read_file, validate
from netsmith.files.paths import as_path, portable
from netsmith.files.yaml_text import Document, read_yaml, write_yaml
from netsmith.networks.sources import parse_source

HEADER = "# netsmith: the resolved configuration of this run; it can be used as a config file as it is\n"

M = TypeVar("M", bound=BaseModel)


def load_config(
    source: Path | str | Mapping[str, Any],
    model: type[M],
    overrides: Sequence[str] = (),
    *,
    base: Path | None = None,
) -> M:
    """Read a config.

    Args:
        source: the path of a YAML file, YAML text (anything with a line break or a colon and a space), or a mapping.
            Relative paths in a file start from its folder, those in texts, mappings and overrides from the working one.
        model: `ReassembleConfig`, `TrainConfig` or another pydantic model.
        overrides: `key.subkey=value` each, the value in YAML; later ones win.
        base: folder that the relative paths start from instead.

    Raises:
        ConfigError: all faults at once, each with line, dotted key, what was expected and what came.
    """
    start = Path.cwd()
    if isinstance(source, Mapping):
        document, where = Document(copy.deepcopy(dict(source))), "the configuration"
    elif isinstance(source, str) and ("\n" in source or ": " in source):
        document, where = read_yaml(source), "the configuration"
    else:
        path = as_path(source, ConfigError)
        document, where, start = read_yaml(read_file(path)), str(path), path.resolve().parent
    override(document, overrides, _from_here)
    return validate(document, model, where, context={"base": base or start})


def dump_config(config: BaseModel, folder: Path | None = None) -> str:
    """YAML that `load_config` reads back as an equal config; paths in it start from `folder`, where one is given."""
    text = HEADER + write_yaml(config)
    return text if folder is None else portable(text, folder)


to_yaml = dump_config


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a raw config with `key.subkey=value` texts applied; values are YAML, numbers in keys index lists.

    A value that is in the way of a deeper key gives way to a section, a missing section is made. A bare text for a
    section that has a `source` (`data=digits`) changes that source and keeps the rest.

    Raises:
        ConfigError: an override is malformed, or indexes a list beyond its end.
    """
    document = Document(copy.deepcopy(dict(raw)))
    override(document, overrides, _from_here)
    if document.faults:
        lines = [str(f) for f in document.faults]
        raise ConfigError("\n".join(lines), lines)
    return document.value


def _from_here(keys: Sequence[str], value: Any) -> Any:
    """Relative paths given on the command line start from the working folder, whatever file they go into."""
    here = Path.cwd()
    if not isinstance(value, str):
        return value
    if list(keys) in (["zoo"], ["weights"]):
        return str(here / as_path(value, ConfigError))
    try:
        if keys[0] == "data" and keys[-1] in {"data", "source"}:
            return anchored(value, here)
        names_network = keys[0] in {"zoo", "network"} and (keys[-1] == "source" or keys[-1].isdigit() or len(keys) == 1)
        return str(parse_source(value, here)) if names_network else value
    except NetsmithError:
        return value  # no source, or a wrong one: checked where it arrives
