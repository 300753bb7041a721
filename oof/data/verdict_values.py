"""Values of a winner or label column: the class that each means, and the settings to paste where that is not known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from oof.classes import CLASSES
from oof.common.errors import UserError
from oof.data.parse_cells import WHOLE_FLOAT, CellError, is_missing, number, setting_word, show
from oof.data.raw_table import RawTable

VERDICT_WORDS = {
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
    "tie (inconsistent)": 2,
}
LABEL_NUMBERS = ("0", "1", "2")  # of a label without data.verdicts
MAPPED_VALUES = 8  # a longer mapping is not suggested
A_VALUES = {
    "left", "first", "1", "one", "response_a", "response_1", "response1", "output_1", "output_a", "answer_1",
    "answer_a", "model_1", "model a", "assistant_a", "assistant a", "response a", "response 1", "[[a]]",
    "a>b", "a>>b", "a_wins",
}  # fmt: skip
B_VALUES = {
    "right", "second", "2", "two", "response_b", "response_2", "response2", "output_2", "output_b", "answer_2",
    "answer_b", "model_2", "model b", "assistant_b", "assistant b", "response b", "response 2", "[[b]]",
    "b>a", "b>>a", "b_wins",
}  # fmt: skip
TIE_VALUES = {"draw", "equal", "same", "both", "neither", "none", "0", "no preference", "tied", "ties", "[[c]]", "a=b"}
GUESSES = {**dict.fromkeys(A_VALUES, "a"), **dict.fromkeys(B_VALUES, "b"), **dict.fromkeys(TIE_VALUES, "tie")}


class Meaning(NamedTuple):
    """What a value means: the class, and whether both responses were judged bad."""

    label: int
    both_bad: bool = False


WORDS = {word: Meaning(label, "bad" in word) for word, label in VERDICT_WORDS.items()}


def verdict_value(cell: object) -> str:
    """Return a verdict cell in the form in which values are compared: 1, 1.0, "1.0" and true are one value.

    Raises:
        CellError: it is neither a text nor a number.
    """
    if isinstance(cell, bool):
        return str(int(cell))
    if isinstance(cell, int | float):
        return str(int(cell)) if math.isfinite(cell) and cell == int(cell) else str(cell)
    if not isinstance(cell, str):
        raise CellError(f"{show(cell)} is not a verdict")
    value = cell.strip().lower()
    whole = WHOLE_FLOAT.fullmatch(value)
    return whole.group(1) if whole else value


def value_or_none(cell: object) -> str | None:
    """Return :func:`verdict_value`, or None where the cell is missing or holds none."""
    try:
        return None if is_missing(cell) else verdict_value(cell)
    except CellError:
        return None


def own_meanings(verdicts: Mapping[str, str]) -> dict[str, Meaning]:
    """Return value of a cell -> meaning of ``data.verdicts``.

    Raises:
        UserError: an entry names no class.
    """
    classes = {**{name: Meaning(i) for i, name in enumerate(CLASSES)}, **WORDS}
    meanings = {}
    for cell, name in verdicts.items():
        word = str(name).strip().lower()
        if word not in classes:
            raise UserError(f"data.verdicts: {cell!r} cannot mean {name!r}; choose a, b, tie or both_bad")
        meanings[verdict_value(cell)] = classes[word]
    return meanings


def meanings_of(column: str, own: Mapping[str, Meaning]) -> dict[str, Meaning]:
    """Return value -> meaning in a column, winner or label; ``own`` are those of ``data.verdicts``.

    Numbers mean something in a label without meanings of the user's own only.
    """
    numbers = {value: Meaning(int(value)) for value in LABEL_NUMBERS} if column == "label" and not own else {}
    return {**WORDS, **numbers, **own}


def two_codings(values: Iterable[str]) -> tuple[dict[str, str], ...]:
    """Return the two mappings that the numbers 1 and 2 of a label can mean; none for other values."""
    numbers = {number(value) for value in values if _is_number(value)}
    if not {1.0, 2.0} <= numbers <= {1.0, 2.0, 3.0}:
        return ()
    if 3.0 in numbers:
        return {"1": "a", "2": "b", "3": "tie"}, {"1": "b", "2": "a", "3": "tie"}
    return {"1": "a", "2": "b"}, {"0": "a", "1": "b", "2": "tie"}


def refuse_ambiguous(raw: RawTable, column: str, values: Sequence[str]) -> None:
    """Refuse numbers that fit more than one coding.

    Args:
        raw: the file's cells, with our column names.
        column: ours.
        values: its distinct values.

    Raises:
        UserError: names the possible settings.
    """
    numbers = sorted({number(value) for value in values if _is_number(value)})
    shown = [f"{value:g}" for value in numbers]
    own_name = raw.own_name(column)
    place = f"{raw.name}: column {own_name}"
    if numbers and numbers[0] < 0:
        few = ", ".join(shown[:6]) + (", …" if len(shown) > 6 else "")
        raise UserError(
            f"{place} has negative values ({few}), which are not labels; set data.columns.signed_score={own_name} with "
            f"data.positive_score=a or data.positive_score=b (the side that a positive score favours)"
        )
    if options := two_codings(values):
        settings = " or ".join(setting_word("data.verdicts", option) for option in options)
        raise UserError(f"{place} has the values {' and '.join(shown)}, which can mean two things; set {settings}")


def _is_number(value: str) -> bool:
    try:
        number(value)
    except CellError:
        return False
    return True


def mapping_remedy(column: str, unknown: Sequence[str], own: Mapping[str, Meaning]) -> str:
    """Return the remedy for values without a meaning: a mapping to paste where their meanings can be guessed."""
    plain = "write model_a, model_b or tie" if column == "winner" else "write 0, 1 or 2"
    guesses = guessed_verdicts(unknown)
    if not guesses:
        return f"{plain}, or say what the file's own values mean in data.verdicts"
    known = {value: "both_bad" if meaning.both_bad else CLASSES[meaning.label] for value, meaning in own.items()}
    mapping = setting_word("data.verdicts", known | guesses) + hint_for(guesses)
    return mapping if own else f"{plain}, or set {mapping}"


def guessed_verdicts(unknown: Sequence[str]) -> dict[str, str]:
    """Return value -> class as ``data.verdicts`` takes it, "?" where it cannot be guessed; {} for too many values."""
    if len(unknown) > MAPPED_VALUES or not all(value.isprintable() and len(value) <= 40 for value in unknown):
        return {}
    return {value: GUESSES.get(value, "?") for value in unknown}


def hint_for(verdicts: Mapping[str, str]) -> str:
    """Return what to write for the values whose meaning could not be guessed; "" if there are none."""
    return " (a, b, tie or both_bad for each ?)" if "?" in verdicts.values() else ""
