"""Schemas: every known kind of file gives the right battles; for any other file the missing columns are named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oof.common.errors import UserError
from oof.config import Data
from oof.data import conversations, parse_cells
from oof.data.battles import read_file
from oof.data.parse_cells import CellError
from tests.fixtures.battle_files import (
    Row,
    arena,
    encode,
    generator,
    hh,
    labels,
    lmsys,
    lmsys_lists,
    mt_bench,
    ultrafeedback,
    wsdm,
)


def load(
    tmp_path: Path, rows: list[Row], form: str = "jsonl", role: str = "train", seed: int = 0, **settings: Any
) -> pl.DataFrame:
    (tmp_path / f"a.{form}").write_bytes(encode(rows, form))
    return read_file(tmp_path / f"a.{form}", role, Data(**settings), seed=seed).table


def say(user: str | None, answer: str | None) -> list[Row]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]


TEXT = {"prompt": ["p"], "response_a": ["a"], "response_b": ["b"]}


@pytest.mark.parametrize(
    ("maker", "name", "form"),
    [
        (lmsys, "Kaggle LMSYS (lists of turns)", "csv"),
        (lmsys, "Kaggle LMSYS (lists of turns)", "parquet"),
        (lmsys_lists, "Kaggle LMSYS (lists of turns)", "jsonl"),
        (wsdm, "WSDM Cup 2025 (plain texts)", "csv"),
        (arena, "chatbot_arena_conversations", "jsonl"),
        (mt_bench, "MT-bench human judgements", "parquet"),
        (ultrafeedback, "chosen/rejected pairs", "jsonl"),
        (hh, "chosen/rejected pairs", "csv"),
        (labels, "ids with labels only", "csv"),
    ],
)
def test_each_schema_is_recognised_by_its_columns(
    tmp_path: Path, maker: Callable[[random.Random, int], Row], name: str, form: str
) -> None:
    rng = generator(5)
    (tmp_path / f"a.{form}").write_bytes(encode([maker(rng, i) for i in range(12)], form))
    battles = read_file(tmp_path / f"a.{form}", "train")
    assert battles.schemas == {f"{tmp_path}/a.{form}": name}
    assert battles.table.height == 12
    assert not battles.dropped.height


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        (
            {"question_id": "q", "anony": True, "judge": "j", "turn": 1, "language": "English"},
            "chatbot_arena_conversations",
        ),
        ({"question_id": "q", "is_code": False, "turn": 1, "language": "English"}, "arena-human-preference-100k"),
        ({"id": "q", "evaluation_session_id": "e", "is_code": True, "language": "en"}, "arena-human-preference-140k"),
        ({"question_id": 81, "judge": "j", "turn": 1}, "MT-bench human judgements"),
    ],
)
def test_files_of_conversations_are_distinguished(tmp_path: Path, extra: Row, name: str) -> None:
    row = {"conversation_a": say("p", "a"), "conversation_b": say("p", "b"), "winner": "tie", **extra}
    (tmp_path / "a.jsonl").write_bytes(encode([row], "jsonl"))
    battles = read_file(tmp_path / "a.jsonl", "train")
    assert list(battles.schemas.values()) == [name]
    assert battles.table["prompt"].to_list() == [["p"]]


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl", "json"])
def test_formats_of_one_schema_give_the_same_battles(tmp_path: Path, form: str) -> None:
    rng = generator(1)
    rows = [lmsys(rng, i) for i in range(20)]
    first = load(tmp_path, rows, "csv").drop("file")
    assert load(tmp_path, rows, form).drop("file").equals(first)


@pytest.mark.parametrize(
    ("verdict", "label"),
    [
        ({"winner": "model_a"}, 0),
        ({"winner": "model_b"}, 1),
        ({"winner": "tie"}, 2),
        ({"winner": "tie (bothbad)"}, 2),
        ({"winner": "both_bad"}, 2),
        ({"winner": " Model_A "}, 0),
        ({"label": 1}, 1),
        ({"label": "2"}, 2),
        ({"label": 0.0}, 0),
        ({"label": "tie"}, 2),
        ({"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}, 2),
        ({"winner_model_a": True, "winner_model_b": False, "winner_tie": False}, 0),
        ({"winner_model_a": "0.0", "winner_model_b": "1.0", "winner_tie": "0"}, 1),
    ],
)
def test_every_form_of_a_verdict_gives_its_label(tmp_path: Path, verdict: Row, label: int) -> None:
    assert load(tmp_path, [{"id": 1, **TEXT, **verdict}])["label"].to_list() == [label]


@pytest.mark.parametrize(
    "verdict",
    [
        {"winner": "model_c"},
        {"winner": None},
        {"winner": 1},
        {"label": 3},
        {"label": "NaN"},
        {"label": float("nan")},
        {"label": [1]},
        {"winner_model_a": 1, "winner_model_b": 1, "winner_tie": 0},
        {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 0},
        {"winner_model_a": 0.5, "winner_model_b": 0.5, "winner_tie": 0},
        {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": None},
        {"winner_model_a": {}, "winner_model_b": 0, "winner_tie": 1},
    ],
)
def test_an_invalid_verdict_is_a_bad_row_and_is_ignored_in_test_files(tmp_path: Path, verdict: Row) -> None:
    row = {"id": 1, **TEXT, **verdict}
    with pytest.raises(UserError, match=r"a\.jsonl, row 1, column (winner|label)"):
        load(tmp_path, [row])
    assert load(tmp_path, [row], role="test")["label"].to_list() == [None]


def test_conversations_become_rounds(tmp_path: Path) -> None:
    system = {"role": "system", "content": "be brief"}
    a = [system, *say("p1", "a1"), {"role": "assistant", "content": "more"}, *say("p2", None)]
    b = [system, *say("p1", "b1"), {"role": "user", "content": "p2"}]
    table = load(tmp_path, [{"id": "x", "conversation_a": a, "conversation_b": b, "winner": "model_b"}])
    assert table["prompt"].to_list() == [["be brief\n\np1", "p2"]]
    assert table["response_a"].to_list() == [["a1\n\nmore", ""]]
    assert table["response_b"].to_list() == [["b1", ""]]


def test_a_conversation_may_be_json_text_parts_or_sharegpt(tmp_path: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "p", "image": None}]}, say("", "a")[1]]
    sharegpt = [{"from": "human", "value": "p"}, {"from": "gpt", "value": "a"}]
    shapes: list[Any] = [say("p", "a"), json.dumps(say("p", "a")), parts, sharegpt]
    rows = [
        {"id": i, "conversation_a": s, "conversation_b": say("p", "b"), "winner": "tie"} for i, s in enumerate(shapes)
    ]
    table = load(tmp_path, rows)
    assert table["prompt"].to_list() == [["p"]] * 4
    assert table["response_a"].to_list() == [["a"]] * 4


@pytest.mark.parametrize(
    ("conversation", "words"),
    [
        ([{"role": "tool", "content": "x"}], "role 'tool'"),
        ([{"role": "user", "content": [{"type": "image", "image": "x"}]}], "'image', which is not text"),
        (["hello"], "expected a message with role and content"),
        ([], "expected a list of messages"),
        ("not json", "not a JSON list of messages"),
        (say("other", "a"), "user messages differ"),
        ([{"role": "user", "content": 5}], "is not text"),
    ],
)
def test_an_invalid_conversation_is_a_bad_row(tmp_path: Path, conversation: Any, words: str) -> None:
    row = {"id": 1, "conversation_a": say("p", "a"), "conversation_b": conversation, "winner": "tie"}
    with pytest.raises(UserError, match=words):
        load(tmp_path, [row])


def test_an_mt_bench_verdict_on_turn_one_is_about_the_first_round_only(tmp_path: Path) -> None:
    a, b = ([*say("p1", f"{s}1"), *say("p2", f"{s}2")] for s in "ab")
    row = {"question_id": 81, "model_a": "x", "model_b": "y", "judge": "e", "conversation_a": a, "conversation_b": b}
    rows = [
        {**row, "winner": "tie", "turn": 1},
        {**row, "winner": "model_a", "turn": 2},
        {**row, "winner": "tie", "turn": 1},
    ]
    table = load(tmp_path, rows)
    assert table["prompt"].to_list() == [["p1"], ["p1", "p2"], ["p1"]]
    assert table["response_b"].to_list() == [["b1"], ["b1", "b2"], ["b1"]]
    assert table["id"].to_list() == ["81/x/y/e/1", "81/x/y/e/2", "81/x/y/e/1-2"]  # a judge may judge a pair twice


def test_every_form_of_a_pair_gives_the_same_battle(tmp_path: Path) -> None:
    shapes: list[Row] = [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": "p", "chosen": say("p", "good"), "rejected": say("p", "bad")},
        {"chosen": say("p", "good"), "rejected": say("p", "bad")},
        {"prompt": say("p", "")[:1], "chosen": say("p", "good")[1:], "rejected": say("p", "bad")[1:]},
        {"chosen": "\n\nHuman: p\n\nAssistant: good", "rejected": "\n\nHuman: p\n\nAssistant: bad"},
    ]
    for shape in shapes:
        (row,) = load(tmp_path, [shape]).rows(named=True)
        assert row["prompt"] == ["p"]
        assert {row["response_a"][0], row["response_b"][0]} == {"good", "bad"}
        assert row[["response_a", "response_b"][row["label"]]] == ["good"]


def test_the_chosen_side_is_drawn_evenly_from_seed_and_content(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"prompt": f"p{i}", "chosen": "good", "rejected": "bad", "chosen_model": "G", "rejected_model": "B"}
        for i in range(400)
    ]
    table = load(tmp_path, rows)
    assert 150 < table["label"].sum() < 250  # 400 fair coins: 5 standard deviations
    shuffled = load(tmp_path, rows[::-1])
    assert shuffled.sort("id").drop("row").equals(table.sort("id").drop("row"))
    assert not load(tmp_path, rows, seed=1).equals(table)
    good = pl.when(pl.col("label") == 0)
    assert (table.select(good.then("response_a").otherwise("response_b").list.first()).to_series() == "good").all()
    assert (table.select(good.then("model_a").otherwise("model_b")).to_series() == "G").all()


def test_a_pair_without_a_prompt_is_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="column chosen: no prompt"):
        load(tmp_path, [{"chosen": "good", "rejected": "bad"}])


def test_ids_with_labels_only_have_empty_texts_and_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,winner_model_a,winner_model_b,winner_tie\n7.0,1,0,0\n8,0,0,1\n")
    battles = read_file(tmp_path / "a.csv", "train")
    assert battles.table["id"].to_list() == ["7", "8"]
    assert battles.table["prompt"].to_list() == [[""], [""]]
    assert battles.counts["rows_without_text"] == 2
    assert battles.counts["null_turns"] == 0


def test_plain_texts_and_json_lists_are_distinguished_per_file(tmp_path: Path) -> None:
    wsdm_rows = [
        {"id": i, "prompt": "why [1]?", "response_a": "[1]", "response_b": "b", "winner": "model_a"} for i in range(3)
    ]
    assert load(tmp_path, wsdm_rows, "csv")["response_a"].to_list() == [["[1]"]] * 3
    rng = generator(0)
    rows = [lmsys(rng, i) for i in range(4)]
    rows[2]["response_a"] = "plain among lists"
    with pytest.raises(UserError, match="row 3, column response_a: not a JSON list of turns"):
        load(tmp_path, rows, "csv")


def test_a_columns_map_renames_hides_and_shares(tmp_path: Path) -> None:
    row = {
        "nr": 1,
        "question": ["p"],
        "prompt": ["not this"],
        "left": ["a"],
        "right": ["b"],
        "who": "tie",
        "topic": "t",
    }
    columns = {"id": "nr", "prompt": "question", "response_a": "left", "response_b": "right", "winner": "who"}
    table = load(tmp_path, [row], columns={**columns, "group_key": "topic", "language": "topic"})
    assert table.select("id", "prompt", "label", "group_key", "language").row(0) == ("1", ["p"], 2, "t", "t")
    swapped = load(tmp_path, [row], columns={**columns, "response_a": "right", "response_b": "left"})
    assert swapped["response_a"].to_list() == [["b"]]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"promt": "question"}, "unknown column 'promt'; did you mean 'prompt'"),
        ({"prompt": "qestion"}, "data.columns.prompt=qestion: no such column; did you mean 'question'"),
        ({"prompt": "question", "language": "lang"}, "data.columns.language=lang: no such column"),
    ],
)
def test_a_wrong_columns_map_is_one_error(tmp_path: Path, columns: dict[str, str], words: str) -> None:
    row = {"id": 1, "question": ["p"], "response_a": ["a"], "response_b": ["b"], "winner": "tie"}
    with pytest.raises(UserError, match=words):
        load(tmp_path, [row], columns=columns)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            "id,prompt,responce_a,response_b,winner",
            "missing columns response_a; the file has the columns .*; set data.columns=\\{response_a: responce_a}",
        ),
        ("id,prompt,response_a,response_b", "no verdicts: missing columns winner_model_a, winner_model_b, winner_tie"),
        ("id,prompt,response_a,response_b,winner_model_a,winner_tie", "missing columns winner_model_b"),
        ("x,y", "missing columns prompt, response_a, response_b"),
        ("prompt,chosen,winner", "missing columns rejected"),
    ],
)
def test_missing_columns_are_named_with_the_remedy(tmp_path: Path, names: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(f"{names}\n{','.join('1' for _ in names.split(','))}\n")
    with pytest.raises(UserError, match=words) as caught:
        read_file(tmp_path / "a.csv", "train")
    assert "data." in str(caught.value)


def test_a_test_file_needs_ids(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing column id"):
        load(tmp_path, [TEXT], role="test")


@given(st.lists(st.sampled_from(["user", "assistant", "system"]), min_size=1, max_size=9))
def test_turns_keep_every_message_once_and_in_order(roles: list[str]) -> None:
    messages: list[tuple[str, str | None]] = [(role, f"<{i}>") for i, role in enumerate(roles)]
    users, answers = conversations.split_turns(messages)
    assert len(users) == len(answers)
    text = "".join(f"{u or ''}{a or ''}" for u, a in zip(users, answers, strict=True))
    assert text.replace("\n\n", "") == "".join(f"<{i}>" for i in range(len(roles)))


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (1, "1"),
        (12.0, "12"),
        ("12.0", "12"),
        ("12.50", "12.50"),
        ("-3.000", "-3"),
        ("1e3", "1e3"),
        ("a b", "a b"),
        (2.5, "2.5"),
    ],
)
def test_ids_are_unchanged_except_whole_floats(cell: object, shown: str) -> None:
    assert parse_cells.identifier(cell) == shown


@pytest.mark.parametrize("cell", [None, "", float("nan"), True, [1], {}, " ", "a\0", "\ud800", b"1"])
def test_an_invalid_id_is_refused(cell: object) -> None:
    with pytest.raises(CellError):
        parse_cells.identifier(cell)
