"""Pretraining of members and student on other preference pairs, before the folds. Imports no torch.

``pretrain.data`` names preference files (chosen/rejected pairs, other arenas). They are read once into
``RUN/pretrain/battles.parquet``, without the pairs whose prompt is a near-duplicate of a scored battle's prompt (train
or test; chains of near-duplicates count, as in groups). Each member and the student are trained on them once, with
their own training settings, into ``RUN/pretrain/<name>/adapter``. Their fold jobs (the fold students) start from there
instead of from a fresh head and fresh adapters. :func:`oof.jobs.run_fold_job.run_pretrain` does the training.

Source: the winning solution of Kaggle's LMSYS competition, 2024, whose first step this is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from oof.common.atomic_files import read_json, read_parquet, verified, write_parquet
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.steps import Step
from oof.config import Config, Data, Member
from oof.config.schema_data import READING
from oof.data.battles import BattleSet, read_battles, write_dropped
from oof.folds.groups import group_battles
from oof.jobs.cache_keys import battles_key, training_key_parts
from oof.jobs.dataset import FORMAT, changed_reading
from oof.jobs.source_files import digested_files

logger = logging.getLogger(__name__)

PAIRS = "pretrain"  # name of the folder in the run, and role of its battles
COMPARED_COLUMNS = ["id", "role", "prompt", "response_a", "response_b"]  # that grouping reads


@dataclass(frozen=True)
class PretrainJob:
    """Train a member or the student on the run's pairs.

    Attributes:
        config: of the run; the student's is :meth:`oof.config.Config.for_student`.
        name: of the member; None = the student.
        battles: :func:`oof.jobs.cache_keys.battles_key` of the pairs.
    """

    config: Config
    name: str | None
    battles: str

    @cached_property
    def member(self) -> Member:
        """Settings of the training: the member's, except those that ``pretrain`` sets."""
        member = self.config.distill.student if self.name is None else self.config.members[self.name]
        pretrain = self.config.pretrain
        optional = {"lr": pretrain.lr, "head_lr": pretrain.head_lr, "batch_battles": pretrain.batch_battles}
        changes: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
        return replace(member, train=replace(member.train, epochs=pretrain.epochs, **changes))

    @property
    def label(self) -> str:
        """Name of the job in messages."""
        return f"{self.name or 'student'} pretraining"

    @property
    def folder(self) -> Path:
        return Path(self.config.run) / PAIRS / ("student" if self.name is None else f"member-{self.name}")

    @property
    def arguments(self) -> list[str]:
        """Options of ``python -m oof job`` that choose this job."""
        return ["--member", str(self.name), "--pretrain"]

    @cached_property
    def depends(self) -> dict[str, str]:
        """Digest of each setting that the result depends on, as :attr:`oof.jobs.fold_job.FoldJob.depends`.

        Settings of scoring have no influence, because pretraining scores nothing.
        """
        member = replace(self.member, score_dtype="same", score_quantise="same")
        config = replace(self.config, prompts=replace(self.config.prompts, score_max_tokens=None))
        parts = training_key_parts(config, member, self.battles)
        return {name: digest(value)[:16] for name, value in parts.items()}

    @cached_property
    def step(self) -> Step:
        return Step(self.folder, digest("pretrain", FORMAT, self.depends), "job.json")

    @property
    def start(self) -> Path:
        """Folder of the pretrained adapter and head.

        Raises:
            UserError: the pretraining has not finished, or its files are damaged.
        """
        if not self.step.done:
            command = f"arena-distill job --run {self.config.run} --member {self.name} --pretrain"
            remedy = "make distill" if self.name is None else f"make oof' or '{command}"
            raise UserError(f"{self.folder}: no finished pretraining with these settings; run '{remedy}' first")
        return self.folder / "adapter"


def pretrain_job(config: Config, name: str | None, battles: str = "") -> PretrainJob | None:
    """Return the pretraining of a member, or of the student (``name`` None); None if the run has no pretraining.

    Args:
        config: of the run.
        name: of the member.
        battles: :func:`oof.jobs.cache_keys.battles_key` of the pairs; "" = of those that are prepared.

    Raises:
        UserError: the pairs have not been prepared in this run.
    """
    if not config.pretrain.data:
        return None
    reading = config.for_student() if name is None else config
    return PretrainJob(reading, name, battles or str(_manifest(Path(config.run))["battles"]))


def read_pairs(config: Config) -> BattleSet:
    """Return the battles of ``pretrain.data``, with the role "pretrain".

    Raises:
        UserError: as :func:`oof.data.battles.read_battles`.
    """
    pretrain = config.pretrain
    reading = {name: getattr(config.data, name) for name in READING}
    data = Data(extra=pretrain.data, columns=pretrain.columns, on_bad_row=pretrain.on_bad_row, **reading)
    try:
        battles = read_battles(data, seed=config.seed, roles=("extra",))
    except UserError as error:  # the reader names the settings of the run's battles: put those of the pairs instead
        message = str(error)
        for theirs, ours in (("data.extra", "data"), ("data.columns", "columns"), ("data.on_bad_row", "on_bad_row")):
            message = message.replace(theirs, f"pretrain.{ours}")
        raise UserError(message) from error
    return replace(battles, table=battles.table.with_columns(role=pl.lit(PAIRS)))


@dataclass(frozen=True)
class PairsDraft:
    """Pairs that are not written yet.

    Attributes:
        battles: :func:`oof.jobs.cache_keys.battles_key` of the pairs; "" without ``pretrain.data``.
        write: writes them; without effect if they are up to date.
    """

    battles: str
    write: Callable[[], None]


def draft_pairs(config: Config, table: pl.DataFrame, test: pl.DataFrame) -> PairsDraft:
    """Read the run's pairs and leave out near-duplicates of scored prompts, unless that is done; nothing is written.

    Args:
        config: of the run; without ``pretrain.data``, there are none.
        table: the run's battles.
        test: the test battles; may be empty.

    Raises:
        UserError: a file cannot be read, or no pair is left.
    """
    if not config.pretrain.data:
        return PairsDraft("", lambda: None)
    folder = Path(config.run) / PAIRS
    scored = [frame.select(COMPARED_COLUMNS) for frame in (table, test) if frame.height]
    step = Step(folder, _pairs_step_key(config, scored), manifest="battles.json")
    if step.done:
        return PairsDraft(str(_manifest(Path(config.run))["battles"]), lambda: None)
    battles = read_pairs(config)
    for problem in battles.problems:
        logger.warning("%s", problem)
    pairs = battles.table.sort("id")
    near = near_scored(pl.concat([*scored, pairs.select(COMPARED_COLUMNS)]), config)[-pairs.height :]
    kept = pairs.filter(near.is_null())
    n_test = int(near.str.starts_with("test ").sum())
    counts = {"rows_read": battles.counts["rows_read"], "bad_rows": battles.dropped.height, "kept": kept.height}
    counts |= {"near_train": pairs.height - kept.height - n_test, "near_test": n_test}
    if not kept.height:
        raise UserError(
            f"pretrain.data: each of its {pairs.height:,} pairs shares a prompt with a scored battle; none is left"
        )
    reasons = pairs.select("file", "row", "id", reason="near-duplicate prompt of scored " + near)
    dropped = reasons.filter(near.is_not_null())
    dropped = pl.concat([battles.dropped.select(dropped.columns), dropped], how="vertical_relaxed")
    summary = {"counts": counts, "battles": battles_key(kept), "schemas": battles.schemas}

    def write() -> None:
        write_parquet(folder / "battles.parquet", kept)
        compared_test = test.select("id", "prompt") if test.height else table.select("id", "prompt").clear()
        write_parquet(folder / "test.parquet", compared_test)  # the audit repeats the comparison with it
        write_dropped(dropped, folder / "dropped.csv")
        step.finish(summary, files=["battles.parquet", "test.parquet", "dropped.csv"])
        message = "pretrain: %d of %d pairs kept; %d share a prompt with a scored battle (train %d, test %d)"
        logger.info(
            message, kept.height, pairs.height, pairs.height - kept.height, counts["near_train"], counts["near_test"]
        )

    return PairsDraft(str(summary["battles"]), write)


def _pairs_step_key(config: Config, scored: list[pl.DataFrame]) -> str:
    pretrain = config.pretrain
    sources = digested_files(pretrain.data)
    compared = [digest(*(frame[name].to_list() for name in COMPARED_COLUMNS)) for frame in scored]
    groups = replace(config.groups, column=None)  # keys of different files have nothing to do with each other
    changed = [reading] if (reading := changed_reading(config.data)) else []
    return digest(
        "pairs", FORMAT, sources, pretrain.columns, pretrain.on_bad_row, groups, config.seed, compared, *changed
    )


def near_scored(table: pl.DataFrame, config: Config) -> pl.Series:
    """Return, per battle, "train <id>" or "test <id>" of a scored battle in its group; null if there is none.

    Args:
        table: (n) battles of any role, with the columns ``COMPARED_COLUMNS``. Scored are those with role train or test.
        config: ``groups`` is read, except its column.
    """
    groups = pl.Series("group", group_battles(table, replace(config.groups, column=None)))
    table = table.select("id", "role", groups)
    scored = table.filter(pl.col("role").is_in(["train", "test"])).sort("role", "id", descending=[True, False])
    first = scored.unique("group", keep="first", maintain_order=True)
    names = first.select("group", near=pl.concat_str("role", "id", separator=" "))
    return table.join(names, on="group", how="left", maintain_order="left")["near"]


def load_pairs(run: Path) -> pl.DataFrame:
    """Return the run's pairs, as :func:`draft_pairs` has them written.

    Raises:
        UserError: they have not been prepared, or their file is damaged.
    """
    manifest = _manifest_path(run)
    return read_parquet(verified(manifest.parent / "battles.parquet", manifest.name, "make oof"))


def _manifest_path(run: Path) -> Path:
    path = run / PAIRS / "battles.json"
    if not path.is_file() or not (path.parent / "battles.parquet").is_file():
        raise UserError(
            f"{path.parent}: the pairs of pretrain.data are not prepared yet; run 'make oof' with this RUN first"
        )
    return path


def _manifest(run: Path) -> dict[str, Any]:
    path = _manifest_path(run)
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not {"battles", "files"} <= manifest.keys():
        raise UserError(f"{path}: damaged; delete it and run 'make oof' again")
    return manifest
