"""Example battles: excerpts of their texts for the page."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from oof.classes import CLASSES
from oof.data.schemas import TEXTS
from oof.metrics import Floats, Integers

EXAMPLES = 3  # of a kind
EXCERPT = 300  # characters of a text that are shown


def strongest_cases(table: pl.DataFrame, advantage: Floats, labels: Integers) -> dict[str, list[dict[str, Any]]]:
    """Return the battles on which the advantage is largest for each side.

    Args:
        table: (n) battles.
        advantage: (n,) loss of the second predictor minus that of the first.
        labels: (n,) classes.
    """
    order = np.argsort(advantage, kind="stable")
    picked = {"first": order[::-1][:EXAMPLES], "second": order[:EXAMPLES]}
    return {side: [_example(table, int(i), float(advantage[i]), labels) for i in rows] for side, rows in picked.items()}


def _example(table: pl.DataFrame, row: int, advantage: float, labels: Integers) -> dict[str, Any]:
    texts = {name: excerpt("\n".join(table[name][row])) for name in TEXTS}
    return {"id": table["id"][row], "verdict": CLASSES[int(labels[row])], "value": advantage, **texts}


def excerpt(text: str) -> str:
    """Return the beginning of a text, with an ellipsis where it is cut."""
    return text if len(text) <= EXCERPT else text[:EXCERPT] + " …"
