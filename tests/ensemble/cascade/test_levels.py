"""Levels of a run's cascade."""

from __future__ import annotations

import json

import numpy as np

from ensemble.cascade.levels import LevelFunctions, Scored, levels_of
from ensemble.cascade.policy import AB, BA
from oof.metrics import log_loss, softmax

SECONDS = {AB: 1.0, BA: 1.0, "large": 9.0, "small": 4.0}


def scored(n: int = 600, seed: int = 0) -> tuple[Scored, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, (n, 1, 3))
    labels = (rng.random(n)[:, None] > softmax(truth[:, 0]).cumsum(axis=1)).sum(axis=1)
    shown_first = np.array([[0.6, -0.6, 0.0], [-0.6, 0.6, 0.0]])  # of the order ab, then of ba
    student = truth + rng.normal(0, 1, (n, 1, 3)) + shown_first
    members = {name: truth + rng.normal(0, 1, (n, 1, 3)) + np.zeros((1, 2, 1)) for name in ("large", "small")}
    return Scored(student, members, softmax(truth[:, 0])), labels


def test_members_join_from_the_cheapest_and_all_of_them_are_the_ensemble() -> None:
    levels = levels_of(SECONDS)
    assert levels.names == ("one_order", "student", "student+small", "ensemble")
    assert [levels.seconds_of((i,)) for i in range(4)] == [1.0, 2.0, 6.0, 13.0]
    assert levels.seconds_of((0, 2, 3)) == 15.0
    assert levels_of({AB: 1.0, BA: 1.0, "one": 5.0}).names == ("one_order", "student", "ensemble")


def test_student_and_ensemble_are_the_predictions_of_these_models_alone() -> None:
    data, labels = scored()
    functions = LevelFunctions.fit(levels_of(SECONDS), data, labels, np.arange(len(labels)), 0)
    np.testing.assert_array_equal(functions.output("student", data).probs, softmax(data.student.mean(axis=1)))
    np.testing.assert_array_equal(functions.output("ensemble", data).probs, data.ensemble)


def test_one_order_is_freed_of_its_position_bias_and_a_member_improves_the_student() -> None:
    data, labels = scored(3000)
    functions = LevelFunctions.fit(levels_of(SECONDS), data, labels, np.arange(len(labels)), 0)
    fresh, verdicts = scored(3000, seed=1)
    losses = {name: log_loss(functions.output(name, fresh).probs, verdicts) for name in levels_of(SECONDS).names}
    assert losses["one_order"] < log_loss(softmax(fresh.student[:, 0]), verdicts) - 0.02
    assert losses["student+small"] < losses["student"] - 0.02


def test_a_level_needs_only_its_own_work_and_is_the_same_after_a_file() -> None:
    data, labels = scored()
    functions = LevelFunctions.fit(levels_of(SECONDS), data, labels, np.arange(len(labels)), 0)
    again = LevelFunctions.from_dict(json.loads(json.dumps(functions.to_dict())))
    part = data.student.copy()
    part[:, 1] = np.nan
    needed = {"one_order": Scored(part), "student": Scored(data.student)}
    needed |= {"student+small": Scored(data.student, {"small": data.members["small"]})}
    for name, has in needed.items():
        expected, found = functions.output(name, data), again.output(name, has)
        np.testing.assert_array_equal(found.probs, expected.probs)
        assert (found.disagreement is None) == (name == "one_order")
