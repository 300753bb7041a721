"""Folds that the battles' files give in a column: complete, as many as the run has, and never separating a group."""

from __future__ import annotations

import logging

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.common.errors import UserError

logger = logging.getLogger(__name__)


def given_folds(train: pl.DataFrame, groups: NDArray[np.int64], k: int) -> NDArray[np.int32] | None:
    """Return the (n,) folds that the files give to n train battles, renumbered 0..k-1; None if they give none.

    Args:
        train: canonical table of the train battles.
        groups: (n,) group numbers.
        k: number of folds.

    Raises:
        UserError: the folds are incomplete, are not k, or separate a group.
    """
    if not _has_folds(train):
        return None
    _refuse_missing(train, "train")
    values, folds = np.unique(train["fold"].to_numpy(), return_inverse=True)
    if len(values) != k:
        raise UserError(f"column fold: {len(values)} different folds, but folds.k={k}; set folds.k={len(values)}")
    _refuse_separated(train, groups)
    return folds.astype(np.int32)


def given_extra_folds(
    train: pl.DataFrame, extra: pl.DataFrame, groups: NDArray[np.int64], extra_groups: NDArray[np.int64]
) -> NDArray[np.int32] | None:
    """Return the (m,) folds that the files give to m extra battles, numbered as those of the train battles.

    Args:
        train: canonical table of n train battles.
        extra: the same of m extra battles.
        groups: (n,) group numbers.
        extra_groups: (m,) group numbers.

    Returns:
        None if the files give none, or give none to the train battles.

    Raises:
        UserError: the folds are incomplete, one of them has no train battle, or they separate a group.
    """
    if not _has_folds(extra):
        return None
    if not _has_folds(train):
        logger.warning("column fold of the extra battles is not used: the train battles have no such column")
        return None
    _refuse_missing(extra, "extra")
    values = np.unique(train["fold"].to_numpy())
    unknown = extra.filter(~pl.col("fold").is_in(values.tolist()))
    if unknown.height:
        first = unknown.row(0, named=True)
        raise UserError(
            f"{first['file']}, row {first['row']}, column fold: {first['fold']}, but the train battles have only folds "
            f"{', '.join(map(str, values))} ({unknown.height:,} such rows); use these, or leave the column out of "
            "data.extra"
        )
    both = pl.concat([train.select("id", "fold"), extra.select("id", "fold")])
    _refuse_separated(both, np.concatenate([groups, extra_groups]))
    return np.searchsorted(values, extra["fold"].to_numpy()).astype(np.int32)


def _has_folds(table: pl.DataFrame) -> bool:
    return "fold" in table.columns and not table["fold"].is_null().all()


def _refuse_missing(table: pl.DataFrame, role: str) -> None:
    missing = table.filter(pl.col("fold").is_null())
    if missing.height:
        first = missing.row(0, named=True)
        raise UserError(
            f"{first['file']}, row {first['row']}, column fold: empty, but {table.height - missing.height:,} {role} "
            f"battles have a fold; fill in the whole column or none of it"
        )


def _refuse_separated(table: pl.DataFrame, groups: NDArray[np.int64]) -> None:
    order, folds = np.argsort(groups, kind="stable"), table["fold"].to_numpy()
    same_group = groups[order][1:] == groups[order][:-1]
    split = np.flatnonzero(same_group & (folds[order][1:] != folds[order][:-1]))
    if len(split):
        one, two = (table.row(int(order[i]), named=True) for i in (split[0], split[0] + 1))
        n_split = len(np.unique(groups[order][1:][split]))
        raise UserError(
            f"column fold: battles {one['id']} (fold {one['fold']}) and {two['id']} (fold {two['fold']}) belong to one "
            f"group; the file's folds separate {n_split:,} group(s); drop the column fold, or group by another column"
        )
