"""Detection of leaked members: flagged by margin or by the other folds, honest ones never."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from ensemble.stacking.leakage import leaked_members
from tests.fixtures.arenas import make_arena


def flagged(logits: dict[str, np.ndarray], labels: np.ndarray, folds: np.ndarray) -> dict[str, list[str]]:
    return leaked_members(logits, labels, folds, 0.05, 0)


def leaked(logits: np.ndarray, labels: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return logits that lean towards the labels of some rows, as after training on them for too many epochs."""
    return logits + 4.0 * np.eye(3)[labels][:, None] * where[:, None, None]


def test_honest_members_are_not_flagged() -> None:
    for seed in range(3):
        arena = make_arena(900, seed)
        assert flagged(arena.logits, arena.labels, arena.folds) == {}
    small = make_arena(60)
    assert flagged(small.logits, small.labels, small.folds) == {}


def test_a_badly_scaled_rival_is_no_evidence() -> None:
    arena = make_arena(900)
    loud = {"one": arena.logits["one"], "two": arena.logits["two"] * 20}
    assert flagged(loud, arena.labels, arena.folds) == {}


def test_a_member_that_leaked_every_fold_is_flagged_by_its_margin(caplog: pytest.LogCaptureFixture) -> None:
    arena = make_arena(900)
    everywhere = np.ones(900)
    logits = arena.logits | {"two": leaked(arena.logits["two"], arena.labels, everywhere)}
    with caplog.at_level(logging.WARNING):
        result = flagged(logits, arena.labels, arena.folds)
    assert list(result) == ["two"]
    assert "beats every other" in result["two"][0]
    assert "two: possibly in-sample" in caplog.text


def test_a_member_that_leaked_some_folds_is_flagged_by_the_other_folds() -> None:
    """It is worse than its honest rival over all folds, so the margin alone would not flag it."""
    arena = make_arena(1500)
    noise = np.random.default_rng(0).normal(0, 1.5, size=(1500, 1, 3))
    weak = leaked(noise.repeat(2, axis=1), arena.labels, np.isin(arena.folds, [0, 1]) * 0.4)
    result = flagged({"good": arena.logits["one"], "weak": weak}, arena.labels, arena.folds)
    assert list(result) == ["weak"]
    assert [("promise" in reason, "fold 2" in reason) for reason in result["weak"]] == [(True, True)]


def test_a_single_member_is_never_flagged() -> None:
    arena = make_arena(60)
    assert flagged({"one": leaked(arena.logits["one"], arena.labels, np.ones(60))}, arena.labels, arena.folds) == {}
