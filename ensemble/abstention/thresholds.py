"""Thresholds of confidence below which a judge abstains, with a finite-sample guarantee over groups.

**Confidence** of a verdict is its probability, the largest of the three. One minus it is the student's own estimate of
the chance that the verdict is wrong, which a margin to the second class is not.

**Guarantee.** Let a battle be drawn at random from a group that is drawn at random. Of level e: with probability at
least 1 - delta over the calibration groups, its verdict is wrong with probability at most e, given that it is answered.
Nothing is assumed about sizes of groups, about battles of one group, or about the probabilities; groups are independent
draws from one population. Groups count equally, however many battles they have: a count by battles could be dominated
by one group, and no finite sample bounds that.

**Method.** Learn then test. One battle is drawn from each calibration group, without looking at its verdict. Of the n
drawn battles that a threshold answers, the number of wrong verdicts is binomial, so P(Bin(n, e) <= wrong) is an exact
p-value of "the error rate is above e". Thresholds are tested in a sequence that is fixed before, each at delta: from
1 - e, where a calibrated student is safely below e, downwards to the first that is not rejected. The last rejected one
is used. A bounded-mean test by betting would use all battles of a group, but it loses more than that gains until groups
have some three battles each.

Where the start of a laxer level is not rejected, e has no threshold either, so that a laxer level never answers less.

Sources: Angelopoulos, Bates, Candès, Jordan & Lei, Learn then test: calibrating predictive algorithms to achieve risk
control, 2021 (section 2.3, fixed-sequence testing); Clopper & Pearson, The use of confidence or fiducial limits
illustrated in the case of the binomial, 1934; Geifman & El-Yaniv, Selective classification for deep neural networks,
2017 (binomial bound on the error of answered inputs).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from oof.metrics import Floats, Integers, checked_predictions

DELTA = 0.1  # of the guarantee
GRID: NDArray[np.float64] = np.arange(200, 65, -1) / 200  # thresholds, strictest first; the last answers everything
LEVELS = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.40)  # that are stored and shown; any other can be asked for, too
ROUNDING = 1e-9


@dataclass(frozen=True)
class Thresholds:
    """Counts of one calibration battle per group, from which every level's threshold follows.

    Attributes:
        answered: (t,) battles whose confidence is at least each threshold of :data:`GRID`.
        wrong: (t,) those of them whose verdict is wrong.
        delta: chance that the guarantee fails.
    """

    answered: NDArray[np.int64]
    wrong: NDArray[np.int64]
    delta: float = DELTA

    @property
    def groups(self) -> int:
        """Number of calibration groups."""
        return int(self.answered[-1])

    def at(self, level: float) -> float | None:
        """Return the smallest confidence that is answered at an error rate of ``level``; None = nothing is answered.

        Raises:
            ValueError: the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level {level:g} is not between 0 and 1")
        first = int(np.flatnonzero(1 - level - ROUNDING <= GRID)[-1])
        below = self._rejects(level)[first:]
        laxer_starts = self._rejects(1 - GRID)[first + 1 :]
        if not (below[0] and laxer_starts.all()):
            return None
        return float(GRID[first + (len(below) if below.all() else int(np.argmin(below))) - 1])

    def _rejects(self, level: float | NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which thresholds' error rates are significantly at most ``level``, a number or one per threshold."""
        return np.asarray(bdtr(self.wrong, self.answered, level) <= self.delta)


def calibrate(probs: Floats, labels: Integers, groups: Integers, seed: int) -> Thresholds:
    """Return the thresholds' counts from predictions of battles that the predictor did not see.

    Args:
        probs: (n, 3) calibrated probabilities.
        labels: (n,) classes.
        groups: (n,) battles of one group are not independent of each other.
        seed: of the draw of one battle per group.
    """
    probs, labels = checked_predictions(probs, labels)
    sure, wrong = confidence(probs), is_wrong(probs, labels)
    drawn = one_per_group(sure, wrong, np.asarray(groups), seed)
    weights = np.ones(len(drawn))
    answered, answered_wrong = (
        at_or_above(sure[drawn], w).round().astype(np.int64) for w in (weights, weights * wrong[drawn])
    )
    return Thresholds(answered, answered_wrong)


def confidence(probs: Floats) -> NDArray[np.float64]:
    """Return (n,) probabilities of the verdicts of (n, 3) probabilities."""
    return np.asarray(np.max(probs, axis=1), dtype=np.float64)


def is_wrong(probs: Floats, labels: Integers) -> NDArray[np.bool_]:
    """Return (n,) whether the most probable class is not the label."""
    return np.asarray(np.argmax(probs, axis=1) != labels)


def one_per_group(sure: Floats, wrong: NDArray[np.bool_], groups: Integers, seed: int) -> NDArray[np.int64]:
    """Return the positions of one random battle of each group, whatever order the battles are in."""
    # Sorting by what is counted makes the result independent of the order; the draws do not look at it.
    order = np.lexsort((wrong, sure, groups))
    _, first, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    draws = np.random.default_rng(seed).random(len(sizes))
    return np.asarray(order[first + (draws * sizes).astype(np.int64)])


def at_or_above(sure: Floats, weights: Floats) -> NDArray[np.float64]:
    """Return the summed (n,) weights of the battles whose confidence is at least each threshold of :data:`GRID`."""
    strictest = np.searchsorted(-GRID, -np.asarray(sure), side="left")  # that still answers
    return np.asarray(np.cumsum(np.bincount(strictest, weights, minlength=len(GRID))[: len(GRID)]))
