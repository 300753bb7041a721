"""Shrinkage factor: closed forms, dependent rows, and what it costs and gains on a mean."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.statistics.shrinkage import CAUTION, shrinkage_factor


def factor_of_means(x: np.ndarray, groups: np.ndarray) -> float:
    """Return the factor of the (p,) means of (n, p) values with variance 1: the loss is half the squared distance."""
    n, p = x.shape
    saved = n * float(np.square(x.mean(axis=0)).sum()) / 2
    return shrinkage_factor(saved, x.mean(axis=0) - x, n * np.eye(p), groups)


def test_one_mean_is_shrunk_as_by_its_group_robust_standard_error() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), 5)
    x = 0.15 + rng.normal(size=(2000, 1)) + np.repeat(rng.normal(size=(400, 1)), 5, axis=0)
    of_groups = x.reshape(400, 5).mean(axis=1)
    error = of_groups.std(ddof=1) / np.sqrt(400)  # groups of one size: the textbook's error of a mean of 400 values
    expected = 1 - (1 + CAUTION / 399) * error**2 / x.mean() ** 2
    assert 0.3 < expected < 0.95
    assert factor_of_means(x, groups) == pytest.approx(expected, rel=1e-9)


def test_a_block_of_means_has_one_factor_for_their_joint_evidence() -> None:
    x = np.random.default_rng(1).normal(size=(100, 2)) * 0.5 + [0.3, -0.1]  # less varied than a variance of 1 says
    f = 100 * np.square(x.mean(axis=0)).sum() / 2
    assert factor_of_means(x, np.arange(100)) == pytest.approx(1 - (2 + 2 * CAUTION / 98) / f, rel=1e-9)


def test_the_design_effect_is_the_mean_over_the_block() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 2)) * [3.0, 2.0] + 1
    f = 300 * np.square(x.mean(axis=0)).sum() / 2 / x.var(axis=0, ddof=1).mean()
    assert factor_of_means(x, np.arange(300)) == pytest.approx(1 - (2 + 2 * CAUTION / 298) / f, rel=1e-9)


def test_unequal_groups_count_by_their_effective_number() -> None:
    sizes = [90, 5, 5]  # 1.22 effective groups
    x, groups = np.full((100, 1), 5.0), np.repeat(np.arange(3), sizes)
    effective = 100**2 / (90**2 + 5**2 + 5**2)
    assert factor_of_means(x, groups) == pytest.approx(1 - (1 + CAUTION / (effective - 1)) / (100 * 25))
    assert factor_of_means(np.full((100, 2), 5.0), groups) == 0  # two estimates from fewer than two groups


def test_without_evidence_or_with_one_group_the_factor_is_0() -> None:
    x = np.full((50, 1), 9.0)
    assert factor_of_means(x, np.zeros(50, dtype=int)) == 0
    assert factor_of_means(x, np.arange(50)) > 0.99
    for saved in (0.0, -1.0, 0.5):
        assert shrinkage_factor(saved, x - 9, 50 * np.eye(1), np.arange(50)) == 0


def test_flat_directions_do_not_crash_it() -> None:
    scores = np.random.default_rng(0).normal(size=(80, 2)) * [1.0, 0.0]
    assert 0 < shrinkage_factor(50.0, scores, np.diag([80.0, 0.0]), np.arange(80)) < 1


@pytest.mark.parametrize(("n", "p"), [(40, 1), (40, 2), (400, 1), (400, 2)])
def test_shrunk_means_of_noise_cost_less_than_half_of_plain_ones_and_strong_means_keep_their_gain(
    n: int, p: int
) -> None:
    rng = np.random.default_rng(n + p)
    noise = [rng.normal(size=(n, p)) for _ in range(300)]
    plain = np.mean([np.square(x.mean(axis=0)).sum() for x in noise])
    shrunk = np.mean([np.square(factor_of_means(x, np.arange(n)) * x.mean(axis=0)).sum() for x in noise])
    assert shrunk < 0.5 * plain
    strong = [x + 12 / np.sqrt(n) for x in noise]
    lost = [np.square(factor_of_means(x, np.arange(n)) * x.mean(axis=0) - 12 / np.sqrt(n)).sum() for x in strong]
    assert np.mean(lost) < 1.2 * plain
