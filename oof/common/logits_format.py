"""The open format of logits files: id, fold and six columns, one for each order and class."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.classes import CLASSES, ORDERS

LOGIT_COLUMNS = [f"{order}_{name}" for order in ORDERS for name in CLASSES]
COUNT_COLUMNS = [f"{what}_{part}" for what in ("tokens", "kept") for part in ("prompt", "a", "b")]


def logits_frame(
    ids: pl.Series,
    logits: NDArray[np.floating],
    fold: NDArray[np.integer] | int,
    counts: NDArray[np.integer] | None = None,
) -> pl.DataFrame:
    """Return the open logits format: id, fold and the (n, 2, 3) logits as six Float32 columns.

    ``counts`` (n, 6) adds what the member read: tokens of prompt, A and B, and how many of them truncation kept.
    """
    flat = logits.reshape(len(ids), 6).astype(np.float32)
    columns = {name: flat[:, i] for i, name in enumerate(LOGIT_COLUMNS)}
    folds = pl.Series("fold", np.broadcast_to(np.asarray(fold, dtype=np.int32), len(ids)))
    frame = pl.DataFrame({"id": ids, "fold": folds, **columns})
    if counts is None:
        return frame
    return frame.with_columns(pl.Series(n, counts[:, i], dtype=pl.Int32) for i, n in enumerate(COUNT_COLUMNS))


def logits_of(frame: pl.DataFrame) -> NDArray[np.float32]:
    """Return the (n, 2, 3) logits of a frame in the open logits format, in its order."""
    return frame.select(LOGIT_COLUMNS).to_numpy().reshape(-1, 2, 3)
