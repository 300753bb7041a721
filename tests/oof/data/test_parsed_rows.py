"""Ties in data that has none (``data.ties=false``): refused with file, row, column and remedy, or left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from oof.common.errors import UserError
from oof.config import Data
from oof.data.battles import read_file

WITHOUT_TIES = Data(ties=False)
TIES_REMEDY = "set data.ties=true if battles can end in a tie"


def battles(path: Path, **verdicts: list[object]) -> Path:
    n = len(next(iter(verdicts.values())))
    texts = {name: [f"{name} {i}" for i in range(n)] for name in ("prompt", "response_a", "response_b")}
    pl.DataFrame({"id": [f"b{i}" for i in range(n)], **texts, **verdicts}).write_csv(path)
    return path


@pytest.mark.parametrize(
    ("verdicts", "place"),
    [
        ({"winner": ["model_a", "tie", "model_b"]}, "row 2, column winner"),
        ({"winner": ["model_a", "both_bad", "model_b"]}, "row 2, column winner"),
        ({"label": [0, 2, 1]}, "row 2, column label"),
        (
            {"winner_model_a": [1, 0, 0], "winner_model_b": [0, 0, 1], "winner_tie": [0, 1, 0]},
            "row 2, column winner_model_a..winner_tie",
        ),
    ],
)
def test_a_tie_is_a_bad_row(tmp_path: Path, verdicts: dict[str, list[object]], place: str) -> None:
    path = battles(tmp_path / "train.csv", **verdicts)
    with pytest.raises(UserError) as error:
        read_file(path, "train", data=WITHOUT_TIES)
    assert f"{path}, {place}: the verdict is a tie, but data.ties=false" in str(error.value)
    assert TIES_REMEDY in str(error.value)
    kept = read_file(path, "train", replace(WITHOUT_TIES, on_bad_row="drop"))
    assert kept.table["id"].to_list() == ["b0", "b2"]
    assert kept.dropped["row"].to_list() == [2]


def test_a_vote_for_a_tie_is_a_bad_row_even_where_a_side_wins(tmp_path: Path) -> None:
    path = battles(tmp_path / "train.csv", votes_a=[2, 3, 1], votes_b=[1, 0, 2], votes_tie=[0, 1, 0])
    with pytest.raises(UserError, match=r"row 2, column votes_a.*part of the votes are for a tie.*data.ties=true"):
        read_file(path, "train", data=WITHOUT_TIES)


def test_both_bad_battles_that_are_left_out_are_no_ties(tmp_path: Path) -> None:
    path = battles(tmp_path / "train.csv", winner=["model_a", "both_bad", "model_b"])
    assert read_file(path, "train", data=Data(ties=False, both_bad="drop")).table.height == 2


def test_files_without_ties_suggest_the_setting_and_with_it_they_have_no_warning(tmp_path: Path) -> None:
    path = battles(tmp_path / "train.csv", winner=["model_a", "model_b"])
    (problem,) = read_file(path, "train").problems
    assert str(problem).endswith("; if no battle can end in a tie, set data.ties=false")
    assert read_file(path, "train", data=WITHOUT_TIES).problems == []
