"""Proper scores, calibration and grouped bootstrap intervals of three-class predictions.

Class order everywhere: (a, b, tie) = labels 0, 1, 2. Log losses are natural logarithms (nats); smaller is better,
the uniform guess scores ln 3 = 1.0986. Battles of one group are not independent, so every interval resamples
groups, not rows, and two models are compared through the interval of their row-wise differences.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from oof.classes import CLASSES

CLIP = 1e-15  # as scikit-learn < 1.3 and the competition's metric did: a zero costs 34.5 nats, not infinity
RESAMPLES = 2000
MAX_UNITS = 5_000  # bootstrap units; more groups than this are tied into random bundles
BATCH_VALUES = 4_000_000  # resampled values in memory at a time

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


def softmax(logits: Floats) -> NDArray[np.float64]:
    """Return probabilities, float64, of logits (..., 3)."""
    return np.asarray(special.softmax(np.asarray(logits, dtype=np.float64), axis=-1))


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Return log-probabilities, float64, of logits (..., 3)."""
    return np.asarray(special.log_softmax(np.asarray(logits, dtype=np.float64), axis=-1))


def row_log_loss(probs: Floats, labels: Integers) -> NDArray[np.float64]:
    """Return (n,) losses in nats of (n, 3) probabilities, clipped at 1e-15 from below.

    Raises:
        ValueError: shapes differ, a probability is not finite, rows do not sum to 1, or a label is outside 0..2.
    """
    probs, labels = _checked(probs, labels)
    return -np.log(np.maximum(probs[np.arange(len(labels)), labels], CLIP))


def log_loss(probs: Floats, labels: Integers) -> float:
    """Return the mean of :func:`row_log_loss`."""
    return float(row_log_loss(probs, labels).mean())


def accuracy(probs: Floats, labels: Integers) -> float:
    """Return the share of rows whose largest probability is the label's; a shared maximum counts in equal parts."""
    probs, labels = _checked(probs, labels)
    return float(_hits(probs, labels).mean())


def brier(probs: Floats, labels: Integers) -> float:
    """Return the mean over rows of the summed squared error over the three classes, in 0..2."""
    probs, labels = _checked(probs, labels)
    return float(((probs - np.eye(len(CLASSES))[labels]) ** 2).sum(axis=1).mean())


def per_class_log_loss(probs: Floats, labels: Integers) -> dict[str, float | None]:
    """Return the mean loss of the rows of each class; None for a class without rows."""
    losses = row_log_loss(probs, labels)
    return {name: float(losses[labels == c].mean()) if (labels == c).any() else None for c, name in enumerate(CLASSES)}


def tie_recall(probs: Floats, labels: Integers) -> float | None:
    """Return the share of true ties for which tie is the most probable class; None without ties."""
    probs, labels = _checked(probs, labels)
    ties = labels == 2
    return float(_hits(probs[ties], labels[ties]).mean()) if ties.any() else None


def top_label_ece(probs: Floats, labels: Integers, bins: int = 15) -> dict[str, float]:
    """Return {"ece", "bias"}: top-label expected calibration error over bins of equal mass, and what chance makes.

    A binned ECE is never 0, even of a perfect model: ``bias`` is its expectation were these very confidences
    calibrated (normal approximation per bin). An ECE near ``bias`` is no evidence of miscalibration; the two are
    stated together, and nothing is subtracted.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 3; for the bias, Roelofs et al.,
    Mitigating Bias in Calibration Error Estimation, AISTATS 2022.
    """
    probs, labels = _checked(probs, labels)
    confidence, hits = probs.max(axis=1), _hits(probs, labels)
    bin_of = equal_mass_bins(confidence, bins)
    gaps = np.bincount(bin_of, hits - confidence, minlength=bins)
    spread = np.sqrt(np.bincount(bin_of, confidence * (1 - confidence), minlength=bins))
    return {
        "ece": float(np.abs(gaps).sum() / len(hits)),
        "bias": float(np.sqrt(2 / np.pi) * spread.sum() / len(hits)),
    }


def equal_mass_bins(values: Floats, bins: int) -> NDArray[np.int64]:
    """Return (n,) bins 0..bins-1 of nearly equal size, in the order of the values; equal values share a bin."""
    order = np.argsort(values, kind="stable")
    bin_of = np.empty(len(order), dtype=np.int64)
    bin_of[order] = np.arange(len(order)) * bins // len(order)
    # Equal values belong to one bin, or an error would depend on the order of the rows.
    _, same = np.unique(values, return_inverse=True)
    lowest = np.full(same.max() + 1, bins)
    np.minimum.at(lowest, same, bin_of)
    return np.asarray(lowest[same])


def scores(probs: Floats, labels: Integers) -> dict[str, Any]:
    """Return all of the above as plain JSON values."""
    ece = top_label_ece(probs, labels)
    return {
        "log_loss": log_loss(probs, labels),
        "accuracy": accuracy(probs, labels),
        "brier": brier(probs, labels),
        "per_class_log_loss": per_class_log_loss(probs, labels),
        "tie_recall": tie_recall(probs, labels),
        "ece": ece["ece"],
        "ece_bias": ece["bias"],
        "n": len(labels),
    }


def group_interval(
    values: Floats, groups: Integers, seed: int, level: float = 0.95, resamples: int = RESAMPLES
) -> dict[str, float]:
    """Return {"value", "low", "high"}: the mean of (n,) values and its percentile interval over resampled groups.

    Whole groups are drawn with replacement (the ratio of their sums and sizes is the mean of a resample). Above
    ``MAX_UNITS`` groups, random bundles of groups are drawn instead: the same variance in expectation, with a
    relative error of 1 / sqrt(2 * MAX_UNITS) = 1 % in the interval's width, and 10 times faster at 57,000 groups.
    Deterministic from the seed; with fewer than about 30 groups the interval is too narrow, with one it is NaN.

    Raises:
        ValueError: no values, shapes differ, or a value is not finite.
    """
    values, groups = np.asarray(values, dtype=np.float64), np.asarray(groups)
    if values.ndim != 1 or values.shape != groups.shape or len(values) == 0:
        raise ValueError(f"expected equal, non-empty (n,) shapes, got {values.shape} and {groups.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    _, unit = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    n_units = int(unit.max()) + 1
    if n_units > MAX_UNITS:
        unit = rng.permutation(n_units)[unit] % MAX_UNITS
        n_units = MAX_UNITS
    value = float(values.mean())
    if n_units == 1:
        return {"value": value, "low": float("nan"), "high": float("nan")}
    from scipy.stats import bootstrap  # half a second, which a verb with nothing to do need not wait for

    # Centred sums: the resampled ratio keeps its digits when the spread is tiny beside the mean.
    sums, sizes = np.bincount(unit, values - value), np.bincount(unit).astype(np.float64)
    result = bootstrap(
        (sums, sizes),
        _ratio,
        n_resamples=resamples,
        batch=max(1, BATCH_VALUES // n_units),
        vectorized=True,
        paired=True,
        confidence_level=level,
        method="percentile",
        rng=rng,
    )
    interval = result.confidence_interval
    return {"value": value, "low": value + float(interval.low), "high": value + float(interval.high)}


def paired_difference(
    first: Floats, second: Floats, groups: Integers, seed: int, level: float = 0.95
) -> dict[str, float]:
    """Return the interval of mean(first - second) of two (n,) row-wise losses of the same battles, in the same order.

    Negative values favour ``first``. Much narrower than the difference of two intervals: a battle that is hard for
    one model is hard for the other.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"expected equal shapes, got {first.shape} and {second.shape}")
    return group_interval(first - second, groups, seed, level)


def _ratio(sums: Floats, sizes: Floats, axis: int = -1) -> Any:
    return sums.sum(axis=axis) / sizes.sum(axis=axis)


def _hits(probs: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (n,) credit for the most probable class: 1 or 0, or 1/m where m classes share the maximum."""
    top = probs == probs.max(axis=1, keepdims=True)
    return np.asarray(top[np.arange(len(labels)), labels] / top.sum(axis=1))


def _checked(probs: Floats, labels: Integers) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
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
