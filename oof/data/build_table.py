"""Parsed files to the canonical table: unique ids, rejected rows with their reasons, counts, problems.

``table.height + dropped.height == counts["rows_read"]`` for any files. The rules for ids are in the docstring of
:mod:`oof.data.battles`; only rows whose id occurs more than once are compared one by one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from oof.classes import CLASSES, class_counts
from oof.common.errors import UserError
from oof.data.parse_file import WORKING_SCHEMA, ParsedFile
from oof.data.problems import (
    ANOTHER_VERDICT,
    COUNTS,
    Problem,
    count_responses,
    dropped_frame,
    list_problems,
    rejected_rows,
    rejection_message,
)
from oof.data.schemas import OPTIONAL_SCHEMA, TABLE_SCHEMA, TEXTS


@dataclass(frozen=True)
class BattleSet:
    """Battles, and the problems and counts of their files.

    Attributes:
        table: columns and dtypes of :data:`oof.data.schemas.TABLE_SCHEMA`, and those of ``OPTIONAL_SCHEMA`` that a file
            gives; files in the order given, rows in the files' order.
        problems: messages for the user, most serious first.
        counts: :data:`oof.data.problems.COUNTS`. rows_*, ids_*, empty_responses (rows in which A or B has no text) and
            identical_responses count rows; null_turns, lone_surrogates and nul_characters count turns.
        schemas: file -> name of its schema.
        dropped: file, row, id, reason of every row that is not in ``table``.
        shown: file -> the coding of its verdicts in words, and two of its battles with their verdicts.
    """

    table: pl.DataFrame
    problems: list[Problem]
    counts: dict[str, int]
    schemas: dict[str, str]
    dropped: pl.DataFrame
    shown: dict[str, list[str]] = field(default_factory=dict)

    def codings(self) -> dict[str, dict[str, Any]]:
        """Return file -> coding of its verdicts in words, battles by verdict and dropped rows, of labelled files."""
        rows: dict[str, dict[str, Any]] = {}
        for name, (coding, *_) in self.shown.items():
            labels = self.table.filter(pl.col("file") == name)["label"].drop_nulls().to_numpy()
            verdicts = dict(zip(CLASSES, class_counts(labels).tolist(), strict=True))
            n_dropped = self.dropped.filter(pl.col("file") == name).n_unique("row")
            rows[name] = {"coding": coding, "verdicts": verdicts, "dropped": n_dropped}
        return rows


def build_table(files: list[ParsedFile], on_bad_row: str) -> BattleSet:
    """Return the battles of all files, with unique ids.

    Args:
        files: in the order in which their rows should be.
        on_bad_row: "error" refuses rows that cannot be used, "drop" leaves them out.

    Raises:
        UserError: ``on_bad_row`` is "error" and there are such rows; or an id stays ambiguous.
    """
    parsed = [file.rows for file in files]
    frames = [file.frame.with_columns(pl.lit(i, dtype=pl.Int32).alias("file_number")) for i, file in enumerate(files)]
    working = pl.concat(frames) if frames else pl.DataFrame(schema=WORKING_SCHEMA)
    changes = _unique_ids(working)
    rejected = rejected_rows(parsed, working, changes.rejected)
    if on_bad_row == "error" and not all(item.chosen for item in rejected):
        raise UserError(rejection_message(parsed, [item for item in rejected if not item.chosen]))
    ids = working["id"].to_list()
    for at, name in changes.renamed.items():
        ids[at] = name
    keep = np.ones(working.height, dtype=bool)
    keep[list(changes.rejected)] = False
    # Numbers added to the ids of repeated content do not count as renamed ids.
    n_renamed = int(working["ids_given"].gather(list(changes.renamed)).sum())
    working = working.with_columns(pl.Series("id", ids, dtype=pl.String)).filter(pl.Series(keep))
    given = [name for name in OPTIONAL_SCHEMA if not working[name].is_null().all()]
    table = working.select([*TABLE_SCHEMA, *given])
    _refuse_ambiguous(table)
    dropped = dropped_frame(parsed, rejected)
    counts = Counter(dict.fromkeys(COUNTS, 0))
    for file in files:
        counts.update(file.counts)
    counts["rows_read"] = sum(file.n_read for file in files)
    counts["rows_dropped"] = dropped.height
    counts["ids_made"] = working.height - int(working["ids_given"].sum())
    counts["ids_renamed"] = n_renamed
    counts.update(count_responses(table))
    names = {rows.raw.name: rows.schema.name for rows in parsed}
    shown = {file.name: file.shown for file in files if file.shown}
    return BattleSet(table, list_problems(parsed, rejected, table, counts), dict(counts), names, dropped, shown)


def _refuse_ambiguous(table: pl.DataFrame) -> None:
    twice = table.filter(pl.struct((pl.col("role") == "test").alias("test"), "id").is_duplicated())
    if twice.height:
        row = twice.row(0, named=True)
        raise UserError(f"{row['file']}, row {row['row']}, column id: {row['id']!r} is not unique; rename it")


# --- ids -----------------------------------------------------------------------------------------------------


@dataclass
class _IdChanges:
    """Changes that make ids unique: new ids by row position, and rows to reject with the reason."""

    renamed: dict[int, str] = field(default_factory=dict)
    rejected: dict[int, str] = field(default_factory=dict)


def _unique_ids(table: pl.DataFrame) -> _IdChanges:
    """Return the changes for ``table`` (id, ids_given, role, file, row, label and the three texts)."""
    changes = _IdChanges()
    space = pl.when(pl.col("role") == "test").then(pl.lit("test")).otherwise(pl.lit("fit"))
    repeated = table.with_row_index("at").with_columns(space.alias("space"))
    repeated = repeated.filter(pl.struct("space", "id").is_duplicated())
    columns = ("at", "space", "id", "ids_given", "role", "file", "row", "label", *TEXTS)
    by_id: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in repeated.select(columns).iter_rows(named=True):
        by_id[row["space"], row["id"]].append(row)
    for (space_name, _), rows in by_id.items():
        if any(row["ids_given"] for row in rows):
            _resolve_id(rows, space_name, changes)
        else:
            for i, row in enumerate(rows[1:], 2):  # the same battle again in a file without ids: both are kept
                changes.renamed[row["at"]] = f"{row['id']}-{i}"
    return changes


def _resolve_id(rows: list[dict[str, Any]], space: str, changes: _IdChanges) -> None:
    """Reject repetitions and contradictions among the rows of one id; prefix the others by file and role."""
    for i, role in enumerate(dict.fromkeys(row["role"] for row in rows)):
        kept = _without_repetitions([row for row in rows if row["role"] == role], changes)
        kept = _without_conflicts(kept, space, changes)
        several_files = len({row["file"] for row in kept}) > 1
        for row in kept:
            name = f"{Path(row['file']).name}:{row['id']}" if several_files else row["id"]
            if i:
                name = f"{role}:{name}"
            if name != row["id"]:
                changes.renamed[row["at"]] = name


def _content(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(tuple(row[name]) for name in TEXTS)


def _without_repetitions(rows: list[dict[str, Any]], changes: _IdChanges) -> list[dict[str, Any]]:
    first_rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        first = first_rows.setdefault((_content(row), row["label"]), row)
        if first is not row:
            changes.rejected[row["at"]] = f"repeats {_place(first, row)} (same id, same battle)"
    return list(first_rows.values())


def _without_conflicts(rows: list[dict[str, Any]], space: str, changes: _IdChanges) -> list[dict[str, Any]]:
    """Reject all rows of one id that contradict each other; battles of different files may share an id."""
    by_content: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    by_file: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_content[_content(row)].append(row)
        by_file["" if space == "test" else row["file"]].append(row)
    for difference, sets in (("another battle", by_file), (ANOTHER_VERDICT, by_content)):
        for same in sets.values():
            for row in same if len(same) > 1 else []:
                other = same[1] if row is same[0] else same[0]
                changes.rejected[row["at"]] = f"{_place(other, row)} has the same id, but {difference}"
    return [row for row in rows if row["at"] not in changes.rejected]


def _place(other: dict[str, Any], row: dict[str, Any]) -> str:
    return f"row {other['row']}" if other["file"] == row["file"] else f"row {other['row']} of {other['file']}"
