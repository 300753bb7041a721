"""Thresholds of abstention: the guarantee over resamplings by groups, monotone levels, order of the battles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, binomtest

from benchmarks.quality.grouped_population import Population
from ensemble.abstention.observed import Observed
from ensemble.abstention.thresholds import GRID, LEVELS, Thresholds, calibrate, one_per_group

REPEATS = 200


def violations(population: Population, n: int, levels: tuple[float, ...], repeats: int = REPEATS) -> NDArray[np.int64]:
    """Return (levels, 2) in how many resamplings the true error of ours and of the naive threshold is above a level."""
    rng, counts = np.random.default_rng(n), np.zeros((len(levels), 2), dtype=np.int64)
    for seed in range(repeats):
        rows, groups = population.sample(n, rng)
        probs, labels = population.probs[rows], population.labels[rows]
        thresholds, observed = calibrate(probs, labels, groups, seed), Observed.of(probs, labels, groups)
        for i, level in enumerate(levels):
            for j, chosen in enumerate((thresholds.at(level), observed.naive_threshold(level))):
                counts[i, j] += population.truth.at(chosen)[1] > level
    return counts


def more_than_promised(count: int, repeats: int = REPEATS) -> bool:
    """Return whether so many violations are more than chance allows where the true rate is delta."""
    return binomtest(count, repeats, 0.1, alternative="greater").pvalue < 0.001


def test_the_error_is_above_its_level_at_most_as_often_as_promised() -> None:
    population = Population.draw(8_000, seed=1, spread=1.5)
    counts = violations(population, 1_000, (0.2, 0.3))
    assert not any(map(more_than_promised, counts[:, 0]))
    assert all(map(more_than_promised, counts[:, 1]))  # the naive threshold's is


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 300, 1_000, 3_000, 10_000])
@pytest.mark.parametrize(("spread", "overconfidence"), [(2.0, 1.0), (2.0, 1.3), (5.0, 1.0), (1.0, 0.7)])
def test_the_guarantee_holds_from_100_to_10000_battles(n: int, spread: float, overconfidence: float) -> None:
    population = Population.draw(60_000, seed=2, spread=spread, overconfidence=overconfidence)
    assert not any(map(more_than_promised, violations(population, n, LEVELS)[:, 0]))


def test_more_battles_answer_more() -> None:
    population = Population.draw(20_000, seed=3)
    shares = []
    for n in (300, 3_000, 40_000):
        rows, groups = population.sample(n, np.random.default_rng(0))
        chosen = calibrate(population.probs[rows], population.labels[rows], groups, 0).at(0.3)
        shares.append(population.truth.at(chosen)[0])
    assert shares == sorted(shares)
    best = population.truth.answered[population.truth.error <= 0.3].max()
    assert 0.9 * best < shares[-1] <= best


@st.composite
def counts(draw: st.DrawFn) -> Thresholds:
    """Any counts that can occur: both grow towards laxer thresholds."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    battles = rng.poisson(draw(st.floats(0.05, 60)), len(GRID))
    rates = draw(st.floats(0, 1)) * np.linspace(draw(st.floats(0, 1)), 1, len(GRID))
    return Thresholds(np.cumsum(battles), np.cumsum(rng.binomial(battles, rates)))


@settings(max_examples=60)
@given(counts(), st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_a_laxer_level_never_answers_less(thresholds: Thresholds, one: float, other: float) -> None:
    strict, lax = (thresholds.at(level) for level in sorted((one, other)))
    assert (2.0 if lax is None else lax) <= (2.0 if strict is None else strict)


@settings(max_examples=20)
@given(counts(), st.sampled_from(LEVELS))
def test_every_threshold_from_the_start_to_the_chosen_one_is_rejected(thresholds: Thresholds, level: float) -> None:
    chosen, grid = thresholds.at(level), GRID.tolist()
    if chosen is None:
        return
    start, last = grid.index(round(1 - level, 6)), grid.index(chosen)
    p_values = binom.cdf(thresholds.wrong, thresholds.answered, level)
    assert (p_values[start : last + 1] <= 0.1).all()
    assert last + 1 == len(grid) or p_values[last + 1] > 0.1


def test_a_level_between_stored_ones_has_its_own_threshold() -> None:
    population = Population.draw(20_000, seed=4, spread=1.0)
    rows, groups = population.sample(10_000, np.random.default_rng(0))
    thresholds = calibrate(population.probs[rows], population.labels[rows], groups, 0)
    between = [thresholds.at(level) for level in (0.30, 0.32, 0.34, 0.36)]
    assert None not in between
    assert len(set(between)) == 4
    with pytest.raises(ValueError, match="between 0 and 1"):
        thresholds.at(1.0)


def test_a_perfect_judge_answers_everything_and_a_blind_one_nothing() -> None:
    labels = np.arange(600) % 3
    sure, blind = np.eye(3)[labels], np.full((600, 3), 1 / 3)
    assert calibrate(sure, labels, np.arange(600), 0).at(0.05) == GRID[-1] < 1 / 3
    assert calibrate(blind, labels, np.arange(600), 0).at(0.4) is None
    few = np.arange(20)  # error 0 in 20 groups is compatible with 10 %
    assert calibrate(sure[:20], labels[:20], few, 0).at(0.1) is None
    assert calibrate(sure, labels, np.arange(600) % 20, 0).at(0.1) is None  # battles of a group count once


@settings(max_examples=30)
@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_order_of_battles_and_groups_does_not_matter(random: object, seed: int) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    probs, labels = rng.dirichlet(np.ones(3), 60).round(1), rng.integers(3, size=60)
    probs[:, 2] = 1 - probs[:, 0] - probs[:, 1]
    probs, groups = np.maximum(probs, 0), rng.integers(12, size=60)
    order = rng.permutation(60)
    one, other = calibrate(probs, labels, groups, seed), calibrate(probs[order], labels[order], groups[order], seed)
    np.testing.assert_array_equal(one.answered, other.answered)
    np.testing.assert_array_equal(one.wrong, other.wrong)
    assert one.groups == len(set(groups.tolist()))


def test_each_battle_of_a_group_is_drawn_equally_often() -> None:
    groups, sure = np.array([0, 1, 1, 1, 2, 2]), np.array([0.9, 0.5, 0.7, 0.6, 0.4, 0.8])
    wrong = np.array([True, False, True, True, False, True])
    drawn = np.concatenate([one_per_group(sure, wrong, groups, seed) for seed in range(3000)])
    np.testing.assert_allclose(np.bincount(drawn) / 3000, [1, 1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2], atol=0.04)
