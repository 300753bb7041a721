"""The configuration of a run: its schema, and how YAML files and overrides become one."""

from oof.config.load import load, to_dict
from oof.config.schema import (
    Config,
    Data,
    Distill,
    Folds,
    Groups,
    Jobs,
    Lora,
    Losses,
    Member,
    Predict,
    Pretrain,
    Prompts,
    Stack,
    Synth,
    Train,
)
from oof.config.speed_only import without_speed_settings

__all__ = [
    "Config",
    "Data",
    "Distill",
    "Folds",
    "Groups",
    "Jobs",
    "Lora",
    "Losses",
    "Member",
    "Predict",
    "Pretrain",
    "Prompts",
    "Stack",
    "Synth",
    "Train",
    "load",
    "to_dict",
    "without_speed_settings",
]
