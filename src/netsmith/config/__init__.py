"""Configuration: what each verb reads, as models; YAML to them and back, every fault of a file at once."""

from netsmith.config.morph import MorphConfig, load_morph_config
from netsmith.config.reading import HEADER, apply_overrides, dump_config, load_config, to_yaml
from netsmith.config.reassemble import FinetuneSettings, ReassembleConfig, load_reassemble_config
from netsmith.config.sections import DataSection
from netsmith.config.train import TrainConfig, load_train_config

__all__ = [
    "HEADER",
    "DataSection",
    "FinetuneSettings",
    "MorphConfig",
    "ReassembleConfig",
    "TrainConfig",
    "apply_overrides",
    "dump_config",
    "load_config",
    "load_morph_config",
    "load_reassemble_config",
    "load_train_config",
    "to_yaml",
]
