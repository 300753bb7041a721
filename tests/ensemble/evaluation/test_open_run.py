"""Open run: its table, battles and predictions are those of its files, from any folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from ensemble import open_run
from oof import UserError
from oof.common.atomic_files import read_json


def test_the_table_is_that_of_metrics_json(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = open_run(small_run).table()
    assert Path.cwd() == tmp_path
    assert table.columns == ["predictor", "log_loss", "low", "high"]
    assert table["log_loss"].is_sorted()
    losses = read_json(small_run / "metrics.json")["log_loss"]
    expected = {**losses.pop("members"), **losses}
    for name, loss, low, high in table.iter_rows():
        assert expected.pop(name) == {"value": loss, "low": low, "high": high}
    assert expected == {}


def test_battles_and_predictions_are_those_of_the_files(small_run: Path) -> None:
    run = open_run(str(small_run))
    battles, predictions = run.battles(), run.predictions()
    assert {"id", "group", "fold", "prompt"} <= set(battles.columns)
    assert predictions["id"].to_list() == battles.filter(pl.col("role") == "train")["id"].to_list()
    assert {"calibrated|a", "member:gemma2|tie", "student|b"} <= set(predictions.columns)
    assert predictions.null_count().sum_horizontal().item() == 0


def test_a_stage_that_is_missing_is_named(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no settings are remembered here"):
        open_run(tmp_path / "nowhere")
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    shutil.rmtree(run / "distill")
    assert "calibrated|a" in open_run(run).predictions().columns
    with pytest.raises(UserError, match="run 'make distill'"):
        open_run(run).table()
    shutil.rmtree(run / "stack")
    with pytest.raises(UserError, match="run 'make stack'"):
        open_run(run).predictions()
