"""Fold jobs of a run: their folders, content keys and results. Imports no torch.

A fold job trains one member on all folds but one and scores the held-out fold. It is a step of the run
(``oof/<member>/fold-<k>/``: adapter, ``logits.parquet``, ``trained.parquet``, ``job.json``): rerunning skips finished
jobs, and after a change only the jobs that depend on it run again. :mod:`oof.jobs.run_fold_job` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.common.atomic_files import read_parquet, write_parquet
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.logits_format import logits_of
from oof.common.steps import Step
from oof.config import Config, Member
from oof.jobs.cache_keys import battles_key, training_key_parts
from oof.jobs.commits import needs_commit, record_commit, with_recorded_commits
from oof.jobs.dataset import FORMAT
from oof.jobs.pretrain import PretrainJob, pretrain_job


@dataclass(frozen=True)
class FoldJob:
    """Train a member on every fold but ``fold`` and score ``fold``.

    Attributes:
        config: of the run.
        name: of the member.
        fold: the held-out fold.
        battles: :func:`oof.jobs.cache_keys.battles_key` of the run's table.
        pretrain: the pretraining to start from; None = a fresh head and fresh adapters.
    """

    config: Config
    name: str
    fold: int
    battles: str
    pretrain: PretrainJob | None = None

    @property
    def member(self) -> Member:
        return self.config.members[self.name]

    @property
    def label(self) -> str:
        """Name of the job in messages."""
        return f"{self.name} fold {self.fold}"

    @property
    def folder(self) -> Path:
        return Path(self.config.run) / "oof" / self.name / f"fold-{self.fold}"

    @property
    def arguments(self) -> list[str]:
        """Options of ``python -m oof job`` that choose this job."""
        return ["--member", self.name, "--fold", str(self.fold)]

    @cached_property
    def depends(self) -> dict[str, str]:
        """Digest of each setting that the result depends on; ``job.json`` keeps them to name what changed."""
        parts = training_key_parts(self.config, self.member, self.battles)
        parts |= {} if self.pretrain is None else {"pretrain": self.pretrain.step.key}
        return {name: digest(value)[:16] for name, value in parts.items()}

    @cached_property
    def step(self) -> Step:
        return Step(self.folder, digest("job", FORMAT, self.depends, self.fold), "job.json")


def check_members(config: Config) -> None:
    """Check the settings of the members.

    Raises:
        UserError: the configuration has no members, a member has no checkpoint, or ``frozen: stored`` cannot be used.
    """
    if not config.members:
        raise UserError("no members configured: add members.NAME.checkpoint to the configuration")
    for name, member in config.members.items():
        if not member.checkpoint:
            raise UserError(f"members.{name}.checkpoint is empty; set a Hugging Face folder or hub name")
        check_frozen(f"members.{name}", member, config.jobs.nproc)
        if member.score_quantise != "same" and member.quantise != "none":
            raise UserError(
                f"members.{name}.score_quantise={member.score_quantise} needs quantise=none, not {member.quantise}: an "
                "adapter is scored on the quantised base that it was trained on; leave score_quantise out"
            )


def fold_jobs(config: Config, table: pl.DataFrame, pairs: str = "") -> list[FoldJob]:
    """Return the fold jobs of every member, finished or not, in the order of members and folds.

    Args:
        config: of the run. Each hub checkpoint is taken at the commit that the run has recorded.
        table: the run's battles.
        pairs: :func:`oof.jobs.cache_keys.battles_key` of the pairs to pretrain on; "" = of those that are prepared.

    Raises:
        UserError: as :func:`check_members`.
    """
    check_members(config)
    config = with_recorded_commits(config)
    key = battles_key(table)
    pretraining = {name: pretrain_job(config, name, pairs) for name in config.members}
    folds = range(config.folds.k)
    return [FoldJob(config, name, fold, key, pretraining[name]) for name in config.members for fold in folds]


def pinned_fold_jobs(config: Config, table: pl.DataFrame, name: str | None = None, pairs: str = "") -> list[FoldJob]:
    """Return :func:`fold_jobs`; the run first records the commits of hub checkpoints that it has yet to load.

    Args:
        config: of the run.
        table: the run's battles.
        name: of the one member whose jobs are to run; None = all.
        pairs: as :func:`fold_jobs`.

    Raises:
        UserError: as :func:`fold_jobs`, :func:`oof.jobs.commits.needs_commit`, :func:`oof.jobs.commits.record_commit`.
    """
    jobs, run = fold_jobs(config, table, pairs), Path(config.run)
    members = {n: member for n, member in config.members.items() if name in (n, None) and needs_commit(run, member)}
    for job_name, member in members.items():
        of_member = by_member(jobs)[job_name]
        steps = [job.step for job in of_member] + [job.pretrain.step for job in of_member[:1] if job.pretrain]
        record_commit(run, member, any(step.begun for step in steps))
    return fold_jobs(config, table, pairs) if members else jobs


def check_frozen(path: str, member: Member, nproc: int) -> None:
    """Refuse ``frozen: stored`` where no layer's hidden states can be stored and reused.

    Args:
        path: of the member's settings, for the message.
        member: its settings.
        nproc: processes of one job.

    Raises:
        UserError: every layer is trained, several processes share a job, or scoring changes the base's weights.
    """
    conflicts = {
        f"{path}.lora.rank=0": member.lora.rank == 0,
        f"{path}.lora.layers={member.lora.layers}": member.lora.layers == "all",
        f"{path}.score_dtype={member.score_dtype}": member.score_dtype != "same",
        f"{path}.score_quantise={member.score_quantise}": member.score_quantise != "same",
        f"jobs.nproc={nproc}": nproc > 1,
    }
    for setting in (setting for setting, applies in conflicts.items() if applies and member.frozen == "stored"):
        raise UserError(f"{path}.frozen=stored cannot be combined with {setting}; set frozen=recompute, or change it")


def unfinished_pretraining(jobs: list[FoldJob]) -> list[PretrainJob]:
    """Return the pretraining jobs that must run before these fold jobs."""
    needed = {job.name: job.pretrain for job in jobs if job.pretrain is not None}
    return [job for job in needed.values() if not job.step.done]


def join_folds(jobs: list[FoldJob], table: pl.DataFrame) -> None:
    """Write a member's ``oof/<member>/logits.parquet``: every scored battle once, in the table's order.

    Args:
        jobs: one member's fold jobs, all finished.
        table: the run's battles.

    Raises:
        UserError: the jobs' logits do not cover every scored battle exactly once.
    """
    key = digest("join", *(job.step.key for job in jobs))
    step = Step(jobs[0].folder.parent, key, manifest="member.json")
    if step.done:
        return
    scored = table.filter(pl.col("role") == "train").select("id")
    logits = pl.concat([read_parquet(job.folder / "logits.parquet") for job in jobs])
    joined = scored.join(logits, on="id", how="left", validate="1:1", maintain_order="left")
    if joined.height != scored.height or logits.height != scored.height or joined["fold"].null_count():
        raise UserError(
            f"{step.folder}: the fold jobs do not predict each battle exactly once; delete the folder and run again"
        )
    write_parquet(step.folder / "logits.parquet", joined)
    step.finish({"member": jobs[0].name}, files=["logits.parquet"])


def test_step(jobs: list[FoldJob], test_key: str) -> Step:
    """Return the step that holds a member's logits of the test battles, averaged over its fold jobs.

    Args:
        jobs: one member's fold jobs.
        test_key: :func:`oof.jobs.cache_keys.battles_key` of the test battles.
    """
    key = digest("test", FORMAT, [job.step.key for job in jobs], test_key)
    return Step(jobs[0].folder.parent / "test" / key[:12], key)


def by_member(jobs: list[FoldJob]) -> dict[str, list[FoldJob]]:
    """Return the jobs of each member by its name."""
    members: dict[str, list[FoldJob]] = {}
    for job in jobs:
        members.setdefault(job.name, []).append(job)
    return members


def test_logits_by_job(jobs: list[FoldJob], test: pl.DataFrame) -> dict[str, dict[int, NDArray[np.float32]]]:
    """Return member -> fold -> (n, 2, 3) logits of the (n,) test battles by each fold job, all of them scored."""
    test_key = battles_key(test)
    folders = {name: test_step(of_member, test_key).folder for name, of_member in by_member(jobs).items()}
    logits: dict[str, dict[int, NDArray[np.float32]]] = {}
    for job in jobs:
        frame = read_parquet(folders[job.name] / test_file(job))
        logits.setdefault(job.name, {})[job.fold] = logits_of(frame)
    return logits


def test_file(job: FoldJob) -> str:
    """Return the name of one job's file in the folder of :func:`test_step`."""
    return f"fold-{job.fold}.parquet"


def test_frames(jobs: list[FoldJob], test: pl.DataFrame) -> dict[str, pl.DataFrame] | None:
    """Return each member's fold-averaged logits of the test battles as stored, or None if not all are scored yet.

    :func:`oof.jobs.score_test_battles.score_test_battles` writes them.
    """
    test_key = battles_key(test)
    steps = {name: test_step(folds, test_key) for name, folds in by_member(jobs).items()}
    if not all(step.done for step in steps.values()):
        return None
    return {name: read_parquet(step.folder / "logits.parquet") for name, step in steps.items()}
