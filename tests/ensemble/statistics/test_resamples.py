"""Shared resamples against the intervals of single statistics."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.statistics.bootstrap import group_interval
from ensemble.statistics.resamples import Resamples


def test_resamples_draw_as_many_groups_as_there_are() -> None:
    resampled = Resamples.draw(np.repeat(np.arange(60), 2), 0, 10)
    assert resampled.counts.sum(axis=1).tolist() == [60.0] * 10
    np.testing.assert_allclose(resampled.sums(np.ones(120)), 120)


@pytest.mark.parametrize("n_groups", [5, 6, 30])
def test_means_of_few_groups_are_those_of_the_jackknife(n_groups: int) -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(n_groups), rng.integers(2, 20, n_groups))
    values = rng.normal(size=n_groups)[groups] + rng.normal(size=len(groups))
    assert Resamples.draw(groups, 0).mean(values) == group_interval(values, groups, 0)


def test_a_subset_that_lies_in_few_groups_has_the_interval_of_few_groups() -> None:
    """Ties of 400 battles may lie in seven groups: the percentile interval of all groups would be too narrow."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(100), 4)
    values, seven = rng.normal(size=100)[groups] + rng.normal(size=400), groups < 7
    resampled = Resamples.draw(groups, 0)
    assert resampled.mean(values, seven) == pytest.approx(group_interval(values[seven], groups[seven], 0))
    assert resampled.mean(values, groups < 3) == {
        "value": pytest.approx(values[:12].mean()), "low": None, "high": None, "groups": 3,
    }  # fmt: skip
    assert resampled.mean(values, groups < 0) is None


def test_calibration_errors_of_few_groups_are_moved_back_by_their_bias_and_wider_than_percentiles() -> None:
    rng = np.random.default_rng(2)
    groups, bins = np.repeat(np.arange(20), 10), rng.integers(0, 5, 200)
    gaps = 0.4 * rng.normal(size=20)[groups] + rng.normal(size=200)
    resampled = Resamples.draw(groups, 0)
    series = np.abs(resampled.binned_sums(gaps, bins, 5)).sum(axis=1) / resampled.sums(np.ones(200))
    result = resampled.calibration_error(series)
    left_out = [
        sum(abs(gaps[(groups != g) & (bins == k)].sum()) for k in range(5)) / (groups != g).sum() for g in range(20)
    ]
    bias = 19 * (np.mean(left_out) - series[0])
    error = np.sqrt(19 / 20 * np.square(np.array(left_out) - series[0]).sum())
    assert result["high"] == pytest.approx(series[0] - bias + 2.093024 * error)
    assert result["low"] == pytest.approx(max(series[0] - bias - 2.093024 * error, 0))
    few = Resamples.draw(groups // 4, 0)
    assert few.calibration_error(series)["groups"] == 5
