"""Bins of equal mass, and the mean of each bin with its group-robust interval.

Calibration errors, reliability diagrams and the report's tie bands share these bins. Equal values share a bin, so a
result never depends on the order of the rows; some bins may then be empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.statistics.standard_errors import (
    FEW_GROUPS,
    LEAST_GROUPS,
    Z95,
    effective_groups,
    error_of_group_sums,
    half_width,
    mean_error,
)
from oof.metrics import Floats, Integers


def equal_mass_bins(values: Floats, n_bins: int) -> NDArray[np.int64]:
    """Return (n,) bins 0..n_bins-1 of nearly equal size, in the order of the (n,) values; equal values share a bin."""
    order = np.argsort(values, kind="stable")
    bin_of = np.empty(len(order), dtype=np.int64)
    bin_of[order] = np.arange(len(order)) * n_bins // len(order)
    _, distinct = np.unique(values, return_inverse=True)
    lowest = np.full(distinct.max() + 1, n_bins)
    np.minimum.at(lowest, distinct, bin_of)
    return np.asarray(lowest[distinct])


def bin_means(values: Floats, bins: Integers, n_bins: int, groups: Integers) -> list[dict[str, Any]]:
    """Return for each of ``n_bins`` bins {"n", "value", "low", "high"}: its mean and group-robust 95 % interval.

    The interval is the normal one or, below ``FEW_GROUPS`` effective groups in the bin, the jackknife's. The bounds of
    a bin with fewer than ``LEAST_GROUPS`` groups are None, the value of an empty bin too.

    Args:
        values: (n,).
        bins: (n,) in 0..n_bins-1.
        n_bins: their number.
        groups: (n,).
    """
    values = np.asarray(values, dtype=np.float64)
    counts = np.bincount(bins, minlength=n_bins)
    means = np.bincount(bins, values, minlength=n_bins) / np.maximum(counts, 1)
    # A cell is one group inside one bin.
    cells, cell = np.unique(np.stack([bins, groups]), axis=1, return_inverse=True)
    sums = np.bincount(cell.ravel(), values - means[bins], minlength=cells.shape[1])
    sizes, bin_of_cell = np.bincount(cell.ravel()), cells[0].astype(np.int64)
    squares = np.bincount(bin_of_cell, sums**2, minlength=n_bins).astype(np.float64)
    n_groups = np.bincount(bin_of_cell, minlength=n_bins)
    halves = Z95 * error_of_group_sums(squares, n_groups, np.maximum(counts, 1))
    rows: list[dict[str, Any]] = []
    for k in range(n_bins):
        value = float(means[k]) if counts[k] else None
        low, high = (None, None)
        if value is not None and n_groups[k] >= LEAST_GROUPS:
            inside = bin_of_cell == k
            effective, half = effective_groups(sizes[inside]), float(halves[k])
            if effective < FEW_GROUPS:
                half = half_width(mean_error(sums[inside], sizes[inside]), effective)
            low, high = value - half, value + half
        rows.append({"n": int(counts[k]), "value": value, "low": low, "high": high})
    return rows
