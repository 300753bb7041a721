"""Choice of a policy that allows for noise: spend more than the student costs only where that is shown to help.

The plain policy is the student alone, in both orders or, within a smaller budget, in one. Every other one has to be
better on battles on which it was not fitted: levels, scores and thresholds are fitted again without each of a few folds
of whole groups, and decide on that fold. The policy with the largest lower bound of its gain over the plain one is
chosen, if that is above 0. So a policy wins neither by the luck of its thresholds nor, among many, by that of its
battles, and part of a budget may stay unused.

``LEVEL`` and ``FOLDS`` were chosen on synthetic arenas whose members were noise or better than the student.

Source: Bates, Hastie & Tibshirani, Cross-validation: what does it estimate and how well does it do it?, JASA 2023 (the
estimate is of the procedure); Cameron & Miller, A practitioner's guide to cluster-robust inference, 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ensemble.cascade.policy import STUDENT, TOLERANCE, Frontier, Levels, Policy, fit_frontiers
from ensemble.cascade.scores import KINDS, Output
from ensemble.statistics.bootstrap import interval_of_few
from ensemble.statistics.standard_errors import LEAST_GROUPS
from oof.common.errors import UserError
from oof.metrics import Integers, row_log_loss

FOLDS = 3  # in which policies are compared; more would cost time on large sets and were no better on small ones
LEVEL = 0.9  # of the two-sided interval of a gain: its lower bound is above a true gain of 0 in 5 % of the cases
UNUSED = 0.9  # of a budget: what is left beside more than this is the grid's and the battles' variation


@dataclass(frozen=True)
class Choice:
    """The policy for a budget, and why.

    Attributes:
        policy: that was chosen.
        budget: share of the ensemble's cost that was allowed.
        cost: share that the policy takes on the battles that it was fitted on.
        plain: name of the level with which it was compared.
        gain: fall of the log loss beside that level, on held-out battles; 0 for that level itself.
        low: lower bound of the gain.
    """

    policy: Policy
    budget: float
    cost: float
    plain: str
    gain: float = 0.0
    low: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the reasons for a JSON file."""
        return {name: getattr(self, name) for name in ("budget", "cost", "plain", "gain", "low")}


def unused(cost: float, budget: float) -> str:
    """Return what to say where a policy's cost leaves a part of its budget unused; empty if it does not."""
    allowed = min(budget, 1.0)
    return f"{cost:.2f} of {budget:.2f} used: spending more is not shown to help" if cost < UNUSED * allowed else ""


@dataclass(frozen=True)
class _Held:
    """One fold of battles, and the frontiers that were fitted without it.

    Attributes:
        frontiers: kind and chain -> frontier.
        outputs: of every level for the fold's battles.
        losses: (n, levels) of these.
        units: (n,) numbers of their groups.
    """

    frontiers: Mapping[tuple[str, tuple[int, ...]], Frontier]
    outputs: Sequence[Output]
    losses: NDArray[np.float64]
    units: NDArray[np.int64]

    def loss(self, policy: Policy) -> NDArray[np.float64]:
        """Return the (n,) losses of the levels where the battles end."""
        ends = policy.ends(self.outputs)
        return np.asarray(self.losses[np.arange(len(ends)), np.asarray(policy.chain)[ends]])


@dataclass(frozen=True)
class Candidates:
    """All policies of a cascade, fitted, and what they do on battles on which they were not fitted.

    Attributes:
        levels: of the cascade.
        outputs: of every level, fitted on all battles of the choice, for these and others.
        frontiers: fitted on all battles of the choice.
        held: folds with frontiers fitted without them; none where the groups are too few for a comparison.
        sizes: (g,) battles of each group.
    """

    levels: Levels
    outputs: Sequence[Output]
    frontiers: Sequence[Frontier]
    held: Sequence[_Held]
    sizes: Integers

    @classmethod
    def fit(
        cls,
        levels: Levels,
        fit: Callable[[NDArray[np.int64]], Sequence[Output]],
        rows: NDArray[np.int64],
        labels: Integers,
        groups: Integers,
        seed: int,
        kinds: Sequence[str] = KINDS,
    ) -> Self:
        """Fit the policies on the battles at ``rows``.

        Args:
            levels: of the cascade.
            fit: positions of battles -> every level's output for all n battles, fitted on those.
            rows: (m,) positions of the battles that may be read.
            labels: (n,).
            groups: (n,) battles that are not independent of each other.
            seed: of the folds.
            kinds: scores.
        """

        def fitted(on: NDArray[np.int64]) -> tuple[Sequence[Output], list[Frontier]]:
            outputs = fit(on)
            return outputs, fit_frontiers([output.take(on) for output in outputs], labels[on], levels, kinds)

        _, units, sizes = np.unique(groups[rows], return_inverse=True, return_counts=True)
        folds = np.random.default_rng(seed).permutation(len(sizes))[units] % FOLDS
        held = []
        for fold in range(FOLDS) if len(sizes) >= LEAST_GROUPS else ():
            outputs, frontiers = fitted(rows[folds != fold])
            own = rows[folds == fold]
            unseen = [output.take(own) for output in outputs]
            losses = np.column_stack([row_log_loss(output.probs, labels[own]) for output in unseen])
            held.append(_Held({(f.kind, f.chain): f for f in frontiers}, unseen, losses, units[folds == fold]))
        return cls(levels, *fitted(rows), held, sizes)

    def choose(self, budget: float, kind: str | None = None, first: int | None = None) -> Choice:
        """Return the policy for a budget.

        Args:
            budget: share of the ensemble's cost.
            kind: of the score; None = any of ``KINDS``.
            first: level at which the policy has to begin; None = any.

        Raises:
            UserError: the budget is below the cost of the cheapest level.
        """
        level = self._plain(budget)
        name, on_the_way = self.levels.names[level], first is not None and first != level
        chain = (first, level) if first is not None and on_the_way else (level,)
        policy = Policy("margin", chain, (-np.inf,) * on_the_way)
        best = Choice(policy, budget, self.levels.cost(chain), name)
        for frontier in self.frontiers if self.held else ():
            fits = frontier.kind in (KINDS if kind is None else (kind,)) and first in (None, frontier.chain[0])
            of_all = frontier.best(budget) if fits else None
            if of_all is not None:
                gain, low = self._gain(frontier, budget, level)
                if low > 0 and (low, -of_all[1]) > (best.low, -best.cost):
                    best = Choice(of_all[2], budget, of_all[1], name, gain, low)
        return best

    def _plain(self, budget: float) -> int:
        """Return the student's dearest level within the budget; where it has none, the cheapest level of all."""
        costs = [self.levels.cost((i,)) for i in range(len(self.levels.names))]
        of_student = range(self.levels.names.index(STUDENT) + 1)
        affordable = [i for i in of_student if costs[i] <= budget + TOLERANCE]
        cheapest = int(np.argmin(costs))
        if not affordable and costs[cheapest] > budget + TOLERANCE:
            raise UserError(
                f"a budget of {budget:.3g} of the ensemble's cost is below that of the cheapest level; give at least "
                f"{np.ceil(costs[cheapest] * 1000) / 1000:.3f}"
            )
        return affordable[-1] if affordable else cheapest

    def _gain(self, frontier: Frontier, budget: float, level: int) -> tuple[float, float]:
        """Return the gain over a level, by policies that did not see the battles, and its lower bound."""
        gains = []
        for held in self.held:
            own = held.frontiers[frontier.kind, frontier.chain].best(budget)
            assert own is not None  # the cheapest thresholds of a chain cost the same in every fold
            gains.append(held.losses[:, level] - held.loss(own[2]))
        gain, units = np.concatenate(gains), np.concatenate([held.units for held in self.held])
        value = float(gain.mean())
        sums = np.bincount(units, gain - value, minlength=len(self.sizes))
        low = interval_of_few(value, sums, self.sizes, LEVEL)["low"]
        assert low is not None  # policies are compared only where there are groups enough
        return value, low
