"""Open format of logits files: id, fold and six columns, one for each order and class.

Guarantee: :func:`logits_of` returns exactly the logits that :func:`logits_frame` was given, as float32.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.classes import CLASSES, ORDERS

LOGIT_COLUMNS = [f"{order}_{name}" for order in ORDERS for name in CLASSES]
COUNT_COLUMNS = [f"{count}_{text}" for count in ("tokens", "kept") for text in ("prompt", "a", "b")]


def logits_frame(
    ids: pl.Series,
    logits: NDArray[np.floating],
    fold: NDArray[np.integer] | int,
    counts: NDArray[np.integer] | None = None,
) -> pl.DataFrame:
    """Return n battles in the open logits format.

    Args:
        ids: (n,) of the battles.
        logits: (n, 2, 3): order (ab, ba) x class (a, b, tie), both orders in canonical class order.
        fold: (n,), or one fold for all.
        counts: (n, 6) tokens of prompt, A and B, and how many of each truncation kept; None = no such columns.
    """
    flat = logits.reshape(len(ids), 6).astype(np.float32)
    columns = {name: flat[:, i] for i, name in enumerate(LOGIT_COLUMNS)}
    folds = pl.Series("fold", np.broadcast_to(np.asarray(fold, dtype=np.int32), len(ids)))
    frame = pl.DataFrame({"id": ids, "fold": folds, **columns})
    if counts is None:
        return frame
    return frame.with_columns(pl.Series(n, counts[:, i], dtype=pl.Int32) for i, n in enumerate(COUNT_COLUMNS))


def logits_of(frame: pl.DataFrame) -> NDArray[np.float32]:
    """Return the (n, 2, 3) float32 logits of n rows in the open logits format, in the frame's order."""
    return frame.select(LOGIT_COLUMNS).to_numpy().reshape(-1, 2, 3)
