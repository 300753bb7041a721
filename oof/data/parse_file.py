"""Parsing of one file in one role: recognised schema, parsed rows, and the usable rows as a frame of clean texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import polars as pl

from oof.common.errors import UserError
from oof.data import readers, schemas
from oof.data.parse_rows import ParsedRows, parse_rows
from oof.data.schemas import FILE_COLUMNS, LABELLED_ROLES, TABLE_SCHEMA, TEXTS
from oof.data.text_columns import strings, turn_lists

T = TypeVar("T")
WORKING_SCHEMA = {**TABLE_SCHEMA, "ids_given": pl.Boolean(), "file_number": pl.Int32()}


@dataclass(frozen=True)
class ParsedFile:
    """One file in one role: its parsed rows, and the usable ones as a frame of WORKING_SCHEMA without "file_number"."""

    rows: ParsedRows
    role: str
    frame: pl.DataFrame
    counts: Counter[str]
    mapped: frozenset[str]  # entries of data.columns whose column the file has

    @property
    def name(self) -> str:
        return self.rows.raw.name

    @property
    def n_read(self) -> int:
        return self.rows.raw.n_read


def parse_file(path: str, role: str, columns: Mapping[str, str], seed: int, weight: float) -> list[ParsedFile]:
    """Return a parsed file, or those of an archive, in a role of :data:`oof.data.schemas.ROLES`.

    In the role "any", a file with verdicts is read as train and one without as unlabelled.

    Args:
        path: a file.
        role: of its battles.
        columns: as ``data.columns``.
        seed: draws the side of the chosen response in chosen/rejected pairs.
        weight: of its battles in training.

    Raises:
        UserError: the file cannot be read, has no known schema, or lacks columns that the role needs.
    """
    files = []
    for cells in readers.read_raw(path, {*FILE_COLUMNS, *columns.values()}):
        if not cells.names:
            raise UserError(f"{cells.name}: no rows; give a file with battles")
        raw, schema = schemas.apply_schema(cells, columns)
        file_role = role if role != "any" else "train" if schema.verdict else "unlabelled"
        if file_role in LABELLED_ROLES:
            schemas.require_verdict(raw, schema)
        rows = parse_rows(raw, schema, file_role in LABELLED_ROLES, seed)
        if role == "test" and rows.n and not rows.ids_given:
            raise UserError(f"{raw.name}: missing column id, which a submission needs; set data.columns.id")
        mapped = frozenset(ours for ours, theirs in columns.items() if theirs in cells.names)
        files.append(_usable_rows(rows, file_role, weight, mapped))
        for columns_of_cells in (cells.columns, raw.columns):  # the frame holds the texts; one copy in memory is enough
            columns_of_cells.clear()
        rows.forget_texts()
    return files


def refuse_unused_columns(files: list[ParsedFile], columns: Mapping[str, str]) -> None:
    """Refuse an entry of ``data.columns`` whose column no file has; a test file alone needs no verdict column.

    Raises:
        UserError: names the entry.
    """
    unused = [ours for ours in columns if not any(ours in file.mapped for file in files)]
    if unused and any(file.role in LABELLED_ROLES for file in files):
        names = ", ".join(file.name for file in files[:3])
        raise UserError(
            f"data.columns.{unused[0]}={columns[unused[0]]}: no such column in {names}; remove or correct it"
        )


def _usable_rows(rows: ParsedRows, role: str, weight: float, mapped: frozenset[str]) -> ParsedFile:
    counts: Counter[str] = Counter()
    faulty = {fault.row for fault in rows.faults}
    good = [i for i, row in enumerate(rows.raw.rows) if row not in faulty]

    def usable(values: Sequence[T]) -> Sequence[T]:
        return values if len(good) == len(values) else [values[i] for i in good]

    columns: dict[str, object] = {
        "id": strings(usable(rows.ids)),
        "role": [role] * len(good),
        "weight": [weight] * len(good),
        "label": usable(rows.labels),
        **{name: turn_lists(usable(getattr(rows, name)), counts) for name in TEXTS},
        **{name: strings(usable(values)) for name, values in rows.names.items()},
        "fold": usable(rows.folds),
        "file": [rows.raw.name] * len(good),
        "row": usable(rows.raw.rows),
        "ids_given": [rows.ids_given] * len(good),
    }
    if rows.schema.kind == "labels":
        counts["rows_without_text"], counts["null_turns"] = len(good), 0
    frame = pl.DataFrame(columns, schema={name: kind for name, kind in WORKING_SCHEMA.items() if name != "file_number"})
    return ParsedFile(rows, role, frame, counts, mapped)
