"""Battles: every row is in the table or rejected with a reason; texts are clean; ids are unique."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oof.common.errors import UserError
from oof.config import Data
from oof.data.battles import BattleSet, content_fingerprint, read_battles, read_file, write_dropped
from oof.data.schemas import ROLES, TABLE_SCHEMA
from tests.fixtures.fuzz_battles import run
from tests.fixtures.small_tables import swap_battles

NAMES = ("id", "prompt", "response_a", "response_b", "winner")
Turns = list[str | None]


def write(path: Path, rows: Sequence[Sequence[Any]], names: Sequence[str] = NAMES) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([json.dumps(c) if isinstance(c, list) else c for c in row] for row in rows)
    return str(path)


def battle(i: object, prompt: str = "p", a: str = "a", b: str = "b", winner: str = "model_a") -> list[Any]:
    return [i, [prompt], [a], [b], winner]


def text_of(turn: str | None) -> str:
    """The rule for turns, implemented once more."""
    whole, i = "", 0
    turn = turn or ""
    while i < len(turn):
        pair = turn[i : i + 2]
        if len(pair) == 2 and "\ud800" <= pair[0] <= "\udbff" and "\udc00" <= pair[1] <= "\udfff":
            whole += chr(0x10000 + (ord(pair[0]) - 0xD800) * 0x400 + ord(pair[1]) - 0xDC00)
            i += 2
        else:
            whole += "\ufffd" if "\ud800" <= turn[i] <= "\udfff" else turn[i]
            i += 1
    return whole.replace("\0", "")


# Unicode's White_Space property; Python's str.strip() also takes the four ASCII information separators.
WHITE_SPACE = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and c not in "\x1c\x1d\x1e\x1f")

hostile = st.one_of(st.none(), st.text(max_size=12), st.text('",\n\r\0\\[]{}\ud83d\ude00\ufeffé', max_size=6))
rounds = st.integers(1, 3).flatmap(lambda n: st.tuples(*[st.lists(hostile, min_size=n, max_size=n)] * 3))


@settings(max_examples=40)
@given(st.lists(st.tuples(rounds, st.sampled_from(["model_a", "model_b", "tie"])), min_size=1, max_size=8))
def test_every_turn_follows_the_rule(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[tuple[Turns, Turns, Turns], str]]
) -> None:
    folder = tmp_path_factory.mktemp("battles")
    battles = read_file(write(folder / "a.csv", [[i, *texts, w] for i, (texts, w) in enumerate(rows)]), "train")
    table = battles.table
    assert dict(table.schema) == TABLE_SCHEMA
    assert table["id"].to_list() == [str(i) for i in range(len(rows))]
    assert table["row"].to_list() == list(range(1, len(rows) + 1))
    assert table["label"].to_list() == [("model_a", "model_b", "tie").index(w) for _, w in rows]
    for column, name in enumerate(("prompt", "response_a", "response_b")):
        assert table[name].to_list() == [[text_of(turn) for turn in texts[column]] for texts, _ in rows]
    turns = [turn for texts, _ in rows for side in texts for turn in side]
    assert battles.counts["null_turns"] == turns.count(None)
    assert battles.counts["nul_characters"] == sum("\0" in (turn or "") for turn in turns)
    assert battles.counts["empty_responses"] == sum(
        any(not "".join(map(text_of, side)).strip(WHITE_SPACE) for side in (a, b)) for (_, a, b), _ in rows
    )


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ((["p", "q"], None, ["b", "c"]), (["p", "q"], ["", ""], ["b", "c"])),
        ((["p"], "null", ["b"]), (["p"], [""], ["b"])),
        ((["p"], [], ["b"]), (["p"], [""], ["b"])),
        ((["p"], '"a"', ["b"]), (["p"], ["a"], ["b"])),
        ((None, "", []), ([""], [""], [""])),
    ],
)
def test_a_null_cell_gets_the_others_number_of_turns(tmp_path: Path, cells: Any, expected: Any) -> None:
    path = write(tmp_path / "a.csv", [[1, *cells, "tie"], battle(2), battle(3)])
    table = read_file(path, "train").table
    assert table.select("prompt", "response_a", "response_b").row(0) == expected


def test_empty_and_identical_responses_are_counted_and_kept(tmp_path: Path) -> None:
    rows = [battle(1, a=""), battle(2, a="same", b="same"), battle(3, a=" \n", b=""), [4, ["p"], [None], ["b"], "tie"]]
    battles = read_file(write(tmp_path / "a.csv", rows), "train")
    assert battles.table.height == 4
    counts = battles.counts
    assert (counts["empty_responses"], counts["identical_responses"], counts["null_turns"]) == (3, 1, 1)
    assert [str(problem) for problem in battles.problems] == [
        f"{tmp_path}/a.csv: no battle has the verdict b: it will be predicted with a probability near 0"
    ]


def test_bad_rows_are_refused_with_the_first_few_and_their_number(tmp_path: Path) -> None:
    rows = [battle(i, winner="model_a" if i % 2 else "nobody") for i in range(20)]
    path = write(tmp_path / "a.csv", rows)
    with pytest.raises(UserError) as caught:
        read_file(path, "train")
    message = str(caught.value)
    assert "a.csv, 10 rows, e.g. rows 1, 3, 5, column winner: 'nobody' is not a verdict" in message
    assert "10 of 20 rows cannot be used: write model_a, model_b or tie, or set data.verdicts={nobody: ?}" in message
    assert "data.on_bad_row=drop" in message


def test_dropped_rows_are_listed_with_every_reason(tmp_path: Path) -> None:
    rows = [battle(1), [2, ["p", "q"], ["a"], ["b"], "nobody"], battle(3), [4, "[oops", ["a"], ["b"], "tie"]]
    battles = read_file(write(tmp_path / "a.csv", rows), "train", Data(on_bad_row="drop"))
    assert battles.table["id"].to_list() == ["1", "3"]
    assert battles.dropped.select("row", "id").rows() == [(2, "2"), (4, "4")]
    first, second = battles.dropped["reason"].to_list()
    assert "column winner: 'nobody'" in first
    assert "not a JSON list of turns" in second
    assert battles.counts["rows_read"] == battles.table.height + battles.counts["rows_dropped"] == 4
    write_dropped(battles.dropped, tmp_path / "dropped.csv")
    assert pl.read_csv(tmp_path / "dropped.csv", infer_schema=False).columns == ["file", "row", "id", "reason"]


def test_unequal_turns_are_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [battle(1), [2, ["p", "q"], ["a"], ["b", "c"], "tie"]])
    with pytest.raises(UserError, match="row 2, unequal numbers of turns: prompt 2, response_a 1, response_b 2"):
        read_file(path, "train")


def test_a_role_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.csv", [])
    with pytest.raises(UserError, match="no rows"):
        read_battles(Data(train=[empty]), seed=0)
    bad = write(tmp_path / "bad.csv", [battle(1, winner="x")])
    with pytest.raises(UserError, match=r"no row can be used.*'x' is not a verdict"):
        read_battles(Data(train=[bad], on_bad_row="drop"), seed=0)
    good = write(tmp_path / "good.csv", [battle(1)])
    battles = read_battles(Data(train=[empty, good]), seed=0)
    assert battles.table.height == 1
    assert any("no rows" in str(problem) for problem in battles.problems)


def test_roles_weights_and_labels(tmp_path: Path) -> None:
    files = {role: [write(tmp_path / f"{role}.csv", [battle(f"{role}{i}") for i in range(2)])] for role in ROLES}
    table = read_battles(Data(**files, extra_weight=0.25), seed=0).table  # type: ignore[arg-type]
    assert table["role"].to_list() == [role for role in ROLES for _ in range(2)]
    assert table["weight"].to_list() == [1, 1, 0.25, 0.25, 1, 1, 1, 1]
    assert table["label"].to_list() == [0, 0, 0, 0, None, None, None, None]
    assert read_battles(Data(**files), seed=0, roles=("test",)).table.height == 2  # type: ignore[arg-type]


def test_folds_models_and_languages_are_taken_where_present(tmp_path: Path) -> None:
    names = (*NAMES, "fold", "model_a", "language", "group_key")
    rows = [[*battle(1), "2.0", "m", "", "g"], [*battle(2), "", "", "German", ""]]
    table = read_file(write(tmp_path / "a.csv", rows, names), "train").table
    assert table.select("fold", "model_a", "language", "group_key").rows() == [
        (2, "m", None, "g"),
        (None, None, "German", None),
    ]
    with pytest.raises(UserError, match="column fold: 'one' is not a whole number"):
        read_file(write(tmp_path / "a.csv", [[*battle(1), "one", "", "", ""]], names), "train")


# --- ids -----------------------------------------------------------------------------------------------------


def dropped(battles: BattleSet) -> list[tuple[int, str]]:
    return battles.dropped.select("row", "reason").rows()


def test_repetitions_and_contradictions_of_an_id_are_bad_rows(tmp_path: Path) -> None:
    rows = [
        battle("same"),
        battle("same"),
        battle("verdict", winner="model_a"),
        battle("verdict", winner="tie"),
        battle("other", a="x"),
        battle("other", a="y"),
        battle("7"),
        battle("7.0"),
        battle("fine"),
    ]
    battles = read_file(write(tmp_path / "a.csv", rows), "train", Data(on_bad_row="drop"))
    assert battles.table["id"].to_list() == ["same", "7", "fine"]
    assert dropped(battles) == [
        (2, "column id: repeats row 1 (same id, same battle)"),
        (3, "column id: row 4 has the same id, but another verdict"),
        (4, "column id: row 3 has the same id, but another verdict"),
        (5, "column id: row 6 has the same id, but another battle"),
        (6, "column id: row 5 has the same id, but another battle"),
        (8, "column id: repeats row 7 (same id, same battle)"),
    ]


def test_ten_thousand_rows_with_one_id_are_rejected_quickly(tmp_path: Path) -> None:
    rows = [battle("1", a=f"a{i % 9000}") for i in range(10_000)]
    battles = read_file(write(tmp_path / "a.csv", rows), "train", Data(on_bad_row="drop"))
    assert (battles.table.height, battles.dropped.height) == (0, 10_000)


def test_counts_are_those_of_the_kept_rows(tmp_path: Path) -> None:
    rows = [[1, [None], ["a"], ["b"], "tie"], [2, [None], [None], ["b"], "nobody"]]
    counts = read_file(write(tmp_path / "a.csv", rows), "train", Data(on_bad_row="drop")).counts
    assert (counts["null_turns"], counts["empty_responses"]) == (1, 0)


def test_equal_ids_in_different_files_and_roles_get_a_prefix(tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", [battle(1, a="one"), battle(2)])
    two = write(tmp_path / "two.csv", [battle(1, a="two"), battle(3)])
    three = write(tmp_path / "three.csv", [battle(1, a="three"), battle(3, a="other"), battle(4)])
    test = write(tmp_path / "test.csv", [battle(1, a="four")])
    battles = read_battles(Data(train=[one, two], extra=[three], test=[test]), seed=0)
    assert battles.table["id"].to_list() == ["one.csv:1", "2", "two.csv:1", "3", "extra:1", "extra:3", "4", "1"]
    assert battles.counts["ids_renamed"] == 4
    assert any("4 ids occur in another file or role, too" in str(problem) for problem in battles.problems)


def test_two_files_that_contradict_each_other_about_one_battle_are_refused(tmp_path: Path) -> None:
    one, two = (write(tmp_path / f"{w}.csv", [battle(1, winner=w)]) for w in ("model_a", "tie"))
    with pytest.raises(UserError, match="has the same id, but another verdict"):
        read_battles(Data(train=[one, two]), seed=0)


def test_ids_of_test_files_are_unchanged_or_refused(tmp_path: Path) -> None:
    one, two = (write(tmp_path / f"{name}.csv", [battle(1, a=name)]) for name in ("one", "two"))
    with pytest.raises(UserError, match=r"row 1 of .* has the same id, but another battle"):
        read_battles(Data(test=[one, two]), seed=0)


def test_an_id_that_stays_ambiguous_is_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", [battle(1), battle("extra:1", a="x")])
    extra = write(tmp_path / "extra.csv", [battle(1, a="y")])
    with pytest.raises(UserError, match="'extra:1' is not unique"):
        read_battles(Data(train=[train], extra=[extra]), seed=0)


def test_files_without_ids_get_them_from_content(tmp_path: Path) -> None:
    rows = [battle(0, prompt=f"p{i % 4}")[1:] for i in range(8)]
    whole = read_file(write(tmp_path / "a.csv", rows, NAMES[1:]), "train")
    assert whole.table["id"].n_unique() == 8  # repetitions are kept and numbered
    assert (whole.counts["ids_made"], whole.counts["ids_renamed"]) == (8, 0)
    back = read_file(write(tmp_path / "b.csv", rows[::-1], NAMES[1:]), "train")
    assert sorted(back.table["id"]) == sorted(whole.table["id"])
    assert content_fingerprint(back.table) == content_fingerprint(whole.table)


# --- swap and fingerprint ------------------------------------------------------------------------------------

turn_lists = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), min_size=1, max_size=2)


@st.composite
def tables(draw: st.DrawFn) -> pl.DataFrame:
    n = draw(st.integers(1, 6))
    name = st.one_of(st.none(), st.sampled_from("xy"))
    columns: dict[str, Any] = {
        "id": [f"{i}" for i in range(n)],
        "role": draw(st.lists(st.sampled_from(["train", "extra"]), min_size=n, max_size=n)),
        "weight": [1.0] * n,
        "label": draw(st.lists(st.one_of(st.none(), st.integers(0, 2)), min_size=n, max_size=n)),
        **{c: draw(st.lists(turn_lists, min_size=n, max_size=n)) for c in ("prompt", "response_a", "response_b")},
        **{c: draw(st.lists(name, min_size=n, max_size=n)) for c in ("model_a", "model_b", "language", "group_key")},
        "fold": [None] * n,
        "file": ["f"] * n,
        "row": list(range(1, n + 1)),
    }
    return pl.DataFrame(columns, schema=TABLE_SCHEMA)


@settings(max_examples=40)
@given(tables())
def test_swap_relabels_and_is_its_own_inverse(table: pl.DataFrame) -> None:
    swapped = swap_battles(table)
    assert swap_battles(swapped).equals(table)
    assert swapped.schema == table.schema
    assert swapped["response_a"].to_list() == table["response_b"].to_list()
    assert swapped["model_b"].to_list() == table["model_a"].to_list()
    assert swapped["label"].to_list() == [{0: 1, 1: 0}.get(label, label) for label in table["label"]]


@settings(max_examples=40)
@given(tables(), st.randoms(use_true_random=False))
def test_the_fingerprint_does_not_depend_on_order(table: pl.DataFrame, rng: Any) -> None:
    order = list(range(table.height))
    rng.shuffle(order)
    shuffled = table[order].with_columns(pl.lit("elsewhere").alias("file"), pl.lit(9, dtype=pl.Int64).alias("row"))
    assert content_fingerprint(shuffled) == content_fingerprint(table)


@pytest.mark.parametrize("column", [name for name in TABLE_SCHEMA if name not in ("file", "row")])
def test_the_fingerprint_depends_on_every_column(column: str) -> None:
    texts = {"prompt": [["p", ""]], "response_a": [["a"]], "response_b": [["b"]]}
    base = {"id": ["1"], "role": ["train"], "weight": [1.0], "label": [0], **texts}
    table = pl.DataFrame(base).select(
        *[pl.col(n).cast(t) if n in base else pl.lit(None, dtype=t).alias(n) for n, t in TABLE_SCHEMA.items()]
    )
    other: dict[str, Any] = {"weight": 2.0, "label": 1, "fold": 0, "prompt": ["p"]}
    value = other.get(column, ["x"] if TABLE_SCHEMA[column] == pl.List(pl.String) else "x")
    changed = table.with_columns(pl.Series(column, [value], dtype=TABLE_SCHEMA[column]))
    assert content_fingerprint(changed) != content_fingerprint(table)


def test_the_fingerprint_does_not_run_texts_together() -> None:
    def table(*turns: str) -> pl.DataFrame:
        rows = {name: [list(turns)] for name in ("prompt", "response_a", "response_b")}
        return pl.DataFrame({name: rows.get(name, [None]) for name in TABLE_SCHEMA}, schema=TABLE_SCHEMA).with_columns(
            pl.lit("1").alias("id"), pl.lit("train").alias("role")
        )

    prints = {content_fingerprint(t) for t in (table("ab", "c"), table("a", "bc"), table("abc"), table("abc", ""))}
    assert len(prints) == 4


def test_rows_split_over_files_in_any_order_are_the_same_battles(tmp_path: Path) -> None:
    rows = [battle(i, prompt=f"p{i}") for i in range(9)]
    whole = read_battles(Data(train=[write(tmp_path / "a.csv", rows)]), seed=0).table
    for part in range(3):
        write(tmp_path / f"part{part}.csv", rows[::-1][part::3])
    split = read_battles(Data(train=[str(tmp_path / "part*.csv")]), seed=0).table
    assert content_fingerprint(split) == content_fingerprint(whole)


def test_broken_files_load_or_end_in_one_error() -> None:
    outcomes, failures = run(150, seed=20_240_807, parquet=0.1)
    assert failures == []
    assert min(outcomes["loaded"], outcomes["loaded, rows dropped"], outcomes["refused"]) > 10
