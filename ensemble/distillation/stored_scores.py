"""Scores of one fold job by battle, kept in pieces. Imports no torch.

The logits of a finished fold job depend on a battle's texts alone. So a battle is known by the hash of its texts, and
is scored once, whatever other battles a teacher job has: when a file of ``data.unlabelled`` gets more rows, or another
``distill.teacher`` needs other battles, only those that no piece has are scored. A piece is a step with a manifest,
named by its battles; a damaged one is made again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from oof.common.atomic_files import read_parquet
from oof.common.digests import digest
from oof.common.steps import Step

LOGITS = "logits.parquet"  # of a piece: the open logits format with the column "battle" instead of "id"


@dataclass(frozen=True)
class StoredScores:
    """The pieces with the scores of one fold job in ``folder``."""

    folder: Path

    @cached_property
    def finished(self) -> list[Path]:
        """The folders of the finished, intact pieces when this was first read, in the order of their names."""
        return [path for path in sorted(self.folder.glob("*")) if Step(path, path.name).done]

    def missing(self, battles: pl.Series) -> NDArray[np.int64]:
        """Return the positions of the battles (hashes) that no finished piece has, each battle once, in order."""
        rows = pl.DataFrame({"battle": battles}).with_row_index("row")
        rows = rows.unique("battle", keep="first", maintain_order=True)
        new = rows.join(_scores(self.finished, ["battle"]), on="battle", how="anti", maintain_order="left")
        return new["row"].to_numpy().astype(np.int64)

    def pieces(self, battles: pl.Series, size: int) -> Iterator[tuple[NDArray[np.int64], Step]]:
        """Yield the missing battles' positions, up to ``size`` at a time, with the step that is to hold their logits.

        What a killed call left of these pieces is kept; damaged and unfinished pieces of other battles are removed.
        """
        new = self.missing(battles)
        chunks = [new[start : start + size] for start in range(0, len(new), size)]
        steps = [self._step(digest(battles.gather(rows).to_list())[:32]) for rows in chunks]
        for path in {*self.folder.glob("*")} - {*self.finished, *(step.folder for step in steps)}:
            shutil.rmtree(path)
        yield from zip(chunks, steps, strict=True)

    def of(self, ids: pl.Series, battles: pl.Series) -> pl.DataFrame:
        """Return the (n,) battles' scores in the open logits format; pieces that were finished meanwhile count.

        Args:
            ids: (n,) of the battles.
            battles: (n,) their hashes.
        """
        scores = _scores(StoredScores(self.folder).finished).unique("battle", keep="first", maintain_order=True)
        rows = pl.DataFrame({"id": ids, "battle": battles})
        return rows.join(scores, on="battle", how="left", validate="m:1", maintain_order="left").drop("battle")

    def _step(self, name: str) -> Step:
        return Step(self.folder / name, name)


def _scores(pieces: list[Path], columns: list[str] | None = None) -> pl.DataFrame:
    """Return the scores of finished pieces."""
    frames = [read_parquet(path / LOGITS).select(columns or pl.all()) for path in pieces]
    return pl.concat(frames) if frames else pl.DataFrame(schema={"battle": pl.String})
