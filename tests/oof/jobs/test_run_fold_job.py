"""Fold job: battles of weight 0 are not trained on, and watching the held-out loss changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from oof import config as configuration
from oof.__main__ import main as oof_main
from oof.audit.extra_battles import HELD_OUT
from oof.audit.run import audit_run
from oof.common.errors import UserError
from oof.data.synth import write_arena
from oof.jobs import run_fold_job
from oof.jobs.dataset import draft_battles, load_battles
from oof.jobs.encoded_battles import EncodedBattles
from oof.jobs.fold_job import fold_jobs
from oof.jobs.run_fold_job import run_job
from tests.fixtures.demo_run import ROOT, only_llama, small_arguments

N_EXTRA = 20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the configuration of two small fold jobs and the file of their battles."""
    folder = tmp_path_factory.mktemp("battles")
    shared = [a for a in small_arguments(Path("unused"))[2:] if "gemma2" not in a and "synth" not in a]
    train = write_arena(folder, 60, 0, 2)["train"]
    return [str(only_llama(folder)), *shared, f"data.train=[{train}]", "folds.k=2"]


@pytest.fixture(scope="module")
def extra(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_arena(tmp_path_factory.mktemp("extra"), N_EXTRA, 10, 2)["train"]
    pl.read_csv(path).with_columns(pl.col("id") + 10_000).write_csv(path)
    return Path(path)


def run_oof(base: list[str], run: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    monkeypatch.chdir(ROOT)
    return oof_main(["oof", *base, f"run={run}", *more])


@pytest.mark.slow
def test_battles_of_weight_0_are_scored_as_before_but_not_trained_on(
    base: list[str], extra: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without, run = tmp_path / "without", tmp_path / "with"
    assert run_oof(base, without, monkeypatch) == 0
    assert run_oof(base, run, monkeypatch, f"data.extra=[{extra}]", "data.extra_weight=0") == 0
    table = load_battles(run)
    assert (table["weight"] == 0).sum() == N_EXTRA
    folds = load_battles(without).select("id", "fold")
    assert folds.join(table.select("id", "fold"), on=["id", "fold"]).height == folds.height
    for fold in range(2):
        job, expected = (path / "oof" / "llama3_1" / f"fold-{fold}" for path in (run, without))
        for name in ("adapter/adapter_model.safetensors", "logits.parquet", "trained.parquet"):
            assert (job / name).read_bytes() == (expected / name).read_bytes(), name
        manifest = json.loads((job / "job.json").read_text())
        assert manifest["n_trained"] == int((folds["fold"] != fold).sum())
    assert [finding for finding in audit_run(run) if finding.status == "violated"] == []


def test_an_extra_battle_s_label_does_not_reach_the_fold_job_that_holds_it_out(
    base: list[str], extra: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files give the folds, so that a changed label changes nothing but the label."""
    train = pl.read_csv(next(a for a in base if "data.train" in a).removeprefix("data.train=[").removesuffix("]"))
    columns = {"own": pl.int_range(pl.len()) % 2, "group_key": pl.col("id")}
    train.with_columns(**columns).write_csv(tmp_path / "train ä.csv")
    battles = pl.read_csv(extra).with_columns(**columns)
    first = pl.int_range(pl.len()) == 0  # in fold 0
    verdict = [name for name in battles.columns if name.startswith("winner_")]
    rolled = {
        old: pl.when(first).then(new).otherwise(old) for old, new in zip(verdict, np.roll(verdict, 1), strict=True)
    }
    settings = [f"data.train=[{tmp_path}/train ä.csv]", "folds.column=own", f"data.extra=[{tmp_path}/extra ä.csv]"]
    runs = [tmp_path / "as given", tmp_path / "changed"]
    for run, frame in zip(runs, (battles, battles.with_columns(**rolled)), strict=True):
        frame.write_csv(tmp_path / "extra ä.csv")
        assert run_oof(base, run, monkeypatch, "groups.column=group_key", *settings) == 0
    one, two = (load_battles(run).filter(pl.col("role") == "extra") for run in runs)
    changed = one.filter(one["label"] != two["label"])
    assert changed["fold"].to_list() == [0]
    assert one["fold"].value_counts().sort("fold").rows() == [(0, N_EXTRA // 2), (1, N_EXTRA // 2)]
    weights = [[(run / "oof/llama3_1" / f"fold-{fold}/adapter/adapter_model.safetensors").read_bytes() for run in runs]
               for fold in range(2)]  # fmt: skip
    assert weights[0][0] == weights[0][1]  # the job that scores it for a student's targets
    assert weights[1][0] != weights[1][1]
    findings = [f for f in audit_run(runs[1]) if f.check == HELD_OUT]
    assert [(f.status, f.message) for f in findings] == [
        ("ok", "each of 20 is held out by one fold job of each member")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [[], ["lora.layers=upper_half", "frozen=stored"]])
def test_a_monitored_fold_job_has_the_same_adapter_and_logits_and_key(
    base: list[str], frozen: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"members.llama3_1.{setting}" for setting in frozen]
    without, run = tmp_path / "without", tmp_path / "with"
    assert run_oof(base, without, monkeypatch, *settings) == 0
    assert run_oof(base, run, monkeypatch, *settings, "members.llama3_1.train.monitor_battles=5") == 0
    for fold in range(2):
        job, expected = (path / "oof" / "llama3_1" / f"fold-{fold}" for path in (run, without))
        for name in ("adapter/adapter_model.safetensors", "logits.parquet"):
            assert (job / name).read_bytes() == (expected / name).read_bytes(), name
        one, two = (json.loads((folder / "job.json").read_text()) for folder in (job, expected))
        assert (one["key"], one["history"]) == (two["key"], two["history"])
        assert "held_out_loss" in (job / "metrics.jsonl").read_text()
        assert "held_out_loss" not in (expected / "metrics.jsonl").read_text()


def test_a_fold_job_holds_no_unlabelled_battle(
    base: list[str], extra: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    settings = [f"run={tmp_path}", f"data.unlabelled=[{extra}]"]
    config = configuration.load(base[0], [*base[1:], *settings])
    draft = draft_battles(config)
    draft.write()
    held: list[pl.DataFrame] = []
    monkeypatch.setattr(run_fold_job, "run_job", lambda _, battles: held.append(battles.table))
    run_fold_job.run_fold_job(fold_jobs(config, draft.table)[0])
    assert draft.table.height == 60 + N_EXTRA
    assert held[0].equals(draft.table.filter(pl.col("role") == "train"))


def test_a_training_set_whose_battles_all_have_weight_0_is_refused_in_one_sentence(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = configuration.load(base[0], [*base[1:], f"run={tmp_path}"])
    draft_battles(config).write()
    table = load_battles(tmp_path)
    only_fold_0 = table.with_columns(weight=(pl.col("fold") == 0).cast(pl.Float64))
    jobs = fold_jobs(config, table)
    with pytest.raises(UserError, match=r"fold 0: no battle to train on.*weight 0; raise data\.extra_weight or lower"):
        run_job(jobs[0], EncodedBattles(jobs[0].member, only_fold_0, config))
    assert not list(tmp_path.rglob("adapter"))
