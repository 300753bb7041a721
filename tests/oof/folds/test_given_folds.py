"""Folds that the file gives: used as they are, or refused with the row."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from oof.common.errors import UserError
from oof.folds.assignment import assign_folds
from tests.fixtures.small_tables import table_of


def battles(n: int) -> tuple[pl.DataFrame, NDArray[np.int64]]:
    """Return n battles, each in a group of its own."""
    return table_of([f"prompt {i}" for i in range(n)]), np.arange(n)


def test_folds_of_the_file_are_used_and_renumbered() -> None:
    table, groups = battles(40)
    own = [3 if i % 2 else 7 for i in range(40)]
    folds = assign_folds(table.with_columns(pl.Series("fold", own, dtype=pl.Int32)), groups, 2, 0)
    assert folds.tolist() == [0 if i % 2 else 1 for i in range(40)]


def test_folds_of_the_file_that_separate_a_group_are_refused_with_an_example() -> None:
    table, _ = battles(10)
    groups = np.array([0, 1, 2, 3, 4, 5, 6, 7, 3, 9])
    own = pl.Series("fold", [0, 1] * 5, dtype=pl.Int32)
    with pytest.raises(UserError, match=r"b3 \(fold 1\) and b8 \(fold 0\) belong to one group"):
        assign_folds(table.with_columns(own), groups, 2, 0)


def test_incomplete_folds_of_the_file_are_refused() -> None:
    table, groups = battles(10)
    own = pl.Series("fold", [0, 1, None, 1, 0, 1, 0, None, 0, 1], dtype=pl.Int32)
    with pytest.raises(UserError, match=r"row 3, column fold: empty, but 8 train battles have a fold"):
        assign_folds(table.with_columns(own), groups, 2, 0)


@pytest.mark.filterwarnings("ignore:class")
def test_another_number_of_folds_in_the_file_is_refused() -> None:
    table, groups = battles(12)
    own = pl.Series("fold", [0, 1, 2] * 4, dtype=pl.Int32)
    with pytest.raises(UserError, match=r"set folds\.k=3"):
        assign_folds(table.with_columns(own), groups, 5, 0)


def test_folds_of_the_file_are_used_for_extra_battles_too() -> None:
    own = [3, 7] * 10 + [7, 7, 3]
    table = table_of(["p"] * 23, role=["train"] * 20 + ["extra"] * 3, fold=own)
    folds = assign_folds(table, np.arange(23), 2, 0)
    assert folds.tolist() == [0 if fold == 3 else 1 for fold in own]


@pytest.mark.parametrize(
    ("extra", "groups", "message"),
    [
        ([0, 1, 9], [20, 21, 22], r"row 23, column fold: 9, but the train battles have only folds 0, 1 \(1 such rows"),
        ([0, 8, 9], [20, 21, 22], r"row 22, column fold: 8, but the train battles have only folds 0, 1 \(2 such rows"),
        ([0, None, 1], [20, 21, 22], r"row 22, column fold: empty, but 2 extra battles have a fold"),
        ([0, 1, 1], [20, 20, 22], r"b20 \(fold 0\) and b21 \(fold 1\) belong to one group"),
        ([0, 1, 1], [20, 21, 4], r"b4 \(fold 0\) and b22 \(fold 1\) belong to one group"),
    ],
)
def test_unusable_folds_of_extra_battles_are_refused(extra: list[int | None], groups: list[int], message: str) -> None:
    table = table_of(["p"] * 23, role=["train"] * 20 + ["extra"] * 3, fold=[0, 1] * 10 + extra)
    with pytest.raises(UserError, match=message):
        assign_folds(table, np.array([*range(20), *groups]), 2, 0)


def test_folds_of_extra_battles_alone_are_left_aside_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    table = table_of(["p"] * 23, role=["train"] * 20 + ["extra"] * 3, fold=[None] * 20 + [5, 6, 7])
    folds = assign_folds(table, np.arange(23), 2, 0)
    assert "column fold of the extra battles is not used" in caplog.text
    assert set(folds.tolist()) == {0, 1}
