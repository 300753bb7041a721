"""Problems of battle files: rejected rows with their reasons, messages with remedies, counts.

A fault is one bad cell or row of one file; a row with any fault is left out, or the files are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from oof.classes import class_counts, classes_of_data
from oof.data.parsed_rows import BOTH_BAD_DROPPED, ParsedRows
from oof.data.schemas import ONE_HOT_COLUMNS
from oof.data.text_columns import strings

DROPPED: dict[str, pl.DataType] = {"file": pl.String(), "row": pl.Int64(), "id": pl.String(), "reason": pl.String()}
SEVERITIES = ("error", "warning", "note")
COUNTS = (
    "rows_read",
    "rows_dropped",
    "rows_without_text",
    "null_turns",
    "empty_responses",
    "identical_responses",
    "lone_surrogates",
    "nul_characters",
    "both_bad",
    "ids_made",
    "ids_renamed",
)
JOINED_ROWS = 10_000  # battles of whose responses a second copy is in memory at a time
SHOWN = 5  # reasons that an error message names
EXAMPLES = 3  # rows with one reason that it names
REMEDIES: dict[str | None, str] = {
    "fold": "write whole numbers, or leave the column out",
    "id": "give each battle a unique id",
    ONE_HOT_COLUMNS: "write 1 into one of the three winner columns and 0 into the others",
    "winner": "write model_a, model_b or tie",
    "label": "write 0, 1 or 2",
}
ANOTHER_VERDICT = "another verdict"  # of a battle that occurs before
SEVERAL_VOTES = f"{REMEDIES['id']}, or name the file in data.votes, too, if its rows are several votes on a battle"
TEXT_REMEDY = 'write texts as UTF-8, turns as a JSON list such as ["Hello"]'


@dataclass(frozen=True)
class Problem:
    """One problem or note about a file; ``str(problem)`` is one line.

    Attributes:
        severity: "error" (rows that cannot be used), "warning" (probably a mistake) or "note".
        file: the file, or several joined by commas.
        message: the problem in words.
        remedy: how to solve it.
        column: its column, if it concerns one.
        rows: (data row, reason) of each bad row.
    """

    severity: str
    file: str
    message: str
    remedy: str = ""
    column: str | None = None
    rows: tuple[tuple[int, str], ...] = ()

    def __str__(self) -> str:
        grouped = self.by_reason()
        shown = "; ".join(f"{rows_in_words(rows)}: {reason}" for reason, rows in grouped[:SHOWN])
        more = f"; and {len(grouped) - SHOWN:,} other reasons" if len(grouped) > SHOWN else ""
        where = f": {shown}{more}" if shown else ""
        return f"{self.file}: {self.message}{where}{'; ' if self.remedy else ''}{self.remedy}"

    def document(self) -> dict[str, object]:
        """Return the problem as JSON values, its rows by reason."""
        rows = [{"reason": reason, "rows": rows} for reason, rows in self.by_reason()]
        names = ("severity", "file", "message", "remedy", "column")
        return {**{name: getattr(self, name) for name in names}, "rows": rows}

    def by_reason(self) -> list[tuple[str, list[int]]]:
        """Return each distinct reason with its rows, in the order of their first rows."""
        grouped: dict[str, list[int]] = {}
        for row, reason in self.rows:
            grouped.setdefault(reason, []).append(row)
        return list(grouped.items())


def rows_in_words(rows: Sequence[int]) -> str:
    """Return "row 7", or "60 rows, e.g. rows 1, 2, 3"; each row is named once."""
    rows = list(dict.fromkeys(rows))
    if len(rows) == 1:
        return f"row {rows[0]}"
    if len(rows) <= EXAMPLES:
        return f"rows {', '.join(map(str, rows))}"
    return f"{len(rows):,} rows, e.g. rows {', '.join(map(str, rows[:EXAMPLES]))}"


@dataclass(frozen=True)
class RejectedRow:
    """One reason why one row cannot be used; files are numbered in the order read.

    ``battle`` identifies what is left out: a row of a ranking gives several battles.
    """

    file_number: int
    row: int
    id: str | None
    column: str | None
    reason: str
    remedy: str
    chosen: bool = False  # a setting leaves such rows out
    position: int | None = None  # as in RowFault

    @property
    def battle(self) -> tuple[int, int, int | str | None]:
        return self.file_number, self.row, self.id if self.position is None else self.position

    def __str__(self) -> str:
        return f"column {self.column}: {self.reason}" if self.column else self.reason


def rejected_rows(
    parsed: Sequence[ParsedRows], working: pl.DataFrame, rejected_ids: Mapping[int, str]
) -> list[RejectedRow]:
    """Return every reason, in the order of files and rows: faults of cells, and rejected ids.

    Args:
        parsed: one per file.
        working: the usable rows of all files with "file_number", "row" and "id".
        rejected_ids: position in ``working`` -> reason.
    """
    rejected = []
    for number, rows in enumerate(parsed):
        for fault in rows.faults:
            remedy = fault.remedy or REMEDIES.get(fault.column, TEXT_REMEDY)
            name = None if fault.position is None else rows.ids[fault.position]
            rejected.append(
                RejectedRow(number, fault.row, name, fault.column, fault.reason, remedy, fault.chosen, fault.position)
            )
    places = working.select("file_number", "row", "id")
    for at, reason in rejected_ids.items():
        number, row, name = places.row(at)
        remedy = SEVERAL_VOTES if reason.endswith(ANOTHER_VERDICT) else REMEDIES["id"]
        rejected.append(RejectedRow(number, row, name, "id", reason, remedy))
    return sorted(rejected, key=lambda item: (item.file_number, item.row))


def dropped_frame(parsed: Sequence[ParsedRows], rejected: Sequence[RejectedRow]) -> pl.DataFrame:
    """Return file, row, id, reason: one line per battle that is left out, with all its reasons."""
    by_battle: dict[tuple[int, int, int | str | None], list[RejectedRow]] = {}
    for item in rejected:
        by_battle.setdefault(item.battle, []).append(item)
    firsts = [items[0] for items in by_battle.values()]
    columns = {
        "file": strings([parsed[item.file_number].raw.name for item in firsts]),
        "row": [item.row for item in firsts],
        "id": strings([item.id for item in firsts]),
        "reason": strings(["; ".join(map(str, items)) for items in by_battle.values()]),
    }
    return pl.DataFrame(columns, schema=DROPPED)


def rejection_message(
    parsed: Sequence[ParsedRows],
    rejected: Sequence[RejectedRow],
    listed: str = "the run's dropped.csv then lists them",
) -> str:
    """Return the error for rows that cannot be used: the first few, their number, and the remedies."""
    grouped: dict[tuple[int, str], list[RejectedRow]] = {}
    for item in rejected:
        grouped.setdefault((item.file_number, str(item)), []).append(item)
    shown = [
        f"{parsed[number].raw.name}, {rows_in_words([item.row for item in items])}, {reason}"
        for (number, reason), items in list(grouped.items())[:SHOWN]
    ]
    more = f"; and {len(grouped) - SHOWN:,} other reasons" if len(grouped) > SHOWN else ""
    remedies = "; ".join(dict.fromkeys(items[0].remedy for items in list(grouped.values())[:SHOWN]))
    n_rows, total = len({item.battle for item in rejected}), sum(rows.raw.n_read for rows in parsed)
    return (
        f"{'; '.join(shown)}{more}. {n_rows:,} of {total:,} rows cannot be used: {remedies}; "
        f"or leave them out with data.on_bad_row=drop ({listed})"
    )


def count_responses(table: pl.DataFrame) -> dict[str, int]:
    """Return the numbers of battles with an empty response, and with two identical ones."""
    a, b = (pl.col(name).list.join("").str.strip_chars() for name in ("response_a", "response_b"))
    empty, identical = (a == "") | (b == ""), (pl.col("response_a") == pl.col("response_b")) & (a != "")
    columns = {"empty_responses": empty.sum(), "identical_responses": identical.sum()}
    parts = [part.select(**columns) for part in table.select("response_a", "response_b").iter_slices(JOINED_ROWS)]
    return {name: sum(int(part[name][0]) for part in parts) for name in columns}


def list_problems(
    parsed: Sequence[ParsedRows], rejected: Sequence[RejectedRow], table: pl.DataFrame, counts: Mapping[str, int]
) -> list[Problem]:
    """Return the messages about the files, most serious first.

    Args:
        parsed: one per file.
        rejected: as :func:`rejected_rows` returns them.
        table: the battles that are kept.
        counts: :data:`COUNTS`.
    """
    kinds: dict[tuple[int, str | None, str, bool], list[RejectedRow]] = {}
    for item in rejected:
        kinds.setdefault((item.file_number, item.column, item.remedy, item.chosen), []).append(item)
    problems = []
    for (number, column, remedy, chosen), items in kinds.items():
        raw = parsed[number].raw
        n_rows = len({item.battle for item in items})
        outcome = "are left out" if chosen else "cannot be used"
        text = f"{n_rows:,} of {raw.n_read:,} rows {outcome}" + (f", column {column}" if column else "")
        rows = tuple((item.row, item.reason) for item in items)
        problems.append(Problem("note" if chosen else "error", raw.name, text, remedy, column, rows))
    problems += [Problem("warning", rows.raw.name, "no rows") for rows in parsed if not rows.raw.n_read]
    files = ", ".join(dict.fromkeys(rows.raw.name for rows in parsed))
    if counts["both_bad"] and not any(item.remedy == BOTH_BAD_DROPPED for item in rejected):
        text = f'{counts["both_bad"]:,} battles were judged "both bad" and are read as ties'
        problems.append(Problem("note", files, text, "data.both_bad=drop leaves them out, keep adds a column"))
    if counts["ids_renamed"]:
        text = f"{counts['ids_renamed']:,} ids occur in another file or role, too; the file or role became their prefix"
        problems.append(Problem("warning", files, text, column="id"))
    labels = table.filter(pl.col("role") == "train")["label"]
    possible = classes_of_data(all(rows.ties for rows in parsed))
    absent = [name for name, n in zip(possible, class_counts(labels.to_numpy())[: len(possible)], strict=True) if not n]
    if absent and len(labels):
        text = f"no battle has the verdict {', '.join(absent)}: it will be predicted with a probability near 0"
        remedy = "if no battle can end in a tie, set data.ties=false" if absent == ["tie"] else ""
        problems.append(Problem("warning", files, text, remedy))
    return sorted(problems, key=lambda problem: SEVERITIES.index(problem.severity))
