"""Bootstrap over whole groups: intervals of means, of paired differences and of contrasts between subsets.

Battles of one group (near-duplicate prompts) are not independent, so whole groups are drawn with replacement, never
single rows. Above ``MAX_UNITS`` groups, random bundles of groups are drawn instead: the same variance in expectation,
with a relative error of 1 / sqrt(2 * MAX_UNITS) = 1 % in the interval's width, and 10 times faster at 57,000 groups.
Two models are compared by the interval of their row-wise differences, never by two separate intervals. With fewer
than about 30 groups a percentile interval is too narrow.

Source: Cameron, Gelbach & Miller, Bootstrap-based improvements for inference with clustered errors, 2008.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.statistics.standard_errors import LEAST_GROUPS
from oof.metrics import Floats, Integers

LEVEL = 0.95  # of every interval
RESAMPLES = 2000  # of an interval on its own
SHARED_RESAMPLES = 1000  # of :class:`Resamples`, which serve many statistics
MAX_UNITS = 5_000  # bootstrap units; more groups than this are tied into random bundles
BATCH_VALUES = 4_000_000  # resampled values in memory at a time
LEAST_ROWS = 5  # on either side of a contrast inside a stratum

Interval = dict[str, float | None]


def bootstrap_units(groups: Integers, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """Return each row's unit, (n,) numbers 0..u-1, and u: groups, or random bundles of them above ``MAX_UNITS``."""
    _, unit = np.unique(groups, return_inverse=True)
    n_units = int(unit.max()) + 1
    if n_units <= MAX_UNITS:
        return unit, n_units
    return rng.permutation(n_units)[unit] % MAX_UNITS, MAX_UNITS


def group_interval(
    values: Floats, groups: Integers, seed: int, level: float = LEVEL, resamples: int = RESAMPLES
) -> dict[str, float]:
    """Return {"value", "low", "high"}: the mean of (n,) values and its percentile interval over resampled groups.

    The mean of a resample is the ratio of the drawn units' sums and sizes. Deterministic from the seed; with one
    group the bounds are NaN.

    Raises:
        ValueError: no values, shapes differ, or a value is not finite.
    """
    values, groups = np.asarray(values, dtype=np.float64), np.asarray(groups)
    if values.ndim != 1 or values.shape != groups.shape or len(values) == 0:
        raise ValueError(f"expected equal, non-empty (n,) shapes, got {values.shape} and {groups.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    rng = np.random.default_rng(seed)
    unit, n_units = bootstrap_units(groups, rng)
    value = float(values.mean())
    if n_units == 1:
        return {"value": value, "low": float("nan"), "high": float("nan")}
    # Centred sums: the resampled ratio keeps its digits when the spread is tiny beside the mean.
    columns = [column.astype(np.float64) for column in (np.bincount(unit, values - value), np.bincount(unit))]
    low, high = _percentile_bounds(columns, _ratio, level, resamples, rng)
    return {"value": value, "low": value + low, "high": value + high}


def paired_difference(
    first: Floats, second: Floats, groups: Integers, seed: int, level: float = LEVEL
) -> dict[str, float]:
    """Return the interval of mean(first - second) of two (n,) row-wise losses of the same battles, in the same order.

    Negative values favour ``first``. Much narrower than the difference of two intervals: a battle that is hard for
    one model is hard for the other.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"expected equal shapes, got {first.shape} and {second.shape}")
    return group_interval(first - second, groups, seed, level)


def contrast(
    values: Floats,
    flags: NDArray[np.bool_],
    groups: Integers,
    seed: int,
    strata: Integers | None = None,
    level: float = LEVEL,
) -> Interval:
    """Return {"value", "low", "high"} of mean(values[flags]) - mean(values[~flags]), whole groups resampled.

    With ``strata``, the two sides are compared inside each stratum, and the differences are weighted by the flagged
    rows in it; strata of fewer than ``LEAST_ROWS`` rows on a side are left out. A group may lie on both sides. With an
    empty side all three are None, with fewer than ``LEAST_GROUPS`` groups on a side the bounds are.

    Args:
        values: (n,).
        flags: (n,).
        groups: (n,).
        seed: of the resampling.
        strata: (n,) numbers 0..s-1.
        level: of the interval.
    """
    values, flags = np.asarray(values, dtype=np.float64), np.asarray(flags, dtype=bool)
    if strata is None:
        strata = np.zeros(len(values), dtype=np.int64)
    else:
        counts = [np.bincount(strata[side], minlength=int(strata.max()) + 1) for side in (flags, ~flags)]
        kept = (np.minimum(*counts) >= LEAST_ROWS)[strata]
        values, flags, groups, strata = values[kept], flags[kept], groups[kept], strata[kept]
    if not flags.any() or flags.all():
        return {"value": None, "low": None, "high": None}
    rng = np.random.default_rng(seed)
    unit, n_units = bootstrap_units(groups, rng)
    columns = _contrast_columns(values, flags, strata, unit, n_units)
    value = float(_contrast_of_sums(*columns))
    if min(len(np.unique(groups[flags])), len(np.unique(groups[~flags]))) < LEAST_GROUPS:
        return {"value": value, "low": None, "high": None}
    low, high = _percentile_bounds(columns, _contrast_of_sums, level, RESAMPLES, rng)
    return {"value": value, "low": low, "high": high}


@dataclass(frozen=True)
class Resamples:
    """One set of bootstrap draws for many statistics, so that all of them are paired.

    Attributes:
        unit: (n,) each row's unit.
        counts: (r, units) how often each unit was drawn.
    """

    unit: NDArray[np.int64]
    counts: NDArray[np.float64]

    @classmethod
    def draw(cls, groups: Integers, seed: int, resamples: int = SHARED_RESAMPLES) -> Resamples:
        """Draw units (:func:`bootstrap_units`) with replacement, ``resamples`` times."""
        rng = np.random.default_rng(seed)
        unit, n = bootstrap_units(groups, rng)
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

    def interval(self, series: NDArray[np.float64], biased: bool = False) -> Interval | None:
        """Return value, low and high of (1 + r,) values, the first over the rows as they are; None if undefined.

        Where ``biased`` (a binned calibration error), the interval is moved back by the draws' mean excess and cut
        at 0.
        """
        value, draws = float(series[0]), series[1:][np.isfinite(series[1:])]
        if not np.isfinite(value):
            return None
        if self.counts.shape[1] < 2 or not len(draws):
            return {"value": value, "low": None, "high": None}
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        shift = float(draws.mean()) - value if biased else 0.0
        low, high = low - shift, high - shift
        return {"value": value, "low": max(low, 0.0) if biased else float(low), "high": float(high)}


def _percentile_bounds(
    columns: Sequence[Floats],
    statistic: Callable[..., Any],
    level: float,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Return the percentile interval of ``statistic`` of (units,) columns, units drawn with replacement."""
    from scipy.stats import bootstrap  # half a second, which a subcommand with nothing to do need not wait for

    result = bootstrap(
        columns,
        statistic,
        n_resamples=resamples,
        batch=max(1, BATCH_VALUES // (len(columns[0]) * max(1, len(columns) // 4))),
        vectorized=True,
        paired=True,
        confidence_level=level,
        method="percentile",
        rng=rng,
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _ratio(sums: Floats, sizes: Floats, axis: int = -1) -> Any:
    return sums.sum(axis=axis) / sizes.sum(axis=axis)


def _contrast_columns(
    values: Floats, flags: NDArray[np.bool_], strata: Integers, unit: Integers, n_units: int
) -> list[Floats]:
    """Return four (units,) columns a stratum: sum and count of the flagged rows, sum and count of the others."""
    columns: list[Floats] = []
    for stratum in np.unique(strata):
        for side in (flags & (strata == stratum), ~flags & (strata == stratum)):
            for weights in (values[side], np.ones(int(side.sum()))):
                columns.append(np.bincount(unit[side], weights, minlength=n_units).astype(np.float64))
    return columns


def _contrast_of_sums(*columns: Floats, axis: int = -1) -> Any:
    """Return the weighted difference of means of the columns of :func:`_contrast_columns`."""
    total: Any = 0.0
    weight: Any = 0.0
    for k in range(0, len(columns), 4):
        inside, n_inside, outside, n_outside = (column.sum(axis=axis) for column in columns[k : k + 4])
        both = (n_inside > 0) & (n_outside > 0)  # a resample may leave a small stratum without one side
        gap = inside / np.maximum(n_inside, 1) - outside / np.maximum(n_outside, 1)
        total, weight = total + np.where(both, n_inside * gap, 0), weight + np.where(both, n_inside, 0)
    return total / np.maximum(weight, 1)
