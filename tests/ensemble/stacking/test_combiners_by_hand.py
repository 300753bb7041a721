"""Each combiner against an independent computation: scipy, brute force, or a closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from ensemble.features.design_matrix import build_design
from ensemble.stacking.combiners import (
    Greedy,
    Logistic,
    LogPool,
    Mean,
    PlainMean,
    fit_logistic_regression,
    fit_scales,
)
from oof.common.errors import UserError
from oof.metrics import log_loss, softmax
from tests.fixtures.arenas import SWAP, Arena, make_arena


@pytest.fixture(scope="module")
def arena() -> Arena:
    return make_arena(400, seed=11)


def best_scale(z: np.ndarray, labels: np.ndarray) -> float:
    """Return the factor of (n, 3) logits, in 0..20, with the smallest log loss."""
    search = minimize_scalar(
        lambda w: log_loss(softmax(w * z), labels), bounds=(0, 20), method="bounded", options={"xatol": 1e-9}
    )
    return float(search.x)


def test_scales_are_those_of_a_line_search_and_never_negative(arena: Arena) -> None:
    scales = fit_scales(arena.design.pool, arena.labels)
    expected = [best_scale(arena.design.pool[:, i], arena.labels) for i in (0, 1)]
    np.testing.assert_allclose(scales, expected, atol=2e-3)
    assert fit_scales(-arena.design.pool, arena.labels) == (0.0, 0.0)
    sure = 0.01 * (np.eye(3)[arena.labels] - 1 / 3)[:, None]
    assert fit_scales(np.concatenate([sure, 20 * sure], axis=1), arena.labels) == (20.0, 20.0)


def test_the_means_are_of_logits_as_they_are_or_each_at_its_temperature(arena: Arena) -> None:
    pool = arena.design.pool
    plain = PlainMean.fit(arena.design, arena.labels).logits(arena.design)
    np.testing.assert_allclose(plain, (pool[:, 0] + pool[:, 1]) / 2)
    mean = Mean.fit(arena.design, arena.labels)
    assert mean.scales == fit_scales(pool, arena.labels)
    np.testing.assert_allclose(
        mean.logits(arena.design), (mean.scales[0] * pool[:, 0] + mean.scales[1] * pool[:, 1]) / 2
    )


def test_the_log_pool_s_ridge_is_ten_nats_divided_by_the_battles(arena: Arena) -> None:
    few, labels = arena.design.take(np.arange(60)), arena.labels[:60]

    def loss(p: np.ndarray) -> float:
        z = p[0] * few.pool[:, 0] + p[1] * few.pool[:, 1] + np.array([0, 0, p[2]])
        return log_loss(softmax(z), labels) + 10 / 60 * ((p[0] - 0.5) ** 2 + (p[1] - 0.5) ** 2)

    best = minimize(loss, [0.5, 0.5, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}).x
    pool = LogPool.fit(few, labels)
    np.testing.assert_allclose([*pool.weights, pool.tie], best, atol=1e-3)


def drawn(probs: np.ndarray) -> list[int]:
    """Return how often greedy selection draws each of m members, of (m, n) probabilities of the labels."""
    prefixes: list[tuple[float, list[int]]] = []
    chosen: list[int] = []
    for _ in range(25):
        losses = [float(-np.log(probs[[*chosen, m]].mean(axis=0)).mean()) for m in range(len(probs))]
        chosen = [*chosen, min(range(len(probs)), key=losses.__getitem__)]
        prefixes.append((min(losses), chosen))
    best = min(prefixes, key=lambda prefix: prefix[0])[1]
    return [best.count(m) for m in range(len(probs))]


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 54])  # with 54 the last draw is the best: another number would show
def test_greedy_selection_draws_the_members_that_brute_force_draws(seed: int) -> None:
    arena = make_arena(80, seed=seed)
    rng = np.random.default_rng(seed)
    third = (arena.logits["one"] + rng.normal(0, 1, (80, 2, 3))).astype(np.float32)
    design = build_design(arena.table, {**arena.logits, "three": third})
    greedy = Greedy.fit(design, arena.labels)
    probs = softmax(design.pool * np.array(fit_scales(design.pool, arena.labels))[:, None])
    expected = drawn(probs[np.arange(80), :, arena.labels].T)
    assert list(greedy.counts) == expected
    mixed = np.einsum("nmc,m->nc", probs, np.array(expected) / sum(expected))
    np.testing.assert_allclose(softmax(greedy.logits(design)), mixed, atol=1e-12)


def test_greedy_selection_of_twins_draws_the_first_and_sure_members_have_finite_logits() -> None:
    arena = make_arena(60)
    sure = np.repeat(2e4 * (np.eye(3)[arena.labels] - 1 / 3)[:, None], 2, axis=1).astype(np.float32)
    sure[0] = -sure[0]  # once wrong, at a probability of 0
    design = build_design(arena.table, {"one": sure, "two": sure})
    greedy = Greedy((*design.members,), (1.0, 1.0), (1, 0))
    assert np.isfinite(greedy.logits(design)).all()
    assert softmax(greedy.logits(design))[0, arena.labels[0]] == pytest.approx(1e-15, rel=1.1)
    assert Greedy.fit(design, arena.labels).counts == (1, 0)


def test_the_logistic_combiner_s_score_is_the_mean_of_both_orders(arena: Arena) -> None:
    """Also of coefficients that are far from symmetric."""
    rng, design = np.random.default_rng(0), arena.design
    columns = design.columns("lengths")
    d = 6 + len(columns)
    mean, scale, coef = rng.normal(size=d), rng.uniform(0.5, 2, d), rng.normal(size=(3, d))
    features = tuple(design.names[i] for i in columns)
    rows = [tuple(map(float, values)) for values in (mean, scale, *coef)]
    ours = Logistic(("one", "two"), features, rows[0], rows[1], tuple(rows[2:]), (0.3, -0.2, 0.1))
    given, other = (
        (np.concatenate([z.reshape(400, 6), x[:, columns]], axis=1) - mean) / scale @ coef.T + [0.3, -0.2, 0.1]
        for z, x in ((design.pool, design.x), (design.pool[:, :, SWAP], design.x_swapped))
    )
    np.testing.assert_allclose(ours.logits(design), (given + other[:, SWAP]) / 2, atol=1e-12)


def test_only_columns_that_vary_by_rounding_alone_are_not_standardised(arena: Arena) -> None:
    constant, tiny, small = arena.design.columns("lengths")[:3]
    x, x_swapped = arena.design.x.astype(float), arena.design.x_swapped.astype(float)
    for matrix in (x, x_swapped):
        matrix[:, constant] = 1e6 + 1e-4 * (np.arange(400) % 2)
        matrix[:, tiny] *= 1e-10
        matrix[:, small] *= 1e-6
    both = np.concatenate([x, x_swapped])
    combiner = Logistic.fit(replace(arena.design, x=x, x_swapped=x_swapped), arena.labels)
    assert combiner.scale[6:8] == (1.0, 1.0)  # after the logits of two members
    assert combiner.scale[8] == pytest.approx(both[:, small].std(), rel=1e-6)


@pytest.mark.parametrize("absent", [0, 1, 2])
def test_two_classes_have_half_the_log_odds_each_and_the_third_its_fixed_logit(absent: int) -> None:
    rng = np.random.default_rng(absent)
    first, second = (c for c in range(3) if c != absent)
    x = rng.normal(size=(500, 2))
    labels = np.where(rng.random(500) < expit(x @ [1.0, -0.5] + 0.4), second, first)

    def loss(p: np.ndarray) -> float:  # scikit-learn's: C times the sum of losses, plus half the squared norm
        odds = x @ p[:2] + p[2]
        return float(0.5 * np.logaddexp(0, np.where(labels == second, -odds, odds)).sum() + (p[:2] ** 2).sum() / 2)

    best = minimize(loss, np.zeros(3)).x
    coef, intercept = fit_logistic_regression(x, labels, -7.0, C=0.5, tol=1e-8)
    np.testing.assert_allclose(coef[second] - coef[first], best[:2], atol=1e-3)
    np.testing.assert_allclose(intercept[second] - intercept[first], best[2], atol=1e-3)
    np.testing.assert_allclose(coef[second], -coef[first])
    assert intercept[second] == pytest.approx(-intercept[first])
    assert (coef[absent] == 0).all()
    assert intercept[absent] == -7.0


@pytest.mark.parametrize(("x", "labels", "shares"), [
    (np.zeros((8, 0)), [0, 0, 0, 0, 1, 2, 2, 2], [0.5, 0.125, 0.375]),
    (np.zeros((4, 0)), [1, 1, 1, 2], [np.exp(-20), 0.75, 0.25]),
    (np.ones((3, 2)), [2, 2, 2], [np.exp(-20), np.exp(-20), 1.0]),
])  # fmt: skip
def test_with_nothing_to_learn_the_intercepts_are_the_log_shares(
    x: np.ndarray, labels: list[int], shares: list[float]
) -> None:
    coef, intercept = fit_logistic_regression(x, np.array(labels), -20.0)
    assert coef.shape == (3, x.shape[1])
    assert not coef.any()
    np.testing.assert_allclose(intercept, np.log(shares), atol=1e-12)


def test_a_class_that_never_occurred_has_a_small_probability(arena: Arena) -> None:
    probs = softmax(Logistic.fit(arena.design, np.minimum(arena.labels, 1)).logits(arena.design))
    assert 1e-12 < probs[:, 2].min() < probs[:, 2].max() < 1e-7


def test_a_length_that_is_missing_or_not_finite_is_refused_by_name(arena: Arena) -> None:
    combiner = Logistic.fit(arena.design, arena.labels)
    name = combiner.features[1]
    column = arena.design.names.index(name)
    x = arena.design.x.copy()
    x[5, column] = np.inf
    with pytest.raises(UserError, match=f"feature '{name}': some values are not finite"):
        combiner.logits(replace(arena.design, x=x))
    names = [*arena.design.names]
    names[column] = "other"
    with pytest.raises(UserError, match=f"the feature '{name}', which these battles lack"):
        combiner.logits(replace(arena.design, names=names))


def test_the_member_with_most_broken_battles_is_named(arena: Arena) -> None:
    pool = arena.design.pool.copy()
    pool[3, 0, :] = np.nan  # all three of one battle
    pool[[3, 9], 1, 0] = np.inf
    with pytest.raises(
        UserError, match=r"^2 battles have logits that are not finite, most of them of the member 'two'"
    ):
        PlainMean.fit(replace(arena.design, pool=pool), arena.labels)
