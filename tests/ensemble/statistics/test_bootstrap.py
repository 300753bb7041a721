"""Intervals against plain loops, closed forms and their nominal coverage."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from ensemble.statistics import bootstrap
from ensemble.statistics.binning import bin_means
from ensemble.statistics.bootstrap import contrast, group_interval, paired_difference


def test_interval_equals_a_plain_bootstrap_of_groups() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 80, 600)
    values = rng.normal(size=600) + rng.normal(size=80)[groups]
    means = []
    for _ in range(3000):
        drawn = np.concatenate([values[groups == g] for g in rng.choice(np.unique(groups), 80)])
        means.append(drawn.mean())
    result = group_interval(values, groups, 0)
    assert result["value"] == pytest.approx(values.mean())
    width = result["high"] - result["low"]
    assert [result["low"], result["high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.08 * width)


ARENAS = 800


def unequal_arena(seed: int, n_groups: int, spread: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return values with true mean 0, dependent in groups of lognormal sizes, and their groups."""
    rng = np.random.default_rng(seed)
    sizes = np.maximum(1, np.round(6 * np.exp(spread * rng.normal(size=n_groups)))).astype(np.int64)
    groups = np.repeat(np.arange(n_groups), sizes)
    return rng.normal(size=n_groups)[groups] + rng.normal(size=len(groups)), groups


def coverage(n_groups: int, spread: float) -> float:
    """Return the share of arenas whose 95 % interval holds the true mean."""
    covered = 0
    for seed in range(ARENAS):
        result = group_interval(*unequal_arena(seed, n_groups, spread), seed, resamples=400)
        assert result["low"] is not None
        assert result["high"] is not None
        covered += result["low"] <= 0 <= result["high"]
    return covered / ARENAS


@pytest.mark.parametrize("spread", [0.5, 1.0])
@pytest.mark.parametrize("n_groups", [6, 8, 16, 30, 100])
def test_interval_of_unequal_groups_covers_the_true_mean_as_often_as_it_says(n_groups: int, spread: float) -> None:
    assert 0.92 <= coverage(n_groups, spread) <= 0.98


def test_the_percentile_bootstrap_of_six_groups_fails_the_same_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "FEW_GROUPS", 0)
    assert coverage(6, 0.5) < 0.9


def test_bundles_of_groups_give_the_width_of_the_groups_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20_000), rng.integers(1, 4, 20_000))
    values = rng.exponential(size=20_000)[groups] + rng.normal(size=len(groups))
    bundled = group_interval(values, groups, 0)
    monkeypatch.setattr(bootstrap, "MAX_UNITS", 10**9)
    exact = group_interval(values, groups, 0, resamples=1000)
    assert bundled["value"] == exact["value"]
    assert bundled["high"] - bundled["low"] == pytest.approx(exact["high"] - exact["low"], rel=0.12)


def test_interval_of_singletons_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    result = group_interval(values, np.arange(4000), 0)
    expected = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert [result["low"], result["high"]] == pytest.approx(expected, abs=0.08 * (expected[1] - expected[0]))


def test_grouping_widens_the_interval_of_dependent_rows() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=100), 10)
    grouped = group_interval(values, np.repeat(np.arange(100), 10), 0)
    alone = group_interval(values, np.arange(1000), 0)
    assert grouped["high"] - grouped["low"] > 2.5 * (alone["high"] - alone["low"])


def test_interval_is_deterministic_and_ignores_row_order_and_names_of_groups() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=200), rng.integers(0, 100, 200)
    result = group_interval(values, groups, 7)
    assert result == group_interval(values, groups, 7)
    assert result != group_interval(values, groups, 8)
    shuffle = rng.permutation(200)
    assert result == pytest.approx(group_interval(values[shuffle], 3 * groups[shuffle] + 1, 7))


def test_interval_memory_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    values, groups = np.random.default_rng(0).normal(size=500), np.arange(500)
    whole = group_interval(values, groups, 0)
    monkeypatch.setattr(bootstrap, "BATCH_VALUES", 500 * 7)
    assert group_interval(values, groups, 0) == pytest.approx(whole)


def test_paired_difference_resolves_what_two_intervals_cannot() -> None:
    rng = np.random.default_rng(0)
    hard = rng.exponential(size=2000)
    groups = np.arange(2000)
    first, second = hard + 0.01 * rng.normal(size=2000), hard + 0.005 + 0.01 * rng.normal(size=2000)
    result = paired_difference(first, second, groups, 0)
    assert result["high"] < 0
    assert result["value"] == pytest.approx((first - second).mean())
    alone = group_interval(first, groups, 0)
    assert result["high"] - result["low"] < 0.1 * (alone["high"] - alone["low"])


def test_equal_models_differ_by_exactly_zero() -> None:
    losses = np.random.default_rng(0).exponential(size=100)
    result = paired_difference(losses, losses, np.arange(100), 0)
    assert result == {"value": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize("n_groups", [1, 5])
def test_fewer_than_six_groups_have_a_mean_and_no_interval(n_groups: int) -> None:
    result = group_interval(np.arange(10.0), np.arange(10) % n_groups, 0)
    assert result == {"value": 4.5, "low": None, "high": None, "groups": n_groups}


def test_interval_of_few_equal_groups_is_the_t_interval_of_their_means() -> None:
    means = np.random.default_rng(0).normal(size=12)
    result = group_interval(np.repeat(means, 4), np.repeat(np.arange(12), 4), 0)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert [result["low"], result["high"]] == pytest.approx([expected.low, expected.high])


@pytest.mark.parametrize(("values", "groups"), [([], []), ([1.0], [0, 1]), ([np.inf, 1.0], [0, 1]), ([[1.0]], [[0]])])
def test_interval_refuses_empty_mismatched_or_infinite_values(values: list[float], groups: list[int]) -> None:
    with pytest.raises(ValueError, match=r"shapes|finite"):
        group_interval(np.array(values), np.array(groups), 0)


def test_a_contrast_equals_a_naive_bootstrap() -> None:
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(70), rng.integers(1, 5, 70))
    values = rng.normal(size=70)[groups] + rng.normal(size=len(groups))
    flags = rng.random(len(groups)) < 0.4
    result = contrast(values, flags, groups, seed=0)
    rows = [np.flatnonzero(groups == g) for g in range(70)]
    drawn = []
    for _ in range(2000):
        at = np.concatenate([rows[g] for g in rng.integers(70, size=70)])
        drawn.append(values[at][flags[at]].mean() - values[at][~flags[at]].mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert result["value"] == pytest.approx(values[flags].mean() - values[~flags].mean())
    assert result["low"] == pytest.approx(low, abs=0.05 * (high - low) + 0.02)
    assert result["high"] == pytest.approx(high, abs=0.05 * (high - low) + 0.02)


def test_strata_remove_the_difference_that_they_explain() -> None:
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
    expected = {"value": 0.0, "low": None, "high": None, "groups": 2}
    assert contrast(np.arange(4.0), flags, np.arange(4), 0) == expected
    assert contrast(np.arange(4.0), np.ones(4, bool), np.arange(4), 0)["value"] is None


@pytest.mark.parametrize("kind", ["mean", pytest.param("contrast", marks=pytest.mark.slow), "robust"])
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
            result = group_interval(values, groups, seed=i, resamples=1000)
        elif kind == "contrast":
            result = contrast(values + true * flags, flags, groups, seed=i)
        else:
            result = bin_means(values, np.zeros(240, dtype=np.int64), 1, groups)[0]
        covered += result["low"] <= true <= result["high"]
    assert 0.92 <= covered / 500 <= 0.98


@pytest.mark.parametrize("sides", [(6, 100), (8, 8), (20, 40)])
def test_contrast_of_few_groups_covers_the_true_difference(sides: tuple[int, int]) -> None:
    covered = 0
    for seed in range(ARENAS):
        values, groups = unequal_arena(seed, sum(sides), 0.5)
        result = contrast(values, groups < sides[0], groups, seed)
        assert result["low"] is not None
        assert result["high"] is not None
        covered += result["low"] <= 0 <= result["high"]
    assert 0.92 <= covered / ARENAS <= 0.98
