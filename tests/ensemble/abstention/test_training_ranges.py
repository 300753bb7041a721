"""Warnings about battles that are unlike the training battles."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from ensemble.abstention.training_ranges import BLOCK, TrainingRanges, scripts_of

GIVEN, KEPT = np.full((400, 3), 10), np.full((400, 3), 10)


def table(*texts: str) -> pl.DataFrame:
    return pl.DataFrame({"prompt": [[text] for text in texts], "response_a": [["a"]] * len(texts)}).with_columns(
        response_b=pl.col("response_a")
    )


def test_the_script_of_a_battle_is_that_of_most_letters() -> None:
    battles = table("Where is it?", "Где это находится?", "它在哪里呢，请告诉我好吗", "12 + 7")
    assert scripts_of(battles).tolist() == ["latin", "cyrillic", "han", "latin"]
    digits = battles[3:].with_columns(response_a=pl.Series([["1"]]), response_b=pl.Series([["2"]]))
    assert scripts_of(digits).tolist() == ["none"]
    many = pl.concat([battles] * (BLOCK // 4 + 1))
    assert scripts_of(many)[-4:].tolist() == ["latin", "cyrillic", "han", "latin"]
    assert scripts_of(battles[:0]).tolist() == []


def test_long_truncated_and_foreign_battles_are_told() -> None:
    ranges = TrainingRanges.of(table(*["some words"] * 400), GIVEN, KEPT)
    assert ranges.scripts == {"latin": 1.0}
    battles = table("short", "long", "cut", "Где это находится?")
    given = np.array([[10, 10, 10], [10, 10, 11], [10, 10, 10], [1, 1, 1]])
    kept = given - np.array([[0], [0], [1], [0]])
    none, long, cut, foreign = ranges.warnings(battles, given, kept)
    assert none == ()
    assert long == ("longer than 99.5% of the training battles",)
    assert cut == ("truncated, as training battles were not",)
    assert foreign == ("mostly in cyrillic letters, as training battles were not",)


def test_truncation_is_no_warning_where_training_battles_were_truncated_and_counts_may_be_unknown() -> None:
    cut_in_training = TrainingRanges.of(table(*["some words"] * 400), GIVEN, KEPT - (np.arange(400) % 10 == 0)[:, None])
    assert cut_in_training.truncated == pytest.approx(0.1)
    unknown = TrainingRanges.of(table("some words"))
    for ranges in (cut_in_training, unknown):
        assert ranges.warnings(table("x"), GIVEN[:1], KEPT[:1] - 1) == [()]
