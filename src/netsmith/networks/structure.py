"""What tells networks apart beyond their tensors: their modules, and the numbers and names these hold."""

from __future__ import annotations

from torch import nn

from netsmith.files.cache import digest

_PLAIN = (bool, int, float, str, tuple, list)
_BOOKKEEPING = frozenset(vars(nn.Module()))  # modes and hooks among them


def structure(model: nn.Module, *values: object) -> str:
    """Return a digest of a network's modules with their plain attributes (`heads`, `eps`), and of further values.

    Hash the state dict beside it, and the file of code of one's own.
    """
    modules = []
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, _PLAIN) and k not in _BOOKKEEPING}
        modules.append([name, type(module).__qualname__, module.extra_repr(), repr(sorted(plain.items()))])
    return digest([modules, *map(repr, values)])
