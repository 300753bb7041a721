"""Jobs of the teachers: which exist, which battles they score, and what they depend on."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from ensemble.distillation.plan import FINAL
from ensemble.distillation.targets import student_targets
from ensemble.distillation.teacher_jobs import NestedJob, teacher_jobs
from oof.common.digests import digest
from oof.jobs.dataset import FORMAT
from tests.fixtures.student_plans import EXTRA, EXTRA_ROWS, ROLES, SCORED, K, N, make_plan, store_random_logits


def test_nested_jobs_without_extra_battles_keep_the_key_of_older_ones(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teacher=nested")
    without = replace(plan, folds=np.where(ROLES == "extra", -1, plan.folds))
    new, old = (NestedJob(p, "gemma2", (0, 1)) for p in (plan, without))
    assert old.step.key == digest("nested", FORMAT, old.fold_job.step.key, (0, 1))
    assert new.step.key != old.step.key


def test_fold_jobs_score_only_the_extra_battles_that_they_hold_out(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    for job in teacher_jobs(plan):
        of_extra = plan.folds[np.intersect1d(job.rows, EXTRA_ROWS)]
        assert set(of_extra.tolist()) == {-1, job.fold_job.fold}  # -1: a run that was made before extra had folds
        assert set(job.rows) >= set(range(SCORED + EXTRA, N))


def test_teacher_jobs_of_one_recipe_keep_those_of_another(tmp_path: Path) -> None:
    teachers = "distill.teachers=members"
    oof, matched = make_plan(tmp_path, teachers), make_plan(tmp_path, teachers, "distill.teacher=fold_matched")
    store_random_logits(oof)
    before = student_targets(oof, FINAL)
    store_random_logits(matched)
    assert all(job.done for job in [*teacher_jobs(oof), *teacher_jobs(matched)])
    np.testing.assert_array_equal(student_targets(oof, FINAL), before)


def test_nested_jobs_are_one_per_member_and_pair_of_folds(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, "distill.teacher=nested")
    nested = [job for job in teacher_jobs(plan) if isinstance(job, NestedJob)]
    assert {(job.name, job.without) for job in nested} == {
        (name, pair) for name in plan.config.members for pair in combinations(range(K), 2)
    }
    assert len({job.step.key for job in nested}) == len({job.step.folder for job in nested}) == len(nested)
