"""Small canonical tables for the tests of groups, folds and audit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

VOCABULARY = """
    river stone window garden music engine silver planet morning letter bridge forest candle market winter orange
    island mirror hammer pocket shadow ribbon castle thunder butter camera violin desert anchor lantern
"""
WORDS = VOCABULARY.split()

SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "id": pl.String,
    "role": pl.String,
    "weight": pl.Float64,
    "label": pl.Int8,
    "prompt": pl.List(pl.String),
    "response_a": pl.List(pl.String),
    "response_b": pl.List(pl.String),
    "model_a": pl.String,
    "model_b": pl.String,
    "language": pl.String,
    "group_key": pl.String,
    "fold": pl.Int32,
    "file": pl.String,
    "row": pl.Int64,
}


def table_of(prompts: Sequence[str | list[str]], **columns: Sequence[Any]) -> pl.DataFrame:
    """Return a table of train battles with these prompts; any column can be given."""
    n = len(prompts)
    values: dict[str, Sequence[Any]] = {
        "id": [f"b{i}" for i in range(n)],
        "role": ["train"] * n,
        "weight": [1.0] * n,
        "label": [i % 3 for i in range(n)],
        "prompt": [[p] if isinstance(p, str) else p for p in prompts],
        "response_a": [[f"answer {i}"] for i in range(n)],
        "response_b": [[f"reply {i}"] for i in range(n)],
        "file": ["battles.csv"] * n,
        "row": list(range(1, n + 1)),
    }
    values |= columns
    return pl.DataFrame({name: values.get(name, [None] * n) for name in SCHEMA}, schema=SCHEMA)


def sentence(rng: np.random.Generator, n_words: int) -> str:
    """Return random words, each with a number, so that sentences are unlike each other."""
    return " ".join(f"{WORDS[rng.integers(len(WORDS))]}{rng.integers(100)}" for _ in range(n_words))
