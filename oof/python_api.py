"""Battles and folds in a Python shell: ``from oof import read_battles, group_folds``.

Both read what the command line reads, with the same settings and results; nothing is written. Errors name the
arguments of these functions where those of a command name settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from oof.common.errors import UserError
from oof.common.wording import Replacement, errors_reworded
from oof.config import Config, Data, Groups
from oof.config.load import resolve
from oof.data import readers
from oof.data.battles import join_files
from oof.data.frames import NAME, frame_cells
from oof.data.parse_file import ParsedFile, parse_file, parse_table, wanted_columns
from oof.folds.assignment import assign_folds
from oof.folds.groups import group_battles

if TYPE_CHECKING:
    from narwhals.typing import IntoDataFrame


class Reading(TypedDict, total=False):
    """Settings of reading beside ``columns`` and ``verdicts``; the settings page explains them, as ``data.NAME``."""

    positive_score: Literal["a", "b"]
    tie_band: float
    both_bad: Literal["tie", "drop", "keep"]
    non_text: Literal["error", "drop", "placeholder"]
    on_bad_row: Literal["error", "drop"]


def read_battles(
    source: str | Path | IntoDataFrame,
    columns: Mapping[str, str] | None = None,
    verdicts: Mapping[str | int, str] | None = None,
    *,
    seed: int = 0,
    **reading: Unpack[Reading],
) -> pl.DataFrame:
    """Return the battles of a file or a data frame as the canonical table.

    Known datasets (LMSYS, WSDM Cup, Chatbot Arena, MT-bench, AlpacaEval, HelpSteer3, chosen/rejected pairs …) are
    recognised by their columns.

    Args:
        source: a path or glob of CSV, TSV, JSON, JSON lines or Parquet files, also compressed; or a data frame of
            pandas, polars, pyarrow or another library that narwhals knows.
        columns: our column name -> yours, for other columns, such as ``{"prompt": "question", "winner": "vote"}``.
        verdicts: your verdict -> its meaning, "a", "b", "tie" or "both_bad", such as ``{1: "a", 2: "b", 0: "tie"}``.
        seed: draws the side of the chosen response in chosen/rejected pairs.
        reading: other settings of reading: see :class:`Reading`.

    Returns:
        One row per battle with id, label (0 = A wins, 1 = B wins, 2 = tie; null without verdicts), prompt, response_a
        and response_b (a list of turns each), model_a, model_b and others, in the order of the rows.

    Raises:
        UserError: a file or row cannot be used, with row, column, value and remedy.
    """
    with errors_reworded(WORDS):
        data = _config({"data": {"columns": columns or {}, "verdicts": verdicts or {}, **reading}}).data
        if isinstance(source, str | Path):
            files = [file for path in readers.expand([str(source)]) for file in parse_file(path, "any", data, seed)]
            name = str(source)
        else:
            files, name = [_parse_frame(source, "any", data, seed)], NAME
        table = join_files(files, data).table
        if table.height == 0:
            raise UserError(f"{name}: no row that can be used as a battle")
        return table


def group_folds(
    frame: IntoDataFrame,
    k: int = 5,
    columns: Mapping[str, str] | None = None,
    verdicts: Mapping[str | int, str] | None = None,
    *,
    seed: int = 0,
    threshold: float = Groups().threshold,
    **reading: Unpack[Reading],
) -> NDArray[np.int64]:
    """Return a cross-validation fold for each row of a frame of battles.

    Near-duplicate prompts never sit on both sides of a split, and the folds are stratified by verdict. They depend on
    the battles' content and the seed, not on the order of rows, and are those that a run makes with the same
    settings. A column ``fold`` has no influence.

    Args:
        frame: (n) labelled battles, as for :func:`read_battles`, or the table that it returns.
        k: number of folds.
        columns: as in :func:`read_battles`. With ``{"group_key": "topic"}`` battles with equal topics form a group,
            instead of those with near-duplicate prompts.
        verdicts: as in :func:`read_battles`.
        seed: of the split.
        threshold: Jaccard similarity of character 5-grams from which two prompts are near-duplicates.
        reading: other settings of reading: see :class:`Reading`.

    Returns:
        (n,) int64 folds 0..k-1 in the order of the rows; -1 for a row that ``on_bad_row="drop"`` or another setting
        leaves out.

    Raises:
        UserError: a row cannot be used, or there are too few groups for k folds.
    """
    with errors_reworded(WORDS):
        data = {"columns": columns or {}, "verdicts": verdicts or {}, **reading}
        config = _config({"data": data, "folds": {"k": k}, "groups": {"threshold": threshold}})
        parsed = _parse_frame(frame, "train", config.data, seed)
        # By id, as in a run; folds that the frame may have would be taken over.
        table = join_files([parsed], config.data).table.sort("id").with_columns(fold=pl.lit(None, pl.Int32))
        if table["row"].is_duplicated().any():
            raise UserError(
                f"{NAME}: its rows are rankings, which give several battles each; fold the table that "
                "read_battles(frame) returns"
            )
        groups = group_battles(table, Groups(threshold=threshold, column=config.data.columns.get("group_key")))
        folds = np.full(parsed.n_read, -1, dtype=np.int64)
        folds[table["row"].to_numpy() - 1] = assign_folds(table, groups, k, seed)
        return folds


def _parse_frame(frame: IntoDataFrame, role: str, data: Data, seed: int) -> ParsedFile:
    cells = frame_cells(frame, wanted_columns(data))
    return parse_table(cells, role, data, seed, column=lambda name: frame_cells(frame, {name}).columns[name])


def _config(sections: dict[str, dict[str, Any]]) -> Config:
    """Return a checked configuration with these settings."""
    plain = {name: {key: _copy(value) for key, value in section.items()} for name, section in sections.items()}
    return resolve({"arguments": plain}, run="")


def _copy(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value


# --- messages ------------------------------------------------------------------------------------------------


def _literal(match: re.Match[str]) -> str:
    """Return a mapping of a message, written as YAML with ? for a value to fill in, in Python."""
    # Nodes hold each value as it is written: "no" and "1" stay texts.
    mapping = yaml.compose(match[2].replace(": ?", ": '?'"), Loader=yaml.SafeLoader)
    assert isinstance(mapping, yaml.MappingNode)  # the text begins with {
    return f"{match[1]}={ {key.value: value.value for key, value in mapping.value}!r}"


NAMES = "columns|verdicts|positive_score|tie_band|both_bad|non_text|on_bad_row"
WORDS: tuple[Replacement, ...] = (  # of a command -> of a call
    (r"data\.(columns|verdicts)=(\{[^}]*\})", _literal),
    (r"data\.columns\.(\w+)=([^\s;:,]+)", r"columns={'\1': '\2'}"),
    (rf"data\.({NAMES})=(\w+)", r"\1='\2'"),
    (rf"data\.({NAMES})\b", r"\1"),
    (r" \(the run's dropped\.csv then lists them\)", ""),
    (r", or give the file as data\.unlabelled or data\.test", ""),
    (r"\bfolds\.k\b", "k"),
    (r"\bgroups\.threshold\b", "threshold"),
    (r"\bgroups\.column\b", "columns={'group_key': …}"),
)
