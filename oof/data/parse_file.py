"""Parsing of one file in one role: recognised schema, parsed rows, and the usable rows as a frame of clean texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import polars as pl

from oof.classes import TIE
from oof.common.errors import UserError
from oof.config import Data
from oof.data import readers, schemas
from oof.data.layouts import LAYOUT_COLUMNS, join_inputs
from oof.data.parse_rows import parse_rows
from oof.data.parsed_rows import ParsedRows
from oof.data.rankings import RANKING_COLUMNS, expand_rankings, ranking_name
from oof.data.raw_table import RawTable
from oof.data.schemas import (
    FILE_COLUMNS,
    LABELLED_ROLES,
    OPTIONAL_SCHEMA,
    SOFT_COLUMNS,
    TABLE_SCHEMA,
    TEXTS,
)
from oof.data.suggested_settings import ColumnReader, UnreadableColumnsError, file_column, suggested_settings
from oof.data.text_columns import strings, turn_lists
from oof.data.verdicts import SIDES, cells_in_words
from oof.data.votes import Votes

T = TypeVar("T")
SHOWN_BATTLES = 2
SHOWN_CHARACTERS = 40  # of a text
WORKING_SCHEMA = {**TABLE_SCHEMA, **OPTIONAL_SCHEMA, "ids_given": pl.Boolean(), "file_number": pl.Int32()}


@dataclass(frozen=True)
class ParsedFile:
    """One file in one role: its parsed rows, and the usable ones as a frame of WORKING_SCHEMA without "file_number"."""

    rows: ParsedRows
    role: str
    frame: pl.DataFrame
    counts: Counter[str]
    mapped: frozenset[str]  # entries of data.columns whose column the file has
    shown: list[str]  # the coding of the verdicts and two battles with theirs; empty if none are read

    @property
    def name(self) -> str:
        return self.rows.raw.name

    @property
    def n_read(self) -> int:
        return self.rows.raw.n_read


def parse_file(path: str, role: str, data: Data, seed: int, votes: Votes | None = None) -> list[ParsedFile]:
    """Return a parsed file, or those of an archive, in a role of :data:`oof.data.schemas.ROLES`.

    In the role "any", a file with verdicts is read as train and one without as unlabelled.

    Args:
        path: a file.
        role: of its battles.
        data: columns, verdicts and the other settings of reading.
        seed: draws the side of the chosen response in chosen/rejected pairs.
        votes: on train battles; the battles of the file get theirs.

    Raises:
        UserError: the file cannot be read, has no known schema, or lacks columns that the role needs.
    """
    tables = readers.read_raw(path, wanted_columns(data))
    return [parse_table(cells, role, data, seed, file_column(path, cells.name), votes) for cells in tables]


def wanted_columns(data: Data) -> set[str]:
    """Return all columns of battle files that are read with these settings."""
    return {*FILE_COLUMNS, *LAYOUT_COLUMNS, *RANKING_COLUMNS, *data.columns.values()}


def parse_table(
    cells: RawTable, role: str, data: Data, seed: int, column: ColumnReader, votes: Votes | None = None
) -> ParsedFile:
    """Return the parsed file of one table of cells; arguments and errors are those of :func:`parse_file`.

    ``column`` reads one more column of the table, for a suggestion in an error.
    """
    columns = data.columns
    if not cells.names:
        raise UserError(f"{cells.name}: no rows; give a file with battles")
    join_inputs(cells)
    ranking = None if set(columns) & {"prompt", "chosen"} else ranking_name(cells)
    pairs = expand_rankings(cells, ranking) if ranking else cells
    try:
        raw, schema = schemas.apply_schema(pairs, columns)
        labelled = bool(schema.verdict or (votes and votes.on(raw)))
        file_role = role if role != "any" else "train" if labelled else "unlabelled"
        votes_here = votes if file_role == "train" else None
        if file_role in LABELLED_ROLES and not votes_here:
            schemas.require_verdict(raw, schema, columns)
    except schemas.UnknownColumnsError as error:
        raise UnreadableColumnsError(error, suggested_settings(column, cells, error.columns, data)) from None
    schema = replace(schema, name=f"{ranking}: rankings as pairs") if ranking else schema
    rows = parse_rows(raw, schema, file_role in LABELLED_ROLES, seed, data)
    if votes_here:
        votes_here.give(rows)
    if not data.ties:
        rows.refuse_ties()
    if role == "test" and rows.n and not rows.ids_given:
        raise UserError(f"{raw.name}: missing column id, which a submission needs; set data.columns.id")
    mapped = frozenset(ours for ours, theirs in columns.items() if theirs in cells.names)
    parsed = _usable_rows(rows, file_role, mapped, data)
    for columns_of_cells in (cells.columns, raw.columns):  # the frame holds the texts; one copy in memory is enough
        columns_of_cells.clear()
    rows.forget_texts()
    return parsed


def refuse_unused_columns(files: list[ParsedFile], columns: Mapping[str, str], votes: Votes | None = None) -> None:
    """Refuse an entry of ``data.columns`` whose column no file has; a test file alone needs no verdict column.

    Args:
        files: of battles.
        columns: ``data.columns``.
        votes: read with the same columns.

    Raises:
        UserError: names the entry.
    """
    mapped = {ours for file in files for ours in file.mapped} | (votes.mapped if votes else set())
    unused = [ours for ours in columns if ours not in mapped]
    if unused and any(file.role in LABELLED_ROLES for file in files):
        names = ", ".join(file.name for file in files[:3])
        raise UserError(
            f"data.columns.{unused[0]}={columns[unused[0]]}: no such column in {names}; remove or correct it"
        )


def _usable_rows(rows: ParsedRows, role: str, mapped: frozenset[str], data: Data) -> ParsedFile:
    counts: Counter[str] = Counter(both_bad=sum(rows.both_bad))
    faulty = {fault.position for fault in rows.faults}
    good = [i for i in range(rows.n) if i not in faulty]

    def usable(values: Sequence[T]) -> Sequence[T]:
        return values if len(good) == len(values) else [values[i] for i in good]

    columns: dict[str, object] = {
        "id": strings(usable(rows.ids)),
        "role": [role] * len(good),
        "weight": [data.extra_weight if role == "extra" else 1.0] * len(good),
        "label": usable(rows.labels),
        **{name: turn_lists(usable(getattr(rows, name)), counts) for name in TEXTS},
        **{name: strings(usable(values)) for name, values in rows.names.items()},
        "fold": usable(rows.folds),
        **{name: [share and share[i] for share in usable(rows.soft)] for i, name in enumerate(SOFT_COLUMNS)},
        "both_bad": usable(rows.both_bad) if data.both_bad == "keep" and any(rows.both_bad) else [None] * len(good),
        "file": [rows.raw.name] * len(good),
        "row": usable(rows.raw.rows),
        "ids_given": [rows.ids_given] * len(good),
    }
    if rows.schema.kind == "labels":
        counts["rows_without_text"], counts["null_turns"] = len(good), 0
    frame = pl.DataFrame(columns, schema={name: kind for name, kind in WORKING_SCHEMA.items() if name != "file_number"})
    return ParsedFile(rows, role, frame, counts, mapped, _shown(rows, good))


def _shown(rows: ParsedRows, good: Sequence[int]) -> list[str]:
    """Return the coding of the verdicts and battles with the verdicts read from them, of two classes if possible."""
    if not rows.coding:
        return []
    first = good[:1]
    other = [i for i in good if rows.labels[i] != rows.labels[good[0]]] or good[1:]
    return [rows.coding, *(_battle_line(rows, i) for i in [*first, *other][:SHOWN_BATTLES])]


def _battle_line(rows: ParsedRows, i: int) -> str:
    label = rows.labels[i]
    assert label is not None  # verdicts were read, and the row has no fault
    verdict = SIDES[label] if label == TIE else f"{SIDES[label]} wins"
    if rows.schema.kind == "pairs":
        cells = "same rank" if label == TIE else f"chosen is response {SIDES[label]}"
    else:
        cells = cells_in_words(rows.raw, rows.verdict_columns, i)
    texts = (f"{name} {_start(getattr(rows, name)[i])}" for name in TEXTS)
    return f"row {rows.raw.rows[i]}: {verdict} ({cells}): {', '.join(texts)}"


def _start(turns: Sequence[str | None]) -> str:
    """Return the start of a text in quotes, without characters that a terminal cannot show."""
    text = " ".join("".join(c if c.isprintable() else " " for c in turns[0] or "").split())
    return f'"{text[:SHOWN_CHARACTERS]}{"…" if len(text) > SHOWN_CHARACTERS else ""}"'
