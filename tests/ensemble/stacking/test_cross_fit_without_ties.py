"""Stage two on models of two classes: a tie has no probability anywhere; fits and losses are those of two classes."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from ensemble.features.design_matrix import Design, design_of
from ensemble.stacking.baselines import prior_probs
from ensemble.stacking.calibration import CALIBRATORS, Calibrator
from ensemble.stacking.combiners import COMBINERS
from ensemble.stacking.cross_fit import cross_fit
from ensemble.stacking.log_pool import fit_pool, pool_logits
from ensemble.stacking.stack_result import StackResult
from ensemble.statistics.scores import scores
from oof.classes import swap_orders, with_tie, without_ties
from oof.config import Stack
from oof.metrics import softmax
from tests.fixtures.temperatures import fit_temperature

N = 300


def two_class_logits(
    seed: int, strengths: tuple[float, ...]
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """Return (N, 2, 3) logits of members that read the advantage of A with these strengths, and the labels."""
    rng = np.random.default_rng(seed)
    advantage = rng.normal(size=N)
    labels = (rng.random(N) > expit(2 * advantage)).astype(np.int64)
    logits = {}
    for i, strength in enumerate(strengths):
        margins = strength * advantage[:, None] + rng.normal(size=(N, 2))
        logits[f"m{i}"] = with_tie(np.stack([margins, -margins], axis=2).astype(np.float32) / 2)
    return logits, labels


def design(logits: dict[str, NDArray[np.float32]]) -> Design:
    return design_of([f"b{i}" for i in range(N)], pl.DataFrame(), {}, logits)


@pytest.fixture(scope="module", params=[(2.0, 1.0), (0.0, 0.0)], ids=["informed", "useless"])
def stacked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StackResult, Design, NDArray[np.int64]]:
    logits, labels = two_class_logits(0, request.param)
    battles, folds = design(logits), np.arange(N) % 3
    settings = Stack(trials=2, rounds=20, calibrator="vector")
    result = cross_fit(battles, labels, folds, np.arange(N), settings, 0, tmp_path_factory.mktemp("studies"))
    result.save(tmp_path_factory.getbasetemp() / request.node.name)
    return StackResult.load(tmp_path_factory.getbasetemp() / request.node.name), battles, labels, result.predictions


def test_no_predictor_gives_a_tie_any_probability_and_losses_are_those_of_two_classes(stacked) -> None:
    result, battles, labels, predictions = stacked
    predictions = {**predictions, "final": result.predict(battles)}
    assert {"prior", "calibrated", "teacher", "combiner:logistic", "combiner:greedy"} <= predictions.keys()
    for name, probs in predictions.items():
        assert np.isfinite(probs).all(), name
        assert probs[:, 2].max() < 1e-12, name
        two = probs[:, :2] / probs[:, :2].sum(axis=1, keepdims=True)
        assert scores(probs, labels)["log_loss"] == pytest.approx(sk.log_loss(labels, two), abs=1e-9), name
    assert scores(predictions["calibrated"], labels)["log_loss"] < np.log(2) + 0.01


@pytest.mark.parametrize("kind", COMBINERS)
@pytest.mark.parametrize("strengths", [(2.0, 1.0), (0.0, 0.0), (-2.0, 0.5)])
def test_every_combiner_pins_the_tie_and_swaps_exactly(kind: str, strengths: tuple[float, ...]) -> None:
    logits, labels = two_class_logits(1, strengths)
    fitted = COMBINERS[kind].fit(design(logits), labels)
    pooled = fitted.logits(design(logits))
    np.testing.assert_array_equal(pooled, with_tie(pooled[:, :2]))
    swapped = fitted.logits(design({name: swap_orders(values) for name, values in logits.items()}))
    np.testing.assert_allclose(swapped, pooled[:, [1, 0, 2]], atol=1e-12)
    loss = sk.log_loss(labels, softmax(pooled)[:, :2])
    assert kind == "plain_mean" or loss < np.log(2) + 0.005  # what is fitted is not worse than a coin on its own rows


@pytest.mark.parametrize("strengths", [(2.0, 1.0), (0.0, 0.0), (-2.0, 0.5)])
def test_the_log_pool_is_the_logistic_regression_on_margins(strengths: tuple[float, ...]) -> None:
    logits, labels = two_class_logits(2, strengths)
    pool = design(logits).pool
    *weights, tie = fit_pool(pool, labels)
    oracle = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(
        pool[:, :, 0] - pool[:, :, 1], labels == 0
    )
    np.testing.assert_allclose(weights, oracle.coef_[0], atol=2e-4)
    assert tie == 0
    assert without_ties(pool_logits(pool, np.zeros(2), 50.0))


def test_the_temperature_is_the_inverse_slope_of_the_margins() -> None:
    logits, labels = two_class_logits(3, (3.0,))
    mean = logits["m0"].mean(axis=1)
    oracle = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(mean[:, :1] - mean[:, 1:2], labels == 0)
    assert fit_temperature(mean, labels) == pytest.approx(1 / oracle.coef_[0, 0], rel=1e-4)
    assert fit_temperature(with_tie(np.zeros((N, 2))), labels) == 1  # a coin says nothing


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_calibrators_leave_the_tie_pinned(kind: str) -> None:
    logits, labels = two_class_logits(4, (3.0,))
    mean = logits["m0"].astype(np.float64).mean(axis=1)
    fitted = CALIBRATORS[kind](mean, labels, np.arange(N))
    assert (fitted.tie_scale, fitted.tie_bias) == (1.0, 0.0)
    calibrated = fitted.calibrated(mean)
    np.testing.assert_array_equal(calibrated, with_tie(calibrated[:, :2]))
    assert Calibrator(temperature=50.0, without_ties=True).apply(mean)[:, 2].max() < 1e-12


def test_the_prior_without_ties_is_smoothed_over_two_classes() -> None:
    np.testing.assert_allclose(prior_probs(np.array([0, 0, 1]), 2, ties=False), [[0.6, 0.4, 0.0]] * 2)


def test_one_member_of_three_classes_keeps_the_tie() -> None:
    logits, _ = two_class_logits(5, (2.0, 1.0))
    assert not design(logits).ties
    logits["m1"][..., 2] = -4.0
    assert design(logits).ties
