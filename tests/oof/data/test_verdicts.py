"""Verdicts: every coding is shown, an ambiguous one is refused with the settings to paste, votes are soft labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oof.common.errors import UserError
from oof.config import Data, load
from oof.data.battles import BattleSet, read_file
from tests.fixtures.demo_run import ROOT

SHARED = ROOT.parent / "shared" / "data"


def read(tmp_path: Path, column: str, cells: list[Any], **settings: Any) -> BattleSet:
    texts = [{"prompt": f"p{i}", "response_a": "first", "response_b": "second"} for i in range(len(cells))]
    rows = [{**text, column: cell} for text, cell in zip(texts, cells, strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_file(tmp_path / "a.jsonl", "train", Data(**settings))


def test_labels_1_and_2_are_refused_with_both_mappings_which_work_when_pasted(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, "label", [1, 2, 2])
    message = str(caught.value)
    assert "values 1 and 2, which can mean two things" in message
    for setting, labels in (("{1: a, 2: b}", [0, 1, 1]), ("{0: a, 1: b, 2: tie}", [1, 2, 2])):
        assert f"data.verdicts={setting}" in message
        (tmp_path / "c.yaml").write_text("")
        data = load(tmp_path / "c.yaml", [f"data.verdicts={setting}"]).data
        assert read(tmp_path, "label", [1, 2, 2], verdicts=data.verdicts).table["label"].to_list() == labels


def test_negative_numbers_and_1_2_3_are_refused_as_labels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="negative values"):
        read(tmp_path, "label", [-1, 0, 1], on_bad_row="drop")
    with pytest.raises(UserError, match=r"set data.verdicts=\{1: a, 2: b, 3: tie\}"):
        read(tmp_path, "label", [1, 2, 3], on_bad_row="drop")


def test_the_coding_and_two_battles_of_different_verdicts_are_shown(tmp_path: Path) -> None:
    (coding, one, other) = next(iter(read(tmp_path, "label", [0, 0, 2]).shown.values()))
    assert coding == "label: 0 → A, 2 → tie"
    assert one == 'row 1: A wins (label 0): prompt "p0", response_a "first", response_b "second"'
    assert other.startswith("row 3: tie (label 2)")


@pytest.mark.parametrize(
    ("column", "cells", "settings", "labels", "coding"),
    [
        ("label", [1, 2, 0], {"verdicts": {"1": "a", "2": "b", "0": "tie"}}, [0, 1, 2], "1 → A, 2 → B, 0 → tie"),
        ("winner", ["L", "R"], {"verdicts": {"l": "a", "r": "b"}}, [0, 1], "winner: l → A, r → B"),
        ("signed_score", [-3, 0, 2], {"positive_score": "b"}, [0, 2, 1], "negative → A, positive → B, 0 → tie"),
        ("signed_score", [-3, 1, 2], {"positive_score": "a", "tie_band": 1}, [1, 2, 0], "below -1 → B, above 1 → A"),
        ("who", ["model_a", "tie"], {"columns": {"winner": "who"}}, [0, 2], "who: model_a → A, tie → tie"),
    ],
)
def test_each_coding_gives_its_labels(
    tmp_path: Path, column: str, cells: list[Any], settings: dict[str, Any], labels: list[int], coding: str
) -> None:
    battles = read(tmp_path, column, cells, **settings)
    assert battles.table["label"].to_list() == labels
    assert coding in next(iter(battles.shown.values()))[0]


def test_a_signed_score_without_its_side_is_refused_with_both_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.positive_score=a or data.positive_score=b"):
        read(tmp_path, "signed_score", [-3, 2])


def test_votes_and_probabilities_are_soft_labels_with_the_majority_as_label(tmp_path: Path) -> None:
    rows = ["id,votes_a,votes_b,votes_tie", "1,2,1,0", "2,1,1,1", "3,0,0,4", "4,0,3,1"]
    (tmp_path / "v.csv").write_text("\n".join(rows))
    table = read_file(tmp_path / "v.csv", "train").table
    assert table["label"].to_list() == [0, 2, 2, 1]
    assert table.select("soft_a", "soft_b", "soft_tie").row(3) == (0.0, 0.75, 0.25)
    (tmp_path / "p.csv").write_text("id,prob_a,prob_b,prob_tie\n1,0.2,0.7,0.1\n2,0.5,0.5,0\n")
    table = read_file(tmp_path / "p.csv", "train").table
    assert table["label"].to_list() == [1, 2]
    (tmp_path / "p.csv").write_text("id,votes_a,votes_b\n1,0,0\n")
    with pytest.raises(UserError, match=r"at least one vote.*cannot be used: write numbers of votes"):
        read_file(tmp_path / "p.csv", "train")


@pytest.mark.parametrize(("names", "cells"), [("prob_a", "0.75"), ("prob_a,prob_tie", "0.7,0.1")])
def test_without_its_column_b_has_the_rest_of_the_probability(tmp_path: Path, names: str, cells: str) -> None:
    (tmp_path / "p.csv").write_text(f"id,{names}\n1,{cells}\n")
    table = read_file(tmp_path / "p.csv", "train").table
    expected = (0.75, 0.25, 0.0) if names == "prob_a" else (0.7, 0.2, 0.1)
    assert table.select("soft_a", "soft_b", "soft_tie").row(0) == pytest.approx(expected)
    (tmp_path / "p.csv").write_text("id,prob_a,prob_tie\n1,0.8,0.2\n")
    table = read_file(tmp_path / "p.csv", "train").table
    assert table.select("soft_a", "soft_b", "soft_tie").row(0) == pytest.approx((0.8, 0.0, 0.2))
    (tmp_path / "p.csv").write_text("id,prob_a,prob_tie\n1,0.8,0.3\n")
    with pytest.raises(UserError, match="expected numbers that sum to 1"):
        read_file(tmp_path / "p.csv", "train")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the development data is not here")
@pytest.mark.parametrize(
    ("name", "counts"), [("vicuna80_human", (1106, 1090, 364)), ("llmfao_crowd", (559, 500, 1080))]
)
def test_real_votes_have_the_documented_majorities(name: str, counts: tuple[int, int, int]) -> None:
    votes = read_file(SHARED / f"{name}_votes.csv", "train").table.sort("id")
    majority = read_file(SHARED / f"{name}.csv.gz", "train").table.sort("id")
    assert votes["label"].value_counts().sort("label")["count"].to_list() == list(counts)
    assert votes.select("id", "label").equals(majority.select("id", "label"))


@pytest.mark.parametrize(
    ("setting", "labels", "column"),
    [("tie", [0, 2, 2], None), ("drop", [0, 2], None), ("keep", [0, 2, 2], [False, True, False])],
)
def test_both_bad_is_counted_and_said(
    tmp_path: Path, setting: str, labels: list[int], column: list[bool] | None
) -> None:
    battles = read(tmp_path, "winner", ["model_a", "tie (bothbad)", "tie"], both_bad=setting)
    assert battles.table["label"].to_list() == labels
    assert battles.counts["both_bad"] == 1
    assert battles.counts["rows_read"] == battles.table.height + battles.dropped.height == 3
    assert any("both bad" in str(p) or "judged bad" in str(p) for p in battles.problems)
    assert (battles.table["both_bad"].to_list() if "both_bad" in battles.table.columns else None) == column


def test_verdicts_with_an_unknown_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose a, b, tie or both_bad"):
        read(tmp_path, "label", [1, 2], verdicts={"1": "left"})
