"""Loss and accuracy of a cascade against its cost, out of fold, with intervals by groups.

For each fold the levels' functions, the scores and the thresholds are fitted on the other folds, and decide on the
fold's battles. So no label of a fold has a part in the decisions on it, beyond the part that it has in the run's
out-of-fold predictions of other folds, as everywhere in stage two. Costs are those of the decisions that were made. On
each fold the budget is a limit, as it is for new battles, even where the policy would send on more of that fold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble.cascade.policy import Levels, Policy
from ensemble.cascade.policy_choice import Candidates
from ensemble.cascade.scores import KINDS, RANDOM, Output
from ensemble.statistics.bootstrap import Interval
from ensemble.statistics.interval_words import above_zero
from ensemble.statistics.resamples import Resamples, percentiles
from ensemble.statistics.scores import row_scores
from oof.metrics import Integers

VERSION = 1
BUDGETS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # shares of the ensemble's cost
POLICIES: dict[str, str | None] = {"best": None, **{kind: kind for kind in (*KINDS, RANDOM)}}
SHOWN_BUDGET = 0.4
SHOWN_SHARE = 0.95  # of the gain


@dataclass(frozen=True)
class Battles:
    """Scored battles of a cascade.

    Attributes:
        levels: of the cascade.
        fit: positions of training battles -> every level's output for all n battles, fitted on those.
        labels: (n,).
        folds: (n,).
        groups: (n,) battles that are not independent of each other.
        student: position of the level that is the student alone.
    """

    levels: Levels
    fit: Callable[[NDArray[np.int64]], list[Output]]
    labels: Integers
    folds: Integers
    groups: Integers
    student: int


@dataclass(frozen=True)
class Decided:
    """Cross-fitted decisions of one policy at one budget.

    Attributes:
        probs: (n, 3) predictions of the levels where the battles end.
        cost: (n,) of each battle, as share of the ensemble's.
        level: (n,) position of that level.
    """

    probs: NDArray[np.float64]
    cost: NDArray[np.float64]
    level: NDArray[np.int64]


def decide(policy: Policy, levels: Levels, outputs: Sequence[Output], budget: float = np.inf) -> Decided:
    """Return the policy's decisions on n battles within a budget, given the outputs of every level."""
    costs = levels.costs(policy.chain)
    ends = policy.ends(outputs, costs, budget)
    level = np.asarray(policy.chain)[ends]
    probs = np.stack([output.probs for output in outputs], axis=1)[np.arange(len(ends)), level]
    return Decided(probs, np.asarray(costs)[ends], level)


def cross_fit(battles: Battles, seed: int, budgets: Sequence[float] = BUDGETS) -> dict[str, dict[float, Decided]]:
    """Return policy -> budget -> decisions on each battle by the policy that the other folds chose.

    Budgets below the cost of the cheapest level are left out.
    """
    n, levels = len(battles.labels), battles.levels
    chance = np.random.default_rng(seed).random(n)
    least = min(levels.cost((i,)) for i in range(len(levels.names)))
    found = {
        name: {
            budget: Decided(np.empty((n, 3)), np.empty(n), np.empty(n, dtype=np.int64))
            for budget in budgets
            if budget >= least
        }
        for name in POLICIES
    }

    def fit(rows: NDArray[np.int64]) -> list[Output]:
        return [Output(output.probs, output.disagreement, chance) for output in battles.fit(rows)]

    for fold in np.unique(battles.folds):
        rest, held = np.flatnonzero(battles.folds != fold), np.flatnonzero(battles.folds == fold)
        kinds = (*KINDS, RANDOM)
        candidates = Candidates.fit(levels, fit, rest, battles.labels, battles.groups, seed, kinds)
        unseen = [output.take(held) for output in candidates.outputs]
        for name, by_budget in found.items():
            for budget, decided in by_budget.items():
                of_fold = decide(candidates.choose(budget, POLICIES[name]).policy, levels, unseen, budget)
                decided.probs[held], decided.cost[held] = of_fold.probs, of_fold.cost
                decided.level[held] = of_fold.level
    return found


def curve(battles: Battles, seed: int, budgets: Sequence[float] = BUDGETS) -> dict[str, Any]:
    """Return the content of ``curve.json``."""
    levels, labels = battles.levels, battles.labels
    resampled = Resamples.draw(battles.groups, seed)
    everything = battles.fit(np.arange(len(labels)))
    last = len(levels.names) - 1
    ends = {"student": battles.student, "ensemble": last}
    losses = {name: row_scores(everything[i].probs, labels)["log_loss"] for name, i in ends.items()}
    gain = resampled.mean(losses["student"] - losses["ensemble"])

    def scores(probs: NDArray[np.float64]) -> dict[str, Interval | None]:
        rows = row_scores(probs, labels)
        return {name: resampled.mean(rows[name]) for name in ("log_loss", "accuracy")}

    decided = cross_fit(battles, seed, budgets)
    points = {
        name: [
            {
                "budget": budget,
                "cost": float(made.cost.mean()),
                **scores(made.probs),
                "shares": {of: float((made.level == i).mean()) for i, of in enumerate(levels.names)},
            }
            for budget, made in by_budget.items()
        ]
        for name, by_budget in decided.items()
    }
    seconds = [levels.seconds_of((i,)) for i in range(len(levels.names))]
    return {
        "version": VERSION,
        "n": len(labels),
        "levels": [
            {"name": name, "seconds_a_battle": seconds[i], "cost_share": levels.cost((i,))}
            for i, name in enumerate(levels.names)
        ],
        "policies": points,
        "ends": {name: {"cost": levels.cost((i,)), **scores(everything[i].probs)} for name, i in ends.items()},
        "gain": gain,
        "gain_kept": {
            name: _gain_kept(decided[name], points[name], labels, losses, gain, resampled) for name in decided
        },
    }


def _gain_kept(
    decided: Mapping[float, Decided],
    points: Sequence[Mapping[str, Any]],
    labels: Integers,
    losses: Mapping[str, NDArray[np.float64]],
    gain: Interval | None,
    resampled: Resamples,
) -> dict[str, Any]:
    """Return the share of the gain that is kept at ``SHOWN_BUDGET``, and the least cost that keeps ``SHOWN_SHARE``."""
    entry: dict[str, Any] = {"budget": SHOWN_BUDGET, "share": None, "cost_of_95": None}
    if gain is None or not above_zero(gain):
        return entry
    limit = float((losses["student"] - SHOWN_SHARE * (losses["student"] - losses["ensemble"])).mean())
    entry["cost_of_95"] = min((p["cost"] for p in points if p["log_loss"]["value"] <= limit), default=None)
    if SHOWN_BUDGET in decided:
        made = row_scores(decided[SHOWN_BUDGET].probs, labels)["log_loss"]
        kept = resampled.sums(losses["student"] - made) / resampled.sums(losses["student"] - losses["ensemble"])
        low, high = (None, None) if resampled.few else percentiles(kept[1:])
        entry["share"] = {"value": float(kept[0]), "low": low, "high": high}
    return entry
