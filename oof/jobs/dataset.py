"""The run's battles: read, grouped and put into folds once, then read back by every later stage.

``prepare`` writes ``battles.parquet`` (the canonical table with ``group`` and ``fold``), ``folds.parquet`` and,
where rows were dropped, ``dropped.csv``. Later stages call ``load_battles`` and see exactly what stage one saw.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
from importlib import metadata
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.common.atomic_files import read_json, read_parquet, rewrite_json, verified, write_parquet
from oof.common.digests import digest, file_digest
from oof.common.errors import UserError
from oof.common.steps import Step
from oof.config import Config, Data, to_dict
from oof.data import synth
from oof.data.battles import content_fingerprint, read_battles, write_dropped
from oof.data.prompt_quality import prompt_quality, prompt_texts
from oof.folds.assignment import assign_folds, fold_report
from oof.folds.groups import group_battles

logger = logging.getLogger(__name__)

FORMAT = 2  # raise when what the stages write changes its meaning
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "lightgbm", "optuna", "scikit-learn", "numpy", "polars")


def resolve_data(config: Config) -> Data:
    """Return the data section with real files: without ``data.train``, the synthetic arena in ``RUN/synth``."""
    data = config.data
    if data.train or data.synth.battles == 0:
        if not data.train:
            raise UserError("no training battles: set data.train (make … DATA=train.csv) or data.synth.battles")
        return data
    step = Step(Path(config.run) / "synth", digest("synth", FORMAT, data.synth, synth.RECIPE))
    if not step.done:
        step.clear()
        synth.write_arena(step.folder, data.synth.battles, data.synth.seed, data.synth.test_battles)
        step.finish()
        logger.info("synthetic arena: %d battles written to %s", data.synth.battles, step.folder)
    paths = {name: str(step.folder / f"{name}.csv") for name in ("train", "test", "truth")}
    return dataclasses.replace(
        data, train=[paths["train"]], test=data.test or [paths["test"]], truth=data.truth or paths["truth"]
    )


def prepare(config: Config) -> pl.DataFrame:
    """Read, group and fold the training battles into the run, unless that is done; return the table.

    Rows are sorted by id within their role, so that nothing downstream depends on the order of files or rows.

    Raises:
        UserError: as :func:`oof.data.battles.read_battles` and :func:`oof.folds.assignment.assign_folds`.
    """
    run, data = Path(config.run), resolve_data(config)
    sources = {role: [(p, file_digest(Path(p))) for p in existing(getattr(data, role))] for role in _ROLES}
    settings = [data.columns, data.on_bad_row, data.extra_weight, config.groups, config.folds, config.seed]
    settings += [data.min_prompt_quality] if data.min_prompt_quality else []
    step = Step(run, digest("battles", FORMAT, sources, *settings), manifest="battles.json")
    if step.done:
        return load_battles(run)
    battles = read_battles(data, seed=config.seed, roles=_ROLES)
    for problem in battles.problems:
        logger.warning("%s", problem)
    table = battles.table.sort("role", "id")
    groups = group_battles(table, config.groups)
    folds = assign_folds(table, groups, config.folds.k, config.seed)
    table = table.with_columns(pl.Series("group", groups), pl.Series("fold", folds.astype(np.int32)))
    table, n_left_out = leave_out_junk(table, data.min_prompt_quality)
    write_parquet(run / "battles.parquet", table)
    write_parquet(run / "folds.parquet", table.select("id", "role", "group", "fold"))
    files = ["battles.parquet", "folds.parquet"]
    if battles.dropped.height:
        write_dropped(battles.dropped, run / "dropped.csv")
        files.append("dropped.csv")
    balance = fold_report(table, groups, folds, config.folds.k)
    counts = battles.counts | ({"not_trained_on": n_left_out} if data.min_prompt_quality else {})
    facts = {"balance": balance, "counts": counts, "schemas": battles.schemas, "truth": data.truth}
    step.finish({**facts, "fingerprint": content_fingerprint(table)}, files=files)
    for role in ("extra", "unlabelled"):
        held, free = balance[role]["held_out"], balance[role]["free"]
        if held or free:
            logger.info("%s: %d battles, %d of them held out with the fold of their prompt", role, held + free, held)
    scored = table.filter(pl.col("role") == "train")
    logger.info(
        "battles: %d scored in %d groups and %d folds (%s)",
        scored.height,
        scored["group"].n_unique(),
        config.folds.k,
        ", ".join(f"{name}: {schema}" for name, schema in battles.schemas.items()),
    )
    return table


def leave_out_junk(table: pl.DataFrame, least: float) -> tuple[pl.DataFrame, int]:
    """Return the table with weight 0 for labelled battles of a prompt quality under ``least``, and how many those are.

    Groups and folds stay as they are and the battles are scored like any other, so that runs with and without can be
    compared battle by battle.

    Raises:
        UserError: no train battle would be left to train on.
    """
    if least <= 0:
        return table, 0
    poor = pl.Series("poor", prompt_quality(prompt_texts(table)) < least) & (table["role"] != "unlabelled")
    kept = ((table["role"] == "train") & ~poor).sum()
    if not kept:
        raise UserError(f"data.min_prompt_quality={least} leaves no battle to train on; lower it")
    weight = pl.when(poor).then(0.0).otherwise(pl.col("weight"))
    return table.with_columns(weight.alias("weight")), int(poor.sum())


_ROLES = ("train", "extra", "unlabelled")


def existing(patterns: list[str]) -> list[str]:
    """Expand globs in a fixed order; missing files are left for the reader to name."""
    paths: list[str] = []
    for pattern in patterns:
        found = sorted(str(path) for path in Path().glob(pattern)) if not Path(pattern).is_absolute() else []
        paths += found or [pattern]
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise UserError(f"{missing[0]}: no such file; check DATA= / data.train and the working folder")
    return paths


def load_battles(run: Path) -> pl.DataFrame:
    """Return the run's battles as stage one wrote them.

    Raises:
        UserError: stage one has not run here, or its table is damaged.
    """
    manifest = run / "battles.json"
    if not manifest.is_file() or not (run / "battles.parquet").is_file():
        raise UserError(f"{run}: no battles here yet; run 'make oof' with this RUN first")
    return read_parquet(verified(run / "battles.parquet", manifest.name, "make oof"))


def read_test(config: Config) -> pl.DataFrame:
    """Return the battles to predict in their files' order; an empty table when none are configured."""
    data = resolve_data(config) if config.data.synth.battles and not config.data.train else config.data
    if not data.test:
        return pl.DataFrame()
    return read_battles(data, seed=config.seed, roles=("test",)).table


def read_sample(config: Config, n: int) -> tuple[int, NDArray[np.float64]]:
    """Return the number of training battles and the characters of all three texts of ``n`` of them; 0 without data."""
    if not config.data.train and not config.data.synth.battles:
        return 0, np.empty(0)
    if not config.data.train:
        parts = synth.make_battles(min(n, config.data.synth.battles), config.data.synth.seed)[:3]
        characters = [
            sum(len(turn or "") for part in battle for turn in part.turns) for battle in zip(*parts, strict=True)
        ]
        return config.data.synth.battles, np.array(characters, dtype=np.float64)
    table = read_battles(config.data, seed=config.seed, roles=("train",)).table
    part = table.sample(min(n, table.height), seed=config.seed)
    return table.height, text_characters(part)


def text_characters(table: pl.DataFrame) -> NDArray[np.float64]:
    """Return (n,) characters of prompt and both responses together."""
    texts = [pl.col(name).list.join("\n").str.len_chars() for name in ("prompt", "response_a", "response_b")]
    return table.select(pl.sum_horizontal(texts)).to_series().to_numpy().astype(np.float64)


def write_run(config: Config) -> None:
    """Write ``run.json``: configuration, versions, hardware and data of the finished stage one."""
    run = Path(config.run)
    versions = {name: metadata.version(name) for name in LIBRARIES}
    hardware = {"machine": platform.machine(), "python": platform.python_version(), "system": platform.system()}
    fingerprint = read_json(run / "battles.json")["fingerprint"]
    facts = {"config": to_dict(config), "versions": versions, "hardware": hardware, "data": fingerprint}
    rewrite_json(run / "run.json", facts)
