"""Intervals and tests that respect groups, for numbers that :func:`oof.metrics.group_interval` does not cover.

Two kinds are in the report. *Bootstrap* intervals resample whole groups (:func:`oof.metrics.group_interval`, and
:func:`contrast` for the difference of two subsets' means). *Robust* ones, where hundreds are needed (the bins of a
diagram) or a p-value is, take the closed-form standard error of a ratio of group sums. Multiplicity: Holm.

Source: Cameron, Gelbach and Miller, Bootstrap-based improvements for inference with clustered errors, 2008; Holm, A
simple sequentially rejective multiple test procedure, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import bootstrap

from oof.metrics import BATCH_VALUES, MAX_UNITS, RESAMPLES

Z95 = 1.959963984540054
LEAST_ROWS = 5  # on either side of a contrast inside a stratum
LEAST_GROUPS = 10  # fewer groups carry no p-value and no robust interval

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Interval = dict[str, float | None]


def contrast(
    values: Floats,
    flags: NDArray[np.bool_],
    groups: Integers,
    seed: int,
    strata: Integers | None = None,
    level: float = 0.95,
) -> Interval:
    """Return {"value", "low", "high"} of mean(values[flags]) - mean(values[~flags]), whole groups resampled.

    With ``strata``, the two sides are compared inside each stratum, and the differences are weighted by the flagged
    rows in it; strata of fewer than ``LEAST_ROWS`` rows on a side are left out. A group may lie on both sides. Above
    ``MAX_UNITS`` groups, random bundles are drawn, as in :func:`oof.metrics.group_interval`. With an empty side all
    three are None, with fewer than ``LEAST_GROUPS`` groups on a side the bounds are.

    Args:
        values: (n,).
        flags: (n,).
        groups: (n,).
        seed: of the resampling.
        strata: (n,) numbers 0..s-1.
        level: of the interval.
    """
    values, flags = np.asarray(values, dtype=np.float64), np.asarray(flags, dtype=bool)
    if strata is not None:
        counts = [np.bincount(strata[side], minlength=int(strata.max()) + 1) for side in (flags, ~flags)]
        kept = (np.minimum(*counts) >= LEAST_ROWS)[strata]
        values, flags, groups, strata = values[kept], flags[kept], groups[kept], strata[kept]
    if not flags.any() or flags.all():
        return {"value": None, "low": None, "high": None}
    _, stratum = np.unique(np.zeros(len(values)) if strata is None else strata, return_inverse=True)
    _, unit = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(seed)
    n_units = int(unit.max()) + 1
    if n_units > MAX_UNITS:
        unit = rng.permutation(n_units)[unit] % MAX_UNITS
        n_units = MAX_UNITS
    columns: list[Floats] = []
    for k in range(int(stratum.max()) + 1):
        for side in (flags & (stratum == k), ~flags & (stratum == k)):
            for weights in (values[side], np.ones(int(side.sum()))):
                columns.append(np.bincount(unit[side], weights, minlength=n_units).astype(np.float64))
    value = float(_difference(*columns))
    if min(len(np.unique(groups[flags])), len(np.unique(groups[~flags]))) < LEAST_GROUPS:
        return {"value": value, "low": None, "high": None}
    batch = max(1, BATCH_VALUES // (n_units * len(columns) // 4))
    found = bootstrap(
        columns, _difference, n_resamples=RESAMPLES, batch=batch, vectorized=True, paired=True,
        confidence_level=level, method="percentile", rng=rng,
    )  # fmt: skip
    bounds = found.confidence_interval
    return {"value": value, "low": float(bounds.low), "high": float(bounds.high)}


def _difference(*columns: Floats, axis: int = -1) -> Any:
    """Return the weighted difference of means; four columns a stratum: sum and count inside, sum and count outside."""
    total: Any = 0.0
    weight: Any = 0.0
    for k in range(0, len(columns), 4):
        inside, n_inside, outside, n_outside = (column.sum(axis=axis) for column in columns[k : k + 4])
        both = (n_inside > 0) & (n_outside > 0)  # a resample may leave a small stratum without one side
        gap = inside / np.maximum(n_inside, 1) - outside / np.maximum(n_outside, 1)
        total, weight = total + np.where(both, n_inside * gap, 0), weight + np.where(both, n_inside, 0)
    return total / np.maximum(weight, 1)


def robust_error(values: Floats, groups: Integers) -> float | None:
    """Return the group-robust standard error of the mean of (n,) values; None under ``LEAST_GROUPS`` groups."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        return None
    _, unit = np.unique(groups, return_inverse=True)
    sums = np.bincount(unit, values - values.mean())
    n_groups = len(sums)
    if n_groups < LEAST_GROUPS:
        return None
    return float(np.sqrt((sums**2).sum() * n_groups / (n_groups - 1)) / len(values))


def p_value(values: Floats, groups: Integers) -> float | None:
    """Return the two-sided p-value of "the mean of these values is 0" (normal, group-robust); None if unknown."""
    error = robust_error(values, groups)
    if error is None:
        return None
    mean = float(np.mean(values))
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * ndtr(-abs(mean) / error))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted by Holm's step-down method over those that are known."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = highest
    return adjusted


def bin_means(values: Floats, bins: Integers, n_bins: int, groups: Integers) -> list[dict[str, Any]]:
    """Return for each of ``n_bins`` bins {"n", "value", "low", "high"}: its mean and normal group-robust 95 % interval.

    Args:
        values: (n,).
        bins: (n,) in 0..n_bins-1.
        n_bins: their number.
        groups: (n,).
    """
    values = np.asarray(values, dtype=np.float64)
    counts = np.bincount(bins, minlength=n_bins)
    means = np.bincount(bins, values, minlength=n_bins) / np.maximum(counts, 1)
    cells, cell = np.unique(np.stack([bins, groups]), axis=1, return_inverse=True)
    sums = np.bincount(cell.ravel(), values - means[bins], minlength=cells.shape[1])
    of = cells[0].astype(np.int64)
    squares, n_groups = np.bincount(of, sums**2, minlength=n_bins), np.bincount(of, minlength=n_bins)
    rows: list[dict[str, Any]] = []
    for k in range(n_bins):
        if counts[k] == 0:
            rows.append({"n": 0, "value": None, "low": None, "high": None})
            continue
        value, low, high = float(means[k]), None, None
        if n_groups[k] >= LEAST_GROUPS:
            half = Z95 * float(np.sqrt(squares[k] * n_groups[k] / (n_groups[k] - 1)) / counts[k])
            low, high = value - half, value + half
        rows.append({"n": int(counts[k]), "value": value, "low": low, "high": high})
    return rows


def equal_mass(values: Floats, n_bins: int) -> NDArray[np.int64]:
    """Return (n,) bins of about equal mass by value; equal values share a bin, so that some bins may be empty."""
    values = np.asarray(values, dtype=np.float64)
    edges = np.unique(np.quantile(values, np.linspace(0, 1, n_bins + 1)[1:-1]))
    return np.asarray(np.searchsorted(edges, values, side="left"), dtype=np.int64)
