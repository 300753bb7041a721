"""Submission by a cascade of a run's real models: its ends, its manifest, and a kill between two pieces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble.__main__ import main as ensemble_main
from ensemble.cascade.work import RunModels
from oof.classes import WINNER_COLUMNS


def copy_of(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


def probs(run: Path) -> np.ndarray:
    return pl.read_csv(run / "submission.csv", glob=False).select(WINNER_COLUMNS).to_numpy()


def predict(run: Path, *words: str) -> int:
    return ensemble_main(["predict", f"run={run}", *(f"predict.{word}" for word in words)])


@pytest.mark.slow
def test_the_curve_is_written_and_costs_are_measured_once(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(small_run, tmp_path / "run")
    assert ensemble_main(["cascade", f"run={run}"]) == 0
    out = capsys.readouterr().out
    assert "student alone" in out
    assert "ensemble alone" in out
    assert max(map(len, out.splitlines())) <= 80 or str(tmp_path) in out
    content = json.loads((run / "cascade" / "curve.json").read_text())
    assert content["version"] == 1
    names = [level["name"] for level in content["levels"]]
    assert [*names[:2], names[-1]] == ["one_order", "student", "ensemble"]
    student = json.loads((run / "metrics.json").read_text())["log_loss"]["student"]["value"]
    assert content["ends"]["student"]["log_loss"]["value"] == pytest.approx(student)
    costs = (run / "cascade" / "costs.json").read_bytes()
    assert ensemble_main(["cascade", f"run={run}"]) == 0
    assert (run / "cascade" / "costs.json").read_bytes() == costs


@pytest.mark.slow
def test_thresholds_that_all_or_none_exceed_give_the_ensemble_or_the_student(small_run: Path, tmp_path: Path) -> None:
    run = copy_of(small_run, tmp_path / "run")
    student = probs(run)
    assert predict(run, "cascade.thresholds=[1e9]") == 0
    np.testing.assert_allclose(probs(run), student, atol=1e-5)
    assert predict(run, "cascade.thresholds=[-1e9]", "cascade.levels=[one_order,ensemble]") == 0
    by_cascade = probs(run)
    entry = json.loads((run / "submission.json").read_text())["cascade"]
    assert entry["shares"]["ensemble"] == 1
    assert entry["levels"] == ["one_order", "ensemble"]
    assert not (run / "predict").exists()
    assert predict(run, "cascade.thresholds=[]", "cascade.levels=[]", "model=ensemble") == 0
    np.testing.assert_allclose(by_cascade, probs(run), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["cascade.budget=0.7", "cascade.time=1h"])
def test_a_killed_cascade_continues_to_the_same_submission(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    words = (asked, "cascade.piece=5", "chunk=5")
    whole = copy_of(small_run, tmp_path / "whole")
    assert ensemble_main(["cascade", f"run={whole}"]) == 0
    killed = copy_of(whole, tmp_path / "killed")
    assert predict(whole, *words) == 0
    calls: list[str] = []
    score = RunModels.student

    def stopping(self: RunModels, table: pl.DataFrame, order: str) -> np.ndarray:
        calls.append(order)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return score(self, table, order)

    monkeypatch.setattr(RunModels, "student", stopping)
    assert predict(killed, *words) == 130
    assert predict(killed, *words) == 130
    assert predict(killed, *words) == 0
    assert (killed / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cascade.budget=0.4", "cascade.time=9h"], "a cascade follows one of them"),
        (["cascade.time=soon"], "is no time; write 9h"),
        (["cascade.budget=1.5"], "predict.cascade.budget"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_changes_nothing(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    run = copy_of(small_run, tmp_path / "run")
    before = (run / "submission.csv").read_bytes()
    assert predict(run, *words) == 2
    assert message in capsys.readouterr().err
    assert (run / "submission.csv").read_bytes() == before
    assert not (run / "cascade").exists()
