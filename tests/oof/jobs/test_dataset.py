"""Battles of a run, read through the command line."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from oof import config as configuration
from oof.__main__ import main
from oof.common.atomic_files import read_json, sealed, write_json
from oof.common.digests import digest
from oof.common.steps import Step
from oof.config import Folds, without_speed_settings
from oof.data.synth import write_arena
from oof.jobs.cache_keys import battles_key
from oof.jobs.dataset import load_battles
from oof.jobs.fold_job import fold_jobs
from oof.jobs.source_files import digested_files
from tests.fixtures.demo_run import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with battles in two files, part-0.csv and part-1.csv, and all of them in whole.csv."""
    folder = tmp_path_factory.mktemp("battles")
    battles = pl.read_csv(write_arena(folder / "arena", 60, 0, 8)["train"])
    battles.write_csv(folder / "whole.csv")
    for i in range(2):
        battles[i::2].write_csv(folder / f"part-{i}.csv")
    return folder


def prepare(run: Path, train: str, *overrides: str) -> pl.DataFrame:
    arguments = [str(ROOT / "configs" / "demo.yaml"), f"run={run}", f"data.train=[{train}]", *overrides]
    assert main(["prepare", *arguments]) == 0
    return load_battles(run)


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_a_glob_reads_the_same_battles_as_one_file(
    folder: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    whole = prepare(tmp_path / "whole", "whole.csv")
    parts = prepare(tmp_path / "parts", f"{folder if kind == 'absolute' else '.'}/part-*.csv")
    assert parts.height == 60
    assert parts.drop("file", "row").equals(whole.drop("file", "row"))


def test_absolute_globs_of_pretraining_pairs_are_read(folder: Path, tmp_path: Path) -> None:
    pairs = folder / "pairs-0.jsonl"
    pairs.write_text('{"prompt": "zebra quagga okapi", "chosen": "striped", "rejected": "plain"}\n')
    arguments = [str(ROOT / "configs" / "demo.yaml"), f"run={tmp_path / 'run'}", f"data.train=[{folder}/whole.csv]"]
    assert main(["prepare", *arguments, f"pretrain.data=[{folder}/pairs-*.jsonl]"]) == 0
    assert pl.read_parquet(tmp_path / "run" / "pretrain" / "battles.parquet").height == 1


def test_a_subset_is_read_anew_and_has_other_content_keys(folder: Path, tmp_path: Path) -> None:
    whole = prepare(tmp_path, f"{folder}/whole.csv")
    half = prepare(tmp_path, f"{folder}/whole.csv", "data.subset=0.5")
    assert (whole.height, half.height) == (60, 30)
    assert set(half["id"]) < set(whole["id"])
    assert battles_key(half) != battles_key(whole)
    assert read_json(tmp_path / "battles.json")["counts"]["not_in_subset"] == 30


def test_the_manifest_says_how_verdicts_were_read_and_how_many_of_each_without_a_new_key(tmp_path: Path) -> None:
    winners = ["a", "b", "b", "draw", "a", "?"]
    rows = [{"id": str(i), "prompt": f"p{i}", "response_a": "x", "response_b": "y", "better": w}
            for i, w in enumerate(winners)]  # fmt: skip
    pl.DataFrame(rows).write_csv(tmp_path / "own.csv")
    settings = ("data.columns={winner: better}", "data.verdicts={draw: tie}", "data.on_bad_row=drop", "folds.k=2")
    prepare(tmp_path / "run", f"{tmp_path}/own.csv", *settings)
    path = tmp_path / "run" / "battles.json"
    [row] = read_json(path)["codings"].values()
    assert row["verdicts"] == {"a": 2, "b": 2, "tie": 1}
    assert row["dropped"] == 1
    assert row["coding"].startswith("better: ")
    assert "draw → tie" in row["coding"]
    old = {key: value for key, value in read_json(path).items() if key != "codings"}  # as earlier versions wrote it
    write_json(path, sealed(old))
    prepare(tmp_path / "run", f"{tmp_path}/own.csv", *settings)
    assert "codings" not in read_json(path)  # nothing is read again


@pytest.mark.parametrize("pattern", ["{}/nothing-*.csv", "nothing-*.csv", "{}/nothing.csv"])
def test_a_glob_without_files_is_one_sentence(
    folder: Path, tmp_path: Path, pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train = pattern.format(folder)
    arguments = [str(ROOT / "configs" / "demo.yaml"), f"run={tmp_path / 'run'}", f"data.train=[{train}]"]
    assert main(["prepare", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {train}: no such file")
    assert message.count("\n") == 1


def test_two_spellings_of_a_path_are_one_source_in_content_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert digested_files(["./whole.csv"]) == digested_files(["whole.csv"])
    assert [path for path, _ in digested_files(["./part-*.csv"])] == ["part-0.csv", "part-1.csv"]


def test_ones_own_folds_are_used_and_refused_where_they_separate_a_group(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = prepare(tmp_path / "drawn", str(folder / "whole.csv"), "folds.k=3")
    battles = pl.read_csv(folder / "whole.csv").with_columns(pl.col("id").cast(pl.String))
    own = battles.join(drawn.select("id", my_fold=(pl.col("fold") + 1) % 3 + 10), on="id")
    own.write_csv(tmp_path / "own ä.csv")
    settings = [f"data.train={tmp_path}/own ä.csv", "folds.column=my_fold", "folds.k=3"]
    table = prepare(tmp_path / "own", "", *settings)
    expected = own.select("id", fold=pl.col("my_fold").cast(pl.Int32) - 10).sort("id")
    assert table.select("id", "fold").sort("id").equals(expected)

    group = drawn.group_by("group").agg("id").filter(pl.col("id").list.len() > 1).sort("group")["id"][0].to_list()
    moved = pl.when(pl.col("id") == group[0]).then((pl.col("my_fold") - 9) % 3 + 10).otherwise("my_fold")
    own.with_columns(my_fold=moved).write_csv(tmp_path / "own ä.csv")
    arguments = [str(ROOT / "configs" / "demo.yaml"), f"run={tmp_path}/moved", *settings]
    assert main(["prepare", *arguments]) == 2
    assert "belong to one group; the file's folds separate 1 group(s)" in capsys.readouterr().err


@pytest.fixture(scope="module")
def extra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 20 battles on other prompts than those of ``folder``, most of them in groups of their own."""
    folder = tmp_path_factory.mktemp("extra ö")
    battles = pl.read_csv(write_arena(folder / "arena", 20, 9, 8)["train"]).with_columns(pl.col("id") + 1000)
    battles.write_csv(folder / "extra.csv")
    return folder / "extra.csv"


def test_extra_battles_get_folds_of_their_own_and_move_no_other(
    folder: Path, extra: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = prepare(tmp_path / "alone", f"{folder}/whole.csv", "folds.k=3")
    with caplog.at_level("INFO"):
        table = prepare(tmp_path / "run", f"{folder}/whole.csv", "folds.k=3", f"data.extra=[{extra}]")
    assert table.filter(pl.col("role") == "train").select("id", "fold").equals(alone.select("id", "fold"))
    sizes = table.filter(pl.col("role") == "extra")["fold"].value_counts().sort("fold")
    assert sizes["fold"].to_list() == [0, 1, 2]
    assert f"extra: 20 battles, held out by fold: {', '.join(map(str, sizes['count']))}" in caplog.text


def test_ones_own_folds_of_train_battles_need_none_of_extra_ones(folder: Path, extra: Path, tmp_path: Path) -> None:
    drawn = prepare(tmp_path / "drawn", f"{folder}/whole.csv", "folds.k=3")
    battles = pl.read_csv(folder / "whole.csv").with_columns(pl.col("id").cast(pl.String))
    battles.join(drawn.select("id", my_fold="fold"), on="id").write_csv(tmp_path / "own.csv")
    settings = ["folds.column=my_fold", "folds.k=3", f"data.extra=[{extra}]"]
    table = prepare(tmp_path / "own", f"{tmp_path}/own.csv", *settings)
    assert set(table.filter(pl.col("role") == "extra")["fold"]) == {0, 1, 2}


def test_a_run_with_extra_battles_in_no_fold_keeps_its_folds_and_training(
    folder: Path, extra: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As older versions wrote them. A change that would draw the folds anew is refused before anything is written."""
    settings = ["folds.k=3", f"data.extra=[{extra}]"]
    table = prepare(tmp_path, f"{folder}/whole.csv", *settings)
    free = pl.when(pl.col("role") == "train").then("fold").otherwise(pl.lit(-1)).cast(pl.Int32)
    older = table.with_columns(fold=free)
    older.write_parquet(tmp_path / "battles.parquet")
    step = Step(tmp_path, read_json(tmp_path / "battles.json")["key"], manifest="battles.json")
    step.finish({}, files=["battles.parquet"])
    assert prepare(tmp_path, f"{folder}/whole.csv", *settings).equals(older)
    arguments = [str(ROOT / "configs" / "demo.yaml"), f"run={tmp_path}", f"data.train=[{folder}/whole.csv]", *settings]
    for job in fold_jobs(configuration.load(arguments[0], arguments[1:]), older):
        job.step.begin()
        job.step.finish({"seconds": 3600.0, "depends": job.depends})
    assert main(["prepare", *arguments, f"data.unlabelled=[{folder}/part-0.csv]"]) == 2
    message = capsys.readouterr().err
    assert "would replace finished training that took 6 h 0 min" in message
    assert "changed: battles" in message
    assert "REDO=1" in message
    assert load_battles(tmp_path).equals(older)


def test_the_content_key_without_own_folds_is_that_of_older_runs() -> None:
    assert digest(without_speed_settings(Folds(k=4))) == digest({"k": 4})
