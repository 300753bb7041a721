"""Group-robust standard errors, the p-values that rest on them, and Holm's correction for many tests.

In closed form, for places where a bootstrap would be too slow (the bins of a diagram) or a p-value is needed. The mean
is a ratio of group sums, and rows are independent between groups only.

Source: Cameron & Miller, A practitioner's guide to cluster-robust inference, 2015; Holm, A simple sequentially
rejective multiple test procedure, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from oof.metrics import Floats, Integers

Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
LEAST_GROUPS = 10  # fewer groups carry no p-value and no robust interval


def standard_error(values: Floats, groups: Integers) -> float:
    """Return the standard error of the mean of (n,) values whose rows are independent between groups only."""
    values = np.asarray(values, dtype=np.float64)
    _, unit = np.unique(groups, return_inverse=True)
    sums = np.bincount(unit, values - values.mean())
    return float(error_of_group_sums(np.square(sums).sum(), len(sums), len(values)))


def error_of_group_sums(squares: Floats, n_groups: Integers | int, n_rows: Integers | int) -> NDArray[np.float64]:
    """Return standard errors of means whose rows are independent between groups only; scalars or arrays of one shape.

    Args:
        squares: sum over the groups of the squared group sums; a group sum adds its rows' deviations from the mean.
        n_groups: number of groups.
        n_rows: number of rows.
    """
    return np.asarray(np.sqrt(squares * n_groups / np.maximum(np.asarray(n_groups) - 1, 1)) / n_rows)


def robust_error(values: Floats, groups: Integers) -> float | None:
    """Return :func:`standard_error`; None under ``LEAST_GROUPS`` groups, where it says too little."""
    return standard_error(values, groups) if len(np.unique(groups)) >= LEAST_GROUPS else None


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
    """Return p-values adjusted by Holm's step-down method; None stays None and does not count as a test."""
    tests = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(tests):
        highest = max(highest, min(1.0, (len(tests) - rank) * p))
        adjusted[i] = highest
    return adjusted
