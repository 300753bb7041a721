"""Work of a cascade on new battles by the run's models: one order of the student, one member, the stack."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.stacking.stack_result import StackResult
from oof.common.logits_format import COUNT_COLUMNS
from oof.config import Config
from oof.jobs.cache_keys import battles_key
from oof.jobs.dataset import load_battles
from oof.jobs.fold_job import by_member, fold_jobs, test_frames, test_logits_by_job, test_step


class Models(Protocol):
    """Models that score (n) battles of a canonical table."""

    def student(self, table: pl.DataFrame, order: str) -> NDArray[np.float64]:
        """Return the student's (n, 3) logits in one order, in class order (a, b, tie)."""

    def member(self, name: str, table: pl.DataFrame) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return a member's (n, 2, 3) logits, the mean of its fold jobs on one scale, and (n, 6) token counts."""

    def ensemble(
        self, table: pl.DataFrame, logits: dict[str, NDArray[np.float32]], counts: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the stack's (n, 3) probabilities, given all members' logits and the first one's token counts."""


class RunModels:
    """The models of a run, each read when it is first needed."""

    def __init__(self, config: Config, stack: StackResult) -> None:
        self.config, self.stack = config, stack
        self.jobs = by_member(fold_jobs(config, load_battles(Path(config.run), unlabelled=False)))
        self._student: Any = None

    def student(self, table: pl.DataFrame, order: str) -> NDArray[np.float64]:
        """See :class:`Models`."""
        from ensemble.distillation.student import Student

        if self._student is None:
            self._student = Student.of_run(self.config)
        logits: NDArray[np.float64] = self._student.logits(table, (order,))[:, 0]
        return logits

    def member(self, name: str, table: pl.DataFrame) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See :class:`Models`. Files of the fold jobs' scores that were not there before are removed."""
        from oof.jobs.score_test_battles import score_test_battles

        self._student = None  # its memory is the member's now
        jobs = self.jobs[name]
        step = test_step(jobs, battles_key(table))
        known = step.done
        score_test_battles(self.config, jobs, table)
        logits = self.stack.job_scales.mean_over_jobs(name, test_logits_by_job(jobs, table)[name])
        frames = test_frames(jobs, table)
        assert frames is not None
        counts = frames[name].select(COUNT_COLUMNS).to_numpy().astype(np.int64)
        if not known:
            shutil.rmtree(step.folder)
        return logits, counts

    def ensemble(
        self, table: pl.DataFrame, logits: dict[str, NDArray[np.float32]], counts: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """See :class:`Models`."""
        columns = (pl.Series(name, counts[:, i], dtype=pl.Int32) for i, name in enumerate(COUNT_COLUMNS))
        given: dict[str, NDArray[np.floating]] = {name: logits[name] for name in self.config.members}
        return self.stack.predict(self.stack.design(table.with_columns(*columns), given))
