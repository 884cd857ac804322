"""Files of weights, looked at without reading them."""

from __future__ import annotations

from pathlib import Path

from netsmith import limits
from netsmith.errors import WeightsError, did_you_mean

SAFE_SUFFIXES = (".safetensors",)
TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")


def check_weights_file(path: Path) -> None:
    """Whether a file is there and could be a checkpoint, by its first bytes. Raises WeightsError."""
    known = SAFE_SUFFIXES + TORCH_SUFFIXES
    if path.is_dir():
        raise WeightsError(
            f"{path} is a folder, expected a weights file ({', '.join(SAFE_SUFFIXES + TORCH_SUFFIXES)})."
        )
    if path.exists() and not path.is_file():
        raise WeightsError(f"{path} is a device or a pipe, expected a weights file ({', '.join(known)}).")
    if not path.exists():
        raise WeightsError(f"There is no weights file {path}. {_beside(path)}")
    if path.suffix.lower() not in known:
        raise WeightsError(f"{path} ends in '{path.suffix}', expected a weights file: one of {', '.join(known)}.")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not start:
        raise WeightsError(f"{path} is empty. Download or copy it again.")
    size, most = path.stat().st_size, limits.memory()
    if size > most:
        raise WeightsError(
            f"{path} has {limits.amount(size)}, more than the memory of this machine ({limits.amount(most)}). If that "
            "is wrong, set NETSMITH_MEMORY to its GiB."
        )
    if start.lstrip().lower().startswith((b"<", b"version https://git-lfs")):
        raise WeightsError(
            f"{path} is a web page or a Git LFS pointer, not the weights: download it again (git lfs pull)."
        )


def _beside(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"Its folder {folder} does not exist either."
    known = {*SAFE_SUFFIXES, *TORCH_SUFFIXES}
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in known)
    return did_you_mean(path.name, names) or f"{folder} holds no weights files."
