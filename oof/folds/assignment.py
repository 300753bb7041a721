"""Stratified group folds that depend on the seed and on the battles' content only.

scikit-learn's ``StratifiedGroupKFold`` makes the split. It gets the groups in the order of a content key, so that
shuffling rows or splitting files differently changes no battle's fold. It is a Python loop over the groups (11 s at
57,000), so above ``MAX_UNITS`` groups it gets small random bundles of groups with equal label counts instead.

Extra battles follow the scored battles of their group. The others are split in the same way, by themselves: a student's
teacher scores each of them with a fold job that did not train on it. They change no scored battle's fold.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.classes import CLASSES, classes_of_data
from oof.common.errors import UserError
from oof.data.schemas import TEXTS
from oof.folds.given_folds import given_extra_folds, given_folds
from oof.folds.groups import numbered

logger = logging.getLogger(__name__)

MAX_UNITS = 4_000


def assign_folds(
    table: pl.DataFrame, groups: NDArray[np.int64], k: int, seed: int, ties: bool = True
) -> NDArray[np.int32]:
    """Return (n,) folds 0..k-1 of the (n,) battles; -1 where a battle belongs to no fold.

    Scored battles (role train) are stratified by label, whole groups at a time. Battles of roles extra and
    unlabelled get the fold of their group's scored battles, so that no fold job that scores the group trains on them.
    Without a scored battle in the group, extra battles are stratified among themselves, whole groups at a time;
    unlabelled ones get -1, as test battles always do.

    If every train battle has a ``fold`` in its file, those folds are used, renumbered 0..k-1 in their order; so are
    those of the extra battles, if they have any.

    Args:
        table: canonical table of battles.
        groups: (n,) group numbers.
        k: number of folds.
        seed: of the split.
        ties: whether a battle can end in a tie; if not, that none does is no warning.

    The log has a warning where a class occurs in fewer than k groups, so that some fold has no battle of it, where a
    group is larger than a fold should be, and where only extra battles have folds in their files.

    Raises:
        UserError: fewer than 2 folds, fewer groups than folds, a fold would stay empty, a train battle without label,
            or the file's own folds are not k, are incomplete, or separate a group.
    """
    scored, extra, unlabelled = (
        np.flatnonzero((table["role"] == role).to_numpy()) for role in ("train", "extra", "unlabelled")
    )
    train = table[scored]
    _refuse_impossible(train, groups[scored], k, classes_of_data(ties))
    given = given_folds(train, groups[scored], k)
    folds = np.full(table.height, -1, dtype=np.int32)
    folds[scored] = given if given is not None else _split(train, groups[scored], k, seed)
    _refuse_empty(folds[scored], groups[scored], k)
    folds[unlabelled] = _follow(groups[scored], folds[scored], groups[unlabelled])
    given = given_extra_folds(train, table[extra], groups[scored], groups[extra])
    folds[extra] = _follow(groups[scored], folds[scored], groups[extra]) if given is None else given
    alone = extra[folds[extra] < 0]
    if len(alone):
        folds[alone] = _split_extra(table[alone], groups[alone], k, seed)
    return folds


def _refuse_impossible(train: pl.DataFrame, groups: NDArray[np.int64], k: int, classes: Sequence[str]) -> None:
    if k < 2:
        raise UserError(f"folds.k={k}: at least 2 folds are needed, so that one can be held out; raise folds.k")
    if train.height == 0:
        raise UserError("no train battles to score out of fold; name labelled files in data.train")
    unlabelled = train.filter(pl.col("label").is_null())
    if unlabelled.height:
        first = unlabelled.row(0, named=True)
        raise UserError(
            f"{first['file']}, row {first['row']}: a train battle without a label ({unlabelled.height:,} such rows); "
            f"label it or move the file to data.unlabelled"
        )
    n_groups = len(np.unique(groups))
    if n_groups < k:
        lower = f"lower folds.k to at most {n_groups}, or " if n_groups > 1 else ""
        raise UserError(
            f"folds.k={k}: the {train.height:,} train battles form only {n_groups:,} group(s) (by prompt, key or "
            f"response), which must not be separated; {lower}change groups.column or groups.threshold"
        )
    largest = int(np.unique(groups, return_counts=True)[1].max())
    if largest > train.height / k:
        share = f"{largest:,} of {train.height:,} train battles are one group"
        logger.warning("%s, more than a fold's share of 1/%d: the folds will be uneven", share, k)
    labels = train["label"].to_numpy()
    for c, name in enumerate(classes):
        holders = len(np.unique(groups[labels == c]))
        if holders < k:
            occurrence = "never occurs" if holders == 0 else f"occurs in only {holders} group(s)"
            logger.warning("class %r %s, so some of the %d folds have no battle of it", name, occurrence, k)


def _refuse_empty(folds: NDArray[np.int32], groups: NDArray[np.int64], k: int) -> None:
    empty = np.setdiff1d(np.arange(k), folds)
    if len(empty):
        largest = int(np.unique(groups, return_counts=True)[1].max())
        raise UserError(
            f"folds.k={k}: fold {empty[0]} would have no battle: {len(folds):,} train battles form "
            f"{len(np.unique(groups)):,} groups, the largest of {largest:,} battles; lower folds.k"
        )


def _split(train: pl.DataFrame, groups: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int32]:
    labels = train["label"].to_numpy()
    ordered = _canonical(train, groups)
    units = _bundle(ordered, labels, seed)
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import, and folds are often given

    splitter = StratifiedGroupKFold(n_splits=k, shuffle=True, random_state=seed)
    folds = np.full(train.height, -1, dtype=np.int32)
    with warnings.catch_warnings():  # "the least populated class": our own warning names the class
        warnings.simplefilter("ignore", UserWarning)
        order = np.lexsort((labels, units))
        try:
            for fold, (_, held_out) in enumerate(splitter.split(order, labels[order], units[order])):
                folds[order[held_out]] = fold
        except ValueError as error:  # every class has fewer than k members
            raise UserError(
                f"folds.k={k}: no class has {k} battles among the {train.height:,} train battles; lower folds.k"
            ) from error
    return folds


def _split_extra(extra: pl.DataFrame, groups: NDArray[np.int64], k: int, seed: int) -> NDArray[np.int32]:
    """Return (n,) folds of extra battles whose groups have no scored battle; few groups leave folds empty."""
    n_groups = len(np.unique(groups))
    if n_groups >= k <= np.bincount(extra["label"].to_numpy()).max():
        return _split(extra, groups, k, seed)
    dealt = np.random.default_rng(seed).permutation(n_groups) % k  # too few for the splitter
    return dealt[_canonical(extra, groups)].astype(np.int32)


def _canonical(train: pl.DataFrame, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return group numbers 0..G-1 in the order of the groups' smallest content keys (ids break ties)."""
    order = np.lexsort((train["id"].rank("ordinal").to_numpy(), np.array(_content_keys(train), dtype="S32")))
    return numbered(groups, order)


def _content_keys(train: pl.DataFrame) -> list[bytes]:
    """Return a hash of each battle's group key, label and texts, or id if it has no text."""
    texts = train.select(pl.concat_str([pl.col(c).list.join("\x1f") for c in TEXTS], separator="\x1e").alias("t"))
    keys = []
    for text, label, name, group_key in zip(texts["t"], train["label"], train["id"], train["group_key"], strict=True):
        text = text if text.strip("\x1e\x1f") else name
        content = f"{group_key}\x1e{label}\x1e{text}"
        keys.append(hashlib.blake2b(content.encode(), digest_size=16).hexdigest().encode())
    return keys


def _bundle(groups: NDArray[np.int64], labels: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """Return (n,) units to split: the groups themselves, or bundles of groups if there are too many.

    Groups with equal label counts are interchangeable for the splitter, so they are shuffled by the seed and joined
    to bundles of ``ceil(G / MAX_UNITS)`` groups, a few battles each; groups of more than 100 battles are not bundled.
    """
    n_groups = int(groups.max()) + 1
    per_bundle = -(-n_groups // MAX_UNITS)
    if per_bundle == 1:
        return groups
    counts = np.zeros((n_groups, len(CLASSES)), dtype=np.int64)
    np.add.at(counts, (groups, labels), 1)
    _, kind = np.unique(counts, axis=0, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(n_groups)
    order = shuffled[np.argsort(kind[shuffled], kind="stable")]
    starts = np.searchsorted(kind[order], kind[order])
    place = (np.arange(n_groups) - starts) // per_bundle
    place = np.where(counts[order].sum(axis=1) > 100, np.arange(n_groups), place)
    _, bundle = np.unique(np.stack([kind[order], place], axis=1), axis=0, return_inverse=True)
    units = np.empty(n_groups, dtype=np.int64)
    units[order] = bundle
    return units[groups]


def _follow(groups: NDArray[np.int64], folds: NDArray[np.int32], others: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the fold of each of ``others`` (group numbers), -1 where no scored battle has that group."""
    known, first = np.unique(groups, return_index=True)
    at = np.minimum(np.searchsorted(known, others), len(known) - 1)
    return np.where(known[at] == others, folds[first[at]], -1).astype(np.int32)
