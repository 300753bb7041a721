"""Run of the teacher jobs: chunks, targets of nested members, a warning about extra battles of older runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble.distillation import run_teacher_jobs
from ensemble.distillation.teacher_jobs import NestedJob, ScoringJob
from oof.common.logits_format import logits_of
from oof.data.schemas import SOFT_COLUMNS
from oof.jobs.encoded_battles import EncodedBattles
from tests.fixtures.student_plans import ROLES, K, N, make_plan, store_random_logits
from tests.fixtures.trained_students import N as SMALL
from tests.fixtures.trained_students import plan_of, with_fold_jobs


def test_in_sample_teacher_probabilities_of_an_older_run_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = make_plan(tmp_path)
    plan = replace(older, folds=np.where(ROLES == "extra", np.arange(N) % K, older.folds))
    for of_run in (plan, older):
        store_random_logits(of_run)
    run_teacher_jobs.run_teacher_jobs(plan)
    assert not caplog.text
    run_teacher_jobs.run_teacher_jobs(older)
    assert "2 extra battles are in no fold, so every member has trained on them" in caplog.text


def test_nested_members_train_on_soft_labels_as_members_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path, "distill.teacher=nested")
    shares = dict(zip(SOFT_COLUMNS, (0.5, 0.3, 0.2), strict=True))
    voted = np.arange(N) % 2 == 0
    soft = {name: pl.when(pl.Series(voted)).then(share) for name, share in shares.items()}
    plan = replace(plan, table=plan.table.with_columns(**soft))
    training: list[np.ndarray] = []

    def capture(_: object, rows: np.ndarray, targets: np.ndarray, *__: object) -> None:
        training.extend((rows, targets))
        raise KeyboardInterrupt

    monkeypatch.setattr(run_teacher_jobs, "fit_classifier", capture)
    with pytest.raises(KeyboardInterrupt):
        run_teacher_jobs.run_nested_job(NestedJob(plan, "gemma2", (0, 1)))
    rows, targets = training
    expected = np.where(voted[rows, None], list(shares.values()), np.eye(3)[plan.labels[rows]])
    np.testing.assert_allclose(targets, expected, atol=1e-7)


@pytest.mark.slow
def test_battles_are_scored_once_in_chunks_after_a_kill_and_with_more_battles_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = with_fold_jobs(plan_of(tmp_path, np.arange(SMALL) % 3, "distill.teacher=fold_matched"))
    job = ScoringJob(plan, plan.start[0])
    run_teacher_jobs.run_scoring_job(job)
    whole = logits_of(pl.read_parquet(job.step.folder / "logits.parquet"))
    assert len(whole) == 16

    shutil.rmtree(job.step.folder.parent)
    monkeypatch.setattr(run_teacher_jobs, "CHUNK", 6)
    encode, sizes = EncodedBattles.logits, []

    def killed_in_the_second(self: EncodedBattles, *arguments: object) -> np.ndarray:
        sizes.append(self.table.height)
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return encode(self, *arguments)

    monkeypatch.setattr(EncodedBattles, "logits", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_teacher_jobs.run_scoring_job(job)
    run_teacher_jobs.run_scoring_job(job)
    assert sizes == [6, 6, 6, 4]
    frame = pl.read_parquet(job.step.folder / "logits.parquet")
    assert frame["id"].to_list() == plan.table["id"][job.rows].to_list()
    np.testing.assert_allclose(logits_of(frame), whole, atol=1e-5)
    assert job.step.done
    assert sorted(path.name for path in job.step.folder.iterdir()) == ["logits.parquet", "manifest.json"]

    new = plan.table[:2].with_columns(role=pl.lit("unlabelled"), id="new " + pl.col("id"), prompt=pl.col("response_a"))
    table = pl.concat([plan.table, new])
    more = ScoringJob(replace(plan, table=table, folds=np.append(plan.folds, [-1, -1])), plan.start[0])
    run_teacher_jobs.run_scoring_job(more)
    assert sizes[4:] == [2]
    appended = pl.read_parquet(more.step.folder / "logits.parquet")
    assert appended[:-2].equals(frame)
    assert appended["id"].to_list() == [*frame["id"], *new["id"]]
