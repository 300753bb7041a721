"""Preference files to one canonical table of battles, or one clear error.

Each file is opened (``readers``, ``formats``), recognised (``schemas``) and understood row by row (``drafts``,
``cells``); then all rows become one polars table with the columns of :data:`SCHEMA` (``assembly``, ``ids``). Nothing
is lost in silence: ``table.height + dropped.height == counts["rows_read"]``, what was normalised is counted, and a
bad row has its reason and remedy (``problems``).

Ids. Unique within train + extra + unlabelled, and within test, where they stay as the file has them.
  * A file without ids gets ids from its content (the same battle has the same id in any file or order).
  * The same id and the same battle twice: the first stays, a repetition is a bad row.
  * The same id and another battle in one file: all of them are bad rows, since none is known to be right.
  * The same id of different battles in two files of a role: both become ``file:id``; but two test files may not
    share an id, since a submission needs it as it is.
  * The same id in two roles: it becomes ``role:id`` in the later one (train comes before extra and unlabelled).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from oof.common.atomic_files import replacing
from oof.common.errors import UserError
from oof.config import Data
from oof.data import readers
from oof.data.build_table import ROLES, SCHEMA, BattleSet, Part, read_parts, refuse_unused_columns, settle
from oof.data.problems import Problem

__all__ = [
    "ROLES",
    "SCHEMA",
    "BattleSet",
    "Problem",
    "content_fingerprint",
    "read_battles",
    "read_file",
    "swap_order",
    "write_dropped",
]
CONTENT = [name for name in SCHEMA if name not in ("file", "row")]


def read_battles(data: Data, *, seed: int, roles: Sequence[str] = ROLES) -> BattleSet:
    """Return the battles of the files of ``roles``.

    Args:
        data: paths or globs by role, ``columns``, ``on_bad_row`` and ``extra_weight``.
        seed: draws the side of the chosen response in chosen/rejected pairs, together with the content.
        roles: which of train, extra, unlabelled and test to read.

    Raises:
        UserError: a file is missing, unreadable or of no known schema; verdicts are missing in train or extra;
            a role has no rows; or, with ``on_bad_row="error"``, some rows cannot be used.
    """
    parts: list[Part] = []
    for role in roles:
        patterns: list[str] = getattr(data, role)
        weight = data.extra_weight if role == "extra" else 1.0
        found = [
            part for path in readers.expand(patterns) for part in read_parts(path, role, data.columns, seed, weight)
        ]
        if patterns and not sum(part.n_read for part in found):
            raise UserError(f"{', '.join(patterns)}: no rows; data.{role} needs at least one battle")
        parts += found
    refuse_unused_columns(parts, data.columns)
    battles = settle(parts, data.on_bad_row)
    for role in dict.fromkeys(part.role for part in parts):
        if not (battles.table["role"] == role).any():
            raise UserError(f"data.{role}: no row can be used; the first reason: {battles.dropped['reason'][0]}")
    return battles


def read_file(
    path: str | Path,
    role: str,
    *,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    on_bad_row: str = "error",
    weight: float = 1.0,
) -> BattleSet:
    """Return the battles of one file, as :func:`read_battles` does for many; an empty file gives an empty table."""
    if role not in ROLES:
        raise UserError(f"role {role!r}: choose one of {', '.join(ROLES)}")
    parts = read_parts(str(path), role, columns or {}, seed, weight)
    refuse_unused_columns(parts, columns or {})
    return settle(parts, on_bad_row)


def write_dropped(frame: pl.DataFrame, path: str | Path) -> None:
    """Write ``BattleSet.dropped`` as CSV: file, row, id, reason."""
    with replacing(Path(path)) as temporary:
        frame.write_csv(temporary)


def swap_order(table: pl.DataFrame) -> pl.DataFrame:
    """Return the table with A and B exchanged: responses, models and labels; columns keep their order."""
    label = pl.when(pl.col("label") < 2).then(1 - pl.col("label")).otherwise(pl.col("label"))
    return table.with_columns(
        pl.col("response_b").alias("response_a"),
        pl.col("response_a").alias("response_b"),
        pl.col("model_b").alias("model_a"),
        pl.col("model_a").alias("model_b"),
        label.cast(pl.Int8).alias("label"),
    )


def content_fingerprint(table: pl.DataFrame) -> str:
    """Return the sha256 of the battles' content; the order of rows and the files' names do not matter."""
    sha = hashlib.sha256()
    ordered = table.sort("role", "id").select(CONTENT)
    for name in CONTENT:
        column = ordered[name]
        if column.dtype == pl.List(pl.String):
            _update(sha, column.list.len().to_numpy())
            column = column.explode(empty_as_null=True, keep_nulls=True)
        if column.dtype == pl.String:
            _update(sha, column.is_null().to_numpy())
            column = column.fill_null("")
            _update(sha, column.str.len_bytes().to_numpy())
            sha.update("".join(column.to_list()).encode())
        else:
            _update(sha, column.cast(pl.Float64).fill_null(float("nan")).to_numpy())
        sha.update(f"\0{name}\0".encode())
    return sha.hexdigest()


def _update(sha: hashlib._Hash, values: np.ndarray) -> None:
    sha.update(np.ascontiguousarray(values).tobytes())
