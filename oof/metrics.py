"""Log loss and softmax of three-class predictions: the metrics that training and prediction need.

Class order everywhere: (a, b, tie) = labels 0, 1, 2. Log losses are natural logarithms (nats); smaller is better,
the uniform guess scores ln 3 = 1.0986. All other scores, and intervals of any score, are in ``ensemble/statistics``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from oof.classes import CLASSES

CLIP = 1e-15  # as scikit-learn < 1.3 and the competition's metric did: a zero costs 34.5 nats, not infinity

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


def softmax(logits: Floats) -> NDArray[np.float64]:
    """Return probabilities, float64, of logits (..., 3)."""
    return np.asarray(special.softmax(np.asarray(logits, dtype=np.float64), axis=-1))


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Return log-probabilities, float64, of logits (..., 3)."""
    return np.asarray(special.log_softmax(np.asarray(logits, dtype=np.float64), axis=-1))


def mean_of_orders(logits: Floats) -> NDArray[np.float64]:
    """Return the (n, 3) float64 mean over both orders of (n, 2, 3) logits."""
    return np.asarray(logits.astype(np.float64).mean(axis=1))


def softmax_mean(logits: Floats) -> NDArray[np.float64]:
    """Return (n, 3) probabilities of (n, 2, 3) logits: the softmax of the mean over both orders."""
    return softmax(mean_of_orders(logits))


def row_log_loss(probs: Floats, labels: Integers) -> NDArray[np.float64]:
    """Return (n,) losses in nats of (n, 3) probabilities, clipped at 1e-15 from below.

    Raises:
        ValueError: shapes differ, a probability is not finite, rows do not sum to 1, or a label is outside 0..2.
    """
    probs, labels = checked_predictions(probs, labels)
    return -np.log(np.maximum(probs[np.arange(len(labels)), labels], CLIP))


def log_loss(probs: Floats, labels: Integers) -> float:
    """Return the mean of :func:`row_log_loss`."""
    return float(row_log_loss(probs, labels).mean())


def checked_predictions(probs: Floats, labels: Integers) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return (n, 3) probabilities as float64 and (n,) labels as int64.

    Raises:
        ValueError: shapes differ, a probability is not finite, rows do not sum to 1, or a label is outside 0..2.
    """
    checked, classes = np.asarray(probs, dtype=np.float64), np.asarray(labels)
    if checked.ndim != 2 or checked.shape[1] != len(CLASSES) or classes.shape != checked.shape[:1]:
        raise ValueError(f"expected probabilities (n, 3) and labels (n,), got {checked.shape} and {classes.shape}")
    if len(classes) == 0:
        raise ValueError("no rows to score")
    if not np.isfinite(checked).all() or checked.min() < 0 or np.abs(checked.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("rows of probabilities must be finite, not negative and sum to 1; are these logits?")
    if classes.dtype.kind not in "iu" or classes.min() < 0 or classes.max() >= len(CLASSES):
        raise ValueError("labels must be the integers 0 (a), 1 (b) or 2 (tie)")
    return checked, classes.astype(np.int64)
