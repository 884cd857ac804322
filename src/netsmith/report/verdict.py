"""What a reader wants first: is the budget met, and is the new network better than what fits it already?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netsmith.report import formats
from netsmith.report.results import Budget, Details, NetworkRecord, Results

RESOURCES = {"params": "params", "macs": "MACs", "latency_ms": "latency", "memory_mb": "memory"}


@dataclass(frozen=True)
class Check:
    """One bounded resource: `met` is None when it was not measured."""

    resource: str
    label: str
    value: str
    bound: str
    met: bool | None


@dataclass(frozen=True)
class Verdict:
    """The head of the report, in words and numbers."""

    title: str
    sentence: str
    split: str
    stitched: float | None
    tuned: float | None
    undone: bool
    checks: tuple[Check, ...]
    met: bool | None
    best: NetworkRecord | None
    best_accuracy: float | None
    margin: float | None
    noise: float
    warning: str

    @property
    def final(self) -> float | None:
        """The accuracy that counts: after tuning, else as stitched."""
        return self.stitched if self.tuned is None else self.tuned


def bounds(budget: Budget | None) -> dict[str, tuple[float | None, float | None]]:
    """`{resource: (min, max)}` of what is bounded at all."""
    found = {}
    for name in RESOURCES:
        bound = getattr(budget, name, None)
        if bound is not None and (bound.min is not None or bound.max is not None):
            found[name] = (bound.min, bound.max)
    return found


def bound_text(name: str, low: float | None, high: float | None) -> str:
    """``at most 500k`` and the like."""
    least, most = (formats.short(formats.resource(name, v)) for v in (low, high))
    if low is None:
        return f"at most {most}"
    return f"at least {least}" if high is None else f"{least} to {most}"


def within(values: Mapping[str, float | None], limits: Mapping[str, tuple[float | None, float | None]]) -> bool | None:
    """Whether all limits hold; None when a value that is bounded is not known and none of the known ones fails."""
    unknown = False
    for name, (low, high) in limits.items():
        value = values.get(name)
        if value is None:
            unknown = True
        elif (low is not None and value < low) or (high is not None and value > high):
            return False
    return None if unknown else True


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and formats.exact(value) != formats.DASH:
        return float(value)
    return None


def resources(record: Any) -> dict[str, float | None]:
    """The four resources of a network, candidate or chosen network, also from fields beyond the contract."""
    more = record.extra
    return {
        name: number(getattr(record, name, None) if hasattr(record, name) else more.get(name)) for name in RESOURCES
    }


def network_accuracy(results: Results, name: str, split: str) -> float | None:
    """Accuracy of a member of the zoo on `split`: of details.json, else (the split of the summary) of summary.json."""
    for network in results.details.networks:
        if network.name == name and network.accuracy is not None:
            value = getattr(network.accuracy, split, None)
            if value is not None:
                return value
    if split == results.summary.accuracy.get("split", "test"):
        return next((n.accuracy for n in results.summary.zoo if n.name == name), None)
    return None


def limits_of(results: Results) -> dict[str, tuple[float | None, float | None]]:
    """The budget's bounds, of details.json or else of summary.json."""
    return bounds(results.details.budget) or bounds(results.summary.budget)


def chosen_resources(results: Results) -> dict[str, float | None]:
    """Params, MACs, latency and memory of what was built, from wherever they are recorded."""
    found: dict[str, float | None] = dict.fromkeys(RESOURCES)
    records = [results.summary, results.details.chosen]
    records += [c for c in results.details.candidates if c.chosen]
    for record in records:
        if record is not None:
            found.update({k: v for k, v in resources(record).items() if v is not None and found[k] is None})
    return found


def best_that_fits(results: Results, split: str) -> tuple[NetworkRecord | None, float | None]:
    """The most accurate member of the zoo within the budget, with its accuracy on `split`.

    Bounds on what is not recorded of the zoo (its latency, its memory) cannot speak against a member.
    """
    limits = limits_of(results)
    best: tuple[NetworkRecord | None, float | None] = (None, None)
    for network in results.details.networks:
        accuracy = network_accuracy(results, network.name, split)
        if accuracy is None or within(resources(network), limits) is False:
            continue
        if best[1] is None or accuracy > best[1]:
            best = (network, accuracy)
    return best


def licence_warning(details: Details) -> str:
    """A sentence when a source is not for commercial use; `""` when none is known to be so."""
    barred = [n for n in details.networks if n.commercial is False]
    used = {p.network for p in details.chosen.parts} if details.chosen else set()
    inside = [n for n in barred if n.name in used]
    if inside:
        names = formats.listing([f"{n.name} ({n.licence or 'licence not stated'})" for n in inside])
        return f"Not for commercial use: the network built here holds weights of {names}."
    return ""


def _checks(results: Results) -> tuple[Check, ...]:
    values = chosen_resources(results)
    checks = []
    for name, (low, high) in limits_of(results).items():
        text = formats.resource(name, values[name]) if values[name] is not None else "not measured"
        met = within({name: values[name]}, {name: (low, high)})
        checks.append(Check(name, RESOURCES[name], text, bound_text(name, low, high), met))
    return tuple(checks)


def _sentence(results: Results, final: float | None, split: str, how: str, met: bool | None) -> str:
    if final is None:
        return "Its accuracy has not been measured yet."
    begin = f"{formats.percent(final, results.images)} accuracy on {split} {how}"
    best, accuracy = best_that_fits(results, split)
    known = any(network_accuracy(results, n.name, split) is not None for n in results.details.networks)
    limited = bool(limits_of(results))
    whose = "the best network of the zoo that fits the budget" if limited else "the best network of the zoo"
    if best is None or accuracy is None:
        return begin + (". No network of the zoo fits this budget." if known and limited else ".")
    gap = formats.points(final - accuracy, results.images)
    if gap.startswith("±"):
        return f"{begin}: level with {best.name}, {whose}."
    word = "above" if gap[0] == "+" else "below"
    caveat = " (which itself does not meet the budget)" if met is False else ""
    return (
        f"{begin}{caveat}: {gap[1:]} points {word} {best.name} ({formats.percent(accuracy, results.images)}), {whose}."
    )


def _noise(accuracy: float | None, images: float | int | None) -> float:
    """One standard error of an accuracy; half of the last digit shown where the images were not counted."""
    if accuracy is None or images is None:
        return 0.0005
    return math.sqrt(max(0.0, accuracy * (1 - accuracy)) / images)


def verdict(results: Results) -> Verdict:
    """The head of the report."""
    summary, details = results.summary, results.details
    split = str(summary.accuracy.get("split") or "test")
    stitched, tuned = number(summary.accuracy.get("stitched")), number(summary.accuracy.get("finetuned"))
    final = stitched if tuned is None else tuned
    undone = summary.accuracy.get("undone") is True
    how = "after tuning" if tuned is not None else "stitched, without any training"
    how = "stitched; tuning did not help and was undone" if undone else how
    checks = _checks(results)
    met = None if not checks or any(c.met is None for c in checks) else True
    if any(c.met is False for c in checks):
        met = False
    best, best_accuracy = best_that_fits(results, split)
    blocks = summary.blocks or tuple(
        p.name for p in (details.chosen.parts if details.chosen else ()) if p.kind == "block"
    )
    sources = list(dict.fromkeys(b.rpartition("[")[0] for b in blocks))
    title = (
        f"{formats.plural(len(blocks), 'block')} of {formats.plural(len(sources), 'network')}, one new network"
        if blocks
        else "No network has been built yet"
    )
    return Verdict(
        title=title,
        sentence=_sentence(results, final, split, how, met),
        split=split,
        stitched=stitched,
        tuned=tuned,
        undone=undone,
        checks=checks,
        met=met,
        best=best,
        best_accuracy=best_accuracy,
        margin=None if final is None or best_accuracy is None else final - best_accuracy,
        noise=_noise(best_accuracy, results.images),
        warning=licence_warning(details),
    )
