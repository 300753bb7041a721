"""Resamples of groups that serve many statistics at once, so that all of them are paired.

A statistic is a function of sums over rows, and the sums of all resamples are one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.statistics.bootstrap import Interval, bootstrap_units, interval_of_few, without_bounds
from ensemble.statistics.standard_errors import (
    FEW_GROUPS,
    LEAST_GROUPS,
    LEVEL,
    effective_groups,
    half_width,
    jackknife_error,
)
from oof.metrics import Floats, Integers

SHARED_RESAMPLES = 1000


@dataclass(frozen=True)
class Resamples:
    """One set of resamples for many statistics, so that all of them are paired.

    Attributes:
        unit: (n,) each row's unit.
        counts: (r, units) how often each unit is in each resample: bootstrap draws or, where ``few``, all but one.
        few: whether the interval is the jackknife's, because there are few groups.
    """

    unit: NDArray[np.int64]
    counts: NDArray[np.float64]
    few: bool = False

    @classmethod
    def draw(cls, groups: Integers, seed: int, resamples: int = SHARED_RESAMPLES) -> Resamples:
        """Draw units (:func:`bootstrap_units`) with replacement, ``resamples`` times; of few groups leave out each.

        Of fewer than ``LEAST_GROUPS`` groups there are no resamples.
        """
        rng = np.random.default_rng(seed)
        unit, n = bootstrap_units(groups, rng)
        if effective_groups(np.bincount(unit)) < FEW_GROUPS:
            return cls(unit, (1.0 - np.eye(n))[: n if n >= LEAST_GROUPS else 0], few=True)
        drawn = rng.integers(n, size=(resamples, n)) + np.arange(resamples)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n)
        return cls(unit, counts.astype(np.float64))

    def sums(self, values: Floats) -> NDArray[np.float64]:
        """Return (1 + r,) sums of (n,) values: over the rows as they are, then over each resample."""
        per_unit = np.bincount(self.unit, values, minlength=self.counts.shape[1])
        return np.append(per_unit.sum(), self.counts @ per_unit)

    def binned_sums(self, values: Floats, bins: Integers, n_bins: int) -> NDArray[np.float64]:
        """Return (1 + r, n_bins): the same sums, bin by bin."""
        width = self.counts.shape[1]
        per_unit = np.bincount(self.unit * n_bins + bins, values, minlength=width * n_bins).reshape(width, n_bins)
        return np.concatenate([per_unit.sum(axis=0, keepdims=True), self.counts @ per_unit])

    def mean(self, values: Floats, where: NDArray[np.bool_] | None = None) -> Interval | None:
        """Return the interval of the mean of (n,) values, of the rows in the (n,) ``where`` if given.

        None without rows. The groups of these rows decide how the bounds are made: ties of many groups may lie in few.
        """
        weights = np.ones(len(values)) if where is None else where.astype(np.float64)
        per_unit = np.bincount(self.unit, weights, minlength=self.counts.shape[1])
        if not per_unit.any():
            return None
        if effective_groups(per_unit) < FEW_GROUPS:
            rows = weights > 0
            value = float(values[rows].mean())
            sums = np.bincount(self.unit[rows], values[rows] - value, minlength=len(per_unit))
            return interval_of_few(value, sums[per_unit > 0], per_unit[per_unit > 0])
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw without these rows
            series = self.sums(values * weights) / self.sums(weights)
        low, high = percentiles(series[1:])
        return {"value": float(series[0]), "low": low, "high": high}

    def calibration_error(self, series: NDArray[np.float64]) -> Interval:
        """Return the interval of a binned calibration error from its (1 + r,) values, the first over all rows.

        It is moved back by the resamples' bias and cut at 0.
        """
        value, units = float(series[0]), self.counts.shape[1]
        if units < LEAST_GROUPS:
            return without_bounds(value, units)
        bias = float(series[1:].mean()) - value
        if self.few:
            bias *= units - 1
            half = half_width(jackknife_error(series[1:], value), effective_groups(np.bincount(self.unit)))
            low, high = value - half, value + half
        else:
            low, high = percentiles(series[1:])
        return {"value": value, "low": max(low - bias, 0.0), "high": max(high - bias, 0.0)}


def percentiles(draws: NDArray[np.float64]) -> tuple[float, float]:
    """Return the bounds of the interval of a statistic from its (r,) values on the resamples."""
    low, high = np.quantile(draws[np.isfinite(draws)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
