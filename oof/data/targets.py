"""Training targets of battles: the soft label where votes or probabilities are known, else the one-hot label."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.classes import CLASSES
from oof.data.schemas import SOFT_COLUMNS


def training_targets(table: pl.DataFrame) -> NDArray[np.float64]:
    """Return (n, 3) targets in class order; zeros for a battle without a label.

    Scores are always measured against the labels; a soft label changes what a model is trained towards, nothing else.
    """
    labels = table["label"].fill_null(-1).to_numpy()
    targets: NDArray[np.float64] = (labels[:, None] == np.arange(len(CLASSES))).astype(np.float64)
    if SOFT_COLUMNS[0] in table.columns:
        known = table[SOFT_COLUMNS[0]].is_not_null().to_numpy()
        targets[known] = table.filter(pl.Series(known)).select(SOFT_COLUMNS).to_numpy()
    return targets
