"""Configuration of a run: schema, loader and the separation of settings that change speed only."""

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
    StudentPrompts,
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
    "StudentPrompts",
    "Synth",
    "Train",
    "load",
    "to_dict",
    "without_speed_settings",
]
