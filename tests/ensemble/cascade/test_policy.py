"""Policies of a cascade: the grid against brute force, and a case whose optimal policy is known."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.cascade.curve import decide
from ensemble.cascade.policy import Levels, Policy, _frontier, fit_frontiers
from ensemble.cascade.policy_choice import Candidates
from ensemble.cascade.scores import Output
from oof.common.errors import UserError
from oof.metrics import row_log_loss, softmax

TWO = Levels(("student", "ensemble"), (("student",), ("a", "b")), {"student": 0.1, "a": 0.5, "b": 0.5})


def known_optimum(n: int, seed: int) -> tuple[list[Output], np.ndarray]:
    """Return two levels' outputs and labels where the expected gain of the second grows with the first's uncertainty.

    Verdicts are drawn from the ensemble's probabilities. These are the student's, moved towards A or B by chance, the
    more the smaller the student's margin: the battles with the smallest margins are the ones to send on.
    """
    rng = np.random.default_rng(seed)
    student = softmax(np.column_stack([rng.normal(0, 1.5, n), np.zeros(n), np.full(n, -3.0)]))
    ordered = np.sort(student, axis=1)
    moved = 3.0 * (1 - (ordered[:, 2] - ordered[:, 1])) * rng.choice([-1.0, 1.0], n)
    ensemble = softmax(np.log(student) + np.column_stack([moved / 2, -moved / 2, np.zeros(n)]))
    labels = (rng.random(n)[:, None] > ensemble.cumsum(axis=1)).sum(axis=1)
    return [Output(student), Output(ensemble)], labels


def candidates(outputs: list[Output], labels: np.ndarray) -> Candidates:
    rows = np.arange(len(labels))
    return Candidates.fit(TWO, lambda _: outputs, rows, labels, rows, seed=0)


def expected_curve(outputs: list[Output], n_points: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Return cost and expected loss of the optimal policy: battles go on in the order of their margins."""
    truth = outputs[1].probs
    before, after = (-(truth * np.log(output.probs)).sum(axis=1) for output in outputs)
    ordered = np.sort(outputs[0].probs, axis=1)
    order = np.argsort(ordered[:, 2] - ordered[:, 1])
    saved = np.append(0.0, (before - after)[order].cumsum()) / len(order)
    sent = np.linspace(0, len(order), n_points).astype(int)
    return 0.1 + sent / len(order), before.mean() - saved[sent]


def test_the_chosen_policy_costs_at_most_two_percent_more_than_the_known_optimum() -> None:
    outputs, labels = known_optimum(20_000, seed=1)
    fitted = candidates(outputs, labels)
    fresh, _ = known_optimum(100_000, seed=2)
    costs, losses = expected_curve(fresh)
    for budget, kind in ((0.3, None), (0.5, None), (0.4, "gain"), (0.4, "margin")):
        made = decide(fitted.choose(budget, kind).policy, TWO, fresh)
        loss = -(fresh[1].probs * np.log(made.probs)).sum(axis=1).mean()
        assert budget * 0.98 <= made.cost.mean() <= budget * 1.02
        assert made.cost.mean() <= 1.02 * np.interp(-loss, -losses, costs)


def test_each_score_has_a_frontier_for_each_chain_of_three_levels() -> None:
    (student, ensemble), labels = known_optimum(200, 0)
    steps = (("ab",), ("ab", "ba"), ("m",))
    levels = Levels(("one_order", "student", "ensemble"), steps, {"ab": 0.1, "ba": 0.1, "m": 1.0})
    found = fit_frontiers([student, student, ensemble], labels, levels, ("gain", "margin"))
    assert (0, 1, 2) in levels.chains()
    assert sorted((f.kind, f.chain) for f in found) == sorted(product(("gain", "margin"), levels.chains()))


@given(st.integers(0, 10_000), st.integers(0, 2))
@settings(max_examples=30)
def test_the_frontier_is_that_of_trying_every_threshold(seed: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 12))
    losses, costs = rng.random((n, steps + 1)), np.sort(rng.random(steps + 1))
    scores = [rng.integers(0, 5, n).astype(float) for _ in range(steps)]  # with ties
    cost, loss, thresholds = _frontier(losses, scores, costs.tolist())
    tried = []
    grids = [[-np.inf, *np.unique(values), np.inf] for values in scores]
    for combination in np.array(np.meshgrid(*grids, indexing="ij")).reshape(steps, -1).T if steps else [[]]:
        ends = np.zeros(n, dtype=int)
        for step, threshold in enumerate(combination):
            ends[(ends == step) & (scores[step] > threshold)] = step + 1
        tried.append((costs[ends].mean(), losses[np.arange(n), ends].mean()))
    for value, reached in zip(cost, loss, strict=True):
        assert min(of for c, of in tried if c <= value + 1e-9) == pytest.approx(reached)
    assert loss[-1] == pytest.approx(min(of for _, of in tried))
    assert (np.diff(loss) < 0).all()
    assert thresholds.shape == (len(cost), steps)
    for of_step, values in zip(thresholds.T, scores, strict=True):
        assert set(of_step.tolist()) <= {-np.inf, *values.tolist(), np.inf}


@given(st.integers(0, 10_000), st.floats(0.11, 1.2))
@settings(max_examples=15)
def test_a_policy_keeps_its_budget_on_its_own_battles_and_survives_a_file(seed: int, budget: float) -> None:
    outputs, labels = known_optimum(400, seed)
    policy = candidates(outputs, labels).choose(budget).policy
    ends = policy.ends(outputs)
    costs = np.array([TWO.cost(policy.chain[: end + 1]) for end in range(len(policy.chain))])
    assert costs[ends].mean() <= budget + 1e-9
    saved = policy.to_dict(TWO)
    assert all(
        t == known if np.isfinite(known) else t == "inf"
        for t, known in zip(saved["thresholds"], policy.thresholds, strict=True)
    )
    again = Policy.from_dict(json.loads(json.dumps(saved, allow_nan=False)), TWO)
    np.testing.assert_array_equal(again.ends(outputs), ends)


def test_the_ends_of_the_curve_are_student_only_and_ensemble_only() -> None:
    outputs, labels = known_optimum(2000, 0)
    fitted = candidates(outputs, labels)
    assert fitted.choose(0.1).policy.ends(outputs).max() == 0
    alone = [f for f in fitted.frontiers if f.chain == (1,)]
    assert {float(f.cost[0]) for f in alone} == {1.0}
    assert alone[0].loss[0] == pytest.approx(row_log_loss(outputs[1].probs, labels).mean())
    several = next(f for f in fitted.frontiers if len(f.cost) > 2)
    best = several.best(float(several.cost[1]))
    assert best is not None
    assert best[:2] == (several.loss[1], several.cost[1])


def test_work_that_an_earlier_level_has_done_is_not_paid_twice() -> None:
    levels = Levels(
        ("student", "student+a", "ensemble"), (("s",), ("s", "a"), ("a", "b")), {"s": 1.0, "a": 3.0, "b": 7.0}
    )
    assert levels.cost((2,)) == 1.0
    assert levels.seconds_of((0, 1)) == 4.0
    assert levels.seconds_of((0, 1, 2)) == 11.0


def test_a_budget_below_the_cheapest_level_is_refused_with_the_least_one() -> None:
    outputs, labels = known_optimum(100, 0)
    with pytest.raises(UserError, match=r"at least 0\.100"):
        candidates(outputs, labels).choose(0.05)


def test_within_a_budget_the_battles_with_the_highest_scores_go_on() -> None:
    rng = np.random.default_rng(0)
    outputs = [Output(rng.dirichlet(np.ones(3), 200)) for _ in range(3)]
    policy = Policy("entropy", (0, 1, 2), (-np.inf, -np.inf))
    costs = [0.1, 0.2, 1.0]
    np.testing.assert_array_equal(policy.ends(outputs), 2)
    for budget, sent in ((0.05, 0), (0.1, 0), (0.5, 75), (1.0, 200), (np.inf, 200)):
        ends = policy.ends(outputs, costs, budget)
        assert (ends == 2).sum() == sent  # 0.8 each, after 0.1 and 0.1 for all
        assert np.take(costs, ends).mean() <= max(budget, costs[0]) + 1e-9
        entropy = policy.scores(1, outputs[1])
        if 0 < sent < 200:
            assert entropy[ends == 2].min() >= entropy[ends == 1].max()
    tied = [Output(outputs[0].probs[np.arange(200) % 3]) for _ in range(3)]
    scores = policy.scores(0, tied[0])
    first = sorted(range(200), key=lambda i: -scores[i])[:90]
    assert np.flatnonzero(Policy("entropy", (0, 2), (-np.inf,)).ends(tied, [0.1, 1.1], 0.55)).tolist() == sorted(first)
    # Only those above the threshold go on, however much the budget would pay for.
    middle = float(np.median(policy.scores(0, outputs[0])))
    few = Policy("entropy", (0, 2), (middle,)).ends(outputs, [0.1, 1.0], 1.0)
    np.testing.assert_array_equal(few == 1, policy.scores(0, outputs[0]) > middle)
