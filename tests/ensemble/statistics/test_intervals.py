"""Intervals: closed forms, brute force, and coverage in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.statistics.intervals import bin_means, contrast, equal_mass, holm, p_value, robust_error
from oof.metrics import group_interval


def test_holm_on_a_worked_example() -> None:
    """The classic example: 0.005 x 4, 0.01 x 3, 0.03 x 2, then not smaller than before."""
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_exactly_what_the_step_down_procedure_rejects(p: list[float]) -> None:
    alpha, rejected = 0.05, set()
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] * (len(p) - rank) > alpha:
            break
        rejected.add(i)
    adjusted = [value for value in holm(p) if value is not None]
    assert {i for i, value in enumerate(adjusted) if value <= alpha} == rejected
    assert all(0 <= a <= 1 and a >= value for a, value in zip(adjusted, p, strict=True))


def test_robust_error_equals_the_textbook_s_without_and_with_groups() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=50)
    alone = robust_error(values, np.arange(50))
    assert alone == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    # Every row twice, in a group with its copy: the error must not fall.
    doubled = robust_error(np.repeat(values, 2), np.repeat(np.arange(50), 2))
    assert doubled == pytest.approx(alone)
    assert robust_error(values[:5], np.arange(5)) is None


def test_p_values_are_uniform_where_nothing_is_there() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 3)
    p = [p_value(rng.normal(size=60)[groups] + rng.normal(size=180), groups) for _ in range(1000)]
    assert 0.03 < np.mean(np.array(p) < 0.05) < 0.08


def test_bin_means_equal_loops_over_rows() -> None:
    rng = np.random.default_rng(2)
    values, bins, groups = rng.random(300), rng.integers(0, 4, 300), rng.integers(0, 80, 300)
    rows = bin_means(values, bins, 5, groups)
    for k in range(4):
        inside = values[bins == k]
        assert rows[k]["n"] == len(inside)
        assert rows[k]["value"] == pytest.approx(inside.mean())
        error = robust_error(inside, groups[bins == k])
        assert error is not None
        assert rows[k]["high"] - rows[k]["low"] == pytest.approx(2 * 1.959964 * error, rel=1e-5)
    assert rows[4] == {"n": 0, "value": None, "low": None, "high": None}


def test_equal_mass_bins_are_balanced_and_keep_equal_values_together() -> None:
    rng = np.random.default_rng(3)
    bins = equal_mass(rng.random(1000), 10)
    assert np.bincount(bins).min() > 90
    assert len(np.unique(equal_mass(np.ones(50), 10))) == 1


def test_a_contrast_equals_a_naive_bootstrap() -> None:
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(70), rng.integers(1, 5, 70))
    values = rng.normal(size=70)[groups] + rng.normal(size=len(groups))
    flags = rng.random(len(groups)) < 0.4
    found = contrast(values, flags, groups, seed=0)
    rows = [np.flatnonzero(groups == g) for g in range(70)]
    drawn = []
    for _ in range(2000):
        at = np.concatenate([rows[g] for g in rng.integers(70, size=70)])
        drawn.append(values[at][flags[at]].mean() - values[at][~flags[at]].mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found["value"] == pytest.approx(values[flags].mean() - values[~flags].mean())
    assert found["low"] == pytest.approx(low, abs=0.05 * (high - low) + 0.02)
    assert found["high"] == pytest.approx(high, abs=0.05 * (high - low) + 0.02)


def test_strata_remove_what_they_explain() -> None:
    """The sides differ only because one has more rows of the high stratum: matched, nothing is left."""
    rng = np.random.default_rng(6)
    groups, strata = np.arange(2000), rng.integers(0, 2, 2000)
    flags = rng.random(2000) < np.where(strata == 1, 0.8, 0.2)
    values = 5.0 * strata + rng.normal(0, 0.5, 2000)
    plain, matched = contrast(values, flags, groups, 0), contrast(values, flags, groups, 0, strata)
    gaps = [values[flags & (strata == k)].mean() - values[~flags & (strata == k)].mean() for k in (0, 1)]
    weights = [np.sum(flags & (strata == k)) for k in (0, 1)]
    assert matched["value"] == pytest.approx(np.average(gaps, weights=weights))
    assert plain["low"] > 2.5
    assert matched["low"] < 0 < matched["high"] < 0.2
    few = np.where(np.arange(2000) < 4, 2, strata)  # a stratum too small to be compared in
    assert (
        contrast(values, flags, groups, 0, few)["value"]
        == contrast(values[4:], flags[4:], groups[4:], 0, strata[4:])["value"]
    )


def test_a_contrast_without_enough_groups_gives_no_bounds() -> None:
    flags = np.array([True, False, False, True])
    assert contrast(np.arange(4.0), flags, np.arange(4), 0) == {"value": 0.0, "low": None, "high": None}
    assert contrast(np.arange(4.0), np.ones(4, bool), np.arange(4), 0)["value"] is None


@pytest.mark.parametrize("kind", ["mean", "contrast", "robust"])
def test_intervals_cover_at_the_nominal_rate(kind: str) -> None:
    """Of 500 arenas with dependent rows, 92 to 98 % of the 95 % intervals hold the true value."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(120), 2)
    flags = np.arange(120)[groups] < 50
    true = 0.3 if kind == "contrast" else 0.0
    covered = 0
    for i in range(500):
        values = 0.7 * rng.normal(size=120)[groups] + rng.normal(size=240)
        if kind == "mean":
            found = group_interval(values, groups, seed=i, resamples=1000)
        elif kind == "contrast":
            found = contrast(values + true * flags, flags, groups, seed=i)
        else:
            found = bin_means(values, np.zeros(240, dtype=np.int64), 1, groups)[0]
        covered += found["low"] <= true <= found["high"]
    assert 0.92 <= covered / 500 <= 0.98
