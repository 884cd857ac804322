"""Width groups of a network: which channels may be reordered, removed and repeated, and doing so.

A width group is the set of all tensor axes that must share one channel order and one width. `width_groups` finds and
proves those of any network; `permute`, `resize` and `set_widths` act along them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from netsmith.errors import ChannelError
from netsmith.trace.checks import original
from netsmith.trace.trial import check_arguments, run_whole, trial_batches, untouched
from netsmith.widths.candidates import candidates
from netsmith.widths.follow import weight_remedy
from netsmith.widths.proof import Proof, larger, sift, smaller
from netsmith.widths.resizing import channel_index, check_widths, entries, permute, relocate, resize, set_widths
from netsmith.widths.settings import complete
from netsmith.widths.ties import tied
from netsmith.widths.types import Axis, Refused, Setting, WidthGroup, WidthGroups

__all__ = [
    "Axis",
    "Refused",
    "Setting",
    "WidthGroup",
    "WidthGroups",
    "channel_index",
    "check_widths",
    "entries",
    "permute",
    "relocate",
    "resize",
    "set_widths",
    "width_groups",
]


def width_groups(model: nn.Module, example_input: Tensor, *, name: str = "") -> WidthGroups:
    """The width groups of a network, each proved, and those that were refused with the reason.

    `example_input` is a batch `(n, ...)` as the network takes it; its values do not matter. A group is accepted when a
    random order of its channels leaves the output unchanged, the network runs with half and with 1.25 times the
    channels, and computes the same with every channel twice; all on a copy, the network itself is left as it is. It is
    run in eval mode and in train mode. Channels that could get to a part of it that neither run reached (a branch not
    taken) are refused, and the reason names the part.

    Raises ChannelError, with the reasons, when no group is accepted, and DissectionError for a network that does not
    run on the example or takes or gives anything but one tensor.

    Examples:
        >>> groups = netsmith.width_groups(zoo[1].model, torch.rand(2, 1, 8, 8))
        >>> len(groups.accepted), len(groups.refused)
        (6, 1)
    """
    model = original(model)
    label = name or type(model).__name__
    check_arguments(model, example_input, label)
    with untouched(model):
        model.eval()
        two, three = trial_batches(example_input)
        run_whole(model, two, label)
        found, refused = candidates(model, two[:1], three)
        accepted, failed = _prove(model, two, found)
    layers = dict(model.named_modules())
    # where the weights of a layer are computed from others, that is the reason, whatever came of it
    failures = [
        replace(r, reason=(r.name in layers and weight_remedy(layers[r.name])) or r.reason) for r in (*refused, *failed)
    ]
    if not accepted:
        raise ChannelError(f"{label} has no width group that can be proved. {_reasons(failures)}")
    return WidthGroups(tuple(accepted), tuple(failures))


def _prove(model: nn.Module, x: Tensor, found: Sequence[WidthGroup]) -> tuple[list[WidthGroup], list[Refused]]:
    proof = Proof(model, x)
    refused: list[Refused] = []

    def refuse(groups: Sequence[WidthGroup], reason: Callable[[WidthGroup], str]) -> None:
        refused.extend(Refused(g.name, g.width, reason(g)) for g in groups)

    good, bad = sift(found, proof.order_free)
    refuse(bad, lambda g: "the output changes when its channels are reordered")
    good, bad = _runnable(model, proof, good)
    refuse(bad, lambda g: _not_resizable(proof, g))
    return good, refused


def _runnable(
    model: nn.Module, proof: Proof, groups: Sequence[WidthGroup]
) -> tuple[list[WidthGroup], list[WidthGroup]]:
    """The groups with which the network runs when they are resized, and the others."""

    good, bad = complete(model, groups, proof.resizable)
    together = tied(bad)
    whole, _ = complete(model, [g for g, _ in together], proof.resizable)
    first = {g.name: i for i, g in enumerate(groups)}
    for group, parts in together:
        if group.name in {g.name for g in whole}:
            first[group.name] = first[parts[0].name]
            bad = [g for g in bad if g not in parts]
    good, worse = proof.sifted(sorted([*good, *whole], key=lambda g: first[g.name]))
    return good, [*bad, *worse]


def _not_resizable(proof: Proof, group: WidthGroup) -> str:
    for size in (smaller, larger):
        if why := proof.misfit([group], size):
            return f"it is of a fixed size in the code: with {size(group)} of {group.width} channels, {why}"
    return proof.changes([group]) or "it can be resized alone, but not together with others"


def _reasons(refused: list[Refused]) -> str:
    if not refused:
        return "Nothing in it makes channels: expected convolutions or linear layers between input and output"
    texts: dict[str, list[str]] = {}
    for r in refused:
        texts.setdefault(r.reason, []).append(r.name)
    lines = [f"{', '.join(n[:3])}{f' and {len(n) - 3} more' if len(n) > 3 else ''}: {t}" for t, n in texts.items()]
    return "Refused: " + "; ".join(lines)
