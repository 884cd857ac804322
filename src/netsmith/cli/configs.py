"""The CONFIG argument: a file, or the name of a preset."""

from __future__ import annotations

from pathlib import Path

from netsmith import presets
from netsmith.errors import ConfigError, did_you_mean


def config_path(text: str) -> Path:
    """The file that CONFIG names; a file wins over a preset of the same name.

    Raises:
        ConfigError: there is neither such a file nor such a preset.
    """
    path = Path(text)
    if path.is_file():
        return path
    if text in presets.names():
        return presets.path(text)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, where a config file (YAML) was expected.")
    near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, [*near, *presets.names()])
    raise ConfigError(
        f"there is no config file {text}, and no preset of that name. {hint} See `netsmith presets list`."
    )


def base_of(path: Path) -> Path | None:
    """Where relative paths in a config start from, unless it is its own folder: for a preset, the working folder."""
    return Path.cwd() if path.resolve().parent == presets.path(presets.names()[0]).resolve().parent else None
