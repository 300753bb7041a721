"""Bins against loops over rows."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.statistics.binning import bin_means, equal_mass_bins
from ensemble.statistics.bootstrap import group_interval
from ensemble.statistics.standard_errors import standard_error


def test_bin_means_equal_loops_over_rows() -> None:
    rng = np.random.default_rng(2)
    values, bins, groups = rng.random(300), rng.integers(0, 4, 300), np.arange(300)
    rows = bin_means(values, bins, 5, groups)
    for k in range(4):
        inside = values[bins == k]
        assert rows[k]["n"] == len(inside)
        assert rows[k]["value"] == pytest.approx(inside.mean())
        error = standard_error(inside, groups[bins == k])
        assert rows[k]["high"] - rows[k]["low"] == pytest.approx(2 * 1.959964 * error, rel=1e-5)
    assert rows[4] == {"n": 0, "value": None, "low": None, "high": None}


def test_a_bin_of_few_groups_has_the_interval_of_its_rows_and_of_too_few_none() -> None:
    rng = np.random.default_rng(4)
    groups = rng.integers(0, 20, 200)
    values, bins = rng.normal(size=20)[groups] + rng.normal(size=200), (groups < 5).astype(np.int64)
    many, few = bin_means(values, bins, 2, groups)
    expected = group_interval(values[bins == 0], groups[bins == 0], 0)
    assert {key: many[key] for key in expected} == pytest.approx(expected)
    assert few["value"] == pytest.approx(values[bins == 1].mean())
    assert (few["low"], few["high"]) == (None, None)


def test_equal_mass_bins_are_balanced_and_keep_equal_values_together() -> None:
    rng = np.random.default_rng(3)
    bins = equal_mass_bins(rng.random(1000), 10)
    assert np.bincount(bins).min() > 90
    assert len(np.unique(equal_mass_bins(np.ones(50), 10))) == 1
