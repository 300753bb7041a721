"""Findings of an audit, and the reading of a run's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import polars as pl

from oof.common.atomic_files import read_parquet
from oof.common.errors import UserError

Status = Literal["ok", "warning", "violated"]
STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Finding:
    """Result of one check of a run: the check's name, its status, one sentence and up to three examples."""

    check: str
    status: Status
    message: str
    examples: tuple[str, ...] = ()


def read_columns(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """Return these columns of a Parquet file.

    Raises:
        UserError: the file is missing or unreadable, or lacks one of them.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; audit needs a run whose stage one is finished (make oof)")
    frame = read_parquet(path)
    absent = [name for name in columns if name not in frame.columns]
    if absent:
        raise UserError(f"{path}: no column {absent[0]!r}; the file was not written by this version's stage one")
    return frame.select(columns)
