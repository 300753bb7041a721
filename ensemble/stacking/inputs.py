"""Inputs of stage two: labelled battles with OOF logits, and the reader of logits files that were made elsewhere.

With ``stack.logits`` no stage one is needed: battles come from ``data.train`` (ids with labels are enough), and each
file is joined to them by id. The kind of its numbers is recognised from columns and values, and logged:

* ``ab_a, ab_b, ab_tie`` and ``ba_a, ba_b, ba_tie``: both orders, all in canonical class order;
* only ``ab_…`` or only ``ba_…``, or ``a, b, tie``, or ``winner_model_a, winner_model_b, winner_tie``: one
  order, which is used for both;
* rows that lie in [0, 1] and sum to 1 within 0.001 are probabilities, anything else logits;
* with ``data.ties=false`` the columns of the tie may be missing, and are not read: the tie is pinned.

Folds come from a column ``fold`` of the labels or of the logits files. Without such a column they are assigned as in
stage one: near-duplicate prompts never sit on both sides of a split; without text each battle is a group.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.features.battle_features import has_text
from ensemble.features.design_matrix import join_logits
from ensemble.stacking.job_scales import JobScales, fit_job_scales
from oof.classes import CLASSES, ORDERS, TIE, WINNER_COLUMNS, classes_of_data, with_tie
from oof.common.errors import UserError
from oof.common.logits_format import logits_frame
from oof.config import Config
from oof.config.load import MEMBER_NAME
from oof.data import parse_cells, readers
from oof.data.battles import content_fingerprint, read_battles
from oof.data.subset import draw_subset
from oof.folds.assignment import assign_folds
from oof.folds.groups import group_battles
from oof.jobs.dataset import with_fold_column

logger = logging.getLogger(__name__)

ORDER_COLUMNS = {order: tuple(f"{order}_{name}" for name in CLASSES) for order in ORDERS}
SUM_TOLERANCE = 1e-3  # float16 probabilities are off by as much
SMALLEST_PROBABILITY = 1e-7  # a probability of 0 has no logarithm


@dataclass(frozen=True)
class Inputs:
    """The scored battles and each member's logits in their order.

    Attributes:
        table: (n) canonical battles, sorted by id.
        labels: (n,) in {0, 1, 2}.
        groups: (n,) battles that must share a fold.
        folds: (n,).
        logits: member -> (n, 2, 3) float32, as they were made.
        fold_jobs: (k,) numbers that folds 0..k-1 have in the files of logits; empty where the folds are not those of
            the models, because they were assigned here.
        origin: entries of the manifest that say where logits and folds came from; empty for a run's own.
        left_out: reasons by member that ``stack.strict`` left out of ``logits``.
    """

    table: pl.DataFrame
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    folds: NDArray[np.int64]
    logits: dict[str, NDArray[np.float32]]
    fold_jobs: tuple[int, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def job_scales(self) -> JobScales:
        """Constants that bring the fold jobs to one scale; none where the folds are not those of the models."""
        return fit_job_scales(self.logits, self.folds, self.groups) if self.fold_jobs else JobScales()

    @cached_property
    def scaled_logits(self) -> dict[str, NDArray[np.floating]]:
        """Member -> (n, 2, 3) logits on one scale, which the stack is fitted on."""
        return self.job_scales.out_of_fold(self.logits, self.folds)


@dataclass(frozen=True)
class LogitsFile:
    """A logits file after reading.

    Attributes:
        frame: in the open logits format, with ``fold`` (Int64) where the file has one.
        description: kind of numbers, orders and number of rows, in words.
    """

    frame: pl.DataFrame
    description: str


def external_inputs(config: Config) -> Inputs:
    """Return the battles of ``data.train`` with the logits of ``stack.logits``.

    Raises:
        UserError: the run holds its own stage one; a file cannot be read; ids or folds of the files do not agree; a
            number is not finite.
    """
    if (Path(config.run) / "run.json").is_file():
        raise UserError(f"{config.run}: holds its own stage one; choose another RUN for stack.logits")
    if not config.data.train:
        raise UserError("stack.logits needs labels to learn from: set data.train (make stack DATA=labels.csv LOGITS=…)")
    for name in config.stack.logits:
        if not MEMBER_NAME.fullmatch(name):
            raise UserError(f"stack.logits: member name {name!r}: use letters, digits, '_', '-' and '.'")
    battles = read_battles(with_fold_column(config), seed=config.seed, roles=("train",))
    table = draw_subset(battles.table.sort("id"), config.data.subset, config.seed)
    left_out = pl.concat([battles.dropped.select("id"), battles.table.join(table, on="id", how="anti").select("id")])
    left_out = left_out.join(table, on="id", how="anti")  # a repeated row has the id of the one that was kept
    files = {name: read_logits(path, config.data.ties) for name, path in config.stack.logits.items()}
    logits = {}
    for name, file in files.items():
        path = config.stack.logits[name]
        # The file may hold logits of battles that data.on_bad_row=drop or data.subset left out.
        kept = file.frame.join(left_out, on="id", how="anti", maintain_order="left")
        logits[name] = join_logits(table["id"].to_list(), kept, path)
        n_dropped = file.frame.height - kept.height
        suffix = f", {n_dropped} of battles that were left out" if n_dropped else ""
        logger.info("%s: %s: %s%s", name, path, file.description, suffix)
    table, folds_from = _with_folds(table, {config.stack.logits[name]: file.frame for name, file in files.items()})
    text = has_text(table)
    groups = group_battles(table, config.groups) if text or config.groups.column else np.arange(table.height)
    fold_jobs = () if folds_from == "assigned" else tuple(table["fold"].unique().sort().to_list())
    k = config.folds.k if folds_from == "assigned" else table["fold"].n_unique()
    folds = assign_folds(table, groups, k, config.seed, config.data.ties)
    table = table.with_columns(pl.Series("group", groups), pl.Series("fold", folds))
    sources = "text and logits" if text else "logits alone, there is no text"
    logger.info("%d battles in %d folds (%s); features of %s", table.height, k, folds_from, sources)
    origin = {
        "logits": {name: file.description for name, file in files.items()},
        "folds_from": folds_from,
        "text": text,
        "fingerprint": content_fingerprint(table),
    }
    labels = table["label"].to_numpy().astype(np.int64)
    rows = labels, groups.astype(np.int64), folds.astype(np.int64)
    return Inputs(table, *rows, logits, fold_jobs, {"inputs": origin})


# --- one file ------------------------------------------------------------------------------------------------


def read_logits(path: str, ties: bool = True) -> LogitsFile:
    """Return a CSV, TSV, JSON lines or Parquet file of logits or probabilities in the open logits format.

    Args:
        path: of the file.
        ties: ``data.ties``.

    Raises:
        UserError: a row cannot be read, the columns are unknown, a cell is not a finite number, probabilities and
            logits are mixed, or the rows are labels.
    """
    columns = {"id", "fold", *CLASSES, *WINNER_COLUMNS, *sum(ORDER_COLUMNS.values(), ())}
    tables = readers.read_raw(readers.expand([path])[0], columns)
    if len(tables) != 1:
        raise UserError(f"{path}: holds {len(tables)} files; name one")
    raw = tables[0]
    if raw.faults:
        fault = raw.faults[0]
        raise UserError(f"{path}, row {fault.row}: {fault.reason} ({len(raw.faults)} such rows); {fault.remedy}")
    if "id" not in raw.columns:
        raise UserError(f"{path}: missing column 'id'; logits are joined to battles by id, never by position")
    ids = pl.Series("id", _each(path, "id", raw.columns["id"], raw.rows, parse_cells.identifier), dtype=pl.String)
    sets, orders = _columns(path, raw.names, ties)
    values = np.stack([_numbers(path, name, raw.columns[name], raw.rows) for name in sum(sets, ())], axis=1)
    values = values.reshape(len(ids), len(sets), len(sets[0]))
    if not len(ids):
        raise UserError(f"{path}: no rows")
    logits, kind = _as_logits(path, values, raw.rows)
    if not ties:
        logits = with_tie(logits[..., :TIE])
    if len(sets) == 1:
        logits = np.repeat(logits, 2, axis=1)
    frame = logits_frame(ids, logits, 0).drop("fold")
    if "fold" in raw.columns:
        folds = _each(path, "fold", raw.columns["fold"], raw.rows, parse_cells.integer)
        frame = frame.with_columns(pl.Series("fold", folds, dtype=pl.Int64))
    return LogitsFile(frame, f"{kind}, {orders}, {len(ids)} rows")


def _columns(path: str, columns: list[str], ties: bool) -> tuple[list[tuple[str, ...]], str]:
    """Return the sets of columns to read, and the orders in words: triples, or pairs where no tie is needed or given.

    A tie's column that is given is read without ``ties``, too: whether numbers are probabilities depends on it.
    """
    n = len(classes_of_data(ties))
    if len(both := [names for names in ORDER_COLUMNS.values() if set(names[:n]) <= set(columns)]) == 2:
        return both if set(sum(both, ())) <= set(columns) else [names[:n] for names in both], "both orders"
    for names in (*ORDER_COLUMNS.values(), CLASSES, WINNER_COLUMNS):
        if set(names[:n]) <= set(columns):
            return [names if set(names) <= set(columns) else names[:n]], f"one order ({', '.join(names[:n])})"
    others = [name for name in columns if name not in ("id", "fold")]
    pairs = any(set(names[:TIE]) <= set(columns) for names in (*ORDER_COLUMNS.values(), CLASSES, WINNER_COLUMNS))
    raise UserError(
        f"{path}: no logits found among the columns {', '.join(others) or 'none'}; expected "
        f"{', '.join(sum(ORDER_COLUMNS.values(), ()))}, or {', '.join(CLASSES)}, or {', '.join(WINNER_COLUMNS)}"
        + ("; set data.ties=false if no battle can end in a tie" if pairs else "")
    )


def _each(path: str, column: str, values: list[Any], rows: list[int], read: Callable[[object], Any]) -> list[Any]:
    read_values = []
    for value, row in zip(values, rows, strict=True):
        try:
            read_values.append(read(value))
        except parse_cells.CellError as error:
            raise UserError(f"{path}, row {row}, column {column}: {error}") from error
    return read_values


def _numbers(path: str, column: str, values: list[Any], rows: list[int]) -> NDArray[np.float64]:
    """Return finite numbers. Raises: UserError: names the first cell that is not, and their count."""
    numbers = pl.Series(values, strict=False).cast(pl.Float64, strict=False).to_numpy().astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers) | (np.abs(numbers) > np.finfo(np.float32).max))
    if len(bad):
        raise UserError(
            f"{path}, row {rows[bad[0]]}, column {column}: {values[bad[0]]!r} is not a finite number "
            f"({len(bad):,} such cells); score these battles again"
        )
    return numbers


def _as_logits(path: str, values: NDArray[np.float64], rows: list[int]) -> tuple[NDArray[np.float64], str]:
    """Return (n, orders, classes) logits from logits or probabilities, and which of the two the values are."""
    distribution = ((values >= 0) & (values <= 1)).all(axis=2) & (np.abs(values.sum(axis=2) - 1) <= SUM_TOLERANCE)
    likely = distribution.all(axis=1)
    if not likely.all():
        if likely.mean() > 0.5:
            row, good = rows[int(np.flatnonzero(~likely)[0])], int(likely.sum())
            raise UserError(
                f"{path}, row {row}: no probabilities (they lie outside [0, 1] or do not sum to 1), while {good:,} of "
                f"{len(rows):,} rows are; correct the other {len(rows) - good:,}, or give logits"
            )
        return values, "logits"
    if ((values == 0) | (values == 1)).all():
        raise UserError(f"{path}: every row is a label, not a prediction (only 0 and 1); give probabilities or logits")
    return np.log(np.maximum(values, SMALLEST_PROBABILITY)), "probabilities"


# --- folds ---------------------------------------------------------------------------------------------------


def _with_folds(table: pl.DataFrame, frames: dict[str, pl.DataFrame]) -> tuple[pl.DataFrame, str]:
    """Return the table with the files' own folds, and their source ("assigned": no file has folds).

    Raises:
        UserError: two files put a battle into different folds.
    """
    sources = {name: frame for name, frame in frames.items() if "fold" in frame.columns}
    if table["fold"].is_not_null().any():
        sources = {"the labels": table.select("id", "fold"), **sources}
    if not sources:
        return table, "assigned"
    first, *others = sources
    folds = table.select("id").join(sources[first].select("id", "fold"), on="id", how="left", maintain_order="left")
    for other in others:
        both = folds.join(sources[other].select("id", other="fold"), on="id", how="left")
        differing = both.filter(pl.col("fold").cast(pl.Int64).ne_missing(pl.col("other").cast(pl.Int64)))
        if differing.height:
            row = differing.row(0, named=True)
            raise UserError(
                f"column fold: {first} and {other} disagree on {differing.height:,} battles, first {row['id']} "
                f"({row['fold']} and {row['other']}); logits of different folds cannot be stacked without leakage"
            )
    return table.with_columns(folds["fold"].cast(pl.Int32)), f"from {first}"
