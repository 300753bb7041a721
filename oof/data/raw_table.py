"""Cells of one battle file before parsing, and the faults of its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RowFault:
    """One fault of a record: its 1-based data row, its column or None, the reason and the remedy in words.

    ``position`` is the cells' index in the table's columns; None if the record could not be read. It tells the battles
    of a ranking apart, which all have the row of their prompt.
    """

    row: int
    column: str | None
    reason: str
    remedy: str = ""
    chosen: bool = False  # a setting leaves such rows out, so that this is no error
    position: int | None = None


@dataclass(frozen=True)
class RawTable:
    """Cells of one file by column, not yet parsed.

    Attributes:
        name: the file as messages show it (``archive.zip/member.csv`` inside an archive).
        names: all columns of the file, in its order.
        columns: the wanted columns as lists of equal length; a cell is a str in CSV, any JSON value otherwise.
        rows: the 1-based data row of each element of those lists.
        faults: records that cannot be read; they are not in ``columns``.
        renamed: our name of a column -> the file's own, where they differ.
        n_read: records in the file = ``len(rows) + len(faults)``.
    """

    name: str
    names: list[str]
    columns: dict[str, list[Any]]
    rows: list[int]
    faults: list[RowFault]
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_read(self) -> int:
        return len(self.rows) + len(self.faults)

    def own_name(self, column: str) -> str:
        """Return the file's own name of a column of ours."""
        return self.renamed.get(column, column)
