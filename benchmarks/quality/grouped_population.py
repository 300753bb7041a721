"""A population of groups of battles whose true error rates are known, for simulations of abstention.

Sizes of groups are unequal, up to 80 battles; battles of large groups are harder; battles of one group share a part of
their luck.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.abstention.observed import Observed
from oof.metrics import softmax

LARGEST, SHARED_LUCK = 80, 0.5


@dataclass(frozen=True)
class Population:
    """Battles by group, with the true shares by threshold.

    Attributes:
        probs: (n, 3) of the judge.
        labels: (n,).
        first: (g + 1,) the battles of group i are ``first[i]:first[i + 1]``.
        truth: shares answered and wrong of a random battle of a random group.
    """

    probs: NDArray[np.float64]
    labels: NDArray[np.int64]
    first: NDArray[np.int64]
    truth: Observed

    @classmethod
    def draw(cls, n_groups: int, seed: int, spread: float = 2.0, overconfidence: float = 1.0) -> Population:
        """Return a population of which a sample with replacement is independent draws.

        Args:
            n_groups: number of groups.
            seed: of the draw.
            spread: standard deviation of the true logits; the larger, the surer the judge.
            overconfidence: factor of the judge's logits; 1 = calibrated.
        """
        rng = np.random.default_rng(seed)
        sizes = np.minimum(rng.zipf(1.8, n_groups), LARGEST)
        group = np.repeat(np.arange(n_groups), sizes)
        logits = spread * (rng.normal(size=(n_groups, 3))[group] + rng.normal(size=(len(group), 3))) / np.sqrt(2)
        logits /= np.where(sizes > 3, 1.5, 1.0)[group, None]
        shared = rng.random(len(group)) < SHARED_LUCK
        luck = np.where(shared, rng.random(n_groups)[group], rng.random(len(group)))
        labels = np.minimum((luck[:, None] > softmax(logits).cumsum(axis=1)).sum(axis=1), 2)
        probs = softmax(logits * overconfidence)
        return cls(probs, labels, np.append(0, np.cumsum(sizes)), Observed.of(probs, labels, group))

    def sample(self, n_battles: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return positions and groups of whole groups, drawn with replacement until there are ``n_battles`` battles."""
        sizes = np.diff(self.first)
        drawn = rng.integers(len(sizes), size=n_battles)
        drawn = drawn[: np.searchsorted(np.cumsum(sizes[drawn]), n_battles) + 1]
        group = np.repeat(np.arange(len(drawn)), sizes[drawn])
        begin = np.cumsum(sizes[drawn]) - sizes[drawn]
        return np.arange(len(group)) - begin[group] + self.first[drawn][group], group
