"""Words for intervals."""

from __future__ import annotations

import numpy as np

from ensemble.statistics.bootstrap import Interval, contrast, group_interval
from ensemble.statistics.interval_words import above_zero, below_zero, in_words, too_few

FIVE = group_interval(np.full(10, 0.25), np.arange(10) % 5, 0)


def test_an_interval_shows_a_sign_only_where_both_bounds_have_it() -> None:
    below: Interval = {"value": -0.2, "low": -0.3, "high": -0.1}
    across: Interval = {"value": -0.2, "low": -0.5, "high": 0.1}
    above: Interval = {"value": 0.2, "low": 0.1, "high": 0.3}
    assert [below_zero(one) for one in (below, across, above)] == [True, False, False]
    assert [above_zero(one) for one in (below, across, above)] == [False, False, True]
    assert in_words(below) == "-0.2000 [-0.3000, -0.1000]"
    assert in_words(above, ".2f") == "0.20 [0.10, 0.30]"


def test_five_groups_show_the_difference_and_no_sign() -> None:
    assert not above_zero(FIVE)
    assert not below_zero(FIVE)
    assert in_words(FIVE) == "+0.2500, too few groups for a verdict (5)"
    assert too_few(2) == "too few groups for a verdict (2)"


def test_a_contrast_with_an_empty_side_has_no_value() -> None:
    assert in_words(contrast(np.ones(9), np.ones(9, dtype=bool), np.arange(9), 0)) == "none"
