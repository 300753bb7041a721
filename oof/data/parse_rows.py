"""Parsing of a file's rows by its schema: turns, label, id and names of each battle.

Every schema gives the same :class:`oof.data.parsed_rows.ParsedRows`. A cell that cannot be parsed becomes a fault of
its row, never an exception; null turns and empty texts are valid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from oof.classes import TIE
from oof.config import Data
from oof.data import parse_cells, verdicts
from oof.data.parse_turns import TurnColumns, parse_turns
from oof.data.parsed_rows import BOTH_BAD_DROPPED, ParsedRows
from oof.data.raw_table import RawTable
from oof.data.schemas import NAME_COLUMNS, TEXTS, Schema
from oof.data.verdicts import Verdict, Verdicts

EQUAL_TURNS = "give prompt, response_a and response_b equally many turns (null for a missing one)"


def parse_rows(raw: RawTable, schema: Schema, labelled: bool, seed: int, data: Data) -> ParsedRows:
    """Return the values of a file's rows.

    Args:
        raw: the cells, with our column names.
        schema: of the file.
        labelled: whether to read verdicts; if not, all labels are None.
        seed: draws the side of the chosen response of each chosen/rejected pair.
        data: how verdicts, both-bad battles and content other than text are read.

    Raises:
        UserError: the coding of the verdicts can be read in two ways.
    """
    rows = ParsedRows(raw, schema, faults=list(raw.faults), non_text=data.non_text, ties=data.ties)
    texts = parse_turns(rows)
    pairs = schema.kind == "pairs"
    _read_verdicts(rows, data, labelled and not pairs)
    _equalise_turns(rows, texts)
    _parse_ids_folds_and_names(rows)
    if pairs:
        _draw_sides(rows, labelled, seed)
    return rows


def _read_verdicts(rows: ParsedRows, data: Data, labelled: bool) -> None:
    read = Verdicts([Verdict(None)] * rows.n)
    if labelled and rows.schema.verdict:
        read = verdicts.read_verdicts(rows.raw, rows.schema.verdict, data, rows.schema.positive)
    rows.labels, rows.soft = [row.label for row in read.rows], [row.soft for row in read.rows]
    rows.both_bad = [row.both_bad for row in read.rows]
    rows.verdict_columns, rows.coding = read.columns, read.coding
    for fault in read.faults:
        rows.fault(*fault)
    if data.both_bad == "drop":
        for i in (i for i, bad in enumerate(rows.both_bad) if bad):
            rows.fault(i, rows.schema.verdict, "both responses were judged bad", BOTH_BAD_DROPPED, chosen=True)


def _parse_ids_folds_and_names(rows: ParsedRows) -> None:
    columns = rows.raw.columns
    if rows.schema.is_mt_bench and "id" not in columns:
        # Not given ids: a judge may judge the same pair twice.
        rows.ids = _joined(rows, ("question_id", "model_a", "model_b", "judge", "turn"))
    elif {"id", "subset", "chosen_model"} <= set(columns) and rows.schema.kind == "pairs":
        # RewardBench counts its ids within each subset.
        rows.ids = _joined(rows, ("subset", "id"))
        rows.ids_given = True
    elif "id" in columns or (rows.schema.kind == "conversations" and "question_id" in columns):
        column = "id" if "id" in columns else "question_id"
        rows.ids = rows.parse_column(column, parse_cells.identifier, default="")
        rows.ids_given = True
    else:
        contents = zip(rows.prompt, rows.response_a, rows.response_b, rows.labels, strict=True)
        rows.ids = [parse_cells.content_id(*content) for content in contents]
    rows.folds = rows.parse_column("fold", parse_cells.integer)
    sources = {name: name for name in NAME_COLUMNS}
    if rows.schema.kind == "pairs":
        sources |= {"model_a": "chosen_model", "model_b": "rejected_model"}
    rows.names = {name: rows.parse_column(source, parse_cells.optional_name) for name, source in sources.items()}


def _joined(rows: ParsedRows, names: Sequence[str]) -> list[str]:
    """Return ids that are made of the cells of several columns, as far as the file has them."""
    keys = [rows.raw.columns[name] for name in names if name in rows.raw.columns]
    return ["/".join(map(str, key)).replace("\0", "") for key in zip(*keys, strict=True)]


def _equalise_turns(rows: ParsedRows, texts: TurnColumns) -> None:
    """Store the three texts with equally many turns per row; a null cell takes the others' number."""
    faulty = {fault.position for fault in rows.faults}
    for i, cells in enumerate(zip(*texts, strict=True)):
        lengths = {len(turns) for turns in cells if turns is not None}
        n = max(lengths, default=1)
        if len(lengths) > 1 and i not in faulty:
            shown = ", ".join(f"{name} {0 if t is None else len(t)}" for name, t in zip(TEXTS, cells, strict=True))
            rows.fault(i, None, f"unequal numbers of turns: {shown}", EQUAL_TURNS)
        for name, turns in zip(TEXTS, cells, strict=True):
            nulls: list[str | None] = [None] * n
            getattr(rows, name).append(turns if turns is not None and len(turns) == n else nulls)


def _draw_sides(rows: ParsedRows, labelled: bool, seed: int) -> None:
    """Put the chosen response on a side drawn from seed and content, wherever the row is in the file."""
    tied = rows.raw.columns.get("tied") or [False] * rows.n  # of rankings
    for i in range(rows.n):
        content = repr((seed, rows.prompt[i], rows.response_a[i], rows.response_b[i]))
        side = hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[0] & 1
        if side:
            rows.response_a[i], rows.response_b[i] = rows.response_b[i], rows.response_a[i]
            a, b = rows.names["model_a"], rows.names["model_b"]
            a[i], b[i] = b[i], a[i]
        rows.labels[i] = (TIE if tied[i] else side) if labelled else None
    if labelled:
        rows.coding = "chosen → the winner; its side, A or B, is drawn from the seed and the texts"
