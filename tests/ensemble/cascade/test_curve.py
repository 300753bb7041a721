"""Curve of a cascade: cross-fitting, costs and the form of its file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ensemble.cascade.curve import Battles, cross_fit, curve
from ensemble.cascade.policy import Levels
from ensemble.cascade.scores import Output
from ensemble.statistics.scores import row_scores
from oof.metrics import softmax

LEVELS = Levels(
    ("one_order", "student", "ensemble"),
    (("ab",), ("ab", "ba"), ("m",)),
    {"ab": 0.1, "ba": 0.1, "m": 1.0},
)


def made(n: int = 300, seed: int = 0, gain: float = 0.8) -> tuple[list[Output], np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.2, (n, 3))
    labels = (rng.random(n)[:, None] > softmax(truth).cumsum(axis=1)).sum(axis=1)
    noisy = [softmax(truth * 0.8 + rng.normal(0, sd, (n, 3)) * gain) for sd in (0.7, 0.6, 0.1)]
    return [Output(noisy[0]), Output(noisy[1], rng.random(n)), Output(noisy[2])], labels


def battles(outputs: list[Output], labels: np.ndarray) -> Battles:
    n = len(labels)
    groups = np.arange(n) // 2
    return Battles(LEVELS, lambda rows: outputs, labels, groups % 3, groups, 1)


def test_labels_of_a_held_out_fold_do_not_change_its_decisions_and_those_of_others_do() -> None:
    outputs, labels = made()
    before = cross_fit(battles(outputs, labels), 0, (0.4,))
    held = battles(outputs, labels).folds == 0
    changed = np.where(held, (labels + 1) % 3, labels)
    after = cross_fit(battles(outputs, changed), 0, (0.4,))
    for name in before:
        np.testing.assert_array_equal(before[name][0.4].level[held], after[name][0.4].level[held])
        np.testing.assert_array_equal(before[name][0.4].probs[held], after[name][0.4].probs[held])
    assert any((before[name][0.4].level[~held] != after[name][0.4].level[~held]).any() for name in before)


def test_functions_of_the_levels_are_fitted_without_the_fold_that_they_decide_on() -> None:
    outputs, labels = made()
    data, fitted_on = battles(outputs, labels), []
    cross_fit(Battles(LEVELS, lambda rows: fitted_on.append(rows) or outputs, *rest(data)), 0, (0.4,))
    of_a_fold = len(fitted_on) // 3  # the policy is chosen by fits on parts of the other folds; one is on all of them
    for fold in range(3):
        own = fitted_on[fold * of_a_fold : (fold + 1) * of_a_fold]
        others = set(range(3)) - {fold}
        assert all(set(data.folds[rows]) <= others for rows in own)
        assert sum(len(rows) == (data.folds != fold).sum() for rows in own) == 1


def rest(data: Battles) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    return data.labels, data.folds, data.groups, data.student


def test_the_curve_has_costs_shares_and_scores_of_the_decisions_and_its_ends() -> None:
    outputs, labels = made(600)
    content = json.loads(json.dumps(curve(battles(outputs, labels), 0, (0.3, 0.4, 1.0)), allow_nan=False))
    assert [level["cost_share"] for level in content["levels"]] == [0.1, 0.2, 1.0]
    for name, position in {"student": 1, "ensemble": 2}.items():
        expected = row_scores(outputs[position].probs, labels)["log_loss"].mean()
        assert content["ends"][name]["log_loss"]["value"] == pytest.approx(expected)
    assert set(content["policies"]) == {"best", "gain", "margin", "entropy", "disagreement", "random"}
    for points in content["policies"].values():
        for point in points:
            assert sum(point["shares"].values()) == pytest.approx(1)
            assert point["log_loss"]["low"] < point["log_loss"]["value"] < point["log_loss"]["high"]
            assert point["cost"] <= point["budget"] + 1e-9
    by_budget = {point["budget"]: point for point in content["policies"]["best"]}
    assert by_budget[1.0]["log_loss"]["value"] < by_budget[0.3]["log_loss"]["value"]
    kept = content["gain_kept"]["best"]
    before, after = (content["ends"][name]["log_loss"]["value"] for name in ("student", "ensemble"))
    share = (before - by_budget[0.4]["log_loss"]["value"]) / (before - after)
    assert kept["share"]["value"] == pytest.approx(share)
    assert kept["share"]["low"] < kept["share"]["value"] < kept["share"]["high"]


def test_the_budget_is_kept_on_a_fold_whose_students_are_less_confident() -> None:
    outputs, labels = made(600)
    data = battles(outputs, labels)
    shy = (data.folds == 0)[:, None]
    outputs = [Output(np.where(shy, 0.2 * o.probs + 0.8 / 3, o.probs), o.disagreement) for o in outputs[:2]] + outputs[
        2:
    ]
    found = cross_fit(battles(outputs, labels), 0, (0.3, 0.5, 0.7))
    for by_budget in found.values():
        for budget, decided in by_budget.items():
            for fold in range(3):
                assert decided.cost[data.folds == fold].mean() <= budget + 1e-9


def test_no_share_of_a_gain_that_is_not_established_is_given() -> None:
    outputs, labels = made(300)
    same = [outputs[0], outputs[1], Output(outputs[1].probs[:, [0, 1, 2]])]
    content = curve(battles(same, labels), 0, (0.4,))
    assert content["gain"]["value"] == 0
    assert content["gain_kept"]["best"] == {"budget": 0.4, "share": None, "cost_of_95": None}
