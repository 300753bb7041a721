"""LightGBM's stacker against LightGBM called by hand: start, settings, symmetric score and early stopping."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import lightgbm as lgb
import numpy as np
import pytest

from ensemble.features.design_matrix import Design
from ensemble.stacking import lightgbm_stacker
from ensemble.stacking.baselines import Prior
from ensemble.stacking.combiners import Combiner, LogPool
from ensemble.stacking.lightgbm_stacker import (
    ExtraTrees,
    Split,
    Stacker,
    _SymmetricLoss,
    _threads,
    fit_early_stopped,
    logits_after,
)
from oof.metrics import log_loss, softmax
from tests.fixtures.arenas import SWAP, Arena, make_arena

PARAMS = {"learning_rate": 0.3, "num_leaves": 5, "min_data_in_leaf": 15, "bagging_fraction": 0.7}


@pytest.fixture(scope="module")
def arena() -> Arena:
    return make_arena(360, seed=3)


def by_hand(
    design: Design, labels: np.ndarray, params: dict[str, Any], rounds: int, seed: int, begin: Combiner | None = None
) -> lgb.Booster:
    """Return LightGBM's booster on both orders, from a combiner's logits (default: the log pool's)."""
    start = (begin or LogPool.fit(design, labels)).logits(design)
    rows = np.concatenate([design.x, design.x_swapped])
    scores = np.concatenate([start, start[:, SWAP]])
    data = lgb.Dataset(rows, np.concatenate([labels, np.array(SWAP)[labels]]), init_score=scores)
    settings = {
        "objective": "multiclass",
        "num_class": 3,
        "max_bin": 63,
        "feature_pre_filter": False,
        "bagging_freq": 1,
        "deterministic": True,
        "force_row_wise": True,
        "boost_from_average": False,
        "num_threads": 1,
        "verbosity": -1,
    }
    return lgb.train({**settings, **params, "seed": seed}, data, num_boost_round=rounds)


def symmetric(booster: lgb.Booster, pool: Combiner, design: Design, rounds: int) -> np.ndarray:
    """Return (n, 3) logits: the pool's plus the mean of both orders' scores."""
    given = np.asarray(booster.predict(design.x, raw_score=True, num_iteration=rounds))
    swapped = np.asarray(booster.predict(design.x_swapped, raw_score=True, num_iteration=rounds))
    return np.asarray(pool.logits(design) + (given + swapped[:, SWAP]) / 2)


@pytest.mark.parametrize(("rounds", "trained"), [(12, 12), (1, 1), (0, 1)])
def test_the_stacker_is_lightgbm_on_both_orders_from_the_log_pool(arena: Arena, rounds: int, trained: int) -> None:
    booster = by_hand(arena.design, arena.labels, PARAMS, trained, 7)
    pool = LogPool.fit(arena.design, arena.labels)
    ours = Stacker.fit(arena.design, arena.labels, PARAMS, rounds, 7)
    assert ours.booster.current_iteration() == trained
    expected = symmetric(booster, pool, arena.design, trained)
    np.testing.assert_allclose(ours.logits(arena.design), expected, atol=1e-12)


def test_extra_trees_are_lightgbm_s_from_the_class_shares(arena: Arena) -> None:
    design, labels = arena.design, arena.labels
    ours = ExtraTrees.fit(design, labels, {**PARAMS, "extra_trees": True}, 9, 7)
    assert isinstance(ours.start, Prior)
    start = Prior.fit(design, labels)
    booster = by_hand(design, labels, {**PARAMS, "extra_trees": True}, 9, 7, start)
    np.testing.assert_allclose(ours.logits(design), symmetric(booster, start, design, 9), atol=1e-12)
    assert np.abs(ours.logits(design) - ExtraTrees.fit(design, labels, PARAMS, 9, 7).logits(design)).max() > 0.01


@pytest.mark.parametrize("rate", [0.3, 0.09, 0.03])
def test_training_stops_after_as_many_rounds_without_a_gain_as_the_rate_asks_for(
    arena: Arena, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patience is 1 / learning rate, rounded up, and at most 25 rounds."""
    params, held, limit = {**PARAMS, "learning_rate": rate}, arena.folds == 1, 90
    rest, out = np.flatnonzero(~held), np.flatnonzero(held)
    train, unseen = arena.design.take(rest), arena.design.take(out)
    booster = by_hand(train, arena.labels[rest], params, limit, 0)
    pool = LogPool.fit(train, arena.labels[rest])
    logits = [symmetric(booster, pool, unseen, n) for n in range(1, limit + 1)]
    losses = [log_loss(softmax(values), arena.labels[out]) for values in logits]
    best, patience = 0, min(25, math.ceil(1 / rate))
    for n in range(limit):
        if losses[n] < losses[best]:
            best = n
        elif n - best >= patience:
            break
    assert n < limit - 1, "stopped by patience"
    watched: list[_SymmetricLoss] = []

    class Counted(_SymmetricLoss):
        def __call__(self, probs: np.ndarray, data: lgb.Dataset) -> tuple[str, float, bool]:
            watched.append(self)
            return super().__call__(probs, data)

    monkeypatch.setattr(lightgbm_stacker, "_SymmetricLoss", Counted)
    split = Split(arena.design, arena.labels, held)
    stopped = fit_early_stopped(split, params, limit, 0)
    assert (stopped.rounds, len(watched)) == (best + 1, best + 1 + patience)
    np.testing.assert_allclose(softmax(stopped.logits), softmax(logits[best]), atol=1e-9)
    for n in (1, 4, best + 1 + patience, best + 2 + patience):  # the last is beyond what was trained
        np.testing.assert_allclose(logits_after(n, split, stopped, params, 0), logits[n - 1], atol=1e-9)


def test_the_watched_loss_is_that_of_the_mean_of_both_orders_and_the_best_round_is_kept() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=50)
    watched, data = _SymmetricLoss(labels), cast(lgb.Dataset, None)
    rounds = [softmax(rng.normal(0, scale, (100, 3))) for scale in (1.0, 0.1, 2.0)]
    logits = [(np.log(p[:50]) + np.log(p[50:])[:, SWAP]) / 2 for p in rounds]
    losses = [log_loss(softmax(values), labels) for values in logits]
    assert losses[1] == min(losses)
    for probs, loss in zip(rounds, losses, strict=True):
        name, value, larger_is_better = watched(probs, data)
        assert (name, larger_is_better) == ("log_loss", False)
        assert value == pytest.approx(loss, abs=1e-12)
    assert watched.loss == pytest.approx(losses[1], abs=1e-12)
    np.testing.assert_allclose(softmax(watched.logits), softmax(logits[1]), atol=1e-12)


def test_a_probability_that_underflows_to_zero_has_a_finite_loss() -> None:
    watched = _SymmetricLoss(np.array([0]))
    _, loss, _ = watched(np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5]]), cast(lgb.Dataset, None))
    assert loss == pytest.approx(-math.log(1e-300) + math.log(0.5) + math.log(2), rel=1e-6)


def test_one_thread_up_to_50_000_battles_and_four_beyond() -> None:
    threads = [_threads(cast(Design, SimpleNamespace(x=np.empty((n, 1))))) for n in (1, 50_000, 50_001)]
    assert threads == [1, 1, 4]
