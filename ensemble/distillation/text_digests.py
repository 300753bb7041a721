"""Digests of battles' texts: of a table for content keys, and of each battle for its stored scores. Imports no torch.

A table may have many unlabelled battles, so only some of its texts are Python strings at a time.
"""

from __future__ import annotations

import hashlib
import json

import polars as pl

from oof.common.digests import digest_of_lists
from oof.data.schemas import TEXTS

ROWS = 8192  # battles whose texts are Python strings at a time


def texts_key(table: pl.DataFrame) -> str:
    """Return the digest of the battles' ids and texts, in the table's order."""
    columns = (table.select(name).iter_slices(ROWS) for name in ("id", *TEXTS))
    return digest_of_lists(*((part.to_series().to_list() for part in parts) for parts in columns))


def battle_hashes(table: pl.DataFrame) -> pl.Series:
    """Return (n,) hexadecimal hashes of the three texts of each battle."""
    hashes = [
        hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest()
        for part in table.select(TEXTS).iter_slices(ROWS)
        for texts in part.iter_rows()
    ]
    return pl.Series("battle", hashes, dtype=pl.String)
