"""Submission file: written from parts, read back and checked, and only then put in place of an older one."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import polars as pl

from oof.classes import WINNER_COLUMNS, A, B
from oof.common.atomic_files import read_parquet, replacing
from oof.common.errors import UserError

SUM_TOLERANCE = 1e-6
COLUMNS = {"probabilities": ["id", *WINNER_COLUMNS], "winner": ["id", "winner"]}  # by predict.format
WINNERS = ("model_a", "model_b")  # the values of column "winner"


def write_submission(path: Path, parts: Sequence[Path], form: str = "probabilities") -> int:
    """Write a submission from its parts and check it; an older one is replaced only by a complete, valid one.

    Args:
        path: the CSV file.
        parts: Parquet files with id and the three probabilities, in the test files' order.
        form: ``predict.format``.

    Returns:
        The number of battles.

    Raises:
        UserError: an id occurs twice, a probability is not valid, or the written file is not.
    """
    ids = pl.concat([read_parquet(part)["id"] for part in parts])
    if ids.n_unique() != len(ids):
        repeated = ids.filter(ids.is_duplicated())[0]
        raise UserError(f"the test files have id {repeated!r} more than once; a submission needs unique ids")
    with replacing(path) as temporary:
        _write_csv(temporary, parts)
        check_submission(temporary, ids)
        if form == "winner":
            _write_csv(temporary, parts, winners)
            check_submission(temporary, ids, form)
    return len(ids)


def _write_csv(path: Path, parts: Sequence[Path], change: Callable[[pl.DataFrame], pl.DataFrame] | None = None) -> None:
    with path.open("wb") as file:
        for i, part in enumerate(parts):
            frame = read_parquet(part)
            (change(frame) if change else frame).write_csv(file, include_header=i == 0)


def winners(frame: pl.DataFrame) -> pl.DataFrame:
    """Return id and winner of (n) battles: the more probable of A and B, whatever the probability of a tie.

    Args:
        frame: id and the three probabilities.
    """
    b_wins = pl.col(WINNER_COLUMNS[B]) > pl.col(WINNER_COLUMNS[A])
    return frame.select("id", pl.when(b_wins).then(pl.lit(WINNERS[B])).otherwise(pl.lit(WINNERS[A])).alias("winner"))


def check_submission(path: Path, ids: pl.Series, form: str = "probabilities") -> None:
    """Check that a file has the format's columns, these ids in this order, and a valid prediction for each.

    Raises:
        UserError: it has not; the first line that is wrong is named.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if header != COLUMNS[form]:
            raise UserError(f"the submission's columns are {header}; nothing was replaced")
        ends = chain(iter(ids), [None])
        for line, (row, expected) in enumerate(zip(chain(reader, [None]), ends, strict=True), 2):
            if row is None or expected is None:
                if row is not None or expected is not None:
                    raise UserError(f"the submission does not have {len(ids)} rows; nothing was replaced")
                break
            fault = f"has id {row[:1]}, not {expected!r}" if row[:1] != [expected] else _fault(row[1:], form)
            if fault:
                raise UserError(f"the submission's line {line} {fault}; nothing was replaced")


def _fault(cells: Sequence[str], form: str) -> str:
    """Return what is wrong with the cells after a line's id; "" if nothing is."""
    if form == "winner":
        return "" if len(cells) == 1 and cells[0] in WINNERS else f"has {cells}, not model_a or model_b"
    probs = [float(cell or "nan") for cell in cells]
    if len(probs) != len(WINNER_COLUMNS) or not all(math.isfinite(p) and 0 <= p <= 1 for p in probs):
        return "has no finite probabilities"
    return f"sums to {sum(probs):.7f}" if abs(sum(probs) - 1) > SUM_TOLERANCE else ""
