"""Proper scores, accuracy and calibration error of three-class predictions.

Every score is a mean of row-wise scores (:func:`row_scores`), so that intervals and paired differences can be computed
from the same rows. Class order: (a, b, tie) = labels 0, 1, 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.statistics.binning import equal_mass_bins
from oof.classes import CLASSES, TIE
from oof.metrics import Floats, Integers, checked_predictions, row_log_loss

CALIBRATION_BINS = 15


def row_scores(probs: Floats, labels: Integers) -> dict[str, NDArray[np.float64]]:
    """Return three (n,) scores of (n, 3) probabilities, by name.

    ``log_loss`` in nats; ``accuracy``: 1 or 0, or 1/m where m classes share the largest probability; ``brier``: the
    squared error summed over the three classes, in 0..2.

    Raises:
        ValueError: these are no probabilities, or a label is outside 0..2.
    """
    probs, labels = checked_predictions(probs, labels)
    return {
        "log_loss": row_log_loss(probs, labels),
        "accuracy": hit_credits(probs)[np.arange(len(labels)), labels],
        "brier": ((probs - np.eye(len(CLASSES))[labels]) ** 2).sum(axis=1),
    }


def hit_credits(probs: Floats) -> NDArray[np.float64]:
    """Return (n, 3): the accuracy of each row, were that class its label."""
    top = probs == probs.max(axis=1, keepdims=True)
    return np.asarray(top / top.sum(axis=1, keepdims=True))


def scores(probs: Floats, labels: Integers) -> dict[str, Any]:
    """Return means of the row-wise scores, tie recall and calibration error as plain JSON values."""
    rows, ece = row_scores(probs, labels), top_label_ece(probs, labels)
    return {
        **{name: float(values.mean()) for name, values in rows.items()},
        "tie_recall": tie_recall(probs, labels),
        "ece": ece["ece"],
        "ece_bias": ece["bias"],
        "n": len(labels),
    }


def tie_recall(probs: Floats, labels: Integers) -> float | None:
    """Return the share of true ties for which tie is the most probable class; None without ties."""
    hits = row_scores(probs, labels)["accuracy"][labels == TIE]
    return float(hits.mean()) if len(hits) else None


def top_label_ece(probs: Floats, labels: Integers) -> dict[str, float]:
    """Return {"ece", "bias"}: top-label expected calibration error over bins of equal mass, and its chance level.

    A binned ECE is never 0, even of a perfect model: ``bias`` is its expectation if these very confidences were
    calibrated (normal approximation per bin). An ECE near ``bias`` is no evidence of miscalibration; both are
    reported, and nothing is subtracted.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 3; for the bias, Roelofs et al.,
    Mitigating Bias in Calibration Error Estimation, AISTATS 2022.
    """
    confidence, hits = np.asarray(probs, dtype=np.float64).max(axis=1), row_scores(probs, labels)["accuracy"]
    bin_of = equal_mass_bins(confidence, CALIBRATION_BINS)
    gaps = np.bincount(bin_of, hits - confidence, minlength=CALIBRATION_BINS)
    spread = np.sqrt(np.bincount(bin_of, confidence * (1 - confidence), minlength=CALIBRATION_BINS))
    return {
        "ece": float(np.abs(gaps).sum() / len(hits)),
        "bias": float(np.sqrt(2 / np.pi) * spread.sum() / len(hits)),
    }
