"""Groups by a column of the file instead of the prompts, and by shared responses."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from oof.common.errors import UserError
from oof.config import Groups
from oof.folds.groups import group_battles
from tests.fixtures.small_tables import sentence, table_of


def test_a_column_replaces_prompts() -> None:
    table = table_of(["same words here"] * 4, group_key=["x", "y", "x", "z"])
    groups = group_battles(table, Groups(column="topic")).tolist()
    assert groups[0] == groups[2]
    assert len(set(groups)) == 3


def test_a_train_battle_without_a_key_is_refused_with_its_place() -> None:
    table = table_of(["one", "two"], group_key=["x", None])
    with pytest.raises(UserError, match=r"battles\.csv, row 2, column topic"):
        group_battles(table, Groups(column="topic"))


def test_an_extra_battle_without_a_key_is_grouped_by_its_prompt() -> None:
    prompt, other = sentence(np.random.default_rng(0), 20), sentence(np.random.default_rng(1), 20)
    table = table_of(
        [prompt, other, prompt + " edited", other],
        group_key=["x", "y", None, "z"],
        role=["train", "train", "extra", "train"],
    )
    groups = group_battles(table, Groups(column="topic")).tolist()
    assert groups[0] == groups[2]
    assert len(set(groups)) == 3  # y and z share a prompt, but both have a key


def test_group_numbers_with_a_column_do_not_depend_on_row_order() -> None:
    table = table_of(["same words"] * 6, group_key=["x", "y", "x", "z", "y", "w"])
    table = table.with_columns(pl.Series("group", group_battles(table, Groups(column="k"))))
    backwards = table.reverse()
    assert group_battles(backwards, Groups(column="k")).tolist() == backwards["group"].to_list()


def test_long_shared_responses_join_battles_only_if_the_setting_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    argument = "a long argument that occurs in several pairs of the data"
    table = table_of(
        ["first prompt", "second thing", "third matter", "fourth case", "fifth point"],
        response_a=[[argument], ["yes"], [argument.upper()], ["yes"], [argument.replace("several", "none of the")]],
        response_b=[["other"], [argument], ["something"], ["no"], ["another long argument, which nobody repeats"]],
    )
    assert len(set(group_battles(table, Groups()).tolist())) == 5
    for rows in (20_000, 2):
        monkeypatch.setattr("oof.folds.groups.CHUNK_ROWS", rows)
        groups = group_battles(table, Groups(responses=True)).tolist()
        assert groups[0] == groups[1] == groups[2]
        assert len(set(groups)) == 3


@pytest.mark.parametrize(("length", "joined"), [(31, False), (32, True)])
def test_shared_responses_count_from_32_characters_on(length: int, joined: bool) -> None:
    text = "x" * length
    table = table_of(["first prompt", "second thing"], response_a=[[text], ["yes"]], response_b=[["no"], [text]])
    assert (len(set(group_battles(table, Groups(responses=True)).tolist())) == 1) == joined


def test_a_response_of_several_turns_is_one_text() -> None:
    turns = ["the first part of an answer", "and its second part"]
    table = table_of(["first prompt", "second thing"], response_a=[turns, [" ".join(turns)]])
    assert len(set(group_battles(table, Groups(responses=True)).tolist())) == 1
