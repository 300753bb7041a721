"""What was wrong and what was found: left-out rows with their reasons, messages with remedies, facts counted.

A fault is one bad cell or row of one file; a row with any fault is left out, or the files are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from oof.classes import CLASSES
from oof.data.parse_rows import Draft
from oof.data.text_columns import strings

DROPPED: dict[str, pl.DataType] = {"file": pl.String(), "row": pl.Int64(), "id": pl.String(), "reason": pl.String()}
SEVERITIES = ("error", "warning", "note")
FACTS = (
    "rows_read",
    "rows_dropped",
    "rows_without_text",
    "null_turns",
    "empty_responses",
    "identical_responses",
    "lone_surrogates",
    "nul_characters",
    "ids_made",
    "ids_renamed",
)
SHOWN = 5  # bad rows that an error message names
REMEDIES: dict[str | None, str] = {
    "fold": "write whole numbers, or leave the column out",
    "id": "give each battle an id of its own",
    "winner_model_a..winner_tie": "put a 1 into one of the three winner columns and 0 into the others",
    "winner": "write model_a, model_b or tie",
    "label": "write 0, 1 or 2",
}
TEXT_REMEDY = 'write texts as UTF-8, turns as a JSON list such as ["Hello"]'


@dataclass(frozen=True)
class Problem:
    """One thing to mend or to know; ``str(problem)`` is one line.

    Attributes:
        severity: "error" (rows that cannot be used), "warning" (probably a mistake) or "note".
        file: the file, or several joined by commas.
        message: what is wrong.
        remedy: what to do about it.
        column: the column it is about, where it is one.
        rows: (data row, reason) of each bad row.
    """

    severity: str
    file: str
    message: str
    remedy: str = ""
    column: str | None = None
    rows: tuple[tuple[int, str], ...] = ()

    def __str__(self) -> str:
        shown = "; ".join(f"row {row}: {reason}" for row, reason in self.rows[:SHOWN])
        more = f"; and {len(self.rows) - SHOWN:,} more" if len(self.rows) > SHOWN else ""
        where = f": {shown}{more}" if shown else ""
        return f"{self.file}: {self.message}{where}{'; ' if self.remedy else ''}{self.remedy}"


@dataclass(frozen=True)
class Lost:
    """One reason why one row is left out; ``part`` counts the files in the order read."""

    part: int
    row: int
    id: str | None
    column: str | None
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"column {self.column}: {self.reason}" if self.column else self.reason


def lost_rows(drafts: Sequence[Draft], working: pl.DataFrame, refused: Mapping[int, str]) -> list[Lost]:
    """Return every reason, in the order of files and rows: faults of cells, and ids that were refused.

    Args:
        drafts: one per file.
        working: the usable rows of all of them with "part", "row" and "id".
        refused: position in ``working`` -> reason.
    """
    lost = []
    for i, draft in enumerate(drafts):
        ids = dict(zip(draft.raw.rows, draft.ids, strict=True))
        lost += [
            Lost(i, f.row, ids.get(f.row), f.column, f.reason, f.remedy or REMEDIES.get(f.column, TEXT_REMEDY))
            for f in draft.faults
        ]
    places = working.select("part", "row", "id")
    for at, reason in refused.items():
        row = places.row(at, named=True)
        lost.append(Lost(row["part"], row["row"], row["id"], "id", reason, REMEDIES["id"]))
    return sorted(lost, key=lambda item: (item.part, item.row))


def dropped_frame(drafts: Sequence[Draft], lost: Sequence[Lost]) -> pl.DataFrame:
    """Return file, row, id, reason: one line per row that is left out, with all its reasons."""
    lines: dict[tuple[int, int], tuple[str | None, list[str]]] = {}
    for item in lost:
        lines.setdefault((item.part, item.row), (item.id, []))[1].append(str(item))
    columns = {
        "file": strings([drafts[part].raw.name for part, _ in lines]),
        "row": [row for _, row in lines],
        "id": strings([name for name, _ in lines.values()]),
        "reason": strings(["; ".join(reasons) for _, reasons in lines.values()]),
    }
    return pl.DataFrame(columns, schema=DROPPED)


def refusal(drafts: Sequence[Draft], lost: Sequence[Lost]) -> str:
    """Return the error for rows that cannot be used: the first few, their number, and what to do."""
    shown = [f"{drafts[item.part].raw.name}, row {item.row}, {item}" for item in lost[:SHOWN]]
    more = f"; and {len(lost) - SHOWN:,} more" if len(lost) > SHOWN else ""
    remedies = "; ".join(dict.fromkeys(item.remedy for item in lost[:SHOWN]))
    n_rows, total = len({(item.part, item.row) for item in lost}), sum(draft.raw.n_read for draft in drafts)
    return (
        f"{'; '.join(shown)}{more}. {n_rows:,} of {total:,} rows cannot be used: {remedies}; "
        f"or leave them out with data.on_bad_row=drop (the run's dropped.csv then lists them)"
    )


def facts(table: pl.DataFrame) -> dict[str, int]:
    """Return how many battles have a response without text, and how many the same text twice."""
    a, b = (pl.col(name).list.join("").str.strip_chars() for name in ("response_a", "response_b"))
    found = table.select(
        ((a == "") | (b == "")).sum().alias("empty_responses"),
        ((pl.col("response_a") == pl.col("response_b")) & (a != "")).sum().alias("identical_responses"),
    )
    return {name: int(found[name][0] or 0) for name in found.columns}


def problems_of(
    drafts: Sequence[Draft], lost: Sequence[Lost], table: pl.DataFrame, counts: Mapping[str, int]
) -> list[Problem]:
    """Return what a person should read about the files, most serious first."""
    kinds: dict[tuple[int, str | None, str], list[Lost]] = {}
    for item in lost:
        kinds.setdefault((item.part, item.column, item.remedy), []).append(item)
    problems = []
    for (part, column, remedy), items in kinds.items():
        draft = drafts[part]
        n_rows = len({item.row for item in items})
        text = f"{n_rows:,} of {draft.raw.n_read:,} rows cannot be used" + (f", column {column}" if column else "")
        rows = tuple((item.row, item.reason) for item in items)
        problems.append(Problem("error", draft.raw.name, text, remedy, column, rows))
    problems += [Problem("warning", draft.raw.name, "no rows") for draft in drafts if not draft.raw.n_read]
    files = ", ".join(dict.fromkeys(draft.raw.name for draft in drafts))
    if counts["ids_renamed"]:
        text = f"{counts['ids_renamed']:,} ids also stand in another file or role; they got its name as a prefix"
        problems.append(Problem("warning", files, text, column="id"))
    labels = table.filter(pl.col("role") == "train")["label"]
    absent = [name for i, name in enumerate(CLASSES) if not (labels == i).any()] if len(labels) else []
    if absent:
        text = f"no battle has the verdict {', '.join(absent)}: it will be predicted with a probability near 0"
        problems.append(Problem("warning", files, text))
    return sorted(problems, key=lambda problem: SEVERITIES.index(problem.severity))
