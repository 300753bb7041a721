"""Observed error rates: brute force over groups, and the naive threshold by definition."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble.abstention.observed import Observed, answered_interval
from ensemble.abstention.thresholds import GRID


def test_rates_count_groups_equally_and_the_naive_threshold_is_the_smallest_below_its_level() -> None:
    rng = np.random.default_rng(0)
    probs, labels, groups = rng.dirichlet(np.ones(3), 80), rng.integers(3, size=80), rng.integers(25, size=80)
    observed = Observed.of(probs, labels, groups)
    names = np.unique(groups)
    for k in (0, 60, 100, len(GRID) - 1):
        shares = []
        for name in names:
            rows = np.flatnonzero(groups == name)
            answers = [probs[i].max() >= GRID[k] for i in rows]
            wrong = [probs[i].max() >= GRID[k] and probs[i].argmax() != labels[i] for i in rows]
            shares.append((np.mean(answers), np.mean(wrong)))
        answered, wrong = np.mean(shares, axis=0)
        assert (observed.answered[k], observed.wrong[k]) == pytest.approx((answered, wrong))
        assert observed.at(float(GRID[k])) == pytest.approx((answered, wrong / max(answered, 1e-300)))
    naive = observed.naive_threshold(0.6)
    assert naive is not None
    share, error = observed.at(naive)
    assert error <= 0.6
    assert all(e > 0.6 for e in observed.error[GRID.tolist().index(naive) + 1 :])
    assert answered_interval(probs, groups, naive, 0)["value"] == pytest.approx(share)
    assert observed.at(None) == (0.0, 0.0)
    assert observed.naive_threshold(-1.0) is None
