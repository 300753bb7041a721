"""Group-robust standard errors, intervals of few groups, p-values, and Holm's correction for many tests.

In closed form. The mean is a ratio of group sums, and rows are independent between groups only.

**Few groups.** Below ``FEW_GROUPS`` effective groups, a mean's standard error is that of the jackknife that leaves out
one group at a time, and its distribution is Student's t with (effective groups - 1) degrees of freedom. The effective
number is (sum of sizes)^2 / (sum of squared sizes): the number of groups where all are of one size, and fewer where
few groups hold most rows, where an interval with t(groups - 1) is too narrow. Below ``LEAST_GROUPS`` groups there is
no interval and no p-value.

Source: Cameron & Miller, A practitioner's guide to cluster-robust inference, 2015; Hansen, Jackknife standard errors
for clustered regression, 2025; Carter, Schnepel & Steigerwald, Asymptotic behavior of a t-test robust to cluster
heterogeneity, 2017 (effective number of clusters); Holm, A simple sequentially rejective multiple test procedure, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

from oof.metrics import Floats, Integers

LEVEL = 0.95  # of every interval
Z95 = 1.959963984540054  # the normal distribution's 97.5 % point
LEAST_GROUPS = 6  # fewer groups carry no interval, no p-value and no verdict
FEW_GROUPS = 50  # effective groups: below, the jackknife and Student's t; from here on, the bootstrap or the normal


def effective_groups(sizes: Floats | Integers) -> float:
    """Return the effective number of groups of (k,) sizes, in 1..k; groups of size 0 do not count, 0 without rows."""
    squares = float(np.square(sizes, dtype=np.float64).sum())
    return float(np.sum(sizes)) ** 2 / squares if squares else 0.0


def jackknife_error(left_out: Floats, value: float) -> float:
    """Return the jackknife's standard error of ``value``, of its (k,) values with one of k groups left out each."""
    return float(np.sqrt((len(left_out) - 1) / len(left_out) * np.square(left_out - value).sum()))


def mean_error(sums: NDArray[Any], sizes: Floats | Integers) -> float:
    """Return the jackknife's standard error of a mean over the rows of k >= 2 groups.

    Args:
        sums: (k,) each group's sum of the rows' deviations from the mean.
        sizes: (k,) its rows, at least 1.
    """
    return jackknife_error(-sums / (np.sum(sizes) - sizes), 0.0)  # the mean without a group, minus the mean


def half_width(error: float, effective: float, level: float = LEVEL) -> float:
    """Return half the width of Student's interval of a standard error from so many effective groups."""
    return float(error * stdtrit(max(effective - 1, 1.0), (1 + level) / 2))


def standard_error(values: Floats, groups: Integers) -> float:
    """Return the standard error of the mean of (n,) values whose rows are independent between groups only."""
    values = np.asarray(values, dtype=np.float64)
    _, unit = np.unique(groups, return_inverse=True)
    sums = np.bincount(unit, values - values.mean())
    return float(error_of_group_sums(np.square(sums).sum(), len(sums), len(values)))


def error_of_group_sums(squares: Floats, n_groups: Integers | int, n_rows: Integers | float) -> NDArray[np.float64]:
    """Return standard errors of means whose rows are independent between groups only; scalars or arrays of one shape.

    Args:
        squares: sum over the groups of the squared group sums; a group sum adds its rows' deviations from the mean.
        n_groups: number of groups.
        n_rows: number of rows; of another estimate than a mean, the curvature of its loss.
    """
    return np.asarray(np.sqrt(squares * n_groups / np.maximum(np.asarray(n_groups) - 1, 1)) / n_rows)


def p_value(values: Floats, groups: Integers) -> float | None:
    """Return the two-sided p-value of "the mean of these (n,) values is 0", by groups; None below ``LEAST_GROUPS``.

    Below ``FEW_GROUPS`` effective groups it is below 0.05 exactly where the mean's interval excludes 0.
    """
    values = np.asarray(values, dtype=np.float64)
    _, unit = np.unique(groups, return_inverse=True)
    sizes = np.bincount(unit)
    if len(sizes) < LEAST_GROUPS:
        return None
    mean, effective = float(values.mean()), effective_groups(sizes)
    few = effective < FEW_GROUPS
    error = mean_error(np.bincount(unit, values - mean), sizes) if few else standard_error(values, groups)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    below = stdtr(max(effective - 1, 1.0), -abs(mean) / error) if few else ndtr(-abs(mean) / error)
    return float(2 * below)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values adjusted by Holm's step-down method; None stays None and does not count as a test."""
    tests = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(tests):
        highest = max(highest, min(1.0, (len(tests) - rank) * p))
        adjusted[i] = highest
    return adjusted
