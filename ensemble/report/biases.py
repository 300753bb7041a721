"""Position bias and length bias of predictors, and of the verdicts themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemble.statistics.binning import bin_means
from ensemble.statistics.bootstrap import Interval, group_interval
from oof.metrics import Floats, Integers, softmax

EDGES = np.log([1 / 4, 1 / 2, 1 / 1.3, 1 / 1.05, 1.05, 1.3, 2, 4])  # of bins of log(characters of A / of B)


def position_bias(logits: Floats, groups: Integers, seed: int) -> dict[str, Any]:
    """Return how much a model's probabilities depend on the order of the two responses.

    ``disagreement``: share of battles whose most probable class depends on the order. ``first_shown``: mean over both
    orders of P(first response wins) - P(second response wins). ``distance``: mean total variation distance between
    the probabilities of the two orders.

    Args:
        logits: (n, 2, 3) in the orders ab and ba, both in class order (a, b, tie).
        groups: (n,) group numbers.
        seed: of the bootstrap.
    """
    ab, ba = softmax(logits[:, 0]), softmax(logits[:, 1])
    advantage = ((ab[:, 0] - ab[:, 1]) + (ba[:, 1] - ba[:, 0])) / 2
    return {
        "disagreement": group_interval((ab.argmax(axis=1) != ba.argmax(axis=1)).astype(float), groups, seed),
        "first_shown": group_interval(advantage, groups, seed),
        "distance": group_interval(np.abs(ab - ba).sum(axis=1) / 2, groups, seed),
    }


def length_bias(log_ratio: Floats, probs: Mapping[str, Floats], labels: Integers, groups: Integers) -> dict[str, Any]:
    """Return P(A wins) - P(B wins) by the ratio of the responses' lengths, of the verdicts and of each predictor.

    Args:
        log_ratio: (n,) log of the characters of A over those of B.
        probs: predictor -> (n, 3).
        labels: (n,) classes.
        groups: (n,) group numbers.
    """
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


def verdict_margin(labels: Integers, groups: Integers, seed: int) -> Interval:
    """Return the share of A's wins minus the share of B's: the position bias of the verdicts, as A is shown first."""
    return group_interval((labels == 0).astype(np.float64) - (labels == 1), groups, seed)


def _kept(rows: list[dict[str, Any]], kept: list[int]) -> list[dict[str, Any]]:
    return [rows[k] for k in kept]


def _slope(x: Floats, y: Floats) -> float | None:
    """Return the least-squares slope of y on x; None if x does not vary."""
    centred = x - x.mean()
    total = float((centred**2).sum())
    return float((centred * y).sum() / total) if total else None
