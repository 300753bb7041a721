"""Drafts to the canonical table: clean texts, settled ids, left-out rows with their reasons, facts counted.

``table.height + dropped.height == counts["rows_read"]``, whatever the files hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl

from oof.common.errors import UserError
from oof.data import readers, schemas
from oof.data.ids import settle_ids
from oof.data.parse_rows import Draft, convert
from oof.data.problems import FACTS, Problem, dropped_frame, facts, lost_rows, problems_of, refusal
from oof.data.schemas import TEXTS
from oof.data.text_columns import strings, turn_lists

T = TypeVar("T")
LABELLED = ("train", "extra")
ROLES = (*LABELLED, "unlabelled", "test")
SCHEMA: dict[str, pl.DataType] = {
    "id": pl.String(),
    "role": pl.String(),
    "weight": pl.Float64(),
    "label": pl.Int8(),
    "prompt": pl.List(pl.String()),
    "response_a": pl.List(pl.String()),
    "response_b": pl.List(pl.String()),
    "model_a": pl.String(),
    "model_b": pl.String(),
    "language": pl.String(),
    "group_key": pl.String(),
    "fold": pl.Int32(),
    "file": pl.String(),
    "row": pl.Int64(),
}
WORKING = {**SCHEMA, "ids_given": pl.Boolean(), "part": pl.Int32()}


@dataclass(frozen=True)
class BattleSet:
    """Battles and what was found out about them.

    Attributes:
        table: columns and dtypes of :data:`SCHEMA`; files in the order given, rows in the files' order.
        problems: what a person should read, most serious first.
        counts: :data:`FACTS`. rows_*, ids_*, empty_responses (rows in which A or B has no text) and
            identical_responses count rows; null_turns, lone_surrogates and nul_characters count turns.
        schemas: file -> recognised schema.
        dropped: file, row, id, reason of every row that is not in ``table``.
    """

    table: pl.DataFrame
    problems: list[Problem]
    counts: dict[str, int]
    schemas: dict[str, str]
    dropped: pl.DataFrame


@dataclass(frozen=True)
class Part:
    """One file in one role: its draft, and its usable rows as a frame of :data:`WORKING` without "part"."""

    draft: Draft
    role: str
    frame: pl.DataFrame
    counts: Counter[str]
    mapped: frozenset[str]  # the names of data.columns that the file has

    @property
    def file(self) -> str:
        return self.draft.raw.name

    @property
    def n_read(self) -> int:
        return self.draft.raw.n_read


def read_parts(path: str, role: str, columns: Mapping[str, str], seed: int, weight: float) -> list[Part]:
    """Return a file's parts (more than one for an archive) in a role of :data:`ROLES`.

    In the role "any", a file with verdicts is read as train and one without as unlabelled.

    Raises:
        UserError: the file cannot be read, has no known schema, or lacks what the role needs.
    """
    parts = []
    for found in readers.read_raw(path, {*schemas.COLUMNS, *columns.values()}):
        if not found.names:
            raise UserError(f"{found.name}: no rows")
        raw, schema = schemas.understand(found, columns)
        found_role = role if role != "any" else "train" if schema.verdict else "unlabelled"
        if found_role in LABELLED:
            schemas.need_verdict(raw, schema)
        draft = convert(raw, schema, found_role in LABELLED, seed)
        if role == "test" and draft.n and not draft.ids_given:
            raise UserError(f"{raw.name}: missing column id, which a submission needs; set data.columns.id")
        mapped = frozenset(ours for ours, theirs in columns.items() if theirs in found.names)
        parts.append(_part(draft, found_role, weight, mapped))
        for cells in (found.columns, raw.columns):  # the frame holds the texts now; one copy in memory is enough
            cells.clear()
        draft.forget_texts()
    return parts


def refuse_unused_columns(parts: list[Part], columns: Mapping[str, str]) -> None:
    """Refuse a ``data.columns`` entry that no file has; a test file alone need not have the verdict's.

    Raises:
        UserError: names the entry.
    """
    unused = [ours for ours in columns if not any(ours in part.mapped for part in parts)]
    if unused and any(part.role in LABELLED for part in parts):
        files = ", ".join(part.file for part in parts[:3])
        raise UserError(f"data.columns.{unused[0]}={columns[unused[0]]}: no such column in {files}; remove or mend it")


def _part(draft: Draft, role: str, weight: float, mapped: frozenset[str]) -> Part:
    counts: Counter[str] = Counter()
    faulty = {fault.row for fault in draft.faults}
    good = [i for i, row in enumerate(draft.raw.rows) if row not in faulty]

    def usable(values: Sequence[T]) -> Sequence[T]:
        return values if len(good) == len(values) else [values[i] for i in good]

    columns: dict[str, object] = {
        "id": strings(usable(draft.ids)),
        "role": [role] * len(good),
        "weight": [weight] * len(good),
        "label": usable(draft.labels),
        **{name: turn_lists(usable(getattr(draft, name)), counts) for name in TEXTS},
        **{name: strings(usable(values)) for name, values in draft.small.items()},
        "fold": usable(draft.folds),
        "file": [draft.raw.name] * len(good),
        "row": usable(draft.raw.rows),
        "ids_given": [draft.ids_given] * len(good),
    }
    if draft.schema.kind == "labels":
        counts["rows_without_text"], counts["null_turns"] = len(good), 0
    frame = pl.DataFrame(columns, schema={name: kind for name, kind in WORKING.items() if name != "part"})
    return Part(draft, role, frame, counts, mapped)


# --- all files together --------------------------------------------------------------------------------------


def settle(parts: list[Part], on_bad_row: str) -> BattleSet:
    """Return the battles of all parts with ids settled, and the bad rows refused or left out.

    Raises:
        UserError: ``on_bad_row`` is "error" and there are bad rows; or an id stays ambiguous.
    """
    drafts = [part.draft for part in parts]
    frames = [part.frame.with_columns(pl.lit(i, dtype=pl.Int32).alias("part")) for i, part in enumerate(parts)]
    working = pl.concat(frames) if frames else pl.DataFrame(schema=WORKING)
    ids = settle_ids(working)
    lost = lost_rows(drafts, working, ids.refused)
    if lost and on_bad_row == "error":
        raise UserError(refusal(drafts, lost))
    renamed = int(working["ids_given"].gather(list(ids.renamed)).sum())  # without repeated content's "-2"
    names = working["id"].to_list()
    for at, name in ids.renamed.items():
        names[at] = name
    keep = np.ones(working.height, dtype=bool)
    keep[list(ids.refused)] = False
    working = working.with_columns(pl.Series("id", names, dtype=pl.String)).filter(pl.Series(keep))
    table = working.select(list(SCHEMA))
    _refuse_ambiguous(table)
    dropped = dropped_frame(drafts, lost)
    counts = Counter(dict.fromkeys(FACTS, 0))
    for part in parts:
        counts.update(part.counts)
    counts["rows_read"] = sum(draft.raw.n_read for draft in drafts)
    counts["rows_dropped"] = dropped.height
    counts["ids_made"] = working.height - int(working["ids_given"].sum())
    counts["ids_renamed"] = renamed
    counts.update(facts(table))
    described = {draft.raw.name: draft.schema.name for draft in drafts}
    return BattleSet(table, problems_of(drafts, lost, table, counts), dict(counts), described, dropped)


def _refuse_ambiguous(table: pl.DataFrame) -> None:
    twice = table.filter(pl.struct((pl.col("role") == "test").alias("test"), "id").is_duplicated())
    if twice.height:
        row = twice.row(0, named=True)
        raise UserError(f"{row['file']}, row {row['row']}, column id: {row['id']!r} is not unique; rename it")
