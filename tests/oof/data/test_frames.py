"""Cells of data frames: missing values, lists and names as pandas and polars hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from oof.common.errors import UserError
from oof.data.frames import frame_cells

CELLS: list[Any] = [["a", None], None, "text"]


def test_pandas_cells_are_those_of_a_file() -> None:
    pandas = pytest.importorskip("pandas")
    columns = {
        "turns": [np.array(["a", None], dtype=object), np.nan, "text"],
        "parts": [[{"role": "user", "content": np.array(["a"], dtype=object)}], None, pandas.NaT],
        "whole": pandas.array([1, None, 2], dtype="Int64"),
        "words": ["x", None, "y"],
        "kind": pandas.Categorical(["m", None, "n"]),
        7: [1, 2, 3],
    }
    raw = frame_cells(pandas.DataFrame(columns), set(map(str, columns)))
    assert raw.names == ["turns", "parts", "whole", "words", "kind"]
    assert raw.columns == {
        "turns": CELLS,
        "parts": [[{"role": "user", "content": ["a"]}], None, None],
        "whole": [1, None, 2],
        "words": ["x", None, "y"],
        "kind": ["m", None, "n"],
    }
    assert raw.rows == [1, 2, 3]


def test_polars_cells_are_those_of_a_file() -> None:
    frame = pl.DataFrame({"turns": [["a", None], None], "score": [1.5, float("nan")], "other": [1, 2]})
    raw = frame_cells(frame, {"turns", "score", "absent"})
    assert (raw.names, raw.rows, raw.faults) == (["turns", "score", "other"], [1, 2], [])
    assert raw.columns == {"turns": [["a", None], None], "score": [1.5, None]}


def test_two_columns_of_one_name_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(UserError, match=r"the frame: Expected unique column names.*'x' 2 times; rename its columns"):
        frame_cells(pandas.DataFrame([[1, 2]], columns=["x", "x"]), {"x"})
