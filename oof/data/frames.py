"""Data frames of pandas, polars and other libraries as battle files.

narwhals, which scikit-learn installs too, reads the frame. Its conversion of a frame, like polars' own, needs pyarrow
for pandas' texts; cells taken column by column need neither pyarrow nor pandas.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from oof.common.errors import UserError
from oof.data.raw_table import RawTable

if TYPE_CHECKING:
    from narwhals import DataFrame
    from narwhals.typing import IntoDataFrame

NAME = "the frame"  # in messages, where a file's name stands otherwise


def open_frame(frame: IntoDataFrame) -> DataFrame[Any]:
    """Return the frame behind narwhals' interface.

    Raises:
        UserError: it is no data frame, or two of its columns have one name.
    """
    import narwhals  # takes 0.1 s, and files need none of it
    from narwhals.exceptions import NarwhalsError

    try:
        return narwhals.from_native(frame, eager_only=True)
    except TypeError as error:
        lazy = "a lazy frame; collect it first" if hasattr(frame, "collect") else f"a {type(frame).__name__}"
        raise UserError(f"expected a data frame of pandas, polars, pyarrow or the like, not {lazy}") from error
    except NarwhalsError as error:
        first = " ".join(str(error).split())
        raise UserError(f"{NAME}: {first}; rename its columns") from error


def frame_cells(frame: IntoDataFrame, wanted: Collection[str]) -> RawTable:
    """Return the cells of the ``wanted`` columns that a frame has; its rows are numbered from 1.

    Raises:
        UserError: as :func:`open_frame`.
    """
    opened = open_frame(frame)
    names = [name for name in opened.columns if isinstance(name, str)]  # pandas also takes numbers as names
    columns = {name: [_plain(cell) for cell in opened[name].to_list()] for name in names if name in wanted}
    return RawTable(NAME, names, columns, list(range(1, len(opened) + 1)), [])


def _plain(cell: object) -> object:
    """Return a cell as JSON would hold it: pandas reads lists as arrays, and has several missing values."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    if isinstance(cell, list | tuple):
        return [_plain(item) for item in cell]
    if isinstance(cell, dict):
        return {name: _plain(item) for name, item in cell.items()}
    if isinstance(cell, np.generic):
        cell = cell.item()
    missing = cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell
    return None if missing else cell
