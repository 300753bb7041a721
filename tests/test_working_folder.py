"""Runs that are continued from another working folder than the one where they were made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml

from tests.fixtures.command_line import call, digests
from tests.fixtures.working_folder import FILES, recipe, write_working_folder


def test_a_run_is_continued_from_any_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Paths that the run remembers start where it was made, those of the call where it is made."""
    folder = write_working_folder(tmp_path / "Läufe von mir")
    monkeypatch.chdir(folder)
    assert call(f"oof prepare mine.yaml run=runs/mine {FILES}", capfd).status == 0
    files = digests(folder)
    elsewhere = tmp_path / "Büro 2"
    elsewhere.mkdir()
    shutil.copy(folder / "other.csv", elsewhere / "only-here.csv")
    monkeypatch.chdir(elsewhere)
    run = folder / "runs/mine"
    assert "60 battles" in call(f"oof prepare 'run={run}'", capfd).text
    assert digests(folder) == files
    refused = call(f"oof prepare 'run={run}' data.train=[only-here.csv]", capfd)
    assert refused.status == 2
    assert f"not from {elsewhere / 'only-here.csv'}" in refused.text
    assert digests(folder) == files
    assert Path.cwd() == elsewhere


BATTLES = 12
TEXTS = {
    "id": range(BATTLES),
    "prompt": [f"What is {i} plus {i * i}?" for i in range(BATTLES)],
    "response_a": [f"It is {i}, I think." for i in range(BATTLES)],
    "response_b": [f"The sum is {i + i * i}." for i in range(BATTLES)],
}
OTHER_NAMES = {"prompt": "question", "response_a": "answer_1", "response_b": "answer_2"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with a file of battles for each way to write verdicts."""
    folder = tmp_path / "Läufe von mir"
    folder.mkdir()
    monkeypatch.chdir(folder)
    texts = pl.DataFrame(TEXTS)
    side = [i % 2 for i in range(BATTLES)]
    texts.with_columns(label=pl.Series([1 + s for s in side])).write_csv("one or two é.csv")
    texts.with_columns(score=pl.Series([[-3, 0, 2][i % 3] for i in range(BATTLES)])).write_csv("scores é.csv")
    texts.with_columns(winner=pl.Series([["model_a", "both_bad", "model_b"][i % 3] for i in range(BATTLES)])).write_csv(
        "bad é.csv"
    )
    own = texts.with_columns(winner=pl.Series(["model_a", "model_b"] * (BATTLES // 2)), my_fold=pl.Series(side))
    own.write_csv("own é.csv")
    pl.concat([own, own.tail(1).with_columns(id=pl.lit(99, pl.Int64), my_fold=pl.lit(0, pl.Int64))]).write_csv(
        "straddle é.csv"
    )
    votes = {"votes_a": [2, 0] * (BATTLES // 2), "votes_b": [1, 3] * (BATTLES // 2), "votes_tie": [0] * BATTLES}
    texts.write_csv("texts é.csv")
    texts.select("id").with_columns(**{name: pl.Series(n) for name, n in votes.items()}).write_csv("votes é.csv")
    shares = {"prob_a": [0.5, 0.2], "prob_b": [0.3, 0.7], "prob_tie": [0.2, 0.1]}
    texts.with_columns(**{name: pl.Series(p * (BATTLES // 2)) for name, p in shares.items()}).write_csv("shares é.csv")
    pair = {"instruction": "Add.", "completions": [{"response": "2", "overall_score": s} for s in (9.0, 4.0)]}
    Path("ultrafeedback é.jsonl").write_text(json.dumps(pair))
    texts.drop("id").rename(OTHER_NAMES).with_columns(winner=pl.lit("model_a")).write_csv("columns é.csv")
    texts.with_columns(winner=pl.lit("nobody")).write_csv("wrong é.csv")
    image = [{"type": "image", "image_url": "x.png"}]
    rows = [
        {**row, "prompt": [{"role": "user", "content": image}]} for row in own.drop("my_fold").iter_rows(named=True)
    ]
    Path("images é.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("oof check 'own é.csv'", 0, ["winner: model_a → A, model_b → B", "row 1: A wins", "row 2: B wins"]),
        ("oof check 'one or two é.csv'", 1, ["data.verdicts={1: a, 2: b}", "data.verdicts={0: a, 1: b, 2: tie}"]),
        ("oof check 'one or two é.csv' 'data.verdicts={1: a, 2: b}'", 0, ["1 → A, 2 → B"]),
        ("oof check 'scores é.csv' data.columns.signed_score=score", 1, ["data.positive_score"]),
        ("oof check 'scores é.csv' data.columns.signed_score=score data.positive_score=b data.tie_band=0", 0, ["→ B"]),
        (
            "oof check 'texts é.csv' data.votes='votes é.csv'",
            0,
            ["a 6 (50.0 %), b 6 (50.0 %)", "6 of them not unanimous"],
        ),
        ("oof check 'shares é.csv'", 0, ["a 6 (50.0 %), b 6 (50.0 %)", "mean shares a 35.0 %, b 50.0 %, tie 15.0 %"]),
        ("oof check 'ultrafeedback é.jsonl'", 0, ["UltraFeedback: rankings as pairs"]),
        ("oof check 'bad é.csv'", 0, ['4 battles were judged "both bad"', "data.both_bad=drop"]),
        ("oof check 'bad é.csv' data.both_bad=drop", 0, ["4 of 12 rows are left out"]),
        ("oof check 'columns é.csv'", 1, ["prompt: question, response_a: answer_1, response_b: answer_2"]),
        ("oof check 'wrong é.csv'", 1, ["wrong é.csv, 12 rows, e.g. rows 1, 2, 3, column winner:"]),
        ("oof check 'images é.jsonl'", 1, ["set data.non_text=drop, or =placeholder"]),
        ("oof check 'images é.jsonl' data.non_text=placeholder", 0, ["rows        12 read"]),
        ("oof prepare run=é data.train='own é.csv' folds.column=my_fold folds.k=2", 0, ["12 battles in 2 folds"]),
        ("oof prepare run=é data.train='straddle é.csv' folds.column=my_fold folds.k=2", 2, ["group"]),
        ("oof prepare run=é data.train='own é.csv' folds.k=three", 2, ["folds.k=three; it must be a whole number"]),
        ("oof prepare run=é data.train=/é/x.csv", 2, ["/é/x.csv: no such file"]),
        ("oof prepare run=é data.train='own é.csv' learning_rate=1", 2, ["did you mean members.NAME.train.lr?"]),
        ("oof prepare run=é data.train='own é.csv' seed==3", 2, ["override 'seed==3': expected key.sub=value"]),
    ],
)
def test_labels_and_columns_by_command_from_another_folder(
    folder: Path, capfd: pytest.CaptureFixture[str], command: str, status: int, says: list[str]
) -> None:
    (folder / "mine.yaml").write_text(yaml.safe_dump({"members": {"m": recipe()}}), "utf-8")
    answer = call(command.replace("oof prepare", "oof prepare mine.yaml"), capfd)
    assert (answer.status, [words for words in says if words not in answer.text]) == (status, []), answer.text
    assert "Traceback" not in answer.text
