"""Ranks of predictors by paired differences of log loss, as public leaderboards of models give them.

A predictor's rank is one more than the number of predictors that are shown to be better: the 95 % interval of the
paired difference lies below 0. So none is shown to be better than those of rank 1. The best possible loss of a
synthetic arena is a bound and no competitor, so it has no rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemble.statistics.bootstrap import paired_difference
from ensemble.statistics.interval_words import below_zero
from ensemble.statistics.standard_errors import standard_error
from oof.metrics import Floats, Integers

BOUND = "bayes"
CLEAR = 8.0  # standard errors beyond which the sign of a difference needs no bootstrap


def ranks(losses: Mapping[str, Floats], groups: Integers, seed: int) -> dict[str, dict[str, Any]]:
    """Return for each predictor its ``rank`` and ``behind``, its log loss minus the leader's, with interval.

    ``rank`` is None for the best possible loss, and for all where there are too few groups for a verdict.

    Args:
        losses: predictor -> (n,) log losses.
        groups: (n,) group numbers.
        seed: of the bootstrap.
    """
    order = sorted((name for name in losses if name != BOUND), key=lambda name: float(losses[name].mean()))
    unknown: dict[str, dict[str, Any]] = {name: {"rank": None, "behind": None} for name in losses}
    leader, *others = order
    behind = {name: paired_difference(losses[name], losses[leader], groups, seed) for name in others}
    if any(interval["low"] is None for interval in behind.values()):
        return unknown
    rows = unknown | {leader: {"rank": 1, "behind": None}}
    for i, name in enumerate(others, start=1):
        better = sum(_shown_better(losses[other], losses[name], groups, seed) for other in order[:i])
        rows[name] = {"rank": 1 + better, "behind": behind[name]}
    return rows


def _shown_better(first: Floats, second: Floats, groups: Integers, seed: int) -> bool:
    """Return whether the interval of the mean of ``first - second`` lies below 0."""
    difference = first - second
    if abs(float(difference.mean())) > CLEAR * standard_error(difference, groups):
        return bool(difference.mean() < 0)  # a bootstrap of 57,477 battles takes a quarter of a second
    return below_zero(paired_difference(first, second, groups, seed))
