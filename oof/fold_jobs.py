"""What the fold jobs of a run are: their folders, their keys, whether they are done. Imports no torch.

A job is a step of the run (``oof/<member>/fold-<k>/``: adapter, ``logits.parquet``, ``trained.parquet``,
``job.json``), so a finished one is never redone and a changed setting redoes exactly the jobs that depend on
it. :mod:`oof.jobs` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof import store
from oof.config import Config, Member, to_dict
from oof.dataset import FORMAT
from oof.errors import UserError


@dataclass(frozen=True)
class FoldJob:
    """Train ``member`` on every fold but ``fold``, predict ``fold``."""

    config: Config
    name: str
    fold: int
    battles: str  # battles_key of the run's table

    @property
    def member(self) -> Member:
        return self.config.members[self.name]

    @property
    def label(self) -> str:
        return f"{self.name} fold {self.fold}"

    @property
    def folder(self) -> Path:
        return Path(self.config.run) / "oof" / self.name / f"fold-{self.fold}"

    @cached_property
    def depends(self) -> dict[str, str]:
        """What the job's result depends on, each part's digest: kept in ``job.json`` to say what changed."""
        # How scoring is cut and what is recomputed changes nothing but speed.
        train = replace(self.member.train, activation_checkpointing="auto")
        recipe = to_dict(replace(self.member, score_tokens_per_batch=0, train=train))
        parts: dict[str, object] = {name: value for name, value in recipe.items() if name not in ("lora", "train")}
        parts |= {f"{section}.{name}": v for section in ("lora", "train") for name, v in recipe[section].items()}
        parts["checkpoint"] = store.checkpoint_digest(self.member.checkpoint)
        parts |= {"prompts": self.config.prompts, "seed": self.config.seed, "battles": self.battles}
        return {name: store.digest(value)[:16] for name, value in parts.items()}

    @cached_property
    def step(self) -> store.Step:
        return store.Step(self.folder, store.digest("job", FORMAT, self.depends, self.fold), "job.json")


def battles_key(table: pl.DataFrame) -> str:
    """Return the digest of all that fold jobs read of the battles: texts, labels, weights, folds, row order."""
    used = table.filter(pl.col("role") != "unlabelled") if "role" in table.columns else table
    columns = ("id", "role", "label", "weight", "fold", "prompt", "response_a", "response_b")
    return store.digest(*(used[name].to_list() for name in columns if name in used.columns))


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
    key = battles_key(table)
    return [FoldJob(config, name, fold, key) for name in config.members for fold in range(config.folds.k)]


def join_folds(jobs: list[FoldJob], table: pl.DataFrame) -> None:
    """Write one member's ``oof/<member>/logits.parquet``: every scored battle once, in the table's order.

    Raises:
        UserError: the jobs' files do not cover the scored battles exactly once.
    """
    key = store.digest("join", *(job.step.key for job in jobs))
    step = store.Step(jobs[0].folder.parent, key, manifest="member.json")
    if step.done:
        return
    scored = table.filter(pl.col("role") == "train").select("id")
    parts = pl.concat([store.read_parquet(job.folder / "logits.parquet") for job in jobs])
    joined = scored.join(parts, on="id", how="left", validate="1:1", maintain_order="left")
    if joined.height != scored.height or parts.height != scored.height or joined["fold"].null_count():
        raise UserError(
            f"{step.folder}: the fold jobs do not predict each battle once; delete the folder and run again"
        )
    store.write_parquet(step.folder / "logits.parquet", joined)
    step.finish({"member": jobs[0].name}, files=["logits.parquet"])


def test_step(jobs: list[FoldJob], test_key: str) -> store.Step:
    """Return the step that holds one member's fold-averaged logits of the test battles with this key."""
    key = store.digest("test", FORMAT, [job.step.key for job in jobs], test_key)
    return store.Step(jobs[0].folder.parent / "test" / key[:12], key)


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
    return {name: store.logits_of(frame) for name, frame in frames.items()}


def test_frames(jobs: list[FoldJob], test: pl.DataFrame) -> dict[str, pl.DataFrame] | None:
    """Return what :func:`oof.jobs.score_test` kept of the test battles, by member, or None if not yet scored."""
    test_key = battles_key(test)
    steps = {name: test_step(folds, test_key) for name, folds in by_member(jobs).items()}
    if not all(step.done for step in steps.values()):
        return None
    return {name: store.read_parquet(step.folder / "logits.parquet") for name, step in steps.items()}
