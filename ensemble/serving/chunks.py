"""Test battles in chunks, so that prediction runs in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl

from oof.common.errors import UserError
from oof.config import Config, Data
from oof.data import readers
from oof.data.battles import read_battles
from oof.data.chunks import cut_file


def chunks(config: Config, data: Data, folder: Path) -> Iterator[pl.DataFrame]:
    """Yield tables of the test battles in their files' order, ``predict.chunk`` rows at a time.

    Raises:
        UserError: as :func:`oof.data.battles.read_battles`; names the file and the row, not the chunk.
    """
    rows = config.predict.chunk
    for path in readers.expand(data.test):
        for chunk in cut_file(Path(path), rows, folder / "chunk"):
            try:
                table = read_battles(replace(data, test=[str(chunk.path)]), seed=config.seed, roles=("test",)).table
            except UserError as error:
                raise chunk.error(error) from error
            yield from (table[start : start + rows] for start in range(0, table.height, rows))
