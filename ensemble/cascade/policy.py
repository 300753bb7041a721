"""Policies of a cascade: which levels it has, and the thresholds that send a battle on.

A policy visits some of the levels in order. At each but the last it sends a battle on if its score is above a
threshold. All combinations of thresholds on a grid of quantiles are evaluated at once, from cumulative sums of the
losses over the grid; of each policy family only the frontier is kept: no combination is cheaper and better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ensemble.cascade.scores import KINDS, GainModel, Output, score
from oof.metrics import Integers, row_log_loss

ONE_ORDER, STUDENT, ENSEMBLE = "one_order", "student", "ensemble"  # names of levels
AB, BA = "student:ab", "student:ba"  # the student's work; a member's has its name, which cannot hold a colon
GRID = {0: 0, 1: 2000, 2: 64, 3: 16}  # steps on the way -> thresholds of each; more steps are not tried
TOLERANCE = 1e-9  # of a comparison of costs, which are sums of shares


@dataclass(frozen=True)
class Levels:
    """The levels of a cascade, cheapest first; the last one is the ensemble.

    Attributes:
        names: of the levels.
        work: for each level, the pieces of work behind a prediction by this level alone. Work that an earlier level of
            a policy has done is not done again.
        seconds: of each piece of work, for one battle.
    """

    names: tuple[str, ...]
    work: tuple[tuple[str, ...], ...]
    seconds: Mapping[str, float]

    def seconds_of(self, chain: Sequence[int]) -> float:
        """Return the seconds of a battle that visits these levels."""
        return float(sum(self.seconds[unit] for unit in {unit for i in chain for unit in self.work[i]}))

    def cost(self, chain: Sequence[int]) -> float:
        """Return the cost of a battle that visits these levels, as share of the ensemble's."""
        return self.seconds_of(chain) / self.seconds_of([len(self.names) - 1])

    def costs(self, chain: Sequence[int]) -> list[float]:
        """Return the cost of a battle that ends at each of these levels."""
        return [self.cost(chain[: step + 1]) for step in range(len(chain))]

    def chains(self) -> list[tuple[int, ...]]:
        """Return all sequences of levels that are tried."""
        n = range(len(self.names))
        return [chain for steps in GRID for chain in combinations(n, steps + 1)]


@dataclass(frozen=True)
class Policy:
    """Levels in order, and the rule that sends a battle on.

    Attributes:
        kind: of the score.
        chain: positions of the levels.
        thresholds: of each level but the last: battles with a score above it go on.
        gains: models of the score ``gain``, for each level but the last; else empty.
    """

    kind: str
    chain: tuple[int, ...]
    thresholds: tuple[float, ...]
    gains: tuple[GainModel, ...] = ()

    def scores(self, step: int, output: Output) -> NDArray[np.float64]:
        """Return (n,) scores at level ``chain[step]`` with its output."""
        scores = self.gains[step].predict(output) if self.gains else score(self.kind, output)
        assert scores is not None
        return scores

    def ends(self, outputs: Sequence[Output], costs: Sequence[float] = (), budget: float = np.inf) -> NDArray[np.int64]:
        """Return for n battles the step at which each ends, given the output of every level.

        Args:
            outputs: of every level.
            costs: of a battle that ends at each step; not needed without a budget.
            budget: mean cost of a battle that is not exceeded: where more battles are above a threshold than it pays
                for, those with the highest scores go on, as in :mod:`ensemble.cascade.prediction`.
        """
        n = len(outputs[0].probs)
        ends = np.zeros(n, dtype=np.int64)
        left = n * (budget - costs[0]) if costs else np.inf
        for step, threshold in enumerate(self.thresholds):
            scores = self.scores(step, outputs[self.chain[step]])
            going = np.flatnonzero((ends == step) & (scores > threshold))
            if costs:
                each = costs[step + 1] - costs[step]
                affordable = int(np.clip(left / each + TOLERANCE, 0, n))
                going = going[np.argsort(-scores[going], kind="stable")][:affordable]
                left -= each * len(going)
            ends[going] = step + 1
        return ends

    def to_dict(self, levels: Levels) -> dict[str, Any]:
        """Return the policy for a JSON file; infinite thresholds are texts."""
        names, gains = [levels.names[i] for i in self.chain], [gain.to_dict() for gain in self.gains]
        thresholds = [t if np.isfinite(t) else str(t) for t in self.thresholds]
        return {"score": self.kind, "levels": names, "thresholds": thresholds, "gains": gains}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], levels: Levels) -> Self:
        """Return the policy of :meth:`to_dict`."""
        chain = tuple(levels.names.index(name) for name in saved["levels"])
        thresholds = tuple(float(t) for t in saved["thresholds"])
        return cls(saved["score"], chain, thresholds, tuple(GainModel.from_dict(gain) for gain in saved["gains"]))


@dataclass(frozen=True)
class Frontier:
    """The best thresholds of one score and chain for every cost.

    Attributes:
        kind: of the score.
        chain: positions of the levels.
        gains: models of the score.
        cost: (f,) mean cost, ascending.
        loss: (f,) mean log loss, descending.
        thresholds: (f, steps).
    """

    kind: str
    chain: tuple[int, ...]
    gains: tuple[GainModel, ...]
    cost: NDArray[np.float64]
    loss: NDArray[np.float64]
    thresholds: NDArray[np.float64]

    def best(self, budget: float) -> tuple[float, float, Policy] | None:
        """Return loss, cost and policy with the least loss at a cost within the budget; None if there is none."""
        i = int(np.searchsorted(self.cost, budget + TOLERANCE, side="right")) - 1
        if i < 0:
            return None
        thresholds = tuple(float(t) for t in self.thresholds[i])
        return float(self.loss[i]), float(self.cost[i]), Policy(self.kind, self.chain, thresholds, self.gains)


def fit_frontiers(
    outputs: Sequence[Output], labels: Integers, levels: Levels, kinds: Sequence[str] = KINDS
) -> list[Frontier]:
    """Return the frontier of each score and chain.

    Args:
        outputs: of each level for n battles that no level was fitted on.
        labels: (n,).
        levels: their work and costs.
        kinds: scores.
    """
    losses = np.column_stack([row_log_loss(output.probs, labels) for output in outputs])
    pairs = {pair for chain in levels.chains() for pair in pairwise(chain)}
    models = {(i, j): GainModel.fit(outputs[i], outputs[j]) for i, j in pairs} if "gain" in kinds else {}
    found = []
    for kind in kinds:
        for chain in levels.chains():
            gains = tuple(models[pair] for pair in pairwise(chain)) if kind == "gain" else ()
            if gains:
                scores = [gain.predict(outputs[i]) for gain, i in zip(gains, chain, strict=False)]
            else:
                plain = [score(kind, outputs[i]) for i in chain[:-1]]
                scores = [values for values in plain if values is not None]
            if len(scores) == len(chain) - 1:
                costs = levels.costs(chain)
                found.append(Frontier(kind, chain, gains, *_frontier(losses[:, chain], scores, costs)))
    return found


def _frontier(
    losses: NDArray[np.float64], scores: Sequence[NDArray[np.float64]], costs: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return costs, losses and thresholds of the frontier of one chain.

    Args:
        losses: (n, levels) of the chain.
        scores: (n,) at each level but the last.
        costs: of a battle that ends at each level.
    """
    grids = [_thresholds(values, GRID[len(scores)]) for values in scores]
    # Number of thresholds below a battle's score: threshold t lets it go on exactly if t is smaller than that.
    bins = [np.searchsorted(grid, values, side="left") for grid, values in zip(grids, scores, strict=True)]
    shape = tuple(map(len, grids))
    loss, cost = np.zeros(shape), np.zeros(shape)
    for level, of_a_battle in enumerate(costs):
        loss = loss + _sums(bins[: level + 1], shape, level, losses[:, level])
        cost = cost + of_a_battle * _sums(bins[: level + 1], shape, level, np.ones(len(losses)))
    order = np.lexsort((loss.ravel(), cost.ravel()))
    least = np.minimum.accumulate(loss.ravel()[order])
    kept = order[np.append(True, least[1:] < least[:-1])]
    at = np.unravel_index(kept, shape) if shape else ()
    thresholds = np.column_stack([grid[i] for grid, i in zip(grids, at, strict=True)]) if shape else np.empty((1, 0))
    n = len(losses)
    return cost.ravel()[kept] / n, loss.ravel()[kept] / n, thresholds


def _thresholds(values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    inside = np.quantile(values, np.linspace(0, 1, n), method="lower")
    return np.unique(np.concatenate([[-np.inf], inside, [np.inf]]))


def _sums(
    bins: Sequence[NDArray[np.int64]], shape: tuple[int, ...], level: int, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return, for every combination of thresholds, the sum of ``weights`` over the battles that end at ``level``.

    The result has as many axes as ``shape``, those of later levels with length 1.
    """
    own = shape[: level + 1]
    cells = np.ravel_multi_index(tuple(bins), own) if own else np.zeros(len(weights), dtype=np.int64)
    sums = np.bincount(cells, weights, minlength=int(np.prod(own))).reshape(own).astype(np.float64)
    for axis in range(len(own)):
        below = sums.cumsum(axis=axis)
        sums = below if axis == level else sums.sum(axis=axis, keepdims=True) - below
    return sums.reshape(own + (1,) * (len(shape) - len(own)))
