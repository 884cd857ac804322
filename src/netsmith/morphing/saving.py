"""A morphed network on disk: the artifact with base, generator and card, `summary.json` and `details.json`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from netsmith.artifacts.artifact import library_versions, loader, read_manifest, read_tensors, save_artifact
from netsmith.artifacts.manifest import check_fields
from netsmith.errors import ArtifactError, MorphError, SourceError
from netsmith.files.output import write_json
from netsmith.files.paths import portable
from netsmith.formats import metric_text
from netsmith.morphing.fields import MorphFields
from netsmith.morphing.kinds import make_generator
from netsmith.morphing.live import MorphableModel
from netsmith.morphing.measuring import WidthResult
from netsmith.morphing.morphable import Morphable
from netsmith.morphing.pipeline import Morphed
from netsmith.morphing.sampled import rebuilt
from netsmith.networks.building import bounded
from netsmith.networks.licences import licence_lines
from netsmith.networks.network import Network
from netsmith.networks.preprocess import Preprocess, remember
from netsmith.networks.run_hashes import run_hashes
from netsmith.networks.running import check_runs
from netsmith.networks.weights import load_state
from netsmith.records.architecture import architecture
from netsmith.records.morphing import Base, Details, Summary, Width
from netsmith.search.budget import format_count
from netsmith.trace.cost import count_macs, count_params
from netsmith.widths.check import check_groups
from netsmith.widths.folding import fold_batch_norms

KIND = "morph"
BASE = "base.safetensors"
GENERATOR = "generator.safetensors"
_ABOUT = ("name", "num_classes", "task", "classes", "preprocess", "provenance", "licence", "commercial", "hashes")
_ABOUT += ("config", "seed")
_TOGETHER = "- fitted at one ratio for all widths: unequal ratios can be read too, and lose accuracy"
_RECALIBRATED = (
    "- it has batch norms: smaller networks were measured with statistics estimated anew on training images where "
    "these were better, as `netsmith sample THIS_FOLDER --data SOURCE` takes them"
)


def write_results(
    result: Morphed,
    folder: Path | str,
    *,
    config: Mapping[str, Any] | None = None,
) -> Summary:
    """Write `artifact/`, `details.json` and, last, `summary.json` to a folder that exists. Raises OutputError."""
    folder = Path(folder)
    config = portable(config or {}, folder)  # once, so that all files have one config and one hash of it
    save_morphed(result, folder / "artifact", config=config, overwrite=True)
    size = artifact_bytes(folder / "artifact")
    write_json(folder / "details.json", details_of(result, size, config).to_dict())
    summary = summary_of(result, size)
    write_json(folder / "summary.json", summary.to_dict())
    return summary


def artifact_bytes(folder: Path) -> int:
    """Bytes of an artifact's tensor files."""
    return sum(entry["bytes"] for name, entry in read_manifest(folder)["files"].items() if name.endswith("safetensors"))


def base_bytes(network: Network) -> int:
    """Bytes of the base network's state as it came."""
    return sum(t.numel() * t.element_size() for t in network.model.state_dict().values())


def save_morphed(
    result: Morphed, folder: Path | str, *, config: Mapping[str, Any] | None = None, overwrite: bool = False
) -> Path:
    """Write base network and generator as an artifact, which at a size is itself a source (`DIR@0.5`).

    Raises OutputError.

    Examples:
        >>> folder = netsmith.save_morphed(morphed, "any_width")
        >>> netsmith.load_source("any_width@0.5").num_classes
        10
    """
    kept = portable(config or {}, Path(folder))
    morphable, network = result.model.morphable, result.network
    generated = {slot.name for slot in morphable.generator.slots}
    keeps_base = bool(morphable.generator.anchors())
    base = {k: v for k, v in morphable.base.state_dict().items() if keeps_base or k not in generated}
    manifest = {
        **result.model.about,
        "base": architecture(network.model),
        "folded": result.prepared.folded,
        "space": {
            "mode": result.space.mode,
            "groups": [asdict(g) for g in result.space.groups],
            "low": dict(result.space.low),
            "high": dict(result.space.high),
            "drawn": result.space.drawn,
        },
        "orders": {name: list(order) for name, order in result.ordered.orders.items()},
        "generator": {"kind": morphable.generator.kind, "settings": morphable.generator.settings()},
        "data": result.data.name,
        "seed": result.seed,
        **({} if result.augmented is None else {"augmented": result.augmented}),
        "metrics": _by_name(result, "test"),
        "validation": _by_name(result, "validation"),
        "validation_images": len(result.data.validation),
        "test_images": len(result.data.test),
        "config": kept,
        "hashes": hashes_of(result, kept),
    }
    files = {BASE: base, GENERATOR: morphable.generator.saved()}
    return save_artifact(
        Path(folder), kind=KIND, tensors=files, manifest=manifest, card=_card(result), overwrite=overwrite
    )


def _by_name(result: Morphed, part: str) -> dict[str, float]:
    """The primary metric at every ratio, as the manifest has it: ``{"accuracy@0.5": 0.88}``."""
    primary = result.task.primary
    return {f"{primary}@{p.ratio:g}": p.metrics[part][primary] for p in result.points}


@loader(KIND)
def load_morphed(folder: Path | str, *, base: nn.Module | None = None) -> MorphableModel:
    """The model in an artifact of kind `morph`, in eval mode; `py:` sources run their code again.

    `base` is a network of the base's architecture (its weights do not matter), needed where the base was given as a
    module and has no source.

    Raises:
        ArtifactError: the manifest lacks something, or the tensors do not fit.

    Examples:
        >>> folder = netsmith.save_morphed(morphed, "any_width")
        >>> netsmith.load_morphed("any_width").at(0.5)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    manifest = read_manifest(folder, KIND)
    found = check_fields(manifest, MorphFields, folder)
    space, made, input_size = found.space.space(), found.generator, found.preprocess.shape
    model = rebuilt(found.base, str(folder), base)
    check_runs(model, input_size, str(folder))
    if found.folded:
        model = fold_batch_norms(model, torch.randn(2, *input_size, generator=torch.Generator().manual_seed(0)))
    remember(model, Preprocess.from_json(manifest["preprocess"]), manifest.get("classes", ()))
    check_groups(model, space.groups)
    stored = read_tensors(folder, BASE)
    state = {**model.state_dict(), **stored} if not set(stored) - set(model.state_dict()) else stored
    load_state(model, state, str(Path(folder) / BASE))
    try:
        with bounded():
            generator = make_generator(made.kind, model.state_dict(), space.groups, made.settings)
        generator.restore({k: v.float() for k, v in read_tensors(folder, GENERATOR).items()})
    except (MorphError, SourceError) as error:
        raise ArtifactError(f"{folder}: {error}") from error
    about = {key: manifest[key] for key in _ABOUT if key in manifest}
    about["from"] = {"name": about.get("name", ""), "sha256": manifest["sha256"]}
    whole = MorphableModel(Morphable(model, space, generator), input_size, about=about).eval()
    check_runs(whole.morphable.module(space.low), input_size, f"{folder} at its lowest widths")
    return whole


def summary_of(result: Morphed, size: int) -> Summary:
    """The contract `summary.json`: the task's primary metric, under its own name, on test."""
    primary, network = result.task.primary, result.network
    courses = [course for _, course in result.keyframes] + ([] if result.training is None else [result.training])
    return Summary(
        base=Base.model_validate(
            {
                "name": network.name,
                "params": count_params(network.model),
                "macs": count_macs(network.model, network.preprocess.input_size),
                primary: result.base["test"][primary],
                **_beside(result.base["test"]),
            }
        ),
        floor=result.floor["test"][primary],
        metric=primary,
        widths=[
            Width.model_validate(
                {"ratio": p.ratio, "params": p.params, "macs": p.macs, primary: p.metrics["test"][primary]}
                | {"fitted": p.fitted, **_beside(p.metrics["test"])}
            )
            for p in result.points
        ],
        artifact_bytes=size,
        seconds=result.seconds,
        precision=", ".join(dict.fromkeys(course.precision for course in courses)) or None,
    )


def _beside(metrics: Mapping[str, float]) -> dict[str, Any]:
    """What stands beside the primary metric: the IoU of each class, the error of reconstructed images."""
    classes = {name[4:]: value for name, value in metrics.items() if name.startswith("iou/")}
    error = {name: metrics[name] for name in ("reconstruction",) if name in metrics}
    return {**({"iou": classes} if classes else {}), **error}


def hashes_of(result: Morphed, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of config, data and the base's weights."""
    return run_hashes(config or {}, result.data.fingerprint, [result.network.provenance])


def details_of(result: Morphed, size: int, config: Mapping[str, Any] | None = None) -> Details:
    """Everything that the report shows."""
    primary, network, space = result.task.primary, result.network, result.space
    generator = result.model.morphable.generator
    own = base_bytes(network)

    def split(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        return {part: found[primary] for part, found in metrics.items()}

    def row(p: WidthResult) -> dict[str, Any]:
        shown = {name: value for name, value in p.pictures.items() if name != "originals"}
        return {**asdict(p), primary: split(p.metrics), "pictures": shown}

    ordered = result.ordered
    saved = generator.saved().values()
    return Details(
        base={
            "name": network.name,
            "source": network.source,
            "licence": network.provenance.licence,
            "commercial": network.provenance.commercial,
            "sha256": network.provenance.sha256,
            "params": count_params(network.model),
            "macs": count_macs(network.model, network.preprocess.input_size),
            "bytes": own,
            primary: split(result.base),
            "metrics": result.base,
            "pictures": result.pictures,
        },
        task={"name": result.task.name, "primary": primary, "higher_is_better": result.task.higher_is_better},
        floor=split(result.floor),
        images={part: len(getattr(result.data, part)) for part in ("validation", "test")},
        space={
            "mode": space.mode,
            "groups": [
                {"name": g.name, "width": g.width, "min": space.low[g.name], "max": space.high[g.name], "kind": g.kind}
                for g in space.groups
            ],
            "refused": [asdict(r) for r in result.prepared.groups.refused],
            "fitted": list(_fitted(result)),
            "drawn": space.drawn,
        },
        smooth={
            "order": ordered.order,
            "solver": ordered.solver,
            "deterministic": all(g.deterministic for g in ordered.groups),
            "before": sum(g.before for g in ordered.groups),
            "after": sum(g.after for g in ordered.groups),
            "groups": [asdict(g) for g in ordered.groups],
            "picture": {
                "tensor": ordered.picture[0].tensor,
                "before": [[round(v, 5) for v in row] for row in ordered.picture[0].values],
                "after": [[round(v, 5) for v in row] for row in ordered.picture[1].values],
            },
        },
        generator={
            "kind": generator.kind,
            "params": sum(t.numel() for t in saved),
            "bytes": sum(t.numel() * t.element_size() for t in saved),
            "settings": generator.settings(),
        },
        fit=_history(result),
        widths=[row(p) for p in result.points],
        artifact={"bytes": size, "ratio_to_base": size / own},
        seconds=result.seconds,
        machine={"system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        versions=library_versions(),
        hashes=hashes_of(result, config),
    )


def _fitted(result: Morphed) -> tuple[float, float]:
    """The fitted range as ratios; a group of few channels is at its end at ratios beyond it, too."""
    low, high = result.space.ratios
    inside = [p.ratio for p in result.points if p.fitted]
    return min([low, *inside]), max([high, *inside])


def _history(result: Morphed) -> dict[str, Any] | None:
    """How fitting went: the keyframes' epochs one after another, the metric under their ratio, then those of the rest.

    After keyframes these are of the coarse set, whose metric is the mean over the ratios at which it is judged.
    """
    primary, mark = result.task.primary, f"{result.task.primary}@"
    rows: list[dict[str, Any]] = []

    def add(entry: Mapping[str, Any], metric: dict[str, Any]) -> None:
        number = len(rows) + 1
        rows.append({"epoch": number, "step": number, "loss": entry["loss"], "lr": entry["lr"], "metric": metric})

    for ratio, course in result.keyframes:
        for entry in course.history:
            add(entry, {f"{ratio:g}": entry[primary]})
    apart, last = len(rows), result.training
    for entry in last.history if last is not None else ():
        each = {k.removeprefix(mark): v for k, v in entry.items() if k.startswith(mark)}
        add(entry, {"coarse set": entry[primary]} if apart else each)
    if not rows:
        return None
    seconds = [course.seconds for _, course in result.keyframes] + ([] if last is None else [last.seconds])
    found: dict[str, Any] = {"epochs": len(rows), "seconds": sum(seconds), "history": rows}
    if apart:
        undone = [f"{ratio:g}" for ratio, course in result.keyframes if not course.best_epoch]
        undone += ["coarse set"] if last is not None and not last.best_epoch else []
        return {**found, "keyframes": len(result.keyframes), "keyframe_epochs": apart, "undone": undone}
    return {**found, "best_epoch": None if last is None else last.best_epoch}


def _undone(result: Morphed) -> list[str]:
    """What a card says of trainings that made something worse."""
    fit = _history(result) or {}
    names = [f"keyframe {name}" if name != "coarse set" else name for name in fit.get("undone", ())]
    names += ["the generator as a whole"] if fit.get("best_epoch") == 0 else []
    return [f"- training did not help and was undone: {', '.join(names)}"] if names else []


def _reconstructions(result: Morphed) -> list[str]:
    """The error of reconstructed images beside the bound, which is in nats a number of the image; of a generation."""
    if "reconstruction" not in result.base["test"]:
        return []
    rows = [("base", result.base), *((f"ratio {p.ratio:g}", p.metrics) for p in result.points)]
    found = ", ".join(
        f"{name} {metric_text('reconstruction', metrics['test']['reconstruction'])}" for name, metrics in rows
    )
    return [
        f"- {result.task.primary} is in nats a number of the image; mean squared error of reconstructed images, values "
        f"in 0..1 (test): {found}",
        "- images: `netsmith.Generation(shape).images(model(x))` reconstructs, `model.at(0.5).decode(codes).sigmoid()` "
        "draws from codes (n, latent) of a normal distribution",
    ]


def _card(result: Morphed) -> str:
    primary, space = result.task.primary, result.space
    low, high = _fitted(result)
    fitted = f"ratios {low:g} to {high:g}" if space.channels is None else space.range_text

    def reached(metrics: Mapping[str, Mapping[str, float]]) -> str:
        return metric_text(primary, metrics["test"][primary], len(result.data.test))

    rows = [
        f"| {p.ratio:g} | {format_count(p.params)} | {format_count(p.macs)} | {reached(p.metrics)} | "
        f"{'yes' if p.fitted else 'no'} |"
        for p in result.points
    ]
    lines = [
        f"# {result.network.name}, at any width",
        "",
        f"A base network (`{result.network.source}`) and a generator of its weights "
        f"(`{result.model.morphable.generator.kind}`), fitted on {fitted} of "
        f"{len(space.groups)} widths ({space.mode}) with {result.data.name}.",
        "",
        f"| ratio | params | MACs | {primary} (test) | fitted |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"- base network: {reached(result.base)}",
        f"- without what is generated: {reached(result.floor)}",
        *_undone(result),
        *_reconstructions(result),
        *([] if space.drawn == "each" or len(space.groups) == 1 else [_TOGETHER]),
        *([_RECALIBRATED] if any(p.recalibrated for p in result.points) else []),
        *licence_lines(result.network.provenance.licence, result.network.provenance.commercial),
        "",
        "Written by Netsmith. At a size the folder is a source (`THIS_FOLDER@0.5`), and in Python:",
        "",
        "```python",
        "import netsmith",
        "",
        'model = netsmith.load("THIS_FOLDER")',
        "half = model.at(0.5)            # a plain torch module",
        "small = model.at(params=100_000)",
        "```",
        "",
    ]
    return "\n".join(lines)
