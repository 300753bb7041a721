"""Preparation of stage one: check the command, then write battles, pairs and the run's settings.

Everything that can refuse a command happens before its first file is written: reading the data, the comparison with the
files that the run was made from, and the guard of finished training.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from oof.common.errors import UserError
from oof.config import Config
from oof.jobs import dataset
from oof.jobs.base_check import check_bases
from oof.jobs.commits import RECORD
from oof.jobs.finished_training import Training, refuse_to_replace
from oof.jobs.fold_job import FoldJob, check_members, fold_jobs, pinned_fold_jobs
from oof.jobs.pretrain import PretrainJob, draft_pairs
from oof.jobs.source_files import check_files, remember


def prepare_run(config: Config, redo: bool = False, test: bool = True) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the battles of the run and the test battles, after writing what stage one needs of them.

    Args:
        config: of the command.
        redo: replace finished training of other settings.
        test: whether fold jobs are about to run, and then the test battles; else these are read for pairs alone.

    Raises:
        UserError: a setting or a file is wrong, or finished training would be replaced; nothing was written.
    """
    check_members(config)
    check_files(config, reads=True, redo=redo)
    if dataset.other_arena(config):  # every training depends on its battles, so their new content does not matter
        unknown = [FoldJob(config, name, fold, "") for name in config.members for fold in range(config.folds.k)]
        refuse_to_replace(config, trainings(unknown), "make oof", redo)
    made_here = [path for path in (Path(config.run) / "synth", Path(config.run) / RECORD) if not path.exists()]
    try:
        needs_test = test or bool(config.pretrain.data)
        test_table = dataset.read_test(config) if needs_test else pl.DataFrame()
        draft = dataset.draft_battles(config)
        pairs = draft_pairs(config, draft.table, test_table)
        refuse_to_replace(config, trainings(fold_jobs(config, draft.table, pairs.battles)), "make oof", redo)
        if test:  # the jobs are about to run: a base that cannot be opened is an error before anything is written
            jobs = pinned_fold_jobs(config, draft.table, pairs=pairs.battles)
            check_bases({job.name: job.member for job in jobs if not job.step.done}, config.jobs)
    except UserError:
        for path in made_here:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise
    remember(config)
    draft.write()
    pairs.write()
    return draft.table, test_table


def trainings(jobs: Sequence[FoldJob | PretrainJob]) -> list[Training]:
    """Return the trainings of fold jobs, with the pretraining that they start from."""
    found: dict[Path, Training] = {}
    for job in jobs:
        first = job if isinstance(job, PretrainJob) else job.pretrain
        if first is not None:
            found[first.folder] = Training(first.name or "student", "pretraining", first.step, first.depends)
        if isinstance(job, FoldJob):
            found[job.folder] = Training(job.name, f"fold {job.fold}", job.step, job.depends)
    return list(found.values())
