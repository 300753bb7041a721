"""Random subset of the train battles (``data.subset``), for cards that cannot afford all of them.

A battle's rank depends on the seed and its id alone. So the order of files and rows has no influence, and a smaller
share is a part of every larger one.
"""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl


def subset_size(n: int, share: float) -> int:
    """Return the number of battles in a share of ``n``: at least one, if there are any."""
    return min(n, max(1, round(n * share)))


def draw_subset(table: pl.DataFrame, share: float, seed: int) -> pl.DataFrame:
    """Return the table with a share of its train battles; battles of other roles and the order of rows are kept.

    Args:
        table: (n) battles.
        share: of the train battles, above 0 and at most 1.
        seed: of the draw.
    """
    if share == 1:
        return table
    train = np.flatnonzero((table["role"] == "train").to_numpy())
    ids = table["id"].gather(train).to_list()
    ranks = np.array([hashlib.blake2b(f"{seed}\x1f{name}".encode(), digest_size=16).digest() for name in ids], "S16")
    kept = np.ones(table.height, dtype=bool)
    kept[train[np.argsort(ranks, kind="stable")[subset_size(len(train), share) :]]] = False
    return table.filter(pl.Series(kept))
