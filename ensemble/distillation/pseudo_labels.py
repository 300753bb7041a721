"""Battles that students train on beside the scored ones, and the loss weights of all. Imports no torch."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.common.errors import UserError
from oof.config import Config, Distill


def unscored_battles(battles: pl.DataFrame, distill: Distill) -> list[pl.DataFrame]:
    """Return the extra battles and, if a loss term with soft targets can use them, the unlabelled ones."""
    roles = ("extra", "unlabelled") if distill.losses.soft and distill.pseudo_weight else ("extra",)
    return [battles.filter(pl.col("role") == role) for role in roles]


def loss_weights(table: pl.DataFrame, config: Config) -> NDArray[np.float64]:
    """Return the (n,) loss weights of the battles of a plan.

    Those of the unlabelled ones that ``distill.pseudo_share`` leaves out are 0: they keep their scores. A larger share
    is the smaller one and more.

    Raises:
        UserError: several rounds without unlabelled battles.
    """
    distill, unlabelled = config.distill, (table["role"] == "unlabelled").to_numpy()
    if distill.rounds > 1 and not unlabelled.any():
        raise UserError(
            f"distill.rounds={distill.rounds}: from the second round on, students label the battles of data.unlabelled "
            "anew, and none is in use here; set distill.rounds=1, or data.unlabelled for a new RUN"
        )
    weights: NDArray[np.float64] = table["weight"].to_numpy() * np.where(unlabelled, distill.pseudo_weight, 1.0)
    order = np.random.default_rng(config.seed).permutation(np.flatnonzero(unlabelled))
    weights[order[int(np.ceil(distill.pseudo_share * len(order))) :]] = 0.0
    return weights
