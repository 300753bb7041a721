"""Teacher jobs: the model scores behind the students' targets, their folders and keys. Imports no torch.

A scoring job scores battles with a finished fold job that stage one did not score with it. A nested job trains a member
without two of the folds and scores both, scored and extra battles. Each is a step in ``RUN/teacher``;
:mod:`ensemble.distillation.run_teacher_jobs` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble.distillation.plan import StudentPlan
from ensemble.distillation.stored_scores import StoredScores
from oof.common.digests import digest
from oof.common.steps import Step
from oof.config import Member
from oof.jobs.dataset import FORMAT
from oof.jobs.fold_job import FoldJob


@dataclass(frozen=True)
class ScoringJob:
    """Score the battles ``rows`` of the plan's table with a finished fold job."""

    plan: StudentPlan
    fold_job: FoldJob

    @property
    def label(self) -> str:
        return f"teacher {self.fold_job.label}"

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The battles that are not scored in stage one, and with ``fold_matched`` those that the job trained on.

        Of the extra battles that some fold holds out, those of the job's own fold, and with ``fold_matched`` all.
        """
        plan = self.plan
        wanted = np.arange(len(plan.folds)) >= plan.n_scored
        if plan.config.distill.teacher == "fold_matched":
            wanted |= plan.folds != self.fold_job.fold
        else:
            wanted &= np.isin(plan.extra_folds, (-1, self.fold_job.fold))
        return np.flatnonzero(wanted)

    @cached_property
    def step(self) -> Step:
        key = digest("teacher", FORMAT, self.fold_job.step.key, self.plan.texts_key(self.rows))
        # The folder's name carries the key: students that learn from other battles keep their own scores.
        folder = teacher_folder(self.plan) / self.fold_job.name / f"fold-{self.fold_job.fold}-{key[:8]}"
        return Step(folder, key)

    @property
    def done(self) -> bool:
        return not len(self.rows) or self.step.done

    @property
    def scores(self) -> StoredScores:
        """All battles that the fold job has scored for any plan."""
        name = f"scores-{self.fold_job.fold}-{self.fold_job.step.key[:8]}"
        return StoredScores(teacher_folder(self.plan) / self.fold_job.name / name)


@dataclass(frozen=True)
class NestedJob:
    """Train a member without two folds and score both folds, with their extra battles."""

    plan: StudentPlan
    name: str
    without: tuple[int, int]

    @property
    def member(self) -> Member:
        return self.plan.config.members[self.name]

    @property
    def label(self) -> str:
        return f"teacher {self.name} without folds {self.without[0]} and {self.without[1]}"

    @property
    def fold_job(self) -> FoldJob:
        """A fold job of the same member: what it depends on, this job depends on."""
        return next(job for job in self.plan.jobs if job.name == self.name)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The scored and the extra battles of both folds."""
        scored = np.arange(len(self.plan.folds)) < self.plan.n_scored
        return np.flatnonzero(np.where(scored, np.isin(self.plan.folds, self.without), self._extra))

    @property
    def _extra(self) -> NDArray[np.bool_]:
        return np.isin(self.plan.extra_folds, self.without)

    @cached_property
    def step(self) -> Step:
        folder = teacher_folder(self.plan) / "nested" / self.name / "without-{}-{}".format(*self.without)
        extra = ["extra battles"] if self._extra.any() else []  # older jobs do not score them
        return Step(folder, digest("nested", FORMAT, self.fold_job.step.key, self.without, *extra))

    @property
    def done(self) -> bool:
        return self.step.done


def teacher_folder(plan: StudentPlan) -> Path:
    """Return ``RUN/teacher``: beside ``RUN/distill``, because students of other recipes need the same scores."""
    return Path(plan.config.run) / "teacher"


def teacher_jobs(plan: StudentPlan) -> list[ScoringJob | NestedJob]:
    """Return every job whose scores :func:`ensemble.distillation.targets.student_targets` reads, finished or not."""
    members = teaching_members(plan)
    jobs: list[ScoringJob | NestedJob] = [ScoringJob(plan, job) for job in plan.jobs if job.name in members]
    if plan.config.distill.teacher == "nested":
        pairs = list(combinations(range(plan.config.folds.k), 2))
        jobs += [NestedJob(plan, name, pair) for name in members for pair in pairs]
    return jobs


def scoring_job(plan: StudentPlan, name: str, fold: int) -> ScoringJob:
    """Return the scoring job of member ``name``'s fold job ``fold``."""
    return ScoringJob(plan, next(job for job in plan.jobs if (job.name, job.fold) == (name, fold)))


def teaching_members(plan: StudentPlan) -> list[str]:
    """Return the members whose scores are needed: all of them for the ensemble, else the teachers themselves."""
    return list(plan.config.members) if plan.teachers == ["stack"] else plan.teachers
