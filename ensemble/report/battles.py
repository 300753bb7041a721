"""Battles to read: those on which the model in use is most wrong, and those on which the predictors disagree most."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble.report.truncation import cut_texts
from oof.classes import CLASSES
from oof.data.schemas import TEXTS
from oof.metrics import Floats, Integers, row_log_loss

READ = 24  # battles of a kind
START, END = 500, 300  # characters of a longer text that are on the page


def battles_to_read(
    table: pl.DataFrame,
    probs: Mapping[str, Floats],
    labels: Integers,
    choice: str,
    reads: Mapping[str, NDArray[np.int64]],
) -> dict[str, list[dict[str, Any]]]:
    """Return the battles with the largest loss of ``choice``, and with the largest distance between two predictors.

    ``value`` is the loss in nats, or the total variation distance (0 to 1) of the two predictors that differ most.

    Args:
        table: (n) battles.
        probs: predictor -> (n, 3).
        labels: (n,) classes.
        choice: the predictor in use.
        reads: reader -> (n, 6) tokens, as :class:`ensemble.report.run_data.RunData` has them.
    """
    kinds = {"wrong": row_log_loss(probs[choice], labels)}
    if len(probs) > 1:
        kinds["disagreed"] = _distance(probs)
    return {
        kind: [
            _battle(table, int(row), float(values[row]), probs, labels) | {"cut": cut_texts(reads, int(row))}
            for row in np.argsort(-values, kind="stable")[:READ]
        ]
        for kind, values in kinds.items()
    }


def _distance(probs: Mapping[str, Floats]) -> NDArray[np.float64]:
    """Return the (n,) largest total variation distances between two predictors."""
    pairs = [np.abs(p - q).sum(axis=1) / 2 for p, q in combinations(probs.values(), 2)]
    return np.asarray(np.max(pairs, axis=0), dtype=np.float64)


def _battle(
    table: pl.DataFrame, row: int, value: float, probs: Mapping[str, Floats], labels: Integers
) -> dict[str, Any]:
    texts = {name: "\n".join(table[name][row]) for name in TEXTS}
    return {
        "id": table["id"][row],
        "verdict": CLASSES[int(labels[row])],
        "value": value,
        "probs": {name: [float(p) for p in rows[row]] for name, rows in probs.items()},
        "texts": {name: excerpt(text) for name, text in texts.items()},
    }


def excerpt(text: str) -> dict[str, Any]:
    """Return a text's ``start``; of a long one also its ``end``, and how many characters are ``hidden`` between."""
    hidden = len(text) - START - END
    if hidden <= 0:
        return {"start": text, "hidden": 0, "end": ""}
    return {"start": text[:START], "hidden": hidden, "end": text[-END:]}
