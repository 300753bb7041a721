"""Values of a file's rows, and the faults of those that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from oof.classes import TIE
from oof.data.parse_cells import CellError, NonTextError
from oof.data.raw_table import RawTable, RowFault
from oof.data.schemas import TEXTS, Schema
from oof.data.verdicts import Shares

TIES_REMEDY = "set data.ties=true if battles can end in a tie"
BOTH_BAD_DROPPED = "data.both_bad=drop"  # remedy of the rows that this setting leaves out


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
    ties: bool = True  # data.ties

    @property
    def n(self) -> int:
        return len(self.raw.rows)

    def forget_texts(self) -> None:
        for name in TEXTS:
            getattr(self, name).clear()

    def refuse_ties(self) -> None:
        """Make a fault of each row whose verdict is a tie, or a tie in part (``data.ties=false``)."""
        columns = self.verdict_columns
        place = None if not columns else columns[0] if len(columns) == 1 else f"{columns[0]}..{columns[-1]}"
        faulty = {fault.position for fault in self.faults}
        for i, (label, soft) in enumerate(zip(self.labels, self.soft, strict=True)):
            if i not in faulty and (label == TIE or (soft and soft[TIE])):
                verdict = "the verdict is a tie" if label == TIE else "a part of the votes are for a tie"
                self.fault(i, place, f"{verdict}, but data.ties=false", TIES_REMEDY)

    def fault(self, i: int, column: str | None, reason: object, remedy: str = "", chosen: bool = False) -> None:
        if isinstance(reason, NonTextError):
            chosen = self.non_text == "drop"
            remedy = (
                "data.non_text=drop" if chosen else "set data.non_text=drop, or =placeholder to read [image] instead"
            )
        self.faults.append(RowFault(self.raw.rows[i], column, str(reason), remedy, chosen, i))

    def parse_column(self, column: str, parse: Callable[[Any], Any], default: Any = None) -> list[Any]:
        """Return ``parse`` of each cell of a column; a bad cell becomes a fault and ``default``.

        A column that the file lacks has the default everywhere.
        """
        cells = self.raw.columns.get(column)
        if cells is None:
            return [default] * self.n
        values: list[Any] = []
        for i, cell in enumerate(cells):
            try:
                values.append(parse(cell))
            except CellError as error:
                self.fault(i, column, error)
                values.append(default)
        return values
