"""Preference files of any known schema to one canonical table of battles, or one clear error.

Each file is opened (``readers``, ``formats``), recognised (``schemas``) and parsed row by row (``parse_file``,
``parse_rows``, ``parse_turns``, ``parse_cells``); then all rows become one polars table with the columns of
``schemas.TABLE_SCHEMA`` (``build_table``). No row is lost silently: ``table.height + dropped.height ==
counts["rows_read"]``, normalised texts are counted, and each bad row has its reason and remedy (``problems``).

Ids are unique within train + extra + unlabelled, and within test, where they stay as in the file.
  * A file without ids gets ids from its content (the same battle has the same id in any file or order).
  * The same id and the same battle twice: the first is kept, a repetition is a bad row.
  * The same id and another battle in one file: all of them are bad rows, since none is known to be right.
  * The same id of different battles in two files of a role: both become ``file:id``; but two test files may not
    share an id, since a submission needs it unchanged.
  * The same id in two roles: it becomes ``role:id`` in the later one (train comes before extra and unlabelled).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from oof.common.atomic_files import replacing
from oof.common.errors import UserError
from oof.config import Data
from oof.data import readers
from oof.data.build_table import BattleSet, build_table
from oof.data.parse_file import ParsedFile, parse_file, refuse_unused_columns
from oof.data.parse_in_chunks import parse_in_chunks
from oof.data.schemas import OPTIONAL_SCHEMA, ROLES, TABLE_SCHEMA
from oof.data.votes import Votes, read_votes

__all__ = ["BattleSet", "content_fingerprint", "join_files", "read_battles", "read_file", "write_dropped"]
CONTENT_COLUMNS = [name for name in (*TABLE_SCHEMA, *OPTIONAL_SCHEMA) if name not in ("file", "row")]
HASHED_CELLS = 8192  # texts that are Python strings at a time

logger = logging.getLogger(__name__)


def read_battles(data: Data, *, seed: int, roles: Sequence[str] = ROLES) -> BattleSet:
    """Return the battles of the files of ``roles``; log the coding of each file's verdicts and two of its battles.

    Args:
        data: paths or globs by role, and the settings of reading.
        seed: draws the side of the chosen response in chosen/rejected pairs, together with the content.
        roles: the roles to read, of train, extra, unlabelled and test.

    Raises:
        UserError: a file is missing, unreadable or of no known schema; verdicts are missing in train or extra;
            a role has no rows; or, with ``on_bad_row="error"``, some rows cannot be used.
    """
    files: list[ParsedFile] = []
    votes = read_votes(data) if "train" in roles and data.train else None
    for role in roles:
        patterns: list[str] = getattr(data, role)
        paths = readers.expand(patterns)
        if role == "unlabelled":  # may be much larger than the others
            of_role = [file for path in paths for file in parse_in_chunks(path, role, data, seed)]
        else:
            of_role = [file for path in paths for file in parse_file(path, role, data, seed, votes)]
        if patterns and not sum(file.n_read for file in of_role):
            raise UserError(f"{', '.join(patterns)}: no rows; data.{role} needs at least one battle")
        files += of_role
    battles = join_files(files, data, votes)
    for name, shown in battles.shown.items():
        logger.info("%s: %s", name, "\n  ".join(shown))
    for role in dict.fromkeys(file.role for file in files):
        if not (battles.table["role"] == role).any():
            raise UserError(f"data.{role}: no row can be used; the first reason: {battles.dropped['reason'][0]}")
    return battles


def read_file(path: str | Path, role: str, data: Data | None = None, *, seed: int = 0) -> BattleSet:
    """Return the battles of one file, as :func:`read_battles` does for several; no rows give an empty table.

    Args:
        path: a file.
        role: train, extra, unlabelled or test.
        data: the settings of reading, such as ``columns``, ``verdicts`` and ``on_bad_row``.
        seed: draws the side of the chosen response in chosen/rejected pairs.

    Raises:
        UserError: as :func:`read_battles`, or the role is unknown.
    """
    if role not in ROLES:
        raise UserError(f"role {role!r}: choose one of {', '.join(ROLES)}")
    data = data or Data()
    votes = read_votes(data) if role == "train" else None
    return join_files(parse_file(str(path), role, data, seed, votes), data, votes)


def join_files(files: list[ParsedFile], data: Data, votes: Votes | None = None) -> BattleSet:
    """Return the battles of parsed files, with the problems of the votes on them.

    Raises:
        UserError: a column of ``data.columns`` is in no file, no battle has votes, or as :func:`build_table`.
    """
    refuse_unused_columns(files, data.columns, votes)
    of_votes = votes.all_problems() if votes else []
    battles = build_table(files, data.on_bad_row)
    battles.problems.extend(of_votes)
    return battles


def write_dropped(frame: pl.DataFrame, path: str | Path) -> None:
    """Write ``BattleSet.dropped`` as CSV: file, row, id, reason."""
    with replacing(Path(path)) as temporary:
        frame.write_csv(temporary)


def content_fingerprint(table: pl.DataFrame) -> str:
    """Return the sha256 of the battles' content; it does not depend on the order of rows or the files' names."""
    sha = hashlib.sha256()
    ordered = table.sort("role", "id").select([name for name in CONTENT_COLUMNS if name in table.columns])
    for name in ordered.columns:
        column = ordered[name]
        if column.dtype == pl.List(pl.String):
            _update(sha, column.list.len().to_numpy())
            column = column.explode(empty_as_null=True, keep_nulls=True)
        if column.dtype == pl.String:
            _update(sha, column.is_null().to_numpy())
            column = column.fill_null("")
            _update(sha, column.str.len_bytes().to_numpy())
            for start in range(0, len(column), HASHED_CELLS):
                sha.update("".join(column[start : start + HASHED_CELLS].to_list()).encode())
        else:
            _update(sha, column.cast(pl.Float64).fill_null(float("nan")).to_numpy())
        sha.update(f"\0{name}\0".encode())
    return sha.hexdigest()


def _update(sha: hashlib._Hash, values: np.ndarray) -> None:
    sha.update(np.ascontiguousarray(values).tobytes())
