"""Intervals by groups of means, of paired differences and of contrasts between subsets; the one place for intervals.

Battles of one group (near-duplicate prompts) are not independent, so whole groups are drawn with replacement, never
single rows. Above ``MAX_UNITS`` groups, random bundles of groups are drawn instead: the same variance in expectation,
with a relative error of 1 / sqrt(2 * MAX_UNITS) = 1 % in the interval's width, and 10 times faster at 57,000 groups.
Two models are compared by the interval of their row-wise differences, never by two separate intervals.

A percentile interval of few groups is too narrow. Below ``FEW_GROUPS`` effective groups the interval is the jackknife's
(:mod:`ensemble.statistics.standard_errors`), and below ``LEAST_GROUPS`` groups there is none: the bounds are None, and
the entry "groups" has the number of groups, for :func:`ensemble.statistics.interval_words.too_few`.

Source: Cameron, Gelbach & Miller, Bootstrap-based improvements for inference with clustered errors, 2008.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from ensemble.statistics.standard_errors import (
    FEW_GROUPS,
    LEAST_GROUPS,
    LEVEL,
    effective_groups,
    half_width,
    jackknife_error,
    mean_error,
)
from oof.metrics import Floats, Integers

RESAMPLES = 2000  # of an interval on its own
MAX_UNITS = 5_000  # bootstrap units; more groups than this are tied into random bundles
BATCH_VALUES = 4_000_000  # resampled values in memory at a time
LEAST_ROWS = 5  # on either side of a contrast inside a stratum


class Interval(TypedDict):
    """A value with its bounds; "groups" is there only where they are too few for bounds."""

    value: float | None
    low: float | None
    high: float | None
    groups: NotRequired[int]


def bootstrap_units(groups: Integers, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """Return each row's unit, (n,) numbers 0..u-1, and u: groups, or random bundles of them above ``MAX_UNITS``."""
    _, unit = np.unique(groups, return_inverse=True)
    n_units = int(unit.max()) + 1
    if n_units <= MAX_UNITS:
        return unit, n_units
    return rng.permutation(n_units)[unit] % MAX_UNITS, MAX_UNITS


def group_interval(
    values: Floats, groups: Integers, seed: int, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval:
    """Return the mean of (n,) values and its interval by groups, deterministic from the seed.

    The mean of a resample is the ratio of the drawn units' sums and sizes.

    Raises:
        ValueError: no values, shapes differ, or a value is not finite.
    """
    values, groups = np.asarray(values, dtype=np.float64), np.asarray(groups)
    if values.ndim != 1 or values.shape != groups.shape or len(values) == 0:
        raise ValueError(f"expected equal, non-empty (n,) shapes, got {values.shape} and {groups.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    value = float(values.mean())
    _, unit = np.unique(groups, return_inverse=True)
    sizes = np.bincount(unit).astype(np.float64)
    if effective_groups(sizes) < FEW_GROUPS:
        return interval_of_few(value, np.bincount(unit, values - value), sizes, level)
    rng = np.random.default_rng(seed)
    unit, _ = bootstrap_units(groups, rng)
    # Centred sums: the resampled ratio keeps its digits when the spread is tiny beside the mean.
    columns = [column.astype(np.float64) for column in (np.bincount(unit, values - value), np.bincount(unit))]
    low, high = _percentile_bounds(columns, _ratio, level, resamples, rng)
    return {"value": value, "low": value + low, "high": value + high}


def interval_of_few(value: float, sums: NDArray[Any], sizes: Floats | Integers, level: float = LEVEL) -> Interval:
    """Return the jackknife's interval of a mean from (k,) centred sums and sizes of few groups, all with rows."""
    if len(sizes) < LEAST_GROUPS:
        return without_bounds(value, len(sizes))
    half = half_width(mean_error(sums, sizes), effective_groups(sizes), level)
    return {"value": value, "low": value - half, "high": value + half}


def without_bounds(value: float, n_groups: int) -> Interval:
    """Return the interval of a value from too few groups."""
    return {"value": value, "low": None, "high": None, "groups": n_groups}


def paired_difference(first: Floats, second: Floats, groups: Integers, seed: int) -> Interval:
    """Return the interval of mean(first - second) of two (n,) row-wise losses of the same battles, in the same order.

    Negative values favour ``first``. Much narrower than the difference of two intervals: a battle that is hard for
    one model is hard for the other.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"expected equal shapes, got {first.shape} and {second.shape}")
    return group_interval(first - second, groups, seed)


def contrast(
    values: Floats, flags: NDArray[np.bool_], groups: Integers, seed: int, strata: Integers | None = None
) -> Interval:
    """Return the interval of mean(values[flags]) - mean(values[~flags]), by groups.

    With ``strata``, the two sides are compared inside each stratum, and the differences are weighted by the flagged
    rows in it; strata of fewer than ``LEAST_ROWS`` rows on a side are left out. A group may lie on both sides; the side
    with fewer groups decides how the bounds are made. With an empty side all three are None.

    Args:
        values: (n,).
        flags: (n,).
        groups: (n,).
        seed: of the resampling.
        strata: (n,) numbers 0..s-1.
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
    sides = [np.unique(groups[side], return_counts=True)[1] for side in (flags, ~flags)]
    fewest = min(len(sizes) for sizes in sides)
    if fewest < LEAST_GROUPS:
        return without_bounds(value, fewest)
    effective = min(effective_groups(sizes) for sizes in sides)
    if effective < FEW_GROUPS:
        left_out = _contrast_of_sums(*((column.sum() - column)[None] for column in columns), axis=0)
        half = half_width(jackknife_error(left_out, value), effective)
        return {"value": value, "low": value - half, "high": value + half}
    low, high = _percentile_bounds(columns, _contrast_of_sums, LEVEL, RESAMPLES, rng)
    return {"value": value, "low": low, "high": high}


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
