"""Fit of a calibrator's blocks against the same function written differently, minimised without slopes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from ensemble.stacking.calibration_fit import (
    BIAS_BOUND,
    LOG_SCALE_BOUND,
    LOG_T_BOUND,
    POSITION,
    POSITION_BIAS,
    TEMPERATURE,
    TEMPERATURE_AND_TIE,
    InSampleError,
    _minimise,
    best_log_temperature,
    derivatives,
    finite_logits,
    fit_blocks,
)
from ensemble.statistics.shrinkage import CAUTION
from oof.classes import with_tie
from oof.common.errors import UserError
from oof.metrics import log_softmax

Floats = NDArray[np.float64]
ALL = [0, 1, 2, 3, 4]


def probabilities(parameters: Floats, logits: Floats) -> Floats:
    """Return (n, 3): powers of the classes' probabilities times weights, then divided by their sum."""
    log_t, log_s, b, c, log_r = parameters
    a, other, tie = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).T
    t = np.exp(log_t)
    raw = [
        a ** (np.exp(log_r) / t) * np.exp(c),
        other ** (np.exp(-log_r) / t) * np.exp(-c),
        tie ** (np.exp(log_s) / t) * np.exp(b),
    ]
    return np.stack(raw, axis=1) / sum(raw)[:, None]


def row_losses(parameters: Floats, logits: Floats, labels: NDArray[np.int64]) -> Floats:
    return -np.log(probabilities(parameters, logits)[np.arange(len(labels)), labels])


def drawn(
    parameters: list[float], groups: NDArray[np.int64], seed: int, spread: float = 0.0
) -> tuple[Floats, NDArray[np.int64]]:
    """Return logits, and labels drawn with these parameters; each group favours classes of its own by ``spread``."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (len(groups), 3))
    favours = rng.normal(0, spread, (groups.max() + 1, 3))[groups]
    probs = probabilities(np.array(parameters), logits) * np.exp(favours)
    probs /= probs.sum(axis=1, keepdims=True)
    return logits, (rng.random(len(groups))[:, None] > probs.cumsum(axis=1)[:, :2]).sum(axis=1)


def numerical_scores(parameters: Floats, block: list[int], logits: Floats, labels: NDArray[np.int64]) -> Floats:
    """Return (n, p) central differences of the rows' losses."""
    steps = np.eye(5)[block] * 1e-5
    both = [[row_losses(parameters + sign * step, logits, labels) for sign in (1, -1)] for step in steps]
    return np.stack([(up - down) / 2e-5 for up, down in both], axis=1)


@pytest.mark.parametrize("parameters", [[0.0] * 5, [0.4, -0.3, 0.2, 0.1, 0.3], [-0.7, 0.5, -1.0, -0.4, -0.2]])
@pytest.mark.parametrize("block", [[0], [0, 1, 2], [3, 4], ALL])
def test_derivatives_equal_differences_and_the_information_their_expected_products(
    parameters: list[float], block: list[int]
) -> None:
    logits, labels = drawn(parameters, np.arange(40), seed=0)
    at = np.array(parameters)
    scores, information = derivatives(at, block, log_softmax(logits), labels)
    np.testing.assert_allclose(scores, numerical_scores(at, block, logits, labels), atol=1e-8)
    expected, probs = np.zeros((len(block), len(block))), probabilities(at, logits)
    for label in range(3):
        slopes = numerical_scores(at, block, logits, np.full(40, label))
        expected += (slopes * probs[:, [label]]).T @ slopes
    np.testing.assert_allclose(information, expected, atol=1e-6)


def by_hand(logits: Floats, labels: NDArray[np.int64], groups: NDArray[np.int64]) -> tuple[Floats, list[float]]:
    """Return the parameters and each block's shrinkage factor: no slopes, sums in loops."""
    at, factors = np.zeros(5), []
    g = len(groups) ** 2 / sum((groups == group).sum() ** 2 for group in np.unique(groups))
    for block in ([0], [0, 1, 2], [3, 4]):
        p, fitted = len(block), at.copy()

        def loss(values: Floats, block: list[int] = block, start: Floats = at) -> float:
            trial = start.copy()
            trial[block] = values
            return float(row_losses(trial, logits, labels).sum())

        tight = {"xatol": 1e-9, "fatol": 1e-10, "maxiter": 4000}
        fitted[block] = minimize(loss, at[block], method="Nelder-Mead", options={**tight}).x
        scores = numerical_scores(fitted, block, logits, labels)
        _, information = derivatives(fitted, block, log_softmax(logits), labels)
        variation = np.zeros((p, p))
        for group in np.unique(groups):
            total = scores[groups == group].sum(axis=0)
            variation += np.outer(total, total) * g / (g - 1)
        effect = max(1.0, float(np.trace(np.linalg.solve(information, variation))) / p)
        f = 2 * (loss(at[block]) - loss(fitted[block])) / p / effect
        factors.append(max(0.0, 1 - (min(p, 2) + CAUTION * p / (g - p)) / f))
        at = at + factors[-1] * (fitted - at)
    return at, factors


@pytest.mark.parametrize("seed", [3, 5])
def test_blocks_are_fitted_and_shrunk_as_by_hand(seed: int) -> None:
    groups = np.random.default_rng(seed).integers(90, size=1500) ** 2 // 90  # of very unequal sizes
    logits, labels = drawn([0.3, -0.4, 0.3, 0.2, -0.15], groups, seed, spread=0.4)
    expected, factors = by_hand(logits, labels, groups)
    assert all(0.5 < factor < 0.99 for factor in factors)
    blocks = [TEMPERATURE, TEMPERATURE_AND_TIE, POSITION]
    np.testing.assert_allclose(fit_blocks(logits, labels, groups, blocks), expected, atol=1e-5)


@pytest.mark.parametrize("block", [[0, 1, 2], [3], [3, 4]])
def test_a_block_is_fitted_to_the_last_digits(block: list[int]) -> None:
    logits, labels = drawn([0.5, -0.2, 0.1, 0.2, 0.1], np.arange(500), seed=0)
    start = np.array([0.4, 0.0, 0.0, 0.0, 0.0])
    fitted = start.copy()
    fitted[block] = _minimise(start, block, log_softmax(logits), labels)
    scores, _ = derivatives(fitted, block, log_softmax(logits), labels)
    assert np.abs(scores.mean(axis=0)).max() < 1e-8


def test_a_block_that_is_not_asked_for_stays_at_the_identity() -> None:
    logits, labels = drawn([0.5, 0.0, 0.0, 0.4, 0.3], np.arange(2000), seed=0)
    fitted = fit_blocks(logits, labels, np.arange(2000), [TEMPERATURE, POSITION_BIAS])
    assert (fitted[[1, 2, 4]] == 0).all()
    assert abs(fitted[[0, 3]]).min() > 0.1


@pytest.mark.parametrize("last_class", [2, 1])
def test_a_temperature_is_the_minimum_of_the_loss_between_its_bounds(last_class: int) -> None:
    """Also where no battle ended in a tie, of which the logits know."""
    logits, labels = drawn([0.8, 0, 0, 0, 0], np.arange(300), seed=3)
    logits, labels = logits[labels <= last_class], labels[labels <= last_class]
    grid = np.linspace(-LOG_T_BOUND, LOG_T_BOUND, 20_001)
    losses = [row_losses(np.array([log_t, 0, 0, 0, 0]), logits, labels).sum() for log_t in grid[::20]]
    best = best_log_temperature(logits, labels)
    assert abs(best - grid[::20][np.argmin(losses)]) <= grid[20] - grid[0]
    around = [row_losses(np.array([best + step, 0, 0, 0, 0]), logits, labels).sum() for step in (-1e-3, 0, 1e-3)]
    assert around[1] < min(around[0], around[2])
    for log_t in (-3.9, LOG_T_BOUND - 1e-5):
        scaled = np.exp(log_t - best) * logits
        assert best_log_temperature(scaled, labels) == pytest.approx(log_t, abs=1e-9)
    assert best_log_temperature(60 * np.exp(-best) * logits, labels) == LOG_T_BOUND


def test_logits_without_information_keep_the_temperature_and_worthless_ones_are_flattened(
    caplog: pytest.LogCaptureFixture,
) -> None:
    labels = np.arange(600) % 3
    assert best_log_temperature(np.ones((600, 3)), labels) == 0
    alike = with_tie(np.zeros((600, 2)))  # knows no tie, and A and B alike
    assert best_log_temperature(alike[labels < 2], labels[labels < 2]) == 0
    assert best_log_temperature(alike, labels) == LOG_T_BOUND
    rng = np.random.default_rng(0)
    opposite = rng.normal(size=(600, 3)) - 4 * np.eye(3)[labels]  # the label's logit is the smallest
    assert best_log_temperature(opposite, labels) == LOG_T_BOUND
    with caplog.at_level(logging.WARNING):
        few = fit_blocks(opposite[:3], labels[:3], np.arange(3), [TEMPERATURE])
        assert (few == 0).all()
        assert not caplog.records  # three battles are no evidence
        fitted = fit_blocks(opposite, labels, np.arange(600), [TEMPERATURE])
    assert 0.99 * LOG_T_BOUND < fitted[0] < LOG_T_BOUND
    assert "say nothing about the labels" in caplog.text


@pytest.mark.parametrize("size", [0.01, 1.0, 1e4])
def test_separable_logits_are_in_sample_at_any_scale(size: float) -> None:
    labels = np.arange(30) % 3
    with pytest.raises(InSampleError, match=r"lower bound \(0.02\)"):
        best_log_temperature(np.eye(3)[labels] * size, labels)


def test_parameters_stay_within_their_bounds() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4000, 3)), np.zeros(4000, dtype=int)  # the first always wins
    labels[:5] = [1, 1, 1, 2, 2]
    for blocks in ([TEMPERATURE, POSITION_BIAS], [TEMPERATURE, TEMPERATURE_AND_TIE, POSITION]):
        log_t, log_s, b, c, log_r = np.abs(fit_blocks(logits, labels, np.arange(4000), blocks))
        assert log_t <= LOG_T_BOUND
        assert max(log_s, log_r) <= LOG_SCALE_BOUND
        assert max(b, c) <= BIAS_BOUND


def test_a_pinned_tie_keeps_its_scale_and_bias_without_a_warning_and_the_position_is_fitted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 2))
    labels = (rng.random(3000) > 1 / (1 + np.exp((logits[:, 1] - logits[:, 0]) / 2 - 0.8))).astype(int)
    for tied in (with_tie(logits), np.column_stack([logits, np.full(3000, -30.0)])):
        with caplog.at_level(logging.WARNING):
            fitted = fit_blocks(tied, labels, np.arange(3000), [TEMPERATURE, TEMPERATURE_AND_TIE, POSITION_BIAS])
        assert (fitted[1:3] == 0).all()
        assert np.exp(fitted[0]) == pytest.approx(2, rel=0.15)
        assert fitted[3] == pytest.approx(0.4, abs=0.05)
        assert not caplog.records
    labels[0] = 2  # a tie, although no logits know any
    assert np.isfinite(fit_blocks(tied, labels, np.arange(3000), [TEMPERATURE, TEMPERATURE_AND_TIE])).all()


def test_an_absent_class_and_one_battle_are_accepted() -> None:
    logits, labels = drawn([0.0] * 5, np.arange(30), seed=0)
    blocks = [TEMPERATURE, TEMPERATURE_AND_TIE, POSITION]
    for absent in range(3):
        kept = labels != absent
        assert np.isfinite(fit_blocks(logits[kept], labels[kept], np.arange(kept.sum()), blocks)).all()
    wrong = np.array([[0.0, 1.0, 0.5]])
    assert (fit_blocks(wrong, np.array([0]), np.array([0]), blocks) == 0).all()


def test_logits_are_float64_and_refused_where_they_are_not_finite() -> None:
    logits, labels = drawn([0.0] * 5, np.arange(30), seed=0)
    assert finite_logits(logits.astype(np.float32)).dtype == np.float64
    logits[[2, 5], 1] = np.nan, np.inf
    with pytest.raises(UserError, match="2 rows"):
        fit_blocks(logits, labels, np.arange(30), [TEMPERATURE])
