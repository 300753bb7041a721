"""Text columns as polars series that every later stage can use: valid UTF-8, without NUL, no null turns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
import polars as pl

SURROGATE = re.compile("[\ud800-\udfff]")


def turn_lists(turns: Sequence[Sequence[str | None]], counts: Counter[str]) -> pl.Series:
    """Return a List(String) series; null turns become "", lone surrogates U+FFFD, and NUL characters are removed.

    Args:
        turns: (n,) lists of turns.
        counts: null_turns, lone_surrogates and nul_characters are added to it.
    """
    flat = list(chain.from_iterable(turns))
    series = strings(flat, counts)
    counts["null_turns"] += series.null_count()
    series = series.fill_null("")
    nul = int(series.str.contains("\0", literal=True).sum())
    if nul:
        counts["nul_characters"] += nul
        series = series.str.replace_all("\0", "", literal=True)
    if len(flat) == len(turns):
        return series.reshape((-1, 1)).arr.to_list()
    at = np.repeat(np.arange(len(turns)), np.fromiter(map(len, turns), dtype=np.int64, count=len(turns)))
    return pl.DataFrame({"at": at, "text": series}).group_by("at", maintain_order=True).agg("text")["text"]


def strings(values: Sequence[str | None], counts: Counter[str] | None = None) -> pl.Series:
    """Return a String series; surrogate pairs that were escaped separately are joined, lone ones become U+FFFD."""
    try:
        return pl.Series(values, dtype=pl.String)
    except UnicodeEncodeError:
        lone = [value is not None and SURROGATE.search(value) is not None for value in values]
        if counts is not None:
            counts["lone_surrogates"] += sum(lone)
        clean = [_well_formed(v) if bad and v else v for v, bad in zip(values, lone, strict=True)]
        return pl.Series(clean, dtype=pl.String)


def _well_formed(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def prompt_texts(table: pl.DataFrame) -> pl.Series:
    """Return the (n,) prompt texts of a canonical table: all user turns, one a line."""
    return table["prompt"].list.join("\n")
