"""Scores of new (test) battles: each fold job of a member scores them, and the run keeps the average per member.

A process reads a member's base once and exchanges the fold jobs' adapters.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from oof.common.atomic_files import read_parquet, write_parquet
from oof.common.logits_format import logits_frame, logits_of
from oof.common.process_tuning import prepare_process
from oof.common.steps import Step
from oof.config import Config
from oof.jobs.cache_keys import battles_key
from oof.jobs.encoded_battles import EncodedBattles
from oof.jobs.fold_job import FoldJob, by_member, test_file, test_step
from oof.jobs.process_pool import run_all
from oof.model.shared_base import release_base, saved_classifier

logger = logging.getLogger(__name__)

# Fewer test battles are scored in this process: starting another takes as long as tiny models need for some hundreds.
MIN_BATTLES_FOR_WORKERS = 1000


@dataclass(frozen=True)
class TestScoring:
    """One fold job's scoring of new battles."""

    job: FoldJob
    battles: EncodedBattles
    folder: Path

    @property
    def result(self) -> Path:
        """The file of its logits, written last."""
        return self.folder / test_file(self.job)

    @property
    def label(self) -> str:
        return f"{self.job.label}: test"


def score_test_battles(config: Config, jobs: list[FoldJob], test: pl.DataFrame) -> None:
    """Score new battles with every fold job of every member and store each member's average over folds in the run.

    ``jobs.workers`` fold jobs score at a time where there are enough battles to be worth starting processes.
    """
    prepare_process()
    test_key = battles_key(test)
    by_step: list[tuple[Step, list[TestScoring]]] = []
    for fold_jobs in by_member(jobs).values():
        step = test_step(fold_jobs, test_key)
        if not step.done:
            step.begin()
            # Hidden states are not stored: those of a stream of new battles would fill the disk.
            battles = EncodedBattles(replace(fold_jobs[0].member, frozen="recompute"), test, config)
            by_step.append((step, [TestScoring(job, battles, step.folder) for job in fold_jobs]))
    todo = [scoring for _, scorings in by_step for scoring in scorings if not scoring.result.is_file()]
    workers = config.jobs.workers if test.height >= MIN_BATTLES_FOR_WORKERS else 1
    try:
        run_all(_score, todo, workers)
    finally:
        release_base()
    for step, scorings in by_step:
        _store_average(step, scorings)


def _score(scoring: TestScoring) -> None:
    job, battles = scoring.job, scoring.battles
    rows, partial = np.arange(battles.table.height), scoring.folder / f"partial-{job.fold}"
    with saved_classifier(battles.member, job.folder / "adapter", battles.tokenizer) as model:
        logits = battles.logits(model, rows, scoring.label, partial)
    write_parquet(scoring.result, logits_frame(battles.table["id"], logits, job.fold))


def _store_average(step: Step, scorings: list[TestScoring]) -> None:
    folds = [logits_of(read_parquet(scoring.result)) for scoring in scorings]
    mean = np.asarray(np.mean(folds, axis=0, dtype=np.float64))
    name, battles = scorings[0].job.name, scorings[0].battles
    frame = logits_frame(battles.table["id"], mean, -1, battles.scoring.counts)
    write_parquet(step.folder / "logits.parquet", frame)
    step.finish({"member": name, "n": battles.table.height})
    logger.info("%s: %d test battles scored by %d folds", name, battles.table.height, len(scorings))
