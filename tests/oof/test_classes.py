"""Pinned ties: logits of two classes give the two-class probabilities and loss, and a tie the probability 0."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.special import expit
from sklearn import metrics as sk

from oof import metrics
from oof.classes import pinned_as, swap_classes, with_tie, without_ties

pairs = hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(2)), elements=st.floats(-30, 30))


@settings(max_examples=100)
@given(logits=pairs, seed=st.integers(0, 99), temperature=st.sampled_from([0.02, 1.0, 50.0]))
def test_the_loss_with_a_pinned_tie_is_the_two_class_loss(
    logits: NDArray[np.float64], seed: int, temperature: float
) -> None:
    labels = np.random.default_rng(seed).integers(0, 2, len(logits))
    probs = metrics.softmax(with_tie(logits) / temperature)
    p_a = expit((logits[:, 0] - logits[:, 1]) / temperature)
    assert probs[:, 2].max() < 1e-12
    assert probs[:, 0] == pytest.approx(p_a, abs=1e-12)
    two = np.stack([p_a, expit((logits[:, 1] - logits[:, 0]) / temperature)], axis=1)
    two = np.maximum(two, metrics.CLIP)
    expected = sk.log_loss(labels, two / two.sum(axis=1, keepdims=True), labels=[0, 1])
    assert metrics.log_loss(probs, labels) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=50)
@given(logits=pairs)
def test_at_temperature_one_a_pinned_tie_has_no_probability_at_all(logits: NDArray[np.float64]) -> None:
    assert (metrics.softmax(with_tie(logits))[:, 2] == 0).all()
    assert (metrics.softmax(with_tie(logits.astype(np.float32)))[:, 2] == 0).all()


@settings(max_examples=50)
@given(logits=pairs)
def test_pinning_and_swapping_commute_and_three_classes_stay(logits: NDArray[np.float64]) -> None:
    pinned = with_tie(logits)
    np.testing.assert_array_equal(with_tie(swap_classes(logits)), swap_classes(pinned))
    assert with_tie(pinned) is pinned
    assert without_ties(pinned)
    np.testing.assert_array_equal(pinned_as(pinned, pinned * [2.0, 2.0, 0.0]), with_tie(2 * logits))
    np.testing.assert_array_equal(pinned_as(np.zeros((1, 3)), pinned), pinned)
    assert not without_ties(np.concatenate([pinned, [[1.0, 2.0, -30.0]]]))  # a confident model of three classes
