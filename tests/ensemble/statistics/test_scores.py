"""Scores against scikit-learn and brute force."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn import metrics as sk

from ensemble.statistics.scores import row_scores, scores, tie_recall, top_label_ece
from oof.metrics import log_loss, softmax

logit_rows = hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(3)), elements=st.floats(-30, 30))


def predictions(n: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return n calibrated probabilities and labels drawn from them."""
    rng = np.random.default_rng(seed)
    probs = softmax(rng.normal(size=(n, 3)))
    return probs, (rng.random((n, 1)) > probs.cumsum(axis=1)).sum(axis=1).clip(0, 2)


@settings(max_examples=100)
@given(logits=logit_rows, seed=st.integers(0, 99))
def test_accuracy_and_brier_equal_scikit_learn(logits: NDArray[np.float64], seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, len(logits))
    probs = softmax(logits)
    clipped = np.maximum(probs, 1e-15)
    clipped /= clipped.sum(axis=1, keepdims=True)
    result = scores(probs, labels)
    assert result["log_loss"] == log_loss(probs, labels)
    assert result["brier"] == pytest.approx(
        sk.brier_score_loss(labels, clipped, labels=[0, 1, 2], scale_by_half=False), abs=1e-9
    )
    if (np.sort(probs)[:, 2] > np.sort(probs)[:, 1]).all():
        assert result["accuracy"] == pytest.approx(sk.accuracy_score(labels, probs.argmax(axis=1)))


def test_tie_recall_equals_scikit_learn() -> None:
    probs, labels = predictions(300)
    expected = sk.recall_score(labels, probs.argmax(axis=1), labels=[2], average=None)[0]
    assert tie_recall(probs, labels) == pytest.approx(expected)
    assert tie_recall(probs[:2], np.array([0, 1])) is None


def test_shared_maximum_counts_in_parts() -> None:
    assert row_scores(np.array([[0.4, 0.4, 0.2]]), np.array([1]))["accuracy"] == 0.5
    assert row_scores(np.full((1, 3), 1 / 3), np.array([2]))["accuracy"] == pytest.approx(1 / 3)


def test_calibration_error_by_brute_force() -> None:
    probs, labels = predictions(307)
    top = probs.max(axis=1)
    hit = probs.argmax(axis=1) == labels
    order = np.argsort(top)
    expected = bias = 0.0
    for b in range(15):
        rows = [i for place, i in enumerate(order) if place * 15 // 307 == b]
        expected += abs(hit[rows].mean() - top[rows].mean()) * len(rows) / 307
        bias += np.sqrt(2 / np.pi * (top[rows] * (1 - top[rows])).sum()) / 307
    assert top_label_ece(probs, labels) == pytest.approx({"ece": expected, "bias": bias})


def test_stated_bias_is_the_calibration_error_of_calibrated_predictions() -> None:
    result = [top_label_ece(*predictions(1500, seed)) for seed in range(60)]
    ece, bias = (np.mean([one[key] for one in result]) for key in ("ece", "bias"))
    assert ece == pytest.approx(bias, rel=0.07)


def test_overconfidence_shows_far_above_the_bias() -> None:
    probs, labels = predictions(3000)
    sharp = softmax(2 * np.log(probs))
    result = top_label_ece(sharp, labels)
    assert result["ece"] > 5 * result["bias"]


def test_calibration_error_does_not_depend_on_row_order_even_with_equal_confidences() -> None:
    rng = np.random.default_rng(0)
    probs = np.array([[0.6, 0.3, 0.1], [0.5, 0.25, 0.25]])[rng.integers(0, 2, 200)]
    labels = rng.integers(0, 3, 200)
    shuffle = rng.permutation(200)
    assert top_label_ece(probs, labels) == pytest.approx(top_label_ece(probs[shuffle], labels[shuffle]))


def test_scores_are_plain_json() -> None:
    result = scores(*predictions(50))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
