"""What a training depends on, digested part by part, so that a changed setting can be named. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from oof.common.digests import checkpoint_digest, digest
from oof.config import Config, Member, to_dict


def battles_key(table: pl.DataFrame) -> str:
    """Return the digest of all that fold jobs read of the battles: texts, labels, weights, folds, row order."""
    used = table.filter(pl.col("role") != "unlabelled") if "role" in table.columns else table
    columns = ("id", "role", "label", "weight", "fold", "prompt", "response_a", "response_b")
    return digest(*(used[name].to_list() for name in columns if name in used.columns))


def recipe_parts(config: Config, member: Member, battles: str) -> dict[str, object]:
    """Return everything that a member's training on the battles of this key depends on, by setting."""
    # How scoring is cut and what is recomputed changes nothing but speed.
    train = replace(member.train, activation_checkpointing="auto")
    recipe = to_dict(replace(member, score_tokens_per_batch=0, train=train))
    del recipe["frozen"]
    parts: dict[str, object] = {name: value for name, value in recipe.items() if name not in ("lora", "train")}
    parts |= {f"{section}.{name}": v for section in ("lora", "train") for name, v in recipe[section].items()}
    parts["checkpoint"] = checkpoint_digest(member.checkpoint)
    return parts | {"prompts": config.prompts, "seed": config.seed, "battles": battles}
