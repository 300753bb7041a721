"""Run of the teacher jobs: targets of nested members, and a warning about extra battles of older runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble.distillation import run_teacher_jobs
from ensemble.distillation.teacher_jobs import NestedJob
from oof.data.schemas import SOFT_COLUMNS
from tests.fixtures.student_plans import ROLES, K, N, make_plan, store_random_logits


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
        run_teacher_jobs.run_teacher_job(NestedJob(plan, "gemma2", (0, 1)))
    rows, targets = training
    expected = np.where(voted[rows, None], list(shares.values()), np.eye(3)[plan.labels[rows]])
    np.testing.assert_allclose(targets, expected, atol=1e-7)
