"""Parsing of a file's rows by its schema: turns, label, id and names of each battle.

Every schema gives the same :class:`ParsedRows`. A cell that cannot be parsed becomes a fault of its row, never an
exception; null turns and empty texts are valid.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from oof.classes import TIE
from oof.config import Data
from oof.data import conversations, parse_cells, verdicts
from oof.data.conversations import Message
from oof.data.non_text import with_placeholders
from oof.data.parse_cells import CellError, NonTextError, Turns
from oof.data.raw_table import RawTable, RowFault
from oof.data.schemas import NAME_COLUMNS, TEXTS, Schema
from oof.data.verdicts import Shares, Verdict, Verdicts

EQUAL_TURNS = "give prompt, response_a and response_b equally many turns (null for a missing one)"
SAME_PROMPT = "both conversations must contain the same user messages"
MESSAGE_COLUMNS = {"prompt", "conversation_a", "conversation_b", "chosen", "rejected"}
TurnColumns = tuple[list[Turns], list[Turns], list[Turns]]  # prompt, response_a, response_b; (n,) each


@dataclass
class ParsedRows:
    """Values of a file's rows; a row with a fault has placeholders and is left out by the caller.

    Attributes:
        prompt, response_a, response_b: (n,) equally many turns per row, None = a null turn.
        labels: (n,) classes 0, 1, 2 or None.
        soft: (n,) soft labels in class order, or None.
        both_bad: (n,) whether both responses were judged bad.
        verdict_columns: our names of the columns of the verdicts; empty if none are read or they are pairs.
        coding: the coding of the verdicts in words; "" if none are read.
        ids: (n,) ids; made from the content unless ``ids_given``.
        names: of models, languages and groups: model_a, model_b, language, group_key; (n,) each.
        folds: (n,) whole numbers or None.
        faults: cells and rows that cannot be used.
    """

    raw: RawTable
    schema: Schema
    prompt: list[list[str | None]] = field(default_factory=list)
    response_a: list[list[str | None]] = field(default_factory=list)
    response_b: list[list[str | None]] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    soft: list[Shares | None] = field(default_factory=list)
    both_bad: list[bool] = field(default_factory=list)
    verdict_columns: tuple[str, ...] = ()
    coding: str = ""
    ids: list[str] = field(default_factory=list)
    ids_given: bool = False
    names: dict[str, list[str | None]] = field(default_factory=dict)
    folds: list[int | None] = field(default_factory=list)
    faults: list[RowFault] = field(default_factory=list)
    non_text: str = "error"  # data.non_text

    @property
    def n(self) -> int:
        return len(self.raw.rows)

    def forget_texts(self) -> None:
        for name in TEXTS:
            getattr(self, name).clear()

    def fault(self, i: int, column: str | None, reason: object, remedy: str = "", chosen: bool = False) -> None:
        if isinstance(reason, NonTextError):
            chosen = self.non_text == "drop"
            remedy = (
                "data.non_text=drop" if chosen else "set data.non_text=drop, or =placeholder to read [image] instead"
            )
        self.faults.append(RowFault(self.raw.rows[i], column, str(reason), remedy, chosen))


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
    rows = ParsedRows(raw, schema)
    rows.faults += raw.faults
    rows.non_text = data.non_text
    if data.non_text == "placeholder":
        for name in MESSAGE_COLUMNS & set(raw.columns):
            raw.columns[name] = [with_placeholders(cell) for cell in raw.columns[name]]
    parse = {"turns": _turns, "conversations": _conversations, "pairs": _pairs, "labels": _no_texts}[schema.kind]
    texts = parse(rows)
    pairs = schema.kind == "pairs"
    _read_verdicts(rows, data, labelled and not pairs)
    _equalise_turns(rows, texts)
    _parse_ids_folds_and_names(rows)
    if pairs:
        _draw_sides(rows, labelled, seed)
    return rows


def _parse_column(rows: ParsedRows, column: str, parse: Callable[[Any], Any], default: Any = None) -> list[Any]:
    """Return ``parse`` of each cell of a column; a bad cell becomes a fault and ``default``."""
    values: list[Any] = []
    for i, cell in enumerate(rows.raw.columns.get(column) or [None] * rows.n):
        try:
            values.append(parse(cell))
        except CellError as error:
            rows.fault(i, column, error)
            values.append(default)
    return values


# --- turns of each kind of schema ----------------------------------------------------------------------------


def _turns(rows: ParsedRows) -> TurnColumns:
    if _is_context(next((cell for cell in rows.raw.columns["prompt"] if cell), None)):
        return _contexts(rows)
    cells = [cell for name in TEXTS for cell in rows.raw.columns[name] if isinstance(cell, str) and cell]
    # One decision for the whole file, so that a damaged cell is named and not taken for a plain text.
    json_lists = 2 * sum(map(parse_cells.looks_like_list, cells)) >= len(cells)
    rows.schema = dataclasses.replace(
        rows.schema, name=f"{rows.schema.name} ({'lists of turns' if json_lists else 'plain texts'})"
    )
    parse = parse_cells.turns_from_json if json_lists else parse_cells.turns_from_text
    prompt, response_a, response_b = (_parse_column(rows, name, parse) for name in TEXTS)
    return prompt, response_a, response_b


def _is_context(cell: object) -> bool:
    """Return whether a prompt is a list of messages, to whose last one A and B respond."""
    if isinstance(cell, str):
        return cell.lstrip("[ \n").startswith("{") and '"role"' in cell
    return isinstance(cell, list) and bool(cell) and isinstance(cell[0], dict) and "role" in cell[0]


def _contexts(rows: ParsedRows) -> TurnColumns:
    texts: TurnColumns = ([], [], [])
    sides = [rows.raw.columns[name] for name in TEXTS[1:]]
    for i, (context, *answers) in enumerate(zip(rows.raw.columns["prompt"], *sides, strict=True)):
        try:
            messages = conversations.parse_messages(context)
            a, b = (conversations.split_turns(_pair_messages(messages, answer)) for answer in answers)
        except CellError as error:
            rows.fault(i, "prompt", error)
            a = b = ([None], [None])
        for column, turns in zip(texts, (a[0], a[1], b[1]), strict=True):
            column.append(turns)
    return texts


def _conversations(rows: ParsedRows) -> TurnColumns:
    def parse(cell: Any) -> tuple[list[str | None], list[str | None]]:
        return conversations.split_turns(conversations.parse_messages(cell))

    sides = [_parse_column(rows, f"conversation_{side}", parse) for side in "ab"]
    # An MT-bench verdict on turn t is about the first t rounds only.
    n_rounds = _parse_column(rows, "turn", parse_cells.round_count) if rows.schema.is_mt_bench else [None] * rows.n
    prompts: list[Turns] = []
    for i, (left, right) in enumerate(zip(*sides, strict=True)):
        if left and right and left[0] != right[0]:
            rows.fault(i, "conversation_b", "its user messages differ from conversation_a's", SAME_PROMPT)
        prompts.append(left[0][: n_rounds[i]] if left else None)
    responses = [[turns[1][: n_rounds[i]] if turns else None for i, turns in enumerate(side)] for side in sides]
    return prompts, responses[0], responses[1]


def _pairs(rows: ParsedRows) -> TurnColumns:
    prompts: list[Turns] = []
    chosen: list[Turns] = []
    rejected: list[Turns] = []
    prompt_column = rows.raw.columns.get("prompt")
    for i in range(rows.n):
        prompt: Any = prompt_column[i] if prompt_column else None
        column = "chosen"
        try:
            first = conversations.split_turns(_pair_messages(prompt, rows.raw.columns["chosen"][i]))
            column = "rejected"
            second = conversations.split_turns(_pair_messages(prompt, rows.raw.columns["rejected"][i]))
            if first[0] != second[0]:
                raise CellError("its user messages differ from chosen's")
        except CellError as error:
            rows.fault(i, column, error)
            first = second = ([None], [None])
        prompts.append(first[0])
        chosen.append(first[1])
        rejected.append(second[1])
    return prompts, chosen, rejected


def _pair_messages(prompt: Any, answer: Any) -> list[Message]:
    if isinstance(answer, str) and parse_cells.is_missing(prompt):
        return conversations.parse_hh_text(answer)
    if isinstance(prompt, str):
        before: list[Message] = [("user", prompt)]
    elif isinstance(prompt, list) and prompt and isinstance(prompt[0], tuple):
        before = prompt  # parsed before
    else:
        before = [] if parse_cells.is_missing(prompt) else conversations.parse_messages(prompt)
    if not isinstance(answer, list):
        return [*before, ("assistant", parse_cells.content_text(None if parse_cells.is_missing(answer) else answer))]
    messages = conversations.parse_messages(answer)
    return messages if any(role == "user" for role, _ in messages) else [*before, *messages]


def _no_texts(rows: ParsedRows) -> TurnColumns:
    return [None] * rows.n, [None] * rows.n, [None] * rows.n


# --- labels, ids, folds, names -------------------------------------------------------------------------------


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
            rows.fault(i, rows.schema.verdict, "both responses were judged bad", "data.both_bad=drop", chosen=True)


def _parse_ids_folds_and_names(rows: ParsedRows) -> None:
    columns = rows.raw.columns
    if rows.schema.is_mt_bench and "id" not in columns:
        # Not given ids: a judge may judge the same pair twice.
        keys = [columns[name] for name in ("question_id", "model_a", "model_b", "judge", "turn") if name in columns]
        rows.ids = ["/".join(map(str, key)).replace("\0", "") for key in zip(*keys, strict=True)]
    elif {"id", "subset", "chosen_model"} <= set(columns) and rows.schema.kind == "pairs":
        # RewardBench counts its ids within each subset.
        named = zip(columns["subset"], columns["id"], strict=True)
        rows.ids = ["/".join(map(str, key)).replace("\0", "") for key in named]
        rows.ids_given = True
    elif "id" in columns or (rows.schema.kind == "conversations" and "question_id" in columns):
        column = "id" if "id" in columns else "question_id"
        rows.ids = _parse_column(rows, column, parse_cells.identifier, default="")
        rows.ids_given = True
    else:
        contents = zip(rows.prompt, rows.response_a, rows.response_b, rows.labels, strict=True)
        rows.ids = [parse_cells.content_id(*content) for content in contents]
    rows.folds = _parse_column(rows, "fold", parse_cells.integer)
    sources = {name: name for name in NAME_COLUMNS}
    if rows.schema.kind == "pairs":
        sources |= {"model_a": "chosen_model", "model_b": "rejected_model"}
    rows.names = {name: _parse_column(rows, source, parse_cells.optional_name) for name, source in sources.items()}


def _equalise_turns(rows: ParsedRows, texts: TurnColumns) -> None:
    """Store the three texts with equally many turns per row; a null cell takes the others' number."""
    faulty = {fault.row for fault in rows.faults}
    for i, cells in enumerate(zip(*texts, strict=True)):
        lengths = {len(turns) for turns in cells if turns is not None}
        n = max(lengths, default=1)
        if len(lengths) > 1 and rows.raw.rows[i] not in faulty:
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
