"""Prompt and responses of a file's rows by the kind of its schema: texts, conversations, pairs, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from oof.data import conversations, parse_cells
from oof.data.non_text import with_placeholders
from oof.data.parse_cells import CellError, Turns
from oof.data.parsed_rows import ParsedRows
from oof.data.schemas import TEXTS

SAME_PROMPT = "both conversations must contain the same user messages"
MESSAGE_COLUMNS = {"prompt", "conversation_a", "conversation_b", "chosen", "rejected"}
TurnColumns = tuple[list[Turns], list[Turns], list[Turns]]  # prompt, response_a, response_b; (n,) each


def parse_turns(rows: ParsedRows) -> TurnColumns:
    """Return the turns of each row; of a pair, the chosen response comes first."""
    if rows.non_text == "placeholder":
        columns = rows.raw.columns
        for name in MESSAGE_COLUMNS & set(columns):
            columns[name] = [with_placeholders(cell) for cell in columns[name]]
    parse = {"turns": _turns, "conversations": _conversations, "pairs": _pairs, "labels": _no_texts}[rows.schema.kind]
    return parse(rows)


def _turns(rows: ParsedRows) -> TurnColumns:
    if _is_context(next((cell for cell in rows.raw.columns["prompt"] if cell), None)):
        return _contexts(rows)
    cells = [cell for name in TEXTS for cell in rows.raw.columns[name] if isinstance(cell, str) and cell]
    # One decision for the whole file, so that a damaged cell is named and not taken for a plain text.
    json_lists = 2 * sum(map(parse_cells.looks_like_list, cells)) >= len(cells)
    rows.schema = replace(rows.schema, name=f"{rows.schema.name} ({'lists of turns' if json_lists else 'plain texts'})")
    parse = parse_cells.turns_from_json if json_lists else parse_cells.turns_from_text
    prompt, response_a, response_b = (rows.parse_column(name, parse) for name in TEXTS)
    return prompt, response_a, response_b


def _is_context(cell: object) -> bool:
    """Return whether a prompt is a list of messages, to whose last one A and B respond."""
    if isinstance(cell, str):
        return cell.lstrip("[ \n").startswith("{") and '"role"' in cell
    return isinstance(cell, list) and bool(cell) and isinstance(cell[0], dict) and "role" in cell[0]


def _contexts(rows: ParsedRows) -> TurnColumns:
    return _answers(rows, TEXTS[1:], conversations.parse_messages)


def _conversations(rows: ParsedRows) -> TurnColumns:
    def parse(cell: Any) -> tuple[list[str | None], list[str | None]]:
        return conversations.split_turns(conversations.parse_messages(cell))

    sides = [rows.parse_column(f"conversation_{side}", parse) for side in "ab"]
    # An MT-bench verdict on turn t is about the first t rounds only.
    n_rounds = rows.parse_column("turn", parse_cells.round_count) if rows.schema.is_mt_bench else [None] * rows.n
    prompts: list[Turns] = []
    for i, (left, right) in enumerate(zip(*sides, strict=True)):
        if left and right and left[0] != right[0]:
            rows.fault(i, "conversation_b", "its user messages differ from conversation_a's", SAME_PROMPT)
        prompts.append(left[0][: n_rounds[i]] if left else None)
    responses = [[turns[1][: n_rounds[i]] if turns else None for i, turns in enumerate(side)] for side in sides]
    return prompts, responses[0], responses[1]


def _pairs(rows: ParsedRows) -> TurnColumns:
    return _answers(rows, ("chosen", "rejected"), lambda prompt: prompt)


def _answers(rows: ParsedRows, sides: Sequence[str], parse_prompt: Callable[[Any], Any]) -> TurnColumns:
    """Return the turns of a prompt and of two answers to it, which may be whole conversations."""
    texts: TurnColumns = ([], [], [])
    prompts = rows.raw.columns.get("prompt") or [None] * rows.n
    for i, (prompt, *answers) in enumerate(zip(prompts, *(rows.raw.columns[side] for side in sides), strict=True)):
        column, turns = "prompt", list[tuple[list[str | None], list[str | None]]]()
        try:
            context = parse_prompt(prompt)
            for side, answer in zip(sides, answers, strict=True):
                column = side
                turns.append(conversations.split_turns(conversations.answered(context, answer)))
            if turns[0][0] != turns[1][0]:
                raise CellError(f"its user messages differ from {sides[0]}'s")
        except CellError as error:
            rows.fault(i, column, error)
            turns = [([None], [None]), ([None], [None])]
        for values, cell in zip(texts, (*turns[0], turns[1][1]), strict=True):
            values.append(cell)
    return texts


def _no_texts(rows: ParsedRows) -> TurnColumns:
    return [None] * rows.n, [None] * rows.n, [None] * rows.n
