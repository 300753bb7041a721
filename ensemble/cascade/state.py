"""State of a cascade at work on new battles: battles and results on disk, numbers in memory.

The battles of each chunk are stored once, and each piece of work when it is done, in one file with its seconds. So a
killed prediction reads what was done and goes on. In memory are some hundred bytes for each battle, not its texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.cascade.levels import Scored
from ensemble.cascade.policy import AB, BA, ENSEMBLE
from ensemble.cascade.work import Models
from oof.classes import CLASSES, ORDERS
from oof.common.atomic_files import read_parquet, write_parquet
from oof.common.logits_format import COUNT_COLUMNS, LOGIT_COLUMNS

POSITION, SECONDS = "position", "seconds"


@dataclass(frozen=True)
class StoredBattles:
    """Tables of new battles in files.

    Attributes:
        files: one for each chunk.
        starts: (files + 1,) position of each file's first battle; the last is the number of battles.
    """

    files: Sequence[Path]
    starts: NDArray[np.int64]

    @classmethod
    def store(cls, folder: Path, tables: Iterable[pl.DataFrame]) -> StoredBattles:
        """Write each table that is not there yet."""
        files, heights = [], [0]
        for i, table in enumerate(tables):
            files.append(folder / f"battles-{i:06}.parquet")
            heights.append(table.height)
            if not files[-1].is_file():
                write_parquet(files[-1], table)
        return cls(files, np.cumsum(heights))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, rows: NDArray[np.int64]) -> pl.DataFrame:
        """Return the battles at ascending positions."""
        tables: list[pl.DataFrame] = []
        for file, start, end in zip(self.files, self.starts[:-1], self.starts[1:], strict=True):
            inside = rows[(rows >= start) & (rows < end)] - start
            if len(inside):
                tables.append(read_parquet(file)[inside])
        return pl.DataFrame(pl.concat(tables, how="vertical_relaxed"))


@dataclass
class State:
    """Results so far of n battles; NaN where there are none yet.

    Attributes:
        student: (n, 2, 3) logits.
        members: (n, 2, 3) logits of each member.
        ensemble: (n, 3) probabilities.
        counts: (n, 6) the first member's token counts.
        spent: step -> seconds of the finished pieces.
        done: step -> their battles.
        first: step -> seconds and battles of the first piece, which also reads the model.
    """

    student: NDArray[np.float64]
    members: dict[str, NDArray[np.float32]]
    ensemble: NDArray[np.float64]
    counts: NDArray[np.int64]
    spent: dict[int, float] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)
    first: dict[int, tuple[float, int]] = field(default_factory=dict)

    @classmethod
    def empty(cls, n: int, members: Sequence[str]) -> State:
        """Return the state of n battles of which nothing is known."""
        logits = {name: np.full((n, 2, 3), np.nan, dtype=np.float32) for name in members}
        return cls(np.full((n, 2, 3), np.nan), logits, np.full((n, 3), np.nan), np.zeros((n, 6), dtype=np.int64))

    def scored(self, rows: NDArray[np.int64]) -> Scored:
        """Return the results of some battles for a level's function."""
        return Scored(self.student, self.members, self.ensemble).take(rows)

    def read(self, path: Path, step: int) -> NDArray[np.int64]:
        """Take the results of a finished piece over; return its positions."""
        frame = read_parquet(path)
        rows = frame[POSITION].to_numpy()
        for order, unit in enumerate((AB, BA)):
            if f"{unit}|a" in frame.columns:
                self.student[rows, order] = frame.select(f"{unit}|{c}" for c in CLASSES).to_numpy()
        for name, values in self.members.items():
            if f"{name}|{LOGIT_COLUMNS[0]}" in frame.columns:
                flat = frame.select(f"{name}|{column}" for column in LOGIT_COLUMNS).to_numpy()
                values[rows] = flat.reshape(-1, 2, 3)
        if COUNT_COLUMNS[0] in frame.columns:
            self.counts[rows] = frame.select(COUNT_COLUMNS).to_numpy()
        if f"{ENSEMBLE}|a" in frame.columns:
            self.ensemble[rows] = frame.select(f"{ENSEMBLE}|{c}" for c in CLASSES).to_numpy()
        seconds = float(frame[SECONDS][0])
        self.first.setdefault(step, (seconds, len(rows)))
        self.spent[step] = self.spent.get(step, 0.0) + seconds
        self.done[step] = self.done.get(step, 0) + len(rows)
        return rows

    def rate(self, step: int) -> float:
        """Return the seconds a battle of a step's finished pieces, of the first one only if there is no other."""
        seconds, battles = self.first[step]
        if self.done[step] > battles:
            return (self.spent[step] - seconds) / (self.done[step] - battles)
        return seconds / battles

    def work(
        self, models: Models, level: str, units: Sequence[str], rows: NDArray[np.int64], table: pl.DataFrame
    ) -> pl.DataFrame:
        """Do the missing work of a level on some battles, which are alike in what was done; return its results.

        Args:
            models: that score.
            level: its name.
            units: the pieces of work behind it.
            rows: (m,) positions.
            table: the (m) battles there.
        """
        columns: dict[str, NDArray[np.generic]] = {POSITION: rows}
        members, counts = {name: values[rows] for name, values in self.members.items()}, self.counts[rows]
        for unit in units:
            if unit in (AB, BA):
                order = (AB, BA).index(unit)
                if np.isnan(self.student[rows, order]).any():
                    columns |= _columns(unit, CLASSES, models.student(table, ORDERS[order]))
            elif np.isnan(members[unit]).any():
                members[unit], counted = models.member(unit, table)
                columns |= _columns(unit, LOGIT_COLUMNS, members[unit].reshape(-1, 6))
                if unit == next(iter(members)):
                    counts = counted
                    columns |= {name: counted[:, i] for i, name in enumerate(COUNT_COLUMNS)}
        if level == ENSEMBLE:
            columns |= _columns(ENSEMBLE, CLASSES, models.ensemble(table, members, counts))
        return pl.DataFrame(columns)


def _columns(name: str, suffixes: Sequence[str], values: NDArray[np.floating]) -> dict[str, NDArray[np.generic]]:
    return {f"{name}|{suffix}": values[:, i] for i, suffix in enumerate(suffixes)}
