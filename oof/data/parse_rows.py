"""A file's cells, read by its schema, to drafts of battles: turns, class, id and the small columns of each row.

Every schema ends in the same :class:`Draft`. A cell that cannot be understood becomes a fault of its row and
never an exception; facts of the data (``null`` turns, empty texts) pass.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from oof.classes import WINNER_COLUMNS
from oof.data import parse_cells
from oof.data.formats import RawTable, RowFault
from oof.data.parse_cells import CellError, Turns
from oof.data.schemas import SMALL, TEXTS, Schema

TURNS = "give prompt, response_a and response_b equally many turns (null where one is missing)"
SAME_PROMPT = "both sides must answer the same user messages"
Texts = tuple[list[Turns], list[Turns], list[Turns]]


@dataclass
class Draft:
    """Cells understood, row by row; rows with a fault keep a placeholder and are dropped by the caller.

    Attributes:
        prompt, response_a, response_b: (n,) equally many turns per row, None = a null turn.
        labels: (n,) classes 0, 1, 2 or None.
        ids: (n,) ids; made from the content unless ``ids_given``.
        small: model_a, model_b, language, group_key; (n,) each.
        folds: (n,) whole numbers or None.
        faults: what cannot be used, by data row.
    """

    raw: RawTable
    schema: Schema
    prompt: list[list[str | None]] = field(default_factory=list)
    response_a: list[list[str | None]] = field(default_factory=list)
    response_b: list[list[str | None]] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    ids_given: bool = False
    small: dict[str, list[str | None]] = field(default_factory=dict)
    folds: list[int | None] = field(default_factory=list)
    faults: list[RowFault] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.raw.rows)

    def forget_texts(self) -> None:
        for name in TEXTS:
            getattr(self, name).clear()

    def fault(self, i: int, column: str | None, reason: object, remedy: str = "") -> None:
        self.faults.append(RowFault(self.raw.rows[i], column, str(reason), remedy))


def convert(raw: RawTable, schema: Schema, labelled: bool, seed: int) -> Draft:
    """Return the drafts of a file's rows. ``seed`` draws the side of the chosen response of each pair."""
    draft = Draft(raw, schema)
    draft.faults += raw.faults
    read = {"turns": _turns, "conversations": _conversations, "pairs": _pairs, "labels": _no_texts}[schema.kind]
    texts = read(draft)
    pairs = schema.kind == "pairs"
    draft.labels = _labels(draft) if labelled and not pairs else [None] * draft.n
    _level(draft, texts)
    _small_columns(draft)
    if pairs:
        _toss(draft, labelled, seed)
    return draft


def _each(draft: Draft, column: str, read: Callable[[Any], Any], default: Any = None) -> list[Any]:
    """Return ``read`` of each cell of a column; a bad cell becomes a fault and ``default``."""
    values: list[Any] = []
    for i, cell in enumerate(draft.raw.columns.get(column) or [None] * draft.n):
        try:
            values.append(read(cell))
        except CellError as error:
            draft.fault(i, column, error)
            values.append(default)
    return values


# --- texts of each kind: three lists of Turns ---------------------------------------------------------------


def _turns(draft: Draft) -> Texts:
    strings = [cell for name in TEXTS for cell in draft.raw.columns[name] if isinstance(cell, str) and cell]
    # One decision for the whole file, so that a damaged cell is named and not taken for a plain text.
    json_lists = 2 * sum(map(parse_cells.looks_like_list, strings)) >= len(strings)
    draft.schema = dataclasses.replace(
        draft.schema, name=f"{draft.schema.name} ({'lists of turns' if json_lists else 'plain texts'})"
    )
    read = parse_cells.turns_from_json if json_lists else parse_cells.turns_from_text
    a, b, c = (_each(draft, name, read) for name in TEXTS)
    return a, b, c


def _conversations(draft: Draft) -> Texts:
    def read(cell: Any) -> tuple[list[str | None], list[str | None]]:
        return parse_cells.rounds_of(parse_cells.messages_of(cell))

    sides = [_each(draft, f"conversation_{side}", read) for side in "ab"]
    cut = _each(draft, "turn", parse_cells.rounds) if draft.schema.is_mt_bench else [None] * draft.n
    prompts: list[Turns] = []
    for i, (left, right) in enumerate(zip(*sides, strict=True)):
        if left and right and left[0] != right[0]:
            draft.fault(i, "conversation_b", "its user messages differ from conversation_a's", SAME_PROMPT)
        prompts.append(left[0][: cut[i]] if left else None)  # an MT-bench verdict on turn 1 saw only the first round
    responses = [[pair[1][: cut[i]] if pair else None for i, pair in enumerate(side)] for side in sides]
    return prompts, responses[0], responses[1]


def _pairs(draft: Draft) -> Texts:
    prompts: list[Turns] = []
    chosen: list[Turns] = []
    rejected: list[Turns] = []
    given = draft.raw.columns.get("prompt")
    for i in range(draft.n):
        prompt: Any = given[i] if given else None
        column = "chosen"
        try:
            first = parse_cells.rounds_of(_pair_messages(prompt, draft.raw.columns["chosen"][i]))
            column = "rejected"
            second = parse_cells.rounds_of(_pair_messages(prompt, draft.raw.columns["rejected"][i]))
            if first[0] != second[0]:
                raise CellError("its user messages differ from chosen's")
        except CellError as error:
            draft.fault(i, column, error)
            first = second = ([None], [None])
        prompts.append(first[0])
        chosen.append(first[1])
        rejected.append(second[1])
    return prompts, chosen, rejected


def _pair_messages(prompt: Any, answer: Any) -> list[tuple[str, str | None]]:
    if isinstance(answer, str) and parse_cells.is_missing(prompt):
        return parse_cells.hh_messages(answer)
    if isinstance(prompt, str):
        before: list[tuple[str, str | None]] = [("user", prompt)]
    else:
        before = [] if parse_cells.is_missing(prompt) else parse_cells.messages_of(prompt)
    if not isinstance(answer, list):
        return [*before, ("assistant", parse_cells.content_text(None if parse_cells.is_missing(answer) else answer))]
    messages = parse_cells.messages_of(answer)
    return messages if any(role == "user" for role, _ in messages) else [*before, *messages]


def _no_texts(draft: Draft) -> Texts:
    return [None] * draft.n, [None] * draft.n, [None] * draft.n


# --- labels, small columns, levelling ------------------------------------------------------------------------


def _labels(draft: Draft) -> list[int | None]:
    if draft.schema.verdict != "one-hot":
        column = draft.schema.verdict or ""
        return _each(draft, column, parse_cells.verdict if column == "winner" else parse_cells.label)
    labels: list[int | None] = []
    for i, flags in enumerate(zip(*(draft.raw.columns[name] for name in WINNER_COLUMNS), strict=True)):
        try:
            labels.append(parse_cells.one_hot(*flags))
        except CellError as error:
            draft.fault(i, "winner_model_a..winner_tie", error)
            labels.append(None)
    return labels


def _small_columns(draft: Draft) -> None:
    columns = draft.raw.columns
    if draft.schema.is_mt_bench and "id" not in columns:
        parts = [columns[name] for name in ("question_id", "model_a", "model_b", "judge", "turn") if name in columns]
        draft.ids = [
            "/".join(map(str, row)).replace("\0", "") for row in zip(*parts, strict=True)
        ]  # a judge may meet a pair twice
    elif "id" in columns or (draft.schema.kind == "conversations" and "question_id" in columns):
        draft.ids = _each(draft, "id" if "id" in columns else "question_id", parse_cells.identifier, default="")
        draft.ids_given = True
    else:
        draft.ids = [
            parse_cells.content_id(*row)
            for row in zip(draft.prompt, draft.response_a, draft.response_b, draft.labels, strict=True)
        ]
    draft.folds = _each(draft, "fold", parse_cells.integer)
    sources = {name: name for name in SMALL}
    if draft.schema.kind == "pairs":
        sources |= {"model_a": "chosen_model", "model_b": "rejected_model"}
    draft.small = {name: _each(draft, source, parse_cells.small_text) for name, source in sources.items()}


def _level(draft: Draft, texts: Texts) -> None:
    """Give the three texts of each row equally many turns; a null cell takes the others' number."""
    faulty = {fault.row for fault in draft.faults}
    for i, row in enumerate(zip(*texts, strict=True)):
        lengths = {len(turns) for turns in row if turns is not None}
        n = max(lengths, default=1)
        if len(lengths) > 1 and draft.raw.rows[i] not in faulty:
            shown = ", ".join(f"{name} {0 if t is None else len(t)}" for name, t in zip(TEXTS, row, strict=True))
            draft.fault(i, None, f"unequal numbers of turns: {shown}", TURNS)
        for name, turns in zip(TEXTS, row, strict=True):
            filler: list[str | None] = [None] * n
            getattr(draft, name).append(turns if turns is not None and len(turns) == n else filler)


def _toss(draft: Draft, labelled: bool, seed: int) -> None:
    """Put the chosen response on the side that a coin drawn from seed and content gives it, wherever the row stands."""
    for i in range(draft.n):
        content = repr((seed, draft.prompt[i], draft.response_a[i], draft.response_b[i]))
        side = hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[0] & 1
        if side:
            draft.response_a[i], draft.response_b[i] = draft.response_b[i], draft.response_a[i]
            a, b = draft.small["model_a"], draft.small["model_b"]
            a[i], b[i] = b[i], a[i]
        draft.labels[i] = side if labelled else None
