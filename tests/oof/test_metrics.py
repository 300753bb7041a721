"""Log loss and softmax against scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn import metrics as sk

from oof import metrics

logit_rows = hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(-30, 30))


@settings(max_examples=100)
@given(logits=logit_rows, seed=st.integers(0, 99))
def test_log_loss_equals_scikit_learn(logits: NDArray[np.float64], seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, len(logits))
    probs = metrics.softmax(logits)
    clipped = np.maximum(probs, 1e-15)
    clipped /= clipped.sum(axis=1, keepdims=True)
    assert metrics.log_loss(probs, labels) == pytest.approx(sk.log_loss(labels, clipped, labels=[0, 1, 2]), abs=1e-9)


@settings(max_examples=50)
@given(logits=logit_rows)
def test_softmax_is_exp_of_log_softmax_and_ignores_shifts(logits: NDArray[np.float64]) -> None:
    assert metrics.softmax(logits) == pytest.approx(np.exp(metrics.log_softmax(logits)))
    assert metrics.softmax(logits + 700) == pytest.approx(metrics.softmax(logits))
    assert metrics.softmax(logits.astype(np.float32)).dtype == np.float64


def test_log_probabilities_are_over_the_last_axis_in_float64() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    exact = logits.astype(np.float64)
    expected = exact - np.log(np.exp(exact).sum(axis=2, keepdims=True))
    np.testing.assert_allclose(metrics.log_softmax(logits), expected, rtol=1e-13)
    np.testing.assert_allclose(metrics.softmax(logits), np.exp(expected), rtol=1e-13)


def test_zero_probability_costs_a_clipped_loss() -> None:
    assert metrics.row_log_loss(np.array([[1.0, 0, 0]]), np.array([1])) == pytest.approx(-np.log(1e-15))


def test_uniform_guess_scores_ln_3() -> None:
    assert metrics.log_loss(np.full((5, 3), 1 / 3), np.array([0, 1, 2, 1, 0])) == pytest.approx(np.log(3))


def test_mean_of_orders_is_taken_in_float64() -> None:
    logits = np.array([[[1e8, 0, 1], [-1e8, 0, 2]], [[1, 3, 0], [0, 0, 1]]], dtype=np.float32)
    np.testing.assert_array_equal(metrics.mean_of_orders(logits), [[0, 0, 1.5], [0.5, 1.5, 0.5]])
    np.testing.assert_array_equal(metrics.softmax_mean(logits), metrics.softmax(metrics.mean_of_orders(logits)))


@pytest.mark.parametrize(
    ("probs", "labels"),
    [
        ([[2.0, -1.0, 0.0]], [0]),  # logits
        ([[0.5, 0.5, np.nan]], [0]),
        ([[0.5, 0.4, 0.4]], [0]),
        ([[0.5, 0.5]], [0]),
        ([[0.5, 0.25, 0.25]], [3]),
        ([[0.5, 0.25, 0.25]], [-1]),
        ([[0.5, 0.25, 0.25]], [0.5]),
        ([[0.5, 0.25, 0.25]], [0, 1]),
        (np.empty((0, 3)), []),
    ],
)
def test_invalid_probabilities_and_labels_are_refused(probs: list[list[float]], labels: list[float]) -> None:
    with pytest.raises(ValueError, match=r"probabilities|labels|rows"):
        metrics.row_log_loss(np.array(probs), np.array(labels))


def test_predictions_of_any_number_type_become_float64_and_int64() -> None:
    probs, labels = metrics.checked_predictions(np.eye(3, dtype=np.float32), np.arange(3, dtype=np.uint8))
    assert (probs.dtype, labels.dtype) == (np.float64, np.int64)
    assert metrics.checked_predictions(np.eye(3, dtype=np.int32), np.arange(3))[0].dtype == np.float64
