"""One cell to one value: turns, conversations, verdicts, ids. Pure functions that raise :class:`CellError`.

Facts of the data (``null`` turns, empty texts) pass; what cannot be understood is refused with the reason.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

Turns = list[str | None] | None  # None: the whole cell is null; inside the list: a null turn

VERDICTS = {
    "model_a": 0,
    "a": 0,
    "model_b": 1,
    "b": 1,
    "tie": 2,
    "both_bad": 2,
    "bothbad": 2,
    "tie (bothbad)": 2,
    "tie (both bad)": 2,
    "tie(bothbad)": 2,
}
FLAGS: dict[Any, int] = {0: 0, 1: 1, "0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}  # 1 == 1.0 == True
NUMBERS: dict[Any, int] = {0: 0, 1: 1, 2: 2, "0": 0, "1": 1, "2": 2, "0.0": 0, "1.0": 1, "2.0": 2}
USERS = frozenset({"user", "human", "prompter"})
ASSISTANTS = frozenset({"assistant", "gpt", "model", "bot", "chatbot"})
WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+")
HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


class CellError(ValueError):
    """The reason why a cell cannot be used; the caller knows the file, row and column."""


def is_missing(cell: object) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def show(cell: object) -> str:
    """Return a short printable form of a cell for messages."""
    text = repr(cell)
    return text if len(text) <= 40 else f"{text[:37]}..."


# --- texts -----------------------------------------------------------------------------------------------


def looks_like_list(cell: object) -> bool:
    return isinstance(cell, list) or (isinstance(cell, str) and cell[:1] == "[" and cell.rstrip()[-1:] == "]")


def turns_from_text(cell: object) -> Turns:
    """Return a plain text as its single turn; a missing cell is a null."""
    if type(cell) is str:
        return [cell]
    if is_missing(cell):
        return None
    return turns_from_value(cell)


def turns_from_json(cell: object) -> Turns:
    """Return the turns of a cell that holds a JSON list of texts (``null`` allowed), or such a list itself."""
    if type(cell) is not str:
        return None if is_missing(cell) else turns_from_value(cell)
    if cell == "":
        return None
    return turns_from_value(parse_json(cell))


def parse_json(cell: str, what: str = "turns") -> Any:
    """Return the value of a JSON text; ``what`` the list was expected to hold goes into the reason."""
    try:
        return json.loads(cell)
    except RecursionError as error:
        raise CellError("JSON nested too deeply") from error
    except ValueError as error:
        raise CellError(f"not a JSON list of {what} ({error}): {show(cell)}") from error


def turns_from_value(value: object) -> Turns:
    if type(value) is list:
        for turn in value:
            if turn is not None and type(turn) is not str:
                return [None if turn is None else content_text(turn) for turn in value]
        return value or None
    if value is None:
        return None
    return [content_text(value)]


def content_text(content: object) -> str | None:
    """Return a message's text: a string, or its text parts joined by line breaks."""
    if isinstance(content, str):
        return content
    if content is None:
        return None
    if isinstance(content, dict):
        if isinstance(content.get("text"), str):
            return str(content["text"])
        if content.get("type", "text") != "text":
            raise CellError(f"holds a part of type {show(content['type'])}, which is not text")
        if content.get("text", 0) is None:
            return None
    if isinstance(content, list):
        return "\n".join(text for text in (content_text(part) for part in content) if text)
    raise CellError(f"{show(content)} is not text")


# --- conversations ---------------------------------------------------------------------------------------


def messages_of(cell: object) -> list[tuple[str, str | None]]:
    """Return (role, text) of each message; role is "user", "assistant" or "system".

    A cell is a list of ``{"role", "content"}`` (or ``{"from", "value"}``), or that as JSON.
    """
    value = parse_json(cell, "messages") if isinstance(cell, str) else cell
    if not isinstance(value, list) or not value:
        raise CellError(f"a list of messages was expected, not {show(value)}")
    messages: list[tuple[str, str | None]] = []
    for message in value:
        if not isinstance(message, dict):
            raise CellError(f"a message with role and content was expected, not {show(message)}")
        role = str(message.get("role", message.get("from"))).lower()
        if role not in USERS and role not in ASSISTANTS and role != "system":
            raise CellError(f"role {show(role)} is not user, assistant or system")
        content = message["content"] if "content" in message else message.get("value")
        messages.append(("user" if role in USERS else role if role == "system" else "assistant", content_text(content)))
    return messages


def rounds_of(messages: list[tuple[str, str | None]]) -> tuple[list[str | None], list[str | None]]:
    """Return the user's and the assistant's turns, equally many.

    Neighbouring messages of one side are joined by a blank line; a system message is joined to the user turn
    after it; a missing opening or closing message becomes a null turn.
    """
    users: list[str | None] = []
    answers: list[str | None] = []
    last = ""
    for role, text in messages:
        side = "assistant" if role == "assistant" else "user"
        turns = answers if side == "assistant" else users
        if side == last:
            turns[-1] = text if turns[-1] is None else turns[-1] if text is None else f"{turns[-1]}\n\n{text}"
        else:
            if side == "assistant" and not users:
                users.append(None)
            turns.append(text)
        last = side
    if len(answers) < len(users):
        answers.append(None)
    return users, answers


def hh_messages(cell: str) -> list[tuple[str, str | None]]:
    """Return the messages of Anthropic HH's text format, in which turns open with "Human:" and "Assistant:"."""
    pieces = HH_TURN.split(cell)
    if pieces[0].strip() or len(pieces) < 3:
        raise CellError(
            "no prompt: expected a prompt column, a list of messages, or text with 'Human:' and 'Assistant:'"
        )
    roles = ["user" if role == "Human" else "assistant" for role in pieces[1::2]]
    return list(zip(roles, (text.strip() for text in pieces[2::2]), strict=True))


# --- verdicts, ids, small columns ------------------------------------------------------------------------


def one_hot(a: object, b: object, tie: object) -> int:
    """Return the class of three 0/1 cells."""
    try:
        flags = [FLAGS[_key(cell)] for cell in (a, b, tie)]
    except (KeyError, TypeError):
        raise CellError(
            f"the winner columns hold {show(a)}, {show(b)}, {show(tie)}; expected one 1 and two 0"
        ) from None
    if sum(flags) != 1:
        raise CellError(f"the winner columns are not one-hot: {flags[0]}, {flags[1]}, {flags[2]}")
    return flags.index(1)


def _key(cell: object) -> object:
    return cell.strip().lower() if isinstance(cell, str) else cell


def verdict(cell: object) -> int:
    """Return the class of a ``winner`` cell: model_a, model_b, tie, both_bad, tie (bothbad)."""
    key = _key(cell)
    if not isinstance(key, str) or key not in VERDICTS:
        raise CellError(f"{show(cell)} is not a verdict; expected model_a, model_b, tie or both_bad")
    return VERDICTS[key]


def label(cell: object) -> int:
    """Return the class of a ``label`` cell: 0, 1, 2 or the words of :func:`verdict`."""
    key = _key(cell)
    try:
        return NUMBERS[key]
    except (KeyError, TypeError):
        pass
    if isinstance(key, str) and key in VERDICTS:
        return VERDICTS[key]
    raise CellError(f"{show(cell)} is not a label; expected 0 (A wins), 1 (B wins) or 2 (tie)")


def identifier(cell: object) -> str:
    """Return an id as text; whole floats lose their ".0" (a column of ids with a gap is float in pandas)."""
    if is_missing(cell):
        raise CellError("the id is missing")
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, bool | list | dict | bytes):
        raise CellError(f"{show(cell)} is not an id")
    text = str(cell)
    if not text.strip() or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise CellError(f"{show(cell)} is not an id")
    whole = WHOLE_FLOAT.fullmatch(text)
    return whole.group(1) if whole else text


def integer(cell: object) -> int | None:
    """Return a whole number, or None where the cell is missing."""
    if is_missing(cell):
        return None
    try:
        number = float(cell)  # type: ignore[arg-type]
        if number.is_integer() and abs(number) < 2**31:
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise CellError(f"{show(cell)} is not a whole number")


def rounds(cell: object) -> int | None:
    """Return how many rounds of a conversation the verdict is about, or None for all."""
    number = integer(cell)
    if number is not None and number < 1:
        raise CellError(f"{show(cell)} is not a number of rounds")
    return number


def content_id(*content: object) -> str:
    """Return an id that depends on a battle's content only (64 bits, in hexadecimal digits)."""
    return hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def small_text(cell: object) -> str | None:
    """Return a model's or language's name, or None where it is missing."""
    if is_missing(cell):
        return None
    return cell if isinstance(cell, str) else str(cell)
