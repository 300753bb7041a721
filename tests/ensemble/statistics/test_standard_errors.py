"""Standard errors against textbook formulas, p-values and Holm's method against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.statistics.bootstrap import group_interval
from ensemble.statistics.standard_errors import (
    effective_groups,
    holm,
    mean_error,
    p_value,
    standard_error,
)


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


def test_standard_error_equals_the_textbook_formula_with_and_without_groups() -> None:
    values = np.random.default_rng(0).normal(size=50)
    alone = standard_error(values, np.arange(50))
    assert alone == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    # Every row twice, in a group with its copy: the error must not fall.
    assert standard_error(np.repeat(values, 2), np.repeat(np.arange(50), 2)) == pytest.approx(alone)


def test_jackknife_equals_a_loop_that_leaves_out_each_group() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(9), rng.integers(1, 30, 9))
    values = rng.normal(size=9)[groups] + rng.normal(size=len(groups))
    left_out = np.array([values[groups != g].mean() for g in range(9)])
    expected = np.sqrt(8 / 9 * ((left_out - values.mean()) ** 2).sum())
    error = mean_error(np.bincount(groups, values - values.mean()), np.bincount(groups))
    assert error == pytest.approx(expected)
    equal = values[:60]  # of equal groups it is the textbook's error
    six = np.repeat(np.arange(6), 10)
    assert mean_error(np.bincount(six, equal - equal.mean()), np.bincount(six)) == pytest.approx(
        standard_error(equal, six)
    )


def test_effective_groups_are_the_groups_where_sizes_are_equal_and_fewer_elsewhere() -> None:
    assert effective_groups(np.full(12, 7)) == pytest.approx(12)
    assert effective_groups(np.array([7, 7, 0, 7])) == pytest.approx(3)
    assert effective_groups(np.array([1000, 1, 1, 1, 1, 1])) < 1.02
    assert effective_groups(np.zeros(3)) == 0


@pytest.mark.parametrize("n_groups", [6, 15, 40])
def test_a_p_value_of_few_groups_is_below_five_percent_where_the_interval_excludes_zero(n_groups: int) -> None:
    found = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(n_groups), rng.integers(1, 9, n_groups))
        values = 0.8 + rng.normal(size=n_groups)[groups] * np.sqrt(n_groups / 6) + rng.normal(size=len(groups))
        p, interval = p_value(values, groups), group_interval(values, groups, 0)
        assert p is not None
        assert interval["low"] is not None
        assert interval["high"] is not None
        assert (p < 0.05) == (interval["low"] > 0 or interval["high"] < 0)
        found.add(p < 0.05)
    assert found == {True, False}


def test_fewer_than_six_groups_have_no_p_value() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert p_value(values, np.arange(50) // 9) is not None
    assert p_value(values, np.arange(50) // 10) is None


def test_p_values_are_uniform_where_the_mean_is_zero() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 3)
    p = [p_value(rng.normal(size=60)[groups] + rng.normal(size=180), groups) for _ in range(1000)]
    assert 0.03 < np.mean(np.array(p) < 0.05) < 0.08
