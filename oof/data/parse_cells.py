"""Parsing of one cell to one value: turns, verdicts, ids, numbers.

Pure functions: a cell that cannot be parsed raises :class:`CellError`. Null turns and empty texts are valid.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping
from typing import Any

Turns = list[str | None] | None  # None = the whole cell is null; inside the list, None = a null turn

FLAGS: dict[Any, int] = {0: 0, 1: 1, "0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}  # 1 == 1.0 == True
PLAIN_YAML = re.compile(r"[\w./?>=-]+( [\w./>=()-]+)*")
SHELL_CHARACTERS = re.compile(r"[\"'()<>&|;$`\\!*#~]")
TOOL_ROLES = ("tool", "function", "observation", "function_response")
WHOLE_FLOAT = re.compile(r"(-?\d+)\.0+")


class CellError(ValueError):
    """The reason why a cell cannot be used; the caller adds the file, row and column."""


class NonTextError(CellError):
    """A cell holds an image, a tool call or something else that is no text; ``data.non_text`` decides about it."""


def is_missing(cell: object) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def show(cell: object) -> str:
    """Return a short printable form of a cell for messages."""
    text = repr(cell)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _plain(text: str) -> str:
    return text if PLAIN_YAML.fullmatch(text) else json.dumps(text, ensure_ascii=False)


def setting_word(name: str, values: Mapping[str, str]) -> str:
    """Return a mapping as an override that may be pasted into a shell or ARGS; quoted where a shell would change it."""
    pairs = ", ".join(f"{_plain(key)}: {_plain(value)}" for key, value in values.items())
    word = f"{name}={{{pairs}}}"
    return shlex.quote(word) if SHELL_CHARACTERS.search(word) else word


# --- texts -----------------------------------------------------------------------------------------------


def looks_like_list(cell: object) -> bool:
    return isinstance(cell, list) or (isinstance(cell, str) and cell[:1] == "[" and cell.rstrip()[-1:] == "]")


def turns_from_text(cell: object) -> Turns:
    """Return a plain text as its single turn; a missing cell is null."""
    if type(cell) is str:
        return [cell]
    return None if is_missing(cell) else turns_from_value(cell)


def turns_from_json(cell: object) -> Turns:
    """Return the turns of a JSON list of texts (``null`` allowed), given as text or as a list."""
    if is_missing(cell):
        return None
    return turns_from_value(parse_json(cell) if type(cell) is str else cell)


def parse_json(cell: str, items: str = "turns") -> Any:
    """Return the value of a JSON text; ``items`` names the expected list's items in the error."""
    try:
        return json.loads(cell)
    except RecursionError as error:
        raise CellError("JSON nested too deeply") from error
    except ValueError as error:
        raise CellError(f"not a JSON list of {items} ({error}): {show(cell)}") from error


def turns_from_value(value: object) -> Turns:
    if isinstance(value, list):
        return [content_text(turn) for turn in value] or None
    return None if value is None else [content_text(value)]


def content_text(content: object) -> str | None:
    """Return a message's text: a string, or its text parts joined by line breaks."""
    if isinstance(content, str):
        return content
    if content is None:
        return None
    if isinstance(content, dict):
        if content.get("image"):
            raise NonTextError("contains content of type 'image', which is not text")
        if isinstance(content.get("text"), str):
            return str(content["text"])
        if content.get("type", "text") != "text":
            raise NonTextError(f"contains content of type {show(content['type'])}, which is not text")
        if content.get("text", 0) is None:
            return None
    if isinstance(content, list):
        return "\n".join(text for text in (content_text(part) for part in content) if text)
    raise CellError(f"{show(content)} is not text")


# --- verdicts, ids, numbers, names -------------------------------------------------------------------------


def one_hot(a: object, b: object, tie: object) -> int:
    """Return the class of three 0/1 cells."""
    try:
        flags = [FLAGS[cell.strip().lower() if isinstance(cell, str) else cell] for cell in (a, b, tie)]
    except (KeyError, TypeError):
        raise CellError(
            f"the winner columns contain {show(a)}, {show(b)}, {show(tie)}; expected one 1 and two 0"
        ) from None
    if sum(flags) != 1:
        raise CellError(f"the winner columns are not one-hot: {flags[0]}, {flags[1]}, {flags[2]}")
    return flags.index(1)


def number(cell: object) -> float:
    """Return a finite number, which may be written as text."""
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise CellError(f"{show(cell)} is not a number")
    return value


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


def round_count(cell: object) -> int | None:
    """Return the number of rounds (a user turn and its answer) that the verdict is about, or None for all."""
    number = integer(cell)
    if number is not None and number < 1:
        raise CellError(f"{show(cell)} is not a number of rounds")
    return number


def content_id(*content: object) -> str:
    """Return an id that depends on a battle's content only: 64 bits as 16 hexadecimal digits."""
    return hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def optional_name(cell: object) -> str | None:
    """Return the name of a model, language or group, or None where it is missing."""
    return None if is_missing(cell) else str(cell)
