"""Training before the folds: members and the student first learn from other people's preference pairs.

``pretrain.data`` names preference files (chosen/rejected pairs, other arenas). They are read once into
``RUN/pretrain/battles.parquet``, without every pair whose prompt is a near-duplicate of a scored battle's (train or
test; what is linked through other battles counts, as in a group). Then each member and the student are trained on
them once, by their own recipe, into ``RUN/pretrain/<who>/adapter``, from which their fold jobs (the fold students)
start instead of from a fresh head and adapters. Imports no torch; :func:`oof.jobs.run_fold_job.run_pretrain` trains.

Source: the winning solution of Kaggle's LMSYS competition, 2024, whose first step this is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from oof.common.atomic_files import read_json, read_parquet, verified, write_parquet
from oof.common.digests import digest, file_digest
from oof.common.errors import UserError
from oof.common.steps import Step
from oof.config import Config, Data, Member
from oof.data.battles import BattleSet, read_battles, write_dropped
from oof.folds.groups import group_battles
from oof.jobs.cache_keys import battles_key, training_key_parts
from oof.jobs.dataset import FORMAT, existing

logger = logging.getLogger(__name__)

PAIRS = "pretrain"  # the folder, and the role of its battles
COMPARED = ("id", "role", "prompt", "response_a", "response_b")


@dataclass(frozen=True)
class PretrainJob:
    """Train a member (``name`` None: the student) on the run's extra pairs."""

    config: Config
    name: str | None
    battles: str  # battles_key of the pairs

    @cached_property
    def member(self) -> Member:
        """The recipe: the member's own but for what ``pretrain`` sets."""
        own = self.config.distill.student if self.name is None else self.config.members[self.name]
        here = self.config.pretrain
        given = {"lr": here.lr, "head_lr": here.head_lr, "batch_battles": here.batch_battles}
        changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(own, train=replace(own.train, epochs=here.epochs, **changed))

    @property
    def label(self) -> str:
        return f"{self.name or 'student'} pretraining"

    @property
    def folder(self) -> Path:
        return Path(self.config.run) / PAIRS / ("student" if self.name is None else f"member-{self.name}")

    @property
    def arguments(self) -> list[str]:
        """Of ``python -m oof job``."""
        return ["--member", str(self.name), "--pretrain"]

    @cached_property
    def depends(self) -> dict[str, str]:
        """As :attr:`oof.jobs.fold_job.FoldJob.depends`; nothing is scored here."""
        member = replace(self.member, score_dtype="same")
        config = replace(self.config, prompts=replace(self.config.prompts, score_max_tokens=None))
        parts = training_key_parts(config, member, self.battles)
        return {name: digest(value)[:16] for name, value in parts.items()}

    @cached_property
    def step(self) -> Step:
        return Step(self.folder, digest("pretrain", FORMAT, self.depends), "job.json")

    @property
    def start(self) -> Path:
        """The folder to start from.

        Raises:
            UserError: the training is not done, or its files are damaged.
        """
        if not self.step.done:
            again = f"python -m oof job CONFIG … --member {self.name} --pretrain"
            remedy = "make distill" if self.name is None else f"make oof' or '{again}"
            raise UserError(f"{self.folder}: no finished pretraining here for these settings; run '{remedy}' first")
        return self.folder / "adapter"


def start_of(job: PretrainJob | None) -> Path | None:
    """Return the folder to start from; None = fresh."""
    return None if job is None else job.start


def pretrain_job(config: Config, name: str | None) -> PretrainJob | None:
    """Return a member's (None: the student's) pretraining; None where the run has no such stage.

    Raises:
        UserError: the pairs have not been prepared in this run.
    """
    if not config.pretrain.data:
        return None
    manifest = _manifest(Path(config.run))
    return PretrainJob(config, name, str(manifest["battles"]))


def read_pairs(config: Config) -> BattleSet:
    """Return the battles of ``pretrain.data``, role "pretrain".

    Raises:
        UserError: as :func:`oof.data.battles.read_battles`.
    """
    here = config.pretrain
    data = Data(extra=existing(here.data), columns=here.columns, on_bad_row=here.on_bad_row)
    try:
        found = read_battles(data, seed=config.seed, roles=("extra",))
    except UserError as error:  # the reader knows these settings by the names that they have for the run's battles
        said = str(error)
        for name, ours in (("data.extra", "data"), ("data.columns", "columns"), ("data.on_bad_row", "on_bad_row")):
            said = said.replace(name, f"pretrain.{ours}")
        raise UserError(said) from error
    return replace(found, table=found.table.with_columns(role=pl.lit(PAIRS)))


def prepare_pairs(config: Config, table: pl.DataFrame, test: pl.DataFrame) -> None:
    """Write the run's extra pairs without those near a scored battle, unless that is done.

    Args:
        table: the run's battles.
        test: the test battles; may be empty.

    Raises:
        UserError: a file cannot be read, or no pair is left.
    """
    folder, here = Path(config.run) / PAIRS, config.pretrain
    if not here.data:
        return
    others = [frame.select(COMPARED) for frame in (table, test) if frame.height]
    sources = [(path, file_digest(Path(path))) for path in existing(here.data)]
    compared = [digest(*(frame[name].to_list() for name in COMPARED)) for frame in others]
    groups = replace(config.groups, column=None)  # the files' own keys say nothing about each other
    key = digest("pairs", FORMAT, sources, here.columns, here.on_bad_row, groups, config.seed, compared)
    step = Step(folder, key, manifest="battles.json")
    if step.done:
        return
    found = read_pairs(config)
    for problem in found.problems:
        logger.warning("%s", problem)
    pairs = found.table.sort("id")
    near = near_scored(pl.concat([*others, pairs.select(COMPARED)]), config)[-pairs.height :]
    kept = pairs.filter(near.is_null())
    n_test = int(near.str.starts_with("test ").sum())
    counts = {"rows_read": found.counts["rows_read"], "bad_rows": found.dropped.height, "kept": kept.height}
    counts |= {"near_train": pairs.height - kept.height - n_test, "near_test": n_test}
    if not kept.height:
        raise UserError(
            f"pretrain.data: each of its {pairs.height:,} pairs shares a prompt with a scored battle; none is left"
        )
    write_parquet(folder / "battles.parquet", kept)
    compared_test = test.select("id", "prompt") if test.height else table.select("id", "prompt").clear()
    write_parquet(folder / "test.parquet", compared_test)  # what an audit compares with
    reasons = pairs.select("file", "row", "id", reason="near-duplicate prompt of scored " + near)
    dropped = reasons.filter(near.is_not_null())
    dropped = pl.concat([found.dropped.select(dropped.columns), dropped], how="vertical_relaxed")
    write_dropped(dropped, folder / "dropped.csv")
    facts = {"counts": counts, "battles": battles_key(kept), "schemas": found.schemas}
    step.finish(facts, files=["battles.parquet", "test.parquet", "dropped.csv"])
    logger.info(
        "pretrain: %d of %d pairs kept; %d share a prompt with a scored battle (train %d, test %d)",
        kept.height,
        pairs.height,
        pairs.height - kept.height,
        counts["near_train"],
        n_test,
    )


def near_scored(table: pl.DataFrame, config: Config) -> pl.Series:
    """Return for each of (n,) battles "train <id>" or "test <id>" of a scored battle in its group, null where none is.

    Scored battles have the roles train and test.
    """
    numbers = pl.Series("group", group_battles(table, replace(config.groups, column=None)))
    table = table.select("id", "role", numbers)
    scored = table.filter(pl.col("role").is_in(["train", "test"])).sort("role", "id", descending=[True, False])
    first = scored.unique("group", keep="first", maintain_order=True)
    named = first.select("group", near=pl.concat_str("role", "id", separator=" "))
    return table.join(named, on="group", how="left", maintain_order="left")["near"]


def load_pairs(run: Path) -> pl.DataFrame:
    """Return the run's extra pairs.

    Raises:
        UserError: they have not been prepared, or their file is damaged.
    """
    manifest = _manifest_path(run)
    return read_parquet(verified(manifest.parent / "battles.parquet", manifest.name, "make oof"))


def _manifest_path(run: Path) -> Path:
    path = run / PAIRS / "battles.json"
    if not path.is_file() or not (path.parent / "battles.parquet").is_file():
        raise UserError(
            f"{path.parent}: the pairs of pretrain.data are not here yet; run 'make oof' with this RUN first"
        )
    return path


def _manifest(run: Path) -> dict[str, Any]:
    path = _manifest_path(run)
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not {"battles", "files"} <= manifest.keys():
        raise UserError(f"{path}: damaged; delete it and run 'make oof' again")
    return manifest
