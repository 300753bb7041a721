"""Log-linear pool: the two fits agree, and the weights follow the members' scales."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sklearn_log_loss

from ensemble.stacking.combiners import LogPool
from ensemble.stacking.log_pool import fit_convex_pool, fit_pool, pool_logits, pool_losses
from oof.metrics import log_loss, softmax
from tests.fixtures.arenas import make_arena


def test_the_log_pool_finds_unequal_weights() -> None:
    arena = make_arena(4000, seed=1)
    pool = LogPool.fit(arena.design, arena.labels)
    assert pool.weights[0] > 1.3 * pool.weights[1] > 0  # member two is twice too sure of itself
    assert log_loss(softmax(pool.logits(arena.design)), arena.labels) < log_loss(
        softmax(arena.design.pool.mean(axis=1)), arena.labels
    )


@pytest.mark.parametrize("ridge", [0.0, 0.03, 3.0])
def test_exact_slopes_and_finite_differences_find_the_same_optimum(ridge: float) -> None:
    arena = make_arena(1000, seed=2)
    pool, labels = arena.design.pool, arena.labels

    def loss(parameters: np.ndarray) -> float:  # the ridge leaves the tie term alone
        z = pool[:, 0] * parameters[0] + pool[:, 1] * parameters[1] + np.array([0, 0, parameters[2]])
        rows = -np.log(np.exp(z)[np.arange(1000), labels] / np.exp(z).sum(axis=1))
        return float(rows.mean() + ridge * ((parameters[:2] - 0.5) ** 2).sum())

    oracle = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12, "maxiter": 4000})
    ours = fit_pool(pool, labels, ridge)
    np.testing.assert_allclose(ours, oracle.x, atol=2e-4)
    np.testing.assert_allclose(
        loss(ours), pool_losses(pool, labels, ours).mean() + ridge * ((ours[:2] - 0.5) ** 2).sum()
    )


def test_data_without_ties_need_no_probability_of_a_tie() -> None:
    """The members give ties a third of the mass; a ridge on the tie term would keep part of it."""
    arena = make_arena(900, seed=3)
    decided = np.flatnonzero(arena.labels < 2)
    design, labels = arena.design.take(decided), arena.labels[decided]
    probs = softmax(LogPool.fit(design, labels).logits(design))
    assert probs[:, 2].max() < 1e-3
    two = LogisticRegression(penalty=None).fit(design.pool[:, :, 0] - design.pool[:, :, 1], labels)
    expected = two.predict_proba(design.pool[:, :, 0] - design.pool[:, :, 1])
    assert log_loss(probs, labels) < sklearn_log_loss(labels, expected) + 2e-3  # it may have an intercept


def test_the_ridge_fades_with_the_battles_and_decides_among_few() -> None:
    small, large = make_arena(30, seed=4), make_arena(6000, seed=4)
    few = LogPool.fit(small.design, small.labels).weights
    assert np.abs(np.array(few) - 0.5).max() < np.abs(fit_pool(small.design.pool, small.labels)[:2] - 0.5).max() / 2
    many = LogPool.fit(large.design, large.labels).weights
    np.testing.assert_allclose(many, fit_pool(large.design.pool, large.labels)[:2], atol=0.01)


def test_convex_weights_are_those_of_a_grid() -> None:
    arena = make_arena(800, seed=5)
    pool = np.concatenate([arena.design.pool, np.zeros((800, 1, 3))], axis=1)
    steps = np.linspace(0, 1, 41)
    grid = [np.array([a, b, 1 - a - b]) for a in steps for b in steps if a + b <= 1 + 1e-12]
    for ridge in (0.0, 0.05):
        weights = fit_convex_pool(pool, arena.labels, ridge)
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1)
        losses = [log_loss(softmax(np.einsum("nmc,m->nc", pool, w)), arena.labels) + ridge * ((w - 1 / 3) ** 2).sum()
                  for w in (weights, *grid)]  # fmt: skip
        assert losses[0] <= min(losses[1:]) + 1e-9
        np.testing.assert_allclose(weights, grid[int(np.argmin(losses[1:]))], atol=0.03)


def test_without_a_tie_term_the_weights_alone_are_fitted() -> None:
    arena = make_arena(1000, seed=2)
    pool, labels = arena.design.pool[:, [1]], arena.labels
    weight, tie = fit_pool(pool, labels, tie=False)
    assert tie == 0
    grid = [pool_losses(pool, labels, np.array([w, 0.0])).mean() for w in np.linspace(weight - 0.1, weight + 0.1, 21)]
    assert np.argmin(grid) == 10


def test_the_weights_and_the_tie_term_stay_between_minus_50_and_50() -> None:
    labels = np.arange(300) % 3
    faint = 1e-3 * (np.eye(3)[labels] - 1 / 3)[:, None]  # it separates the classes, but hardly says so
    np.testing.assert_array_equal(fit_pool(faint, labels, tie=False), [50, 0])
    np.testing.assert_array_equal(fit_pool(-faint, labels, tie=False), [-50, 0])
    against_ties = np.tile([0.0, 0.0, 60.0], (300, 1, 1))
    np.testing.assert_allclose(fit_pool(against_ties, np.zeros(300, dtype=int), ridge=1e6), [1, -50], atol=1e-3)


@pytest.mark.parametrize("pool", [np.zeros((500, 0, 3)), np.zeros((500, 1, 3))])
def test_without_knowledge_the_tie_term_is_the_log_odds_of_ties(pool: np.ndarray) -> None:
    labels = np.repeat([0, 1, 2], [120, 80, 300])
    assert fit_pool(pool, labels)[-1] == pytest.approx(np.log(300 / 100), abs=1e-4)  # against a and b, 100 each


def test_a_pinned_tie_stays_pinned_whatever_the_weights() -> None:
    logits = np.array([[[0.5, -0.5, -2000.0]], [[-1.0, 1.0, -2000.0]]])
    pooled = pool_logits(logits, np.array([0.01]), 30.0)
    assert softmax(pooled)[:, 2].max() == 0
    np.testing.assert_allclose(pooled[:, 0] - pooled[:, 1], [0.01, -0.02])


def test_convex_weights_sum_to_one_where_more_or_less_would_fit_better() -> None:
    """They are those of a line search over pairs with sum 1, not of a free fit whose weights are then scaled."""
    arena = make_arena(800, seed=5)
    for factor in (0.4, 3.0):
        pool = factor * arena.design.pool
        losses = [log_loss(softmax(pool[:, 0] * w + pool[:, 1] * (1 - w)), arena.labels)
                  for w in np.linspace(0, 1, 1001)]  # fmt: skip
        assert fit_convex_pool(pool, arena.labels, 0.0)[0] == pytest.approx(np.argmin(losses) / 1000, abs=2e-3)
        ridge = 0.02
        penalised = np.array(losses) + ridge * 2 * (np.linspace(0, 1, 1001) - 0.5) ** 2
        weight = fit_convex_pool(pool, arena.labels, ridge)[0]
        assert weight == pytest.approx(np.argmin(penalised) / 1000, abs=2e-3)


@pytest.mark.parametrize(("noise", "factor"), [(0.02, 1.0), (0.05, 1.0), (0.3, 1.0), (0.3, 0.3)])
def test_the_weights_of_near_copies_are_at_the_optimum_too(noise: float, factor: float) -> None:
    """There the slopes of all positive weights are equal, and none is steeper downwards at a weight of 0."""
    arena = make_arena(300, seed=6)
    copy = arena.design.pool[:, 0] + np.random.default_rng(0).normal(0, noise, (300, 3))
    pool = factor * np.concatenate([arena.design.pool, copy[:, None]], axis=1)

    def loss(w: np.ndarray) -> float:
        return log_loss(softmax(np.einsum("nmc,m->nc", pool, w)), arena.labels) + 1e-3 * ((w - 1 / 3) ** 2).sum()

    weights = fit_convex_pool(pool, arena.labels, 1e-3)
    steps = 1e-5 * np.eye(3)
    slopes = np.array([(loss(weights + step) - loss(weights - step)) / 2e-5 for step in steps])
    used = weights > 1e-6
    np.testing.assert_allclose(slopes[used], slopes[used].mean(), atol=2e-5)
    assert (slopes[~used] > slopes[used].mean() - 2e-5).all()
