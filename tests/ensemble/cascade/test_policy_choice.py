"""Choice of a policy: never far worse than the student, most of a real gain, and the bound by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ensemble.cascade.curve import decide
from ensemble.cascade.policy import Levels, fit_frontiers
from ensemble.cascade.policy_choice import FOLDS, LEVEL, Candidates, unused
from ensemble.cascade.scores import KINDS, Output
from ensemble.statistics.bootstrap import LEAST_GROUPS, group_interval
from oof.common.errors import UserError
from oof.metrics import row_log_loss, softmax

LEVELS = Levels(("one_order", "student", "ensemble"), (("ab",), ("ab", "ba"), ("m",)), {"ab": 0.1, "ba": 0.1, "m": 1.0})
N, FRESH = 400, 10_000
BUDGETS = (0.25, 0.5, 0.8)
SEEDS = range(8)


def arena(seed: int, noise: float, n: int = N) -> tuple[Candidates, list[Output], np.ndarray]:
    """Return policies for n battles, every level's output and the true probabilities of ``FRESH`` others.

    The ensemble sees what the student does not. With ``noise`` it does not: it is the student with noise of its own.
    """
    rng = np.random.default_rng(seed)
    seen, hidden = rng.normal(0, 1, (n + FRESH, 3)), rng.normal(0, 0.8, (n + FRESH, 3))
    half, own = (rng.normal(0, sd, seen.shape) for sd in (0.1, noise))
    logits = [0.9 * (seen + half), 0.9 * seen, 0.9 * seen + own if noise else seen + hidden]
    outputs = [Output(softmax(values)) for values in logits]
    outputs[1] = replace(outputs[1], disagreement=np.abs(half).max(axis=1))
    truth = softmax(seen + hidden)
    labels = (rng.random(n + FRESH)[:, None] > truth.cumsum(axis=1)).sum(axis=1)
    groups = np.arange(n + FRESH) // 2
    candidates = Candidates.fit(LEVELS, lambda _: outputs, np.arange(n), labels, groups, seed)
    fresh = np.arange(n, n + FRESH)
    return candidates, [output.take(fresh) for output in outputs], truth[fresh]


@pytest.mark.parametrize(("n_groups", "folds"), [(LEAST_GROUPS - 1, 0), (LEAST_GROUPS, FOLDS)])
def test_folds_are_held_out_from_the_least_number_of_groups_on_with_the_scores_asked_for(
    n_groups: int, folds: int
) -> None:
    rng = np.random.default_rng(0)
    outputs = [Output(rng.dirichlet(np.ones(3), 40)) for _ in LEVELS.names]
    rows, labels = np.arange(40), rng.integers(0, 3, 40)
    fitted = Candidates.fit(LEVELS, lambda _: outputs, rows, labels, rows % n_groups, 0, ("margin",))
    assert len(fitted.held) == folds
    assert {kind for held in fitted.held for kind, _ in held.frontiers} == ({"margin"} if folds else set())
    assert {frontier.kind for frontier in fitted.frontiers} == {"margin"}


def losses(seed: int, noise: float) -> dict[str, np.ndarray]:
    """Return expected losses on fresh battles: of the chosen policies, of those with the least loss, of the student."""
    candidates, outputs, truth = arena(seed, noise)

    def loss(probs: np.ndarray) -> float:
        return float(-(truth * np.log(probs)).sum(axis=1).mean())

    least = []
    for budget in BUDGETS:
        affordable = [best for f in candidates.frontiers if (best := f.best(budget)) is not None]
        least.append(min(affordable, key=lambda best: best[:2])[2])
    made = {"chosen": [candidates.choose(budget).policy for budget in BUDGETS], "least": least}
    found = {name: np.array([loss(decide(p, LEVELS, outputs).probs) for p in of]) for name, of in made.items()}
    return {**found, "student": np.full(len(BUDGETS), loss(outputs[1].probs))}


def over_seeds(noise: float) -> dict[str, np.ndarray]:
    every = [losses(seed, noise) for seed in SEEDS]
    return {name: np.mean([of_seed[name] for of_seed in every], axis=0) for name in every[0]}


def test_with_members_of_noise_it_is_no_worse_than_the_student_where_the_least_loss_is() -> None:
    found = over_seeds(noise=0.2)
    assert (found["chosen"] - found["student"] <= 0.0005).all()
    assert (found["least"] - found["student"] >= 0.001).all()


def test_most_of_a_real_gain_is_kept() -> None:
    found = over_seeds(noise=0.0)
    chosen, least = (found["student"] - found[name] for name in ("chosen", "least"))
    assert (least > 0.01).all()
    assert (chosen >= 0.8 * least).all()


def test_the_bound_is_that_of_policies_fitted_without_each_fold() -> None:
    rng = np.random.default_rng(3)
    groups = rng.permutation(np.repeat(np.arange(40), rng.integers(5, 15, 40)))
    n = len(groups)
    truth = rng.normal(0, 1, (n, 3))
    labels = (rng.random(n)[:, None] > softmax(truth).cumsum(axis=1)).sum(axis=1)
    outputs = [Output(softmax(truth * scale)) for scale in (0.2, 0.3, 1.0)]
    outputs[1] = replace(outputs[1], disagreement=rng.random(n))
    candidates = Candidates.fit(LEVELS, lambda _: outputs, np.arange(n), labels, groups, 0)
    choice = candidates.choose(0.7)
    assert len(candidates.held) == FOLDS
    gain = np.empty(n)
    for held in candidates.held:
        own, rest = (np.flatnonzero(np.isin(groups, held.units, invert=out)) for out in (False, True))
        frontiers = fit_frontiers([output.take(rest) for output in outputs], labels[rest], LEVELS)
        frontier = next(f for f in frontiers if (f.kind, f.chain) == (choice.policy.kind, choice.policy.chain))
        best = frontier.best(0.7)
        assert best is not None
        probs = decide(best[2], LEVELS, [output.take(own) for output in outputs]).probs
        gain[own] = row_log_loss(outputs[1].probs[own], labels[own]) - row_log_loss(probs, labels[own])
    expected = group_interval(gain, groups, 0, LEVEL)
    assert (choice.gain, choice.low) == pytest.approx((expected["value"], expected["low"]))
    assert choice.low > 0


def test_without_groups_for_a_comparison_the_student_stays() -> None:
    candidates, _, _ = arena(0, noise=0.0, n=10)  # five groups
    assert [candidates.choose(budget).policy.chain for budget in (0.15, 0.2, 1.0)] == [(0,), (1,), (1,)]
    begun = candidates.choose(0.5, first=0)
    assert (begun.policy.kind, begun.policy.chain, begun.policy.thresholds) == ("margin", (0, 1), (-np.inf,))
    assert begun.to_dict() == {"budget": 0.5, "cost": LEVELS.cost((0, 1)), "plain": "student", "gain": 0, "low": 0}
    assert candidates.choose(0.5, first=1).policy.chain == (1,)


def test_a_student_that_costs_more_than_the_ensemble_does_not_stay() -> None:
    dear = Levels(("student", "ensemble"), (("s",), ("m",)), {"s": 2.0, "m": 1.0})
    outputs, labels = [Output(np.full((4, 3), 1 / 3))] * 2, np.zeros(4, dtype=int)
    candidates = Candidates.fit(dear, lambda _: outputs, np.arange(4), labels, np.arange(4), 0)
    assert [candidates.choose(budget).policy.chain for budget in (1.0, 1.9, 2.0)] == [(1,), (1,), (0,)]
    with pytest.raises(UserError, match=r"at least 1\.000"):
        candidates.choose(0.99)


def test_the_score_that_was_asked_for_is_taken() -> None:
    candidates, _, _ = arena(0, noise=0.0)
    for kind in KINDS:
        choice = candidates.choose(0.8, kind)
        assert choice.policy.kind == kind
        assert len(choice.policy.chain) > 1
        assert (choice.budget, choice.plain) == (0.8, "student")


def test_of_policies_that_gain_the_same_the_cheapest_and_first_is_taken() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 60)
    student, ensemble = np.full((60, 3), 1 / 3), np.eye(3)[labels] * 0.6 + 0.1 + np.arange(60)[:, None] / 1000
    outputs = [Output(student), Output(student), Output(ensemble / ensemble.sum(axis=1, keepdims=True))]
    rows = np.arange(60)
    choice = Candidates.fit(LEVELS, lambda _: outputs, rows, labels, rows, 0).choose(2.0)
    assert (choice.policy.chain, choice.policy.kind, choice.cost) == ((2,), KINDS[0], 1.0)  # not after the student


def test_what_is_said_of_a_budget_that_is_not_used() -> None:
    assert unused(0.12, 0.4) == "0.12 of 0.40 used: spending more is not shown to help"
    assert unused(0.38, 0.4) == ""
    assert unused(0.9, 1.0) == ""
    assert unused(1.0, 3.0) == ""
