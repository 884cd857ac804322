"""Netsmith turns the trained networks you have into the network you need.

The names below are the public ones; everything else may change between releases. Importing the package loads nothing:
each name brings its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netsmith.core.artifact import load
    from netsmith.core.channels import WidthGroups, permute, resize, width_groups
    from netsmith.core.data import Splits, open_data, probe_set
    from netsmith.core.engine import TrainSettings, evaluate, train
    from netsmith.core.export import Exported, export
    from netsmith.core.folding import fold_batch_norms
    from netsmith.core.graph import Chain, Cut, Layout, Unit, dissect
    from netsmith.core.network import Network, Preprocess, load_source
    from netsmith.core.pretrained import from_pretrained, push_to_hub, save_pretrained
    from netsmith.core.profile import Bound, Budget, count_macs, count_params, measure_latency, memory_bytes
    from netsmith.core.tasks import Classification, Generation, Segmentation, make_task
    from netsmith.core.zoo import ZooEntry, load_zoo, load_zoo_file
    from netsmith.errors import NetsmithError
    from netsmith.morph.fit import FitSettings
    from netsmith.morph.live import MorphableModel, Size
    from netsmith.morph.pipeline import Morphed, make_morphable
    from netsmith.morph.sample import Sampling
    from netsmith.morph.saving import load_morphed, save_morphed
    from netsmith.morph.smooth import Smoothed, smooth
    from netsmith.morph.space import MorphSpace, morph_space
    from netsmith.reassembly.blocks import Block
    from netsmith.reassembly.partition import Partition, partition
    from netsmith.reassembly.pipeline import Reassembled, reassemble
    from netsmith.reassembly.recipe import Recipe
    from netsmith.reassembly.representation import Representations, represent
    from netsmith.reassembly.saving import load_reassembled, save_reassembled, write_results
    from netsmith.reassembly.scores import ScoreContext, get_score, score, score_names
    from netsmith.reassembly.search import Choice, SearchResult, k_best
    from netsmith.reassembly.similarity import SimilarityTable, similarity
    from netsmith.reassembly.stitch import Assembled, Probe, assemble, fit, plan_recipe

__version__ = "0.1.0"

_HOME = {
    "core.artifact": ("load",),
    "core.channels": ("WidthGroups", "permute", "resize", "width_groups"),
    "core.data": ("Splits", "open_data", "probe_set"),
    "core.engine": ("TrainSettings", "evaluate", "train"),
    "core.export": ("Exported", "export"),
    "core.folding": ("fold_batch_norms",),
    "core.graph": ("Chain", "Cut", "Layout", "Unit", "dissect"),
    "core.network": ("Network", "Preprocess", "load_source"),
    "core.pretrained": ("from_pretrained", "push_to_hub", "save_pretrained"),
    "core.profile": ("Bound", "Budget", "count_macs", "count_params", "measure_latency", "memory_bytes"),
    "core.tasks": ("Classification", "Generation", "Segmentation", "make_task"),
    "core.zoo": ("ZooEntry", "load_zoo", "load_zoo_file"),
    "errors": ("NetsmithError",),
    "morph.fit": ("FitSettings",),
    "morph.pipeline": ("Morphed", "make_morphable"),
    "morph.live": ("MorphableModel", "Size"),
    "morph.sample": ("Sampling",),
    "morph.saving": ("load_morphed", "save_morphed"),
    "morph.smooth": ("Smoothed", "smooth"),
    "morph.space": ("MorphSpace", "morph_space"),
    "reassembly.blocks": ("Block",),
    "reassembly.partition": ("Partition", "partition"),
    "reassembly.pipeline": ("Reassembled", "reassemble"),
    "reassembly.recipe": ("Recipe",),
    "reassembly.representation": ("Representations", "represent"),
    "reassembly.saving": ("load_reassembled", "save_reassembled", "write_results"),
    "reassembly.scores": ("ScoreContext", "get_score", "score", "score_names"),
    "reassembly.search": ("Choice", "SearchResult", "k_best"),
    "reassembly.similarity": ("SimilarityTable", "similarity"),
    "reassembly.stitch": ("Assembled", "Probe", "assemble", "fit", "plan_recipe"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Assembled",
    "Block",
    "Bound",
    "Budget",
    "Chain",
    "Choice",
    "Classification",
    "Cut",
    "Exported",
    "FitSettings",
    "Generation",
    "Layout",
    "MorphSpace",
    "MorphableModel",
    "Morphed",
    "NetsmithError",
    "Network",
    "Partition",
    "Preprocess",
    "Probe",
    "Reassembled",
    "Recipe",
    "Representations",
    "Sampling",
    "ScoreContext",
    "SearchResult",
    "Segmentation",
    "SimilarityTable",
    "Size",
    "Smoothed",
    "Splits",
    "TrainSettings",
    "Unit",
    "WidthGroups",
    "ZooEntry",
    "assemble",
    "count_macs",
    "count_params",
    "dissect",
    "evaluate",
    "export",
    "fit",
    "fold_batch_norms",
    "from_pretrained",
    "get_score",
    "k_best",
    "load",
    "load_morphed",
    "load_reassembled",
    "load_source",
    "load_zoo",
    "load_zoo_file",
    "make_morphable",
    "make_task",
    "measure_latency",
    "memory_bytes",
    "morph_space",
    "open_data",
    "partition",
    "permute",
    "plan_recipe",
    "probe_set",
    "push_to_hub",
    "reassemble",
    "represent",
    "resize",
    "save_morphed",
    "save_pretrained",
    "save_reassembled",
    "score",
    "score_names",
    "similarity",
    "smooth",
    "train",
    "width_groups",
    "write_results",
]


def __getattr__(name: str) -> Any:
    """Brings a public name from its module."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'netsmith' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"netsmith.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
