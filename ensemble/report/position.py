"""Position and length bias of a model that was scored in both orders, beside what the verdicts show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemble.statistics.binning import bin_means
from ensemble.statistics.bootstrap import group_interval
from oof.metrics import Floats, Integers, softmax

EDGES = np.log([1 / 4, 1 / 2, 1 / 1.3, 1 / 1.05, 1.05, 1.3, 2, 4])  # of the log ratio of A's characters to B's


def order_bias(logits: Floats, groups: Integers, seed: int) -> dict[str, Any]:
    """Return how much the order of the two responses sways a model.

    Args:
        logits: (n, 2, 3) in the orders ab and ba, both in canonical class order.
        groups: (n,).
        seed: of the intervals.

    ``disagreement``: share of battles whose most probable class depends on the order. ``first_shown``: mean over both
    orders of P(the response shown first wins) - P(the other wins). ``distance``: mean total variation between the
    two orders' probabilities.
    """
    ab, ba = softmax(logits[:, 0]), softmax(logits[:, 1])
    advantage = ((ab[:, 0] - ab[:, 1]) + (ba[:, 1] - ba[:, 0])) / 2
    return {
        "disagreement": group_interval((ab.argmax(axis=1) != ba.argmax(axis=1)).astype(float), groups, seed),
        "first_shown": group_interval(advantage, groups, seed),
        "distance": group_interval(np.abs(ab - ba).sum(axis=1) / 2, groups, seed),
    }


def length_bias(log_ratio: Floats, probs: Mapping[str, Floats], labels: Integers, groups: Integers) -> dict[str, Any]:
    """Return, by the log ratio of A's to B's characters, P(A wins) - P(B wins) of the verdicts and each predictor."""
    bins = np.searchsorted(EDGES, log_ratio)
    n_bins = len(EDGES) + 1
    centres = [row["value"] for row in bin_means(log_ratio, bins, n_bins, groups)]
    margin = (labels == 0).astype(np.float64) - (labels == 1)
    curves = {name: bin_means(p[:, 0] - p[:, 1], bins, n_bins, groups) for name, p in probs.items()}
    kept = [k for k, centre in enumerate(centres) if centre is not None]
    return {
        "log_ratio": [centres[k] for k in kept],
        "ratio": [float(np.exp(centres[k])) for k in kept],
        "verdicts": _kept(bin_means(margin, bins, n_bins, groups), kept),
        "predictors": {name: _kept(rows, kept) for name, rows in curves.items()},
        "slopes": {name: _slope(log_ratio, p[:, 0] - p[:, 1]) for name, p in probs.items()}
        | {"verdicts": _slope(log_ratio, margin)},
    }


def verdict_margin(labels: Integers, groups: Integers, seed: int) -> dict[str, float]:
    """Return the share of A's wins minus that of B's: the first-shown advantage in the verdicts themselves."""
    return group_interval((labels == 0).astype(np.float64) - (labels == 1), groups, seed)


def _kept(rows: list[dict[str, Any]], kept: list[int]) -> list[dict[str, Any]]:
    return [rows[k] for k in kept]


def _slope(x: Floats, y: Floats) -> float | None:
    """Return the least-squares slope of y on x; None if x does not vary."""
    centred = x - x.mean()
    total = float((centred**2).sum())
    return float((centred * y).sum() / total) if total else None
