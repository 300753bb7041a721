"""Settings of reading that are suggested for a file with unknown columns, as one line to paste.

The names of the columns give ``data.columns``, and the values of its verdict column ``data.verdicts`` or
``data.positive_score``. Where these values can mean two things, there are two suggestions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from oof.common.errors import UserError
from oof.config import Data
from oof.data import readers
from oof.data.parse_cells import setting_word
from oof.data.raw_table import RawTable
from oof.data.schemas import UnknownColumnsError
from oof.data.verdict_values import (
    guessed_verdicts,
    hint_for,
    meanings_of,
    own_meanings,
    two_codings,
    value_or_none,
)
from oof.data.verdicts import form_of

Settings = dict[str, Any]  # settings of oof.config.Data: name -> value
ColumnReader = Callable[[str], Sequence[Any]]  # name of a column -> its cells


class UnreadableColumnsError(UserError):
    """A file's columns are not known; ``common`` holds the settings that are the same in each suggestion.

    Columns and meanings that could not be guessed are left out.
    """

    def __init__(self, error: UnknownColumnsError, suggestions: list[Settings]) -> None:
        super().__init__(f"{error}; {error.condition}{remedy(suggestions)}")
        first = suggestions[0] if suggestions else {}
        same = {name: value for name, value in first.items() if all(other.get(name) == value for other in suggestions)}
        self.common = {
            name: {key: meaning for key, meaning in value.items() if meaning != "?"}
            if isinstance(value, dict)
            else value
            for name, value in same.items()
        }


def file_column(path: str, name: str) -> ColumnReader:
    """Return the reader of one column's cells in a file, or in the file ``name`` of an archive."""

    def read(column: str) -> Sequence[Any]:
        return next(table for table in readers.read_raw(path, {column}) if table.name == name).columns[column]

    return read


def suggested_settings(
    read_column: ColumnReader, raw: RawTable, columns: Mapping[str, str], data: Data
) -> list[Settings]:
    """Return the settings with which a file can probably be read: one suggestion, or one for each possible coding.

    Args:
        read_column: returns the cells of a column of the file, of which ``raw`` holds those with known names.
        raw: the file's cells.
        columns: the suggested mapping, ours first; if it is empty, nothing is suggested.
        data: the settings with which the file could not be read.
    """
    if not columns:
        return []
    form = form_of({*raw.names, *columns}, list(columns))
    if form in ("signed_score", "signed_scores") and data.positive_score == "unset":
        return _signed(dict(columns))
    if form not in ("winner", "label"):
        return [{"columns": dict(columns)}]
    theirs = columns.get(form, form)
    values = sorted({value for value in map(value_or_none, read_column(theirs)) if value is not None})
    return _coded(dict(columns), form, values, data)


def _coded(columns: dict[str, str], form: str, values: list[str], data: Data) -> list[Settings]:
    own = own_meanings(data.verdicts)
    if form == "label" and not own and any(value.startswith("-") and value[1:2].isdigit() for value in values):
        return _signed({"signed_score" if ours == form else ours: theirs for ours, theirs in columns.items()})
    unknown = [value for value in values if value not in meanings_of(form, own)]
    options = two_codings(values) if form == "label" and not own else ()
    codings = [option | guessed_verdicts([v for v in unknown if v not in option]) for option in options]
    suggestions: list[Settings] = []
    for coding in codings or [{**data.verdicts, **guessed_verdicts(unknown)}]:
        suggestions.append({"columns": columns, **({"verdicts": coding} if coding else {})})
    return suggestions


def _signed(columns: dict[str, str]) -> list[Settings]:
    return [{"columns": columns, "positive_score": side} for side in ("a", "b")]


def remedy(suggestions: list[Settings]) -> str:
    """Return the suggestions in words, with each as one line to paste."""
    if not suggestions:
        return "name the file's own columns in data.columns"
    lines = [_line(suggestion) for suggestion in suggestions]
    if len(lines) == 1:
        return f"set {lines[0]}"
    return "the verdicts can mean two things; set one of these:\n  " + "\n  ".join(lines)


def _line(suggestion: Settings) -> str:
    """Return a suggestion as overrides, ready to paste into a shell or ARGS."""
    words = [
        setting_word(f"data.{name}", value) if isinstance(value, Mapping) else f"data.{name}={value}"
        for name, value in suggestion.items()
    ]
    hint = " (a column of the file for ?)" if "?" in suggestion["columns"].values() else ""
    return " ".join(words) + hint + hint_for(suggestion.get("verdicts", {}))
