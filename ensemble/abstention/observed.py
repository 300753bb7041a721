"""Observed error rates and shares of answered battles, and the naive threshold that is chosen by them.

Groups count equally, as in the guarantee: a battle weighs one over the size of its group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.abstention.thresholds import GRID, at_or_above, confidence, is_wrong
from ensemble.statistics.bootstrap import Interval, group_interval
from oof.metrics import Floats, Integers


@dataclass(frozen=True)
class Observed:
    """Shares of battles by threshold of :data:`GRID`, groups counted equally.

    Attributes:
        answered: (t,) share of the battles that each threshold answers.
        wrong: (t,) share of the battles that it answers wrongly.
    """

    answered: NDArray[np.float64]
    wrong: NDArray[np.float64]

    @classmethod
    def of(cls, probs: Floats, labels: Integers, groups: Integers) -> Observed:
        """Return the shares of (n, 3) probabilities, (n,) labels and groups."""
        _, unit, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        sure, weights = confidence(probs), 1 / sizes[unit]
        both = (at_or_above(sure, w) for w in (weights, weights * is_wrong(probs, labels)))
        answered, wrong = (sums / weights.sum() for sums in both)
        return cls(answered, wrong)

    @property
    def error(self) -> NDArray[np.float64]:
        """(t,) error rate of the answered battles; 0 where nothing is answered."""
        return np.asarray(self.wrong / np.maximum(self.answered, 1e-300))

    def at(self, threshold: float | None) -> tuple[float, float]:
        """Return share answered and error rate of a threshold of :data:`GRID`; (0, 0) of None."""
        if threshold is None:
            return 0.0, 0.0
        k = int(np.argmin(np.abs(GRID - threshold)))
        return float(self.answered[k]), float(self.error[k])

    def naive_threshold(self, level: float) -> float | None:
        """Return the smallest threshold whose observed error rate is at most ``level``, which guarantees nothing."""
        fine = np.flatnonzero((self.answered > 0) & (self.error <= level))
        return float(GRID[fine[-1]]) if len(fine) else None


def answered_interval(probs: Floats, groups: Integers, threshold: float | None, seed: int) -> Interval:
    """Return the share of battles that a threshold answers with its 95 % interval, groups counted equally."""
    answers = confidence(probs) >= threshold if threshold is not None else np.zeros(len(probs))
    _, unit = np.unique(groups, return_inverse=True)
    by_group = np.bincount(unit, answers) / np.bincount(unit)
    return group_interval(by_group, np.arange(len(by_group)), seed)
