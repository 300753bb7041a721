"""Content keys of a training: digests of everything that its result depends on. Imports no torch.

A key is digested setting by setting, so that a message can name the setting that changed. Settings that change speed
only have no influence (:mod:`oof.config.speed_only`).
"""

from __future__ import annotations

import polars as pl

from oof.common.digests import checkpoint_digest, digest
from oof.config import Config, Member, without_speed_settings
from oof.data.schemas import SOFT_COLUMNS


def battles_key(table: pl.DataFrame) -> str:
    """Return the digest of everything that fold jobs read: texts, labels, weights, folds and the order of rows.

    Args:
        table: (n) battles. Unlabelled ones do not count: no fold job reads them.
    """
    labelled = table.filter(pl.col("role") != "unlabelled") if "role" in table.columns else table
    columns = ("id", "role", "label", "weight", "fold", "prompt", "response_a", "response_b", *SOFT_COLUMNS)
    return digest(*(labelled[name].to_list() for name in columns if name in labelled.columns))


def training_key_parts(config: Config, member: Member, battles: str) -> dict[str, object]:
    """Return everything that the training of a member depends on: name of the setting -> plain value.

    Args:
        config: seed, prompts and ``data.ties`` are read.
        member: base checkpoint and training settings.
        battles: :func:`battles_key` of the training battles.
    """
    settings = without_speed_settings(member)
    parts: dict[str, object] = {name: value for name, value in settings.items() if name not in ("lora", "train")}
    parts |= {f"{section}.{name}": v for section in ("lora", "train") for name, v in settings[section].items()}
    parts["checkpoint"] = checkpoint_digest(member.checkpoint)
    parts |= {} if config.data.ties else {"data.ties": False}
    return parts | {"prompts": without_speed_settings(config.prompts), "seed": config.seed, "battles": battles}
