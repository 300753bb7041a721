"""Detection of leaked members: flagged by margin or by the other folds, honest ones never."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from ensemble.stacking.leakage import leaked_members, note_on_lone_member, temperature_with_error
from oof.metrics import log_softmax, softmax
from tests.fixtures.arenas import make_arena


def flagged(logits: dict[str, np.ndarray], labels: np.ndarray, folds: np.ndarray) -> dict[str, list[str]]:
    return leaked_members(logits, labels, folds, np.arange(len(labels)), 0.05, 0)


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


def test_a_far_better_member_with_honest_probabilities_is_not_flagged() -> None:
    """A 70B model among 1B ones leads by far more than the margin."""
    arena = make_arena(900)
    truth = np.random.default_rng(3).normal(0, 2, size=(900, 3))
    labels = (np.random.default_rng(4).random((900, 1)) > softmax(truth).cumsum(axis=1)[:, :2]).sum(axis=1)
    best = np.repeat(truth[:, None], 2, axis=1)
    result = flagged({"weak": arena.logits["one"], "best": best}, labels, arena.folds)
    assert result == {}
    cautious = flagged({"weak": arena.logits["one"], "best": 0.5 * best}, labels, arena.folds)
    assert "best temperature is 0.5" in cautious["best"][0]


def test_few_battles_do_not_accuse_honest_members() -> None:
    """With 60 battles one of two equally good members often leads by the margin, by luck."""
    for seed in range(30):
        arena = make_arena(60, seed)
        assert flagged(arena.logits, arena.labels, arena.folds) == {}, seed


def test_a_lone_member_is_noted_by_its_temperature_and_never_flagged(caplog: pytest.LogCaptureFixture) -> None:
    arena = make_arena(300)
    honest, groups = {"one": arena.logits["one"]}, np.arange(300)
    in_sample = {"one": leaked(arena.logits["one"], arena.labels, np.ones(300))}
    assert flagged(in_sample, arena.labels, arena.folds) == {}
    assert note_on_lone_member(honest, arena.labels, groups, 0) == {}
    with caplog.at_level(logging.WARNING):
        noted = note_on_lone_member(in_sample, arena.labels, groups, 0)
    assert "best temperature" in noted["one"]
    assert "one: check that its logits are out of fold" in caplog.text
    assert note_on_lone_member(in_sample | {"two": arena.logits["two"]}, arena.labels, groups, 0) == {}


def test_the_temperature_and_its_error_are_those_of_a_group_jackknife() -> None:
    rng = np.random.default_rng(5)
    truth = np.repeat(rng.normal(0, 1, size=(80, 3)), 5, axis=0)
    labels = (rng.random((400, 1)) > softmax(truth).cumsum(axis=1)[:, :2]).sum(axis=1)
    groups, logp = np.repeat(np.arange(80), 5), log_softmax(2.0 * truth)
    temperature, error = temperature_with_error(logp, labels, groups)
    left_out = [
        temperature_with_error(logp[groups != g], labels[groups != g], groups[groups != g])[0] for g in range(80)
    ]
    jackknife = np.sqrt(79 / 80 * np.square(np.array(left_out) - temperature).sum())
    assert temperature == pytest.approx(2.0, rel=0.25)
    assert error == pytest.approx(jackknife, rel=0.1)
