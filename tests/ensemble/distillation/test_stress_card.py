"""Stress test in the model card: credits by hand, what is left out, and a run that stays finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble.distillation.stress_card import HEADING, add_stress_section, stress_rows
from ensemble.serving.judge import Judge
from oof.common.atomic_files import parse_json
from oof.common.errors import UserError
from oof.common.steps import Step
from oof.jobs.dataset import load_battles

CARD = Path("distill") / "student" / "README.md"


def battles(n: int, **columns: object) -> pl.DataFrame:
    """Return n battles with distinct prompts, in which response A is the longer one and wins."""
    table = pl.DataFrame(
        {
            "id": [str(i) for i in range(n)],
            "prompt": [[f"question {i}"] for i in range(n)],
            "response_a": [["a long answer", "of two turns"]] * n,
            "response_b": [["short", None]] * n,
            "label": [0] * n,
            "model_a": [None] * n,
            "model_b": [None] * n,
        }
    )
    return table.with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def test_the_better_response_counts_whole_and_equal_ones_half() -> None:
    table = battles(4, label=[0, 1, 0, 1])
    logits = np.array([[1.0, 0.5, 9.0], [1.0, 0.5, 0.0], [0.2, 0.2, 0.0], [0.0, 3.0, 0.0]])
    (row,) = stress_rows(table, logits)
    assert (row.name, row.n) == ("all", 4)
    assert row.student["value"] == (1 + 0 + 0.5 + 1) / 4  # whatever the tie's logit is
    assert row.longer["value"] == (1 + 0 + 1 + 0) / 4


def test_responses_of_equal_length_are_one_half_for_the_longer_one() -> None:
    table = battles(2, response_a=[["same"], ["same"]], response_b=[["size"], ["other"]])
    (row,) = stress_rows(table, np.array([[1.0, 0.0, 0.0]] * 2))
    assert row.longer["value"] == (0.5 + 0) / 2


def test_equal_names_of_both_models_are_the_category() -> None:
    names = ["Natural", "Manual", "Natural", "gpt", None]
    table = battles(5, model_a=names, model_b=["Natural", "Manual", "Natural", "other", None])
    logits = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 1.0, 0], [1.0, 0, 0], [1.0, 0, 0]])
    rows = {row.name: row for row in stress_rows(table, logits)}
    assert {name: row.n for name, row in rows.items()} == {"all": 5, "Manual": 1, "Natural": 2}
    assert {name: row.student["value"] for name, row in rows.items()} == {"all": 0.6, "Manual": 0, "Natural": 0.5}


def test_battles_of_one_prompt_are_one_group_of_the_interval() -> None:
    table = battles(6, prompt=[["the same?"], ["The same?"]] * 3)
    (row,) = stress_rows(table, np.array([[1.0, 0.0, 0.0]] * 6))
    assert (row.student["low"], row.student.get("groups")) == (None, 1)


def write_battles(path: Path, rows: list[tuple[str, str, str, int]]) -> None:
    """Write (prompt, response A, response B, label) as a file in the Kaggle layout, all of one category."""
    frame = pl.DataFrame(rows, schema=["prompt", "response_a", "response_b", "label"], orient="row")
    one_hot = {f"winner_{name}": (pl.col("label") == i).cast(pl.Int8) for i, name in enumerate(("model_a", "model_b"))}
    texts = [pl.col(name).map_elements(lambda text: json.dumps([text]), pl.String) for name in frame.columns[:3]]
    frame.with_columns(*texts, **one_hot, winner_tie=(pl.col("label") == 2).cast(pl.Int8)).with_columns(
        model_a=pl.lit("hard"), model_b=pl.lit("hard")
    ).drop("label").write_csv(path)


@pytest.mark.slow
def test_the_card_has_the_judge_s_accuracy_on_new_decided_battles(small_run: Path, tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "hard.csv"
    shutil.copytree(small_run, run)
    before = (run / CARD).read_text(encoding="utf-8")
    known = load_battles(run)["prompt"][0][0]
    new = [(f"What is {i}?", f"It is {i}. " * (1 + i % 3), "No idea.", i % 2) for i in range(12)]
    write_battles(path, [*new, ("A draw?", "Yes.", "No.", 2), (known, "Yes.", "No.", 0)])
    add_stress_section(run, path)
    rows = add_stress_section(run, path)  # again: in place of the first
    card = (run / CARD).read_text(encoding="utf-8")
    assert card.count(HEADING) == 1
    assert "Left out: ties (1) and battles whose prompt the run has read (1)." in card
    assert [(row.name, row.n) for row in rows] == [("all", 12), ("hard", 12)]
    judge = Judge.from_pretrained(run / "distill" / "student")
    probs = judge.compare_many(*([text for text in column] for column in list(zip(*new, strict=True))[:3]))
    right = (probs[:, 0] > probs[:, 1]) == (np.arange(12) % 2 == 0)
    assert rows[0].student["value"] == pytest.approx(right.mean())
    assert f"| hard | 12 | {right.mean():.3f} [" in card
    start = card.index(f"\n{HEADING}")
    assert card[:start] + card[card.index("\n## Limits") :] == before
    assert Step(run / "distill", parse_json(run / "distill" / "manifest.json")["key"]).done


@pytest.mark.slow
def test_a_file_without_a_new_decided_battle_is_refused(small_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "ties.csv"
    write_battles(path, [("A draw?", "Yes.", "No.", 2)])
    with pytest.raises(UserError, match="no battle with a verdict for one side"):
        add_stress_section(small_run, path)


def test_a_run_without_a_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished student"):
        add_stress_section(tmp_path, tmp_path / "battles.csv")
