"""Battles of a run: read, grouped and split into folds once, then read back by every later stage.

:func:`draft_battles` has ``battles.parquet`` written (the canonical table with ``group`` and ``fold``),
``folds.parquet`` and, if rows were dropped, ``dropped.csv``. Later stages call :func:`load_battles`, so all stages read
the same rows.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.common.atomic_files import read_json, read_parquet, rewrite_json, verified, write_parquet
from oof.common.digests import digest
from oof.common.errors import UserError
from oof.common.steps import Step
from oof.config import Config, Data, to_dict, without_speed_settings
from oof.config.schema_data import READING
from oof.config.stored import stored_settings
from oof.data import synth
from oof.data.battles import content_fingerprint, read_battles, write_dropped
from oof.data.prompt_quality import prompt_quality
from oof.data.subset import draw_subset, subset_size
from oof.data.text_columns import prompt_texts
from oof.folds.assignment import assign_folds
from oof.folds.groups import group_battles
from oof.jobs.source_files import digested_files

logger = logging.getLogger(__name__)

FORMAT = 2  # of run folders, part of every content key; raise it when a file's meaning changes
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "lightgbm", "optuna", "scikit-learn", "numpy", "polars")
ONLY_LOGITS = "stacks logits that were made elsewhere (stack.logits), so it holds no models and no battles to train on"
_ROLES = ("train", "extra", "unlabelled")  # of the battles that a run keeps; test battles are read when they are scored


def resolve_data(config: Config) -> Data:
    """Return the data section with files to read: without ``data.train``, the synthetic arena in ``RUN/synth``.

    Raises:
        UserError: neither ``data.train`` nor ``data.synth.battles`` is set, or ``data.votes`` without the former.
    """
    data = with_fold_column(config)
    if data.train:
        return data
    if data.votes:
        raise UserError("data.votes needs the battles that were voted on: set data.train (make … DATA=train.csv)")
    if not data.synth.battles:
        raise UserError("no training battles: set data.train (make … DATA=train.csv) or data.synth.battles")
    step = _arena_step(config)
    if not step.done:
        step.clear()
        synth.write_arena(step.folder, data.synth.battles, data.synth.seed, data.synth.test_battles)
        step.finish()
        logger.info("synthetic arena: %d battles written to %s", data.synth.battles, step.folder)
    paths = {name: str(step.folder / f"{name}.csv") for name in ("train", "test", "truth")}
    return dataclasses.replace(
        data, train=[paths["train"]], test=data.test or [paths["test"]], truth=data.truth or paths["truth"]
    )


def changed_reading(data: Data) -> dict[str, Any]:
    """Return the settings of reading that differ from their defaults, for content keys."""
    return {name: getattr(data, name) for name in READING if getattr(data, name) != getattr(Data(), name)}


def with_fold_column(config: Config) -> Data:
    """Return the data section, in which ``folds.column`` is the files' name of the column fold."""
    column = config.folds.column
    return dataclasses.replace(config.data, columns={**config.data.columns, "fold": column}) if column else config.data


@dataclass(frozen=True)
class Draft:
    """A table of battles that is not written yet.

    Attributes:
        table: the run's battles with ``group`` and ``fold``.
        write: writes the table and its manifest; without effect if they are up to date.
    """

    table: pl.DataFrame
    write: Callable[[], None]


def draft_battles(config: Config) -> Draft:
    """Read, group and split the battles of the run, unless that is done; of them nothing is written yet.

    Rows are sorted by id within their role, so that no later result depends on the order of files or rows.

    Raises:
        UserError: as :func:`oof.data.battles.read_battles` and :func:`oof.folds.assignment.assign_folds`.
    """
    run, data = Path(config.run), resolve_data(config)
    step = Step(run, _battles_step_key(config, data), manifest="battles.json")
    if step.done:
        return Draft(load_battles(run), lambda: None)
    battles = read_battles(data, seed=config.seed, roles=_ROLES)
    for problem in battles.problems:
        logger.warning("%s", problem)
    table = draw_subset(battles.table.sort("role", "id"), data.subset, config.seed)
    groups = group_battles(table, config.groups)
    folds = assign_folds(table, groups, config.folds.k, config.seed, data.ties)
    table = table.with_columns(pl.Series("group", groups), pl.Series("fold", folds.astype(np.int32)))
    table, n_left_out = leave_out_junk(table, data.min_prompt_quality)
    counts = battles.counts | ({"not_trained_on": n_left_out} if data.min_prompt_quality else {})
    counts |= {"not_in_subset": battles.table.height - table.height} if data.subset < 1 else {}
    summary = {"counts": counts, "schemas": battles.schemas, "truth": data.truth}
    summary["codings"] = battles.codings()

    def write() -> None:
        write_parquet(run / "battles.parquet", table)
        write_parquet(run / "folds.parquet", table.select("id", "role", "group", "fold"))
        files = ["battles.parquet", "folds.parquet"]
        if battles.dropped.height:
            write_dropped(battles.dropped, run / "dropped.csv")
            files.append("dropped.csv")
        step.finish({**summary, "fingerprint": content_fingerprint(table)}, files=files)
        _log_summary(table, config.folds.k, battles.schemas)

    return Draft(table, write)


def other_arena(config: Config) -> bool:
    """Return whether the run holds a synthetic arena of other settings, which :func:`resolve_data` would replace."""
    return not config.data.train and config.data.synth.battles > 0 and _arena_step(config).earlier() is not None


def _arena_step(config: Config) -> Step:
    return Step(Path(config.run) / "synth", digest("synth", FORMAT, config.data.synth, synth.VERSION))


def _battles_step_key(config: Config, data: Data) -> str:
    sources = {role: digested_files(getattr(data, role)) for role in _ROLES}
    settings = [data.columns, data.on_bad_row, data.extra_weight, config.groups]
    settings += [without_speed_settings(config.folds), config.seed]
    settings += [data.min_prompt_quality] if data.min_prompt_quality else []
    settings += [changed] if (changed := changed_reading(data)) else []
    settings += [("subset", data.subset)] if data.subset < 1 else []
    settings += [("votes", digested_files(data.votes))] if data.votes else []
    return digest("battles", FORMAT, sources, *settings)


def _log_summary(table: pl.DataFrame, k: int, schemas: Mapping[str, str]) -> None:
    extra, unlabelled = (table.filter(pl.col("role") == role)["fold"].to_numpy() for role in ("extra", "unlabelled"))
    if len(extra):
        per_fold = ", ".join(map(str, np.bincount(extra, minlength=k)))
        logger.info("extra: %d battles, held out by fold: %s", len(extra), per_fold)
    if len(unlabelled):
        logger.info(
            "unlabelled: %d battles; %d of them have the prompt of a scored battle and are held out with its fold",
            len(unlabelled),
            (unlabelled >= 0).sum(),
        )
    scored = table.filter(pl.col("role") == "train")
    logger.info(
        "battles: %d scored in %d groups and %d folds (%s)",
        scored.height,
        scored["group"].n_unique(),
        k,
        ", ".join(f"{name}: {schema}" for name, schema in schemas.items()),
    )


def leave_out_junk(table: pl.DataFrame, minimum: float) -> tuple[pl.DataFrame, int]:
    """Exclude labelled battles with a prompt quality below ``minimum`` from training, by weight 0.

    Groups and folds do not change and these battles are scored like all others, so that runs with and without them can
    be compared battle by battle.

    Returns:
        The table, and the number of excluded battles.

    Raises:
        UserError: no train battle would be left to train on.
    """
    if minimum <= 0:
        return table, 0
    junk = pl.Series("junk", prompt_quality(prompt_texts(table)) < minimum) & (table["role"] != "unlabelled")
    if not ((table["role"] == "train") & ~junk).any():
        raise UserError(f"data.min_prompt_quality={minimum} leaves no battle to train on; lower it")
    weight = pl.when(junk).then(0.0).otherwise(pl.col("weight"))
    return table.with_columns(weight.alias("weight")), int(junk.sum())


def load_battles(run: Path, unlabelled: bool = True) -> pl.DataFrame:
    """Return the battles of a run as stage one wrote them.

    Args:
        run: the run folder.
        unlabelled: whether to return those of ``data.unlabelled``, too, which may be many more than the others.

    Raises:
        UserError: stage one has not run in this folder, or the table is damaged.
    """
    manifest = run / "battles.json"
    if not manifest.is_file() or not (run / "battles.parquet").is_file():
        if ((stored_settings(run) or {}).get("stack") or {}).get("logits"):
            raise UserError(f"{run}: {ONLY_LOGITS}; this command needs a RUN of your own fold jobs")
        raise UserError(f"{run}: this run has no battles yet; run 'make oof' with this RUN first")
    path = verified(run / "battles.parquet", manifest.name, "make oof")
    return read_parquet(path, None if unlabelled else pl.col("role") != "unlabelled")


def read_test(config: Config) -> pl.DataFrame:
    """Return the test battles in the order of their files; an empty table if none are configured."""
    data = resolve_data(config) if config.data.synth.battles and not config.data.train else config.data
    if not data.test:
        return pl.DataFrame()
    return read_battles(data, seed=config.seed, roles=("test",)).table


def read_sample(config: Config, n: int) -> tuple[int, NDArray[np.float64]]:
    """Return the number of training battles (0 without data), and the lengths of ``n`` of them in characters."""
    share = config.data.subset
    if not config.data.train and not config.data.synth.battles:
        return 0, np.empty(0)
    if not config.data.train:
        texts = synth.make_battles(min(n, config.data.synth.battles), config.data.synth.seed)[:3]
        characters = [
            sum(len(turn or "") for text in battle for turn in text.turns) for battle in zip(*texts, strict=True)
        ]
        return subset_size(config.data.synth.battles, share), np.array(characters, dtype=np.float64)
    table = draw_subset(read_battles(config.data, seed=config.seed, roles=("train",)).table, share, config.seed)
    return table.height, text_characters(table.sample(min(n, table.height), seed=config.seed))


def text_characters(table: pl.DataFrame) -> NDArray[np.float64]:
    """Return (n,) characters of prompt and both responses together."""
    texts = [pl.col(name).list.join("\n").str.len_chars() for name in ("prompt", "response_a", "response_b")]
    return table.select(pl.sum_horizontal(texts)).to_series().to_numpy().astype(np.float64)


def write_run(config: Config) -> None:
    """Write ``run.json``: configuration, library versions, hardware and data fingerprint of a finished stage one."""
    run = Path(config.run)
    versions = {name: metadata.version(name) for name in LIBRARIES}
    hardware = {"machine": platform.machine(), "python": platform.python_version(), "system": platform.system()}
    fingerprint = read_json(run / "battles.json")["fingerprint"]
    record = {"config": to_dict(config), "versions": versions, "hardware": hardware, "data": fingerprint}
    rewrite_json(run / "run.json", record)
