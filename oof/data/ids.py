"""Ids that are one per battle: made from content where a file has none, repaired or refused where they collide.

The rules stand in :mod:`oof.data.battles`. Works on the table of all rows with their "ids_given" flag; only rows whose id
occurs more than once are looked at one by one.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from oof.data.schemas import TEXTS


@dataclass
class Verdict:
    """What became of the ids: new ids by row position, and rows to leave out with the reason."""

    renamed: dict[int, str] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)


def settle_ids(table: pl.DataFrame) -> Verdict:
    """Return what must happen to the ids of ``table`` (id, ids_given, role, file, row, label and the three texts)."""
    verdict = Verdict()
    space = pl.when(pl.col("role") == "test").then(pl.lit("test")).otherwise(pl.lit("fit"))
    rows = table.with_row_index("at").with_columns(space.alias("space"))
    rows = rows.filter(pl.struct("space", "id").is_duplicated())
    together: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows.select("at", "space", "id", "ids_given", "role", "file", "row", "label", *TEXTS).iter_rows(
        named=True
    ):
        together[row["space"], row["id"]].append(row)
    for (space_name, _), same in together.items():
        if not any(row["ids_given"] for row in same):
            for i, row in enumerate(same[1:], 2):  # the same battle, met again in a file without ids: both are kept
                verdict.renamed[row["at"]] = f"{row['id']}-{i}"
        else:
            _settle_one(same, space_name, verdict)
    return verdict


def _settle_one(same: list[dict[str, Any]], space: str, verdict: Verdict) -> None:
    roles = list(dict.fromkeys(row["role"] for row in same))
    for i, role in enumerate(roles):
        kept = _without_repetitions([row for row in same if row["role"] == role], verdict)
        kept = _without_conflicts(kept, space, verdict)
        several_files = len({row["file"] for row in kept}) > 1
        for row in kept:
            name = f"{Path(row['file']).name}:{row['id']}" if several_files else row["id"]
            if i:
                name = f"{role}:{name}"
            if name != row["id"]:
                verdict.renamed[row["at"]] = name


def _content(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(tuple(row[name]) for name in TEXTS)


def _without_repetitions(rows: list[dict[str, Any]], verdict: Verdict) -> list[dict[str, Any]]:
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        first = seen.setdefault((_content(row), row["label"]), row)
        if first is not row:
            verdict.refused[row["at"]] = f"repeats {_place(first, row)} (same id, same battle)"
    return list(seen.values())


def _without_conflicts(rows: list[dict[str, Any]], space: str, verdict: Verdict) -> list[dict[str, Any]]:
    """Refuse all rows of one id that contradict each other; battles of different files may share a number."""
    texts: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    places: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        texts[_content(row)].append(row)
        places["" if space == "test" else row["file"]].append(row)
    for what, sets in (("another battle", places), ("another verdict", texts)):
        for same in sets.values():
            for row in same if len(same) > 1 else []:
                other = same[1] if row is same[0] else same[0]
                verdict.refused[row["at"]] = f"the id also stands on {_place(other, row)} with {what}"
    return [row for row in rows if row["at"] not in verdict.refused]


def _place(other: dict[str, Any], row: dict[str, Any]) -> str:
    return f"row {other['row']}" if other["file"] == row["file"] else f"row {other['row']} of {other['file']}"
