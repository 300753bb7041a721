"""Log-linear pool: the two fits agree, and the weights follow the members' scales."""

from __future__ import annotations

import numpy as np

from ensemble.stacking.combiners import LogPool, Mean
from ensemble.stacking.log_pool import fit_free_pool, fit_ridge_pool, pool_losses
from oof.metrics import log_loss, softmax
from tests.fixtures.arenas import make_arena


def test_the_log_pool_finds_unequal_weights() -> None:
    arena = make_arena(4000, seed=1)
    pool = LogPool.fit(arena.design, arena.labels)
    assert pool.weights[0] > 1.3 * pool.weights[1] > 0  # member two is twice too sure of itself
    assert log_loss(softmax(pool.logits(arena.design)), arena.labels) < log_loss(
        softmax(Mean().logits(arena.design)), arena.labels
    )


def test_exact_slopes_and_finite_differences_find_the_same_optimum() -> None:
    arena = make_arena(1000, seed=2)
    pool, labels = arena.design.pool, arena.labels
    free, ridge = fit_free_pool(pool, labels), fit_ridge_pool(pool, labels, ridge=0.0)
    np.testing.assert_allclose(free, ridge, atol=2e-3)
    losses = [pool_losses(pool, labels, parameters).mean() for parameters in (free, ridge)]
    assert abs(losses[0] - losses[1]) < 1e-7


def test_without_a_tie_term_the_weights_alone_are_fitted() -> None:
    arena = make_arena(1000, seed=2)
    pool, labels = arena.design.pool[:, [1]], arena.labels
    weight, tie = fit_free_pool(pool, labels, tie=False)
    assert tie == 0
    grid = [pool_losses(pool, labels, np.array([w, 0.0])).mean() for w in np.linspace(weight - 0.1, weight + 0.1, 21)]
    assert np.argmin(grid) == 10
