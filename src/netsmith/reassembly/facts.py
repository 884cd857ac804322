"""What is known of an assembled network beside its recipe: sources, licence, budget, measures; and its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from netsmith.errors import NetsmithError
from netsmith.files.cache import digest
from netsmith.formats import metric_text
from netsmith.networks.libraries import facts
from netsmith.networks.licences import licence_lines, source_lines
from netsmith.networks.network import Provenance, provenance_of
from netsmith.networks.sources import parse_source
from netsmith.networks.zoo import describe_source
from netsmith.reassembly.members import Parent
from netsmith.reassembly.recipe import Recipe
from netsmith.search.budget import Budget, format_count
from netsmith.trace.cost import count_macs, count_params

KEPT = (
    "name",
    "classes",
    "params",
    "macs",
    "budget",
    "data",
    "seed",
    "provenance",
    "licence",
    "commercial",
    "metrics",
    "test_images",
    "undone",
    "config",
    "hashes",
)
"""What a manifest says beside recipe, classes' number and preprocessing, which follow from the recipe."""

UNDONE = "stitched; tuning did not help and was undone"
"""What is said of a network that fine-tuning made worse."""

STATE = "state"
"""Key of the hash of the weights that were measured; never written, as a manifest has hashes of its own."""


def facts_of(
    recipe: Recipe,
    parents: Sequence[Parent],
    module: nn.Module,
    *,
    counts: tuple[int, int],
    budget: Budget,
    accuracy: Mapping[str, float | None],
    classes: Sequence[str],
    data: str,
    seed: int,
    images: int | None = None,
    undone: bool = False,
) -> dict[str, Any]:
    """The facts of a network that was found and measured.

    Args:
        recipe: its recipe.
        parents: the zoo.
        module: the network, with the weights that were measured.
        counts: params and MACs.
        budget: that it was found for.
        accuracy: on the test split, by name (`stitched`, `finetuned`).
        classes: names of the outputs.
        data: name of the data.
        seed: of the run.
        images: of the test split.
        undone: whether fine-tuning made it worse, and it has its stitched weights.
    """
    used = {ref.name for ref in recipe.networks}
    return {
        "name": "reassembled",
        "classes": list(classes),
        "params": counts[0],
        "macs": counts[1],
        "budget": {name: {"min": bound.min, "max": bound.max} for name, bound in budget.bounds().items()},
        "data": data,
        "seed": seed,
        **_licences([p.network.provenance for p in parents if p.name in used]),
        "metrics": {"split": "test", **{f"accuracy_{k}": v for k, v in accuracy.items()}},
        "test_images": images,
        "undone": undone,
        STATE: digest(module.state_dict()),
    }


def facts_of_recipe(recipe: Recipe) -> dict[str, Any]:
    """The facts of a network that was assembled by hand: what its sources say of themselves."""
    return {
        "name": "reassembled",
        "seed": recipe.seed,
        **_licences([_told(n.source, n.sha256) for n in recipe.networks]),
    }


def _told(source: str, sha256: str | None) -> Provenance:
    try:
        parsed = parse_source(source)
        known = describe_source(source) if parsed.scheme == "artifact" else facts(parsed)
    except NetsmithError:  # a module, or a file that is gone
        return Provenance(source, sha256=sha256)
    return Provenance(source, known.weights, sha256, known.licence, known.url, known.commercial)


def _licences(sources: Sequence[Provenance]) -> dict[str, Any]:
    """One licence of all sources: what one forbids is forbidden, and allowed is only what all allow."""
    names = dict.fromkeys(s.licence for s in sources)
    allowed = [s.commercial for s in sources]
    return {
        "provenance": [asdict(s) for s in sources],
        "licence": " AND ".join(name or "not stated" for name in names) if any(names) else None,
        "commercial": False if any(a is False for a in allowed) else (True if all(allowed) else None),
    }


def manifest_of(recipe: Recipe, module: nn.Module, known: Mapping[str, Any]) -> dict[str, Any]:
    """What the artifact of a network says. Measures of other weights than it has now are left out."""
    known = dict(known) or facts_of_recipe(recipe)
    classes = list(known.get("classes", ()))
    if known.pop(STATE, None) != digest(module.state_dict()):
        known["metrics"], known["undone"] = {}, False
        known["params"], known["macs"] = count_params(module), count_macs(module, recipe.input.input_size)
    return {
        **{key: known[key] for key in KEPT if key in known},
        "recipe": recipe,
        "num_classes": recipe.num_classes,
        "classes": classes if len(classes) == recipe.num_classes else [],
        "preprocess": asdict(recipe.input),
    }


def card(manifest: Mapping[str, Any]) -> str:
    """The text of README.md for a manifest of kind `reassembly`."""
    recipe: Recipe = manifest["recipe"]
    size = "x".join(map(str, recipe.input.input_size))
    metrics, data = dict(manifest["metrics"]), manifest.get("data")
    split = metrics.pop("split", "test")
    numbers = {k.removeprefix("accuracy_"): v for k, v in metrics.items() if v is not None}
    if manifest.get("undone"):
        numbers = {UNDONE: numbers["stitched"]}
    lines = [
        "# Reassembled network",
        "",
        f"{' + '.join(map(str, recipe.blocks))}: {format_count(manifest['params'])} parameters, "
        f"{format_count(manifest['macs'])} MACs an image of {size}, {recipe.num_classes} classes.",
        "",
        f"- budget: {Budget(**manifest['budget'])}" if manifest.get("budget") else "- budget: none",
        *(
            f"- {split} accuracy, {name}: {metric_text('accuracy', value, manifest.get('test_images'))} ({data})"
            for name, value in numbers.items()
        ),
        *([] if numbers else ["- accuracy: not measured with these weights"]),
        f"- input: images in [0, 1], resized to {size} ({recipe.input.interpolation}), minus "
        f"{list(recipe.input.mean)}, over {list(recipe.input.std)}",
        *licence_lines(manifest["licence"], manifest["commercial"]),
        "",
        "## Recipe",
        "",
        "```",
        str(recipe),
        "```",
        "",
        "## Sources",
        "",
        *source_lines(provenance_of(manifest["provenance"])),
        "",
        "## How to load",
        "",
        "```python",
        "import netsmith",
        "",
        'model = netsmith.load("THIS_FOLDER")  # a torch module in eval mode; from the Hub: netsmith.from_pretrained',
        "model.reset_classifier(20)            # a new head: the rest is a backbone, as those of timm are",
        "```",
        "",
        "Without Netsmith: `netsmith export THIS_FOLDER --out model.onnx` (or `model.pt2`).",
        "",
    ]
    return "\n".join(lines)
