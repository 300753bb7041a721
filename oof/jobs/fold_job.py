"""What the fold jobs of a run are: their folders, their keys, whether they are done. Imports no torch.

A job is a step of the run (``oof/<member>/fold-<k>/``: adapter, ``logits.parquet``, ``trained.parquet``,
``job.json``), so a finished one is never redone and a changed setting redoes exactly the jobs that depend on
it. :mod:`oof.jobs.run_fold_job` runs them.
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
from oof.jobs.dataset import FORMAT
from oof.jobs.pretrain import PretrainJob, pretrain_job


@dataclass(frozen=True)
class FoldJob:
    """Train ``member`` on every fold but ``fold``, predict ``fold``."""

    config: Config
    name: str
    fold: int
    battles: str  # battles_key of the run's table
    pretrain: PretrainJob | None = None  # what it starts from; None = a fresh head and adapters

    @property
    def member(self) -> Member:
        return self.config.members[self.name]

    @property
    def label(self) -> str:
        return f"{self.name} fold {self.fold}"

    @property
    def folder(self) -> Path:
        return Path(self.config.run) / "oof" / self.name / f"fold-{self.fold}"

    @property
    def arguments(self) -> list[str]:
        """Of ``python -m oof job``."""
        return ["--member", self.name, "--fold", str(self.fold)]

    @cached_property
    def depends(self) -> dict[str, str]:
        """What the job's result depends on, each part's digest: kept in ``job.json`` to say what changed."""
        parts = training_key_parts(self.config, self.member, self.battles)
        parts |= {} if self.pretrain is None else {"pretrain": self.pretrain.step.key}
        return {name: digest(value)[:16] for name, value in parts.items()}

    @cached_property
    def step(self) -> Step:
        return Step(self.folder, digest("job", FORMAT, self.depends, self.fold), "job.json")


def fold_jobs(config: Config, table: pl.DataFrame) -> list[FoldJob]:
    """Return every member x fold job of the run, done or not.

    Raises:
        UserError: the configuration has no members, or one without a checkpoint.
    """
    if not config.members:
        raise UserError("no members configured: add members.NAME.checkpoint to the configuration")
    for name, member in config.members.items():
        if not member.checkpoint:
            raise UserError(f"members.{name}.checkpoint is empty; set a Hugging Face folder or hub name")
        check_frozen(f"members.{name}", member, config.jobs.nproc)
    key = battles_key(table)
    first = {name: pretrain_job(config, name) for name in config.members}
    return [FoldJob(config, name, fold, key, first[name]) for name in config.members for fold in range(config.folds.k)]


def check_frozen(path: str, member: Member, nproc: int) -> None:
    """Refuse ``frozen: stored`` where there is nothing to store, or nobody to read it.

    Raises:
        UserError: every layer is trained, several processes share a job, or scoring changes the base's weights.
    """
    reasons = {
        f"{path}.lora.rank=0": member.lora.rank == 0,
        f"{path}.lora.layers={member.lora.layers}": member.lora.layers == "all",
        f"{path}.score_dtype={member.score_dtype}": member.score_dtype != "same",
        f"jobs.nproc={nproc}": nproc > 1,
    }
    for setting in (setting for setting, there in reasons.items() if there and member.frozen == "stored"):
        raise UserError(f"{path}.frozen=stored does not go with {setting}; set frozen=recompute, or change it")


def before(jobs: list[FoldJob]) -> list[PretrainJob]:
    """Return the pretraining that these jobs start from and that is not done."""
    needed = {job.name: job.pretrain for job in jobs if job.pretrain is not None}
    return [job for job in needed.values() if not job.step.done]


def join_folds(jobs: list[FoldJob], table: pl.DataFrame) -> None:
    """Write one member's ``oof/<member>/logits.parquet``: every scored battle once, in the table's order.

    Raises:
        UserError: the jobs' files do not cover the scored battles exactly once.
    """
    key = digest("join", *(job.step.key for job in jobs))
    step = Step(jobs[0].folder.parent, key, manifest="member.json")
    if step.done:
        return
    scored = table.filter(pl.col("role") == "train").select("id")
    parts = pl.concat([read_parquet(job.folder / "logits.parquet") for job in jobs])
    joined = scored.join(parts, on="id", how="left", validate="1:1", maintain_order="left")
    if joined.height != scored.height or parts.height != scored.height or joined["fold"].null_count():
        raise UserError(
            f"{step.folder}: the fold jobs do not predict each battle once; delete the folder and run again"
        )
    write_parquet(step.folder / "logits.parquet", joined)
    step.finish({"member": jobs[0].name}, files=["logits.parquet"])


def test_step(jobs: list[FoldJob], test_key: str) -> Step:
    """Return the step that holds one member's fold-averaged logits of the test battles with this key."""
    key = digest("test", FORMAT, [job.step.key for job in jobs], test_key)
    return Step(jobs[0].folder.parent / "test" / key[:12], key)


def by_member(jobs: list[FoldJob]) -> dict[str, list[FoldJob]]:
    members: dict[str, list[FoldJob]] = {}
    for job in jobs:
        members.setdefault(job.name, []).append(job)
    return members


def test_logits(jobs: list[FoldJob], test: pl.DataFrame) -> dict[str, NDArray[np.float32]] | None:
    """Return each member's fold-averaged (n, 2, 3) logits of the test battles, or None if not yet scored."""
    frames = test_frames(jobs, test)
    if frames is None:
        return None
    return {name: logits_of(frame) for name, frame in frames.items()}


def test_frames(jobs: list[FoldJob], test: pl.DataFrame) -> dict[str, pl.DataFrame] | None:
    """Return what :func:`oof.jobs.run_fold_job.score_test` kept of the test battles, by member, or None if not yet scored."""
    test_key = battles_key(test)
    steps = {name: test_step(folds, test_key) for name, folds in by_member(jobs).items()}
    if not all(step.done for step in steps.values()):
        return None
    return {name: read_parquet(step.folder / "logits.parquet") for name, step in steps.items()}
