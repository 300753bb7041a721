"""Standard errors against textbook formulas, p-values and Holm's method against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.statistics.standard_errors import holm, p_value, robust_error, standard_error


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


def test_robust_error_is_none_with_few_groups() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert robust_error(values, np.arange(50) // 5) == standard_error(values, np.arange(50) // 5)
    assert robust_error(values, np.arange(50) // 6) is None
    assert standard_error(values, np.arange(50) // 6) > 0


def test_p_values_are_uniform_where_the_mean_is_zero() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 3)
    p = [p_value(rng.normal(size=60)[groups] + rng.normal(size=180), groups) for _ in range(1000)]
    assert 0.03 < np.mean(np.array(p) < 0.05) < 0.08
